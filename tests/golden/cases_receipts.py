"""What receipts say: places and counts exactly, sizes nearly."""

from __future__ import annotations

import itertools
import math
from typing import Any

from golden_support import answer, can_be_told, samples_of, tiny_vlm, vector

import steerkit as sk
from steerkit.testing import tiny

TOKENS = ("last", "all", "image", "text", "system", "after_image", "generated")
PHASES = ("prompt", "generation", "both")
PROMPTS = ("all", "with_image", "without_image")

_BLANK = {"source": "contrast", "positive": "text", "negative": "blank"}
_LITERAL = {**_BLANK, "form": "literal"}
_STATE = {"source": "contrast", "positive": "text", "negative": None, "form": "literal"}
_NOISE = {"source": "contrast", "positive": "original", "negative": "noise", "seed": 3}
_OTHER = {"name": "other"}
OPERATIONS: dict[str, dict[str, Any]] = {
    "add": {"kind": "add"},
    "add relative": {"kind": "add", "relative": True},
    "add increments": {"kind": "add", "direction": _BLANK},
    "add literal": {"kind": "add", "direction": _LITERAL},
    "ablate": {"kind": "ablate", "direction": {"name": "pair"}},
    "add_projection": {"kind": "add_projection", "contrast": _LITERAL},
    "clamp": {"kind": "clamp", "minimum": 4.0, "maximum": 5.0},
    "scale": {"kind": "scale", "factor": -1.5},
}
_OF_THE_PROMPT = ("image", "text", "system", "after_image")


def _coherent(tokens: str, phase: str, prompts: str) -> bool:
    if prompts == "without_image" and tokens in ("image", "after_image"):
        return False
    return not ((phase == "prompt" and tokens == "generated") or (phase == "generation" and tokens in _OF_THE_PROMPT))


def _projection(**fields: Any) -> dict[str, Any]:
    return {"kind": "projection", "direction": _OTHER, **fields}


def _gate(threshold: float, above: bool = True, **measure: Any) -> dict[str, Any]:
    return {"measure": {**_projection(), **measure}, "threshold": threshold, "above": above}


_COSINE, _TANH = {"kind": "cosine"}, {"kind": "tanh_cosine", "reference": {"name": "", "layer": 0}}
_ZERO = {"kind": "cosine", "direction": {"name": "other", "layer": 0}, "layer": 0}
_LINEAR = {"measure": _projection(), "slope": 0.4, "intercept": 0.1, "minimum": -0.5, "maximum": 0.5}
DOSES: dict[str, dict[str, Any]] = {
    "gate projection": {"gate": _gate(0.5)},
    "gate below": {"gate": _gate(0.5, above=False)},
    "gate cosine": {"gate": _gate(0.02, **_COSINE)},
    "gate tanh_cosine": {"gate": _gate(0.031, **_TANH)},
    "gate at a layer": {"gate": _gate(0.0, **_ZERO)},
    "gate on a mean": {"gate": _gate(0.0, **_ZERO, pool="mean")},
    "gate on a contrast": {"gate": _gate(-0.01, above=False, **_ZERO, state=_LITERAL)},
    "gate on a state": {"gate": _gate(0.0, **_ZERO, state=_STATE)},
    "any of two gates": {"gate": {"combine": "any", "gates": [_gate(0.5), _gate(0.02, **_COSINE)]}},
    "all of two gates": {"gate": {"combine": "all", "gates": [_gate(-1.0), _gate(0.5, above=False)]}},
    "gate never open": {"gate": _gate(1e6)},
    "strength": {"strength": -0.7},
    "strength by layer": {"strength": {"0": 0.5, "2": 2.0}},
    "strength linear": {"strength": _LINEAR},
    "strength linear at a layer": {"strength": {**_LINEAR, "measure": _projection(layer=0)}},
    "gate and strength linear": {"strength": _LINEAR, "gate": _gate(0.5)},
    "norm_preserving": {"norm_preserving": True},
    "layers": {"layers": (2, 0)},
    "direction of another layer": {"operation": {"kind": "add", "direction": {"source": "stored", "layer": 1}}},
    "noise": {"operation": {"kind": "add", "direction": _NOISE}, "prompts": "with_image"},
    "clamp from above": {"operation": {"kind": "clamp", "maximum": -1.0}},
    "clamp from below": {"operation": {"kind": "clamp", "minimum": 1.0}},
    "mlp_out": {"site": "mlp_out"},
    "attn_out": {"site": "attn_out"},
    "head_out": {"site": "head_out"},
    "tower, all": {"tower": "vision", "tokens": "all"},
    "tower, image": {"tower": "vision", "tokens": "image"},
    "tower, mlp_out": {"tower": "vision", "tokens": "image", "site": "mlp_out"},
    "tower, ablate": {
        "tower": "vision",
        "tokens": "all",
        "operation": {"kind": "ablate", "direction": {"name": "pair"}},
    },
}
_ADD = {"kind": "add"}
SEVERAL: dict[str, list[list[dict[str, Any]]]] = {
    "two interventions": [[{"tokens": "image"}, {"tokens": "last", "phase": "prompt"}]],
    "two vectors": [[{"tokens": "all"}], [{"tokens": "last", "site": "mlp_out"}]],
    "two vectors at a place": [[{"tokens": "all"}], [{"tokens": "last", "strength": -0.5}]],
    "two vectors for others": [[{"prompts": "with_image"}], [{"prompts": "without_image", "tokens": "text"}]],
    "a vector for images alone": [[{"prompts": "with_image"}]],
    "operations after each other": [
        [
            {"operation": OPERATIONS["ablate"], "tokens": "all"},
            {"operation": _ADD, "tokens": "all"},
            {"operation": OPERATIONS["clamp"], "tokens": "text"},
        ]
    ],
}

