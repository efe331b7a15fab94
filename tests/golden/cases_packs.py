"""The bytes of packs that are written, and what is read from packs that were written once."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from golden_support import metadata, values
from torch import Tensor

import steerkit as sk

PACKS = Path(__file__).parent / "packs"
"""Packs as they were written once; `record.py` makes those that are missing, and changes none.

`without-prompts`: the pack of the LLaVA demo as it was before interventions named their prompts. `whole`: every field
and every kind of intervention. `bare`: nothing but what the format demands, and no digest of the document, as another
writer may leave it.
"""
STORED = ("without-prompts", "whole", "bare")
BUNDLED = ("cmrm-llava-demo", "cmrm-qwen2-5-vl-demo", "cmrm-instructblip-demo")

WIDTH, VISION_WIDTH = 24, 16
MODEL = {
    "id": "golden/model",
    "revision": "0" * 40,
    "architecture": "GoldenForConditionalGeneration",
    "model_type": "golden",
    "hidden_size": WIDTH,
    "layer_count": 4,
    "head_count": 4,
    "head_size": 6,
    "vision_hidden_size": VISION_WIDTH,
    "vision_layer_count": 2,
    "config_sha256": "1" * 64,
    "tokenizer_sha256": "2" * 64,
    "processor_sha256": "3" * 64,
}
_STORED = {"source": "stored", "name": "", "layer": None}
_OTHER = {"source": "stored", "name": "other", "layer": 1}
_CONTRASTS = [
    {"source": "contrast", "positive": "text", "negative": "blank", "form": "increments", "seed": 0},
    {"source": "contrast", "positive": "caption", "negative": "original", "form": "literal", "seed": 0},
    {"source": "contrast", "positive": "original", "negative": "noise", "form": "literal", "seed": 7},
    {"source": "contrast", "positive": "text", "negative": None, "form": "literal", "seed": 0},
]
OPERATIONS: list[dict[str, Any]] = [
    {"kind": "add", "direction": _STORED, "relative": False},
    {"kind": "add", "direction": _OTHER, "relative": True},
    *({"kind": "add", "direction": contrast, "relative": False} for contrast in _CONTRASTS),
    {"kind": "ablate", "direction": {"source": "stored", "name": "pair", "layer": None}},
    {"kind": "add_projection", "contrast": _CONTRASTS[1], "direction": _STORED},
    {"kind": "clamp", "direction": _STORED, "minimum": -0.1, "maximum": None},
    {"kind": "clamp", "direction": _STORED, "minimum": None, "maximum": 1e-3},
    {"kind": "clamp", "direction": _OTHER, "minimum": -1.5, "maximum": 2.0},
    {"kind": "scale", "direction": _STORED, "factor": 0.3},
]


def _measure(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "direction": _OTHER, **fields}


MEASURES = [
    _measure("projection"),
    _measure("cosine", reference=_STORED),
    _measure("tanh_cosine", reference=_OTHER),
    _measure("projection", layer=1),
    _measure("cosine", layer=1, pool="mean"),
    _measure("projection", layer=0, state=_CONTRASTS[3]),
]
GATES: list[dict[str, Any] | None] = [
    None,
    *(
        {"measure": measure, "threshold": 0.1 * index, "above": index % 2 == 0}
        for index, measure in enumerate(MEASURES)
    ),
]
GATES += [{"combine": combine, "gates": [GATES[1], GATES[2]]} for combine in ("any", "all")]
STRENGTHS: list[Any] = [
    1.0,
    -2.5,
    {"0": 0.5, "2": 0.1},
    {"measure": MEASURES[0], "slope": -0.5, "intercept": 0.1, "minimum": -1.0, "maximum": 2.0},
    {"measure": MEASURES[3], "slope": 1.0, "intercept": 0.0, "minimum": 0.0, "maximum": 1.0},
]
PLACES: list[dict[str, Any]] = [
    {"site": "resid_post", "tower": "language", "tokens": "last", "phase": "both", "prompts": "all"},
    {"site": "mlp_out", "tower": "language", "tokens": "all", "phase": "prompt", "prompts": "with_image"},
    {"site": "attn_out", "tower": "language", "tokens": "text", "phase": "both", "prompts": "without_image"},
    {"site": "head_out", "tower": "language", "tokens": "generated", "phase": "generation", "prompts": "all"},
    {"site": "resid_post", "tower": "language", "tokens": "image", "phase": "prompt", "prompts": "all"},
    {"site": "resid_post", "tower": "language", "tokens": "system", "phase": "both", "prompts": "all"},
    {"site": "mlp_out", "tower": "language", "tokens": "after_image", "phase": "both", "prompts": "with_image"},
]


def _interventions() -> list[dict[str, Any]]:
    """Every operation, gate, strength and place at least once."""
    made = []
    turns = zip(
        range(len(OPERATIONS)),
        itertools.cycle(GATES),
        itertools.cycle(STRENGTHS),
        itertools.cycle(PLACES),
        strict=False,
    )
    for index, gate, strength, place in turns:
        layers = "all" if index % 2 else (2, 1)
        choice = {"gate": gate, "strength": strength, "norm_preserving": index % 3 == 0}
        made.append({"operation": OPERATIONS[index], "layers": layers, **place, **choice})
    vision = {"operation": OPERATIONS[0], "site": "mlp_out", "tower": "vision", "tokens": "image", "strength": 0.9}
    return [*made, vision, {**vision, "tokens": "all", "phase": "prompt", "prompts": "with_image"}]


def _tensors(dtype: torch.dtype) -> dict[sk.Key, Tensor]:
    found: dict[sk.Key, Tensor] = {}
    for place, site in enumerate(("resid_post", "mlp_out", "attn_out", "head_out")):
        for layer in range(4):
            salt = 50 * place + 10 * layer
            found[sk.Key(layer, site)] = values(WIDTH, salt).to(dtype)
            found[sk.Key(layer, site, "other")] = values(WIDTH, salt + 1).to(dtype)
            pair = torch.stack([values(WIDTH, salt + 2), values(WIDTH, salt + 3)])
            found[sk.Key(layer, site, "pair")] = pair.to(dtype)
    for layer in range(2):
        found[sk.Key(layer, "mlp_out", "", "vision")] = values(VISION_WIDTH, 300 + layer).to(dtype)
    return found


def whole(dtype: torch.dtype = torch.float32) -> sk.SteeringVector:
    """Every kind of intervention and every field of the metadata but the fingerprint, which the bundled packs have."""
    document = metadata(
        method={
            "name": "golden",
            "config": {"alpha": 1.0, "layers": [0, 1], "text": None},
            "paper": "arXiv 2410.09047",
        },
        interventions=_interventions(),
        model=MODEL,
        anchors={
            "name": "Ängste 🎉",
            "sha256": "4" * 64,
            "size": 7,
            "license": "CC0-1.0",
            "labels": {"harmful": 3, "ä": 4},
        },
        versions={"steerkit": "0.1.0", "torch": "2.9.0"},
        strength={
            "recommended": 1.5,
            "minimum": 0.0,
            "maximum": 3.0,
            "curve": [{"strength": 0.5, "unsafe": 0.25, "cost": 0.1, "cost_kind": "kl"}],
            "chosen_by": "hand",
        },
        metrics=[{"name": "refusal", "value": 0.75, "condition": "steered", "judge": "exact", "dataset": "demo"}],
        history=["scale by 2", "select layers [0]"],
        license="CC-BY-4.0",
        authors=["Åsa", "Bo"],
        description='A "description"\nof two lines',
        created="2026-01-01T00:00:00+00:00",
    )
    return sk.SteeringVector(_tensors(dtype), document)


def simple() -> sk.SteeringVector:
    """An addition alone, for the algebra: there everything can be computed exactly."""
    document = metadata(method={"name": "golden"}, interventions=[{"operation": OPERATIONS[0]}], model=MODEL)
    return sk.SteeringVector({sk.Key(layer): values(WIDTH, layer) for layer in range(4)}, document)


def measured() -> sk.SteeringVector:
    """No direction at all."""
    document = metadata(method={"name": "golden"}, interventions=[{"operation": OPERATIONS[2]}], model=MODEL)
    return sk.SteeringVector({}, document)


def _another() -> sk.SteeringVector:
    vector = simple()
    return sk.SteeringVector({key: values(WIDTH, 20 + key.layer) for key in vector.tensors}, vector.metadata)


WRITTEN: dict[str, Callable[[], sk.SteeringVector]] = {
    "whole": whole,
    "whole in float16": lambda: whole(torch.float16),
    "whole in bfloat16": lambda: whole(torch.bfloat16),
    "whole to bfloat16": lambda: whole().to("bfloat16"),
    "whole, doubled": lambda: whole() * 2.0,
    "whole, another description": lambda: whole().with_metadata(description="Another.", license="MIT"),
    "whole, layers 1 and 2": lambda: whole().select([1, 2]),
    "simple": simple,
    "simple, negative": lambda: -simple(),
    "simple, halved": lambda: 0.5 * simple(),
    "simple, sum": lambda: simple() + _another(),
    "simple, difference": lambda: simple() - _another(),
    "simple, layer 2": lambda: simple().select([2]),
    "measured": measured,
}


def written(name: str, folder: Path) -> dict[str, Any]:
    """The digest of the saved file, of its tensors, and its size."""
    vector = WRITTEN[name]()
    data = vector.save(folder / "golden.safetensors").read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "tensors": vector.digest(), "size": len(data)}


def loaded(name: str) -> dict[str, Any]:
    """All that is read from a stored pack: the digest of the tensors, a few of their values, and the document."""
    return content(sk.SteeringVector.load(PACKS / f"{name}.safetensors"))


def content(vector: sk.SteeringVector) -> dict[str, Any]:
    document = vector.metadata.model_dump(mode="json")
    return {
        "digest": vector.digest(),
        "shapes": {" ".join(map(str, key)).strip(): list(tensor.shape) for key, tensor in vector.tensors.items()},
        "sums": [math.fsum(tensor.double().flatten().tolist()) for tensor in vector.tensors.values()],
        "document": document,
    }


def bare() -> bytes:
    """A pack by another writer."""
    tensors = {f"directions.{layer}.resid_post": values(WIDTH, layer) for layer in range(4)}
    document = {
        "format_version": 1,
        "method": {"name": "golden"},
        "interventions": [{"operation": {"kind": "add", "direction": {"source": "stored"}}}],
        "model": {"architecture": "A", "model_type": "a", "hidden_size": WIDTH, "layer_count": 4},
        "tensors_sha256": simple().digest(),
    }
    return safetensors.torch.save(tensors, metadata={"steerkit": json.dumps(document)})