Case = tuple[str, list[list[dict[str, Any]]], str, bool]
"""The family, the interventions of each vector, the engine, and whether they are made orthogonal."""


def _one(**fields: Any) -> list[list[dict[str, Any]]]:
    return [[{"operation": _ADD, **fields}]]


CASES: dict[str, Case] = {}
for _name, _tokens, _phase, _prompts in itertools.product(OPERATIONS, TOKENS, PHASES, PROMPTS):
    if _coherent(_tokens, _phase, _prompts):
        _fields = _one(operation=OPERATIONS[_name], tokens=_tokens, phase=_phase, prompts=_prompts)
        CASES[f"llava {_name}, {_tokens}, {_phase}, {_prompts}"] = ("llava", _fields, "hooks", False)
for _family in (*tiny.FAMILIES, *tiny.TEXT_FAMILIES):
    for _name, _operation in OPERATIONS.items():
        _fields = _one(operation=_operation, tokens="all")
        CASES[f"{_family} {_name}, all"] = (_family, _fields, "hooks", False)
    for _tokens in (each for each in TOKENS if can_be_told(each, _family)):
        CASES[f"{_family} tokens {_tokens}"] = (_family, _one(tokens=_tokens), "hooks", False)
for _name, _dose in DOSES.items():
    for _family in ("llava", "qwen2_vl", "instructblip-llama"):
        CASES[f"{_family} {_name}"] = (_family, _one(**{"tokens": "all", **_dose}), "hooks", False)
for _name, _each in SEVERAL.items():
    CASES[f"llava {_name}"] = ("llava", _each, "hooks", False)
    CASES[f"llava {_name}, orthogonalize"] = ("llava", _each, "hooks", True)
    CASES[f"qwen2_vl {_name}, traced"] = ("qwen2_vl", _each, "nnsight", False)
for _name, _operation in OPERATIONS.items():
    CASES[f"qwen2_vl {_name}, last, traced"] = ("qwen2_vl", _one(operation=_operation), "nnsight", False)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _sites(counts: Any) -> dict[str, list[Any]]:
    return {
        f"{layer} {site}": [count.prompt_tokens, count.generated_tokens, _number(count.relative_change)]
        for (layer, site), count in counts.sites.items()
    }


def found(family: str, interventions: list[list[dict[str, Any]]], engine: Any, orthogonalize: bool) -> Any:
    """What the receipt says; or the name of the error with which it is refused."""
    vlm, samples = tiny_vlm(family), samples_of(family)
    try:
        vectors = [
            vector(vlm, each, scale=0.5, salt=1000 * index, name=f"golden{index}")
            for index, each in enumerate(interventions)
        ]
        with sk.steer(vlm, vectors, policy="off", engine=engine, orthogonalize=orthogonalize) as receipt:
            answer(vlm, samples)
    except sk.SteerKitError as error:
        return {"refused": type(error).__name__}
    return {
        "layers": receipt.layers,
        "vision_layers": receipt.vision_layers,
        "tokens": [receipt.prompt_tokens, receipt.generated_tokens, receipt.vision_tokens],
        "left_alone": receipt.left_alone,
        "empty": receipt.empty,
        "sites": _sites(receipt),
        "checks": [[check.name, check.status] for check in receipt.checks],
        "vectors": [
            {"name": each.name, "left_alone": each.left_alone, "share": _number(each.share), "sites": _sites(each)}
            for each in receipt.vectors
        ],
    }
