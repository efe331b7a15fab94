"""What the golden tests share: the recorded data, deterministic vectors and samples, and answers of forced tokens.

The golden tests don't reach into steerkit: they use `steerkit.__all__`, the demo models and the tiny models, and write
operations as the JSON of a pack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import steerkit as sk
from steerkit.testing import tiny

DATA = Path(__file__).parent / "data"
STEPS = 3
"""Answers of the tiny models are this long, whatever the model would like to say."""


def recorded(name: str) -> Any:
    """What `record.py` wrote under this name."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, content: Mapping[str, Any]) -> None:
    """Record it: one case a line, so that a difference can be read."""
    DATA.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in sorted(content.items())]
    (DATA / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def assert_alike(found: Any, expected: Any, relative: float, where: str = "") -> None:
    """Equal in everything but fractions, which are only close: processors differ in the last bits."""
    if isinstance(expected, float) or isinstance(found, float):
        assert isinstance(expected, int | float), (where, found, expected)
        assert isinstance(found, int | float), (where, found, expected)
        assert math.isclose(found, expected, rel_tol=relative, abs_tol=1e-5), (where, found, expected)
    elif isinstance(expected, dict):
        assert isinstance(found, dict), (where, found, expected)
        assert sorted(found) == sorted(expected), where
        for key, value in expected.items():
            assert_alike(found[key], value, relative, f"{where}/{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), (where, found, expected)
        assert len(found) == len(expected), (where, found, expected)
        for index, value in enumerate(expected):
            assert_alike(found[index], value, relative, f"{where}/{index}")
    else:
        assert found == expected, (where, found, expected)


def as_json(value: Any) -> Any:
    """The value as a JSON file would give it back."""
    return json.loads(json.dumps(value))


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """An image of pixels that a formula gives."""
    y, x, channel = np.mgrid[:height, :width, :3]
    return Image.fromarray(((37 * seed + 11 * x + 7 * y * (seed + 1) + 83 * channel + x * y) % 256).astype(np.uint8))


def values(count: int, salt: int) -> Tensor:
    """`[count]`: numbers between -1 and 1 that look random and are exact in float32."""
    return (
        torch.tensor([((salt + 1) * 7919 + (n + 3) * (n + salt + 1) * 104729) % 1021 - 510 for n in range(count)]) / 512
    )


@cache
def tiny_vlm(family: str) -> sk.VLM:
    """The tiny model of a family, built once and its fingerprint taken."""
    vlm = tiny.vlm(family)
    vlm.fingerprint()  # kept from here on, so that its passes are not among those that are watched
    return vlm


@cache
def _metadata_class() -> Any:
    return type(sk.load_vector("cmrm-llava-demo").metadata)


def metadata(**fields: Any) -> Any:
    """The metadata of a pack, from the JSON of its document."""
    return _metadata_class().model_validate(fields)


def vector(
    vlm: sk.VLM, interventions: Sequence[Mapping[str, Any]], *, scale: float = 1.0, salt: int = 0, name: str = "golden"
) -> sk.SteeringVector:
    """Directions at every place that the interventions name, in every layer; `pair` holds two in each."""
    record = vlm.record
    tensors: dict[sk.Key, Tensor] = {}
    places = {(each.get("site", "resid_post"), each.get("tower", "language")) for each in interventions}
    for place, (site, tower) in enumerate(sorted(places)):
        width, layers = record.width(site, tower), record.count(tower)
        for layer in range(layers):
            seed = salt + 100 * place + 10 * layer
            tensors[sk.Key(layer, site, "", tower)] = scale * values(width, seed)
            tensors[sk.Key(layer, site, "other", tower)] = scale * values(width, seed + 1)
            pair = torch.stack([values(width, seed + 2), values(width, seed + 3)])
            tensors[sk.Key(layer, site, "pair", tower)] = scale * pair
    document = metadata(
        method={"name": name}, model=record.model_dump(), interventions=[dict(each) for each in interventions]
    )
    return sk.SteeringVector(tensors, document)


class Forced:
    """A logits processor by which every answer consists of the same tokens, whatever the model prefers."""

    def __init__(self, token: int = 70) -> None:
        self.token = token

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -1e9)
        forced[:, self.token] = 0.0
        return forced


def can_be_told(tokens: str, family: str) -> bool:
    """Whether the selection is pinned for the family.

    Adapters of plain language models don't say where the user's turn opens, so that a system turn counts as text there.
    That may get better.
    """
    return family not in tiny.TEXT_FAMILIES or tokens not in ("system", "text")


def answer(vlm: sk.VLM, samples: Sequence[sk.Sample], **options: Any) -> list[str]:
    """Answers of `STEPS` forced tokens."""
    length = {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    return vlm.generate(samples, logits_processor=[Forced()], **length, **options)


def takes_several_images(family: str) -> bool:
    """Whether a prompt of the family may hold more than one image."""
    return not family.startswith("instructblip")


def samples_of(family: str) -> list[sk.Sample]:
    """Prompts of different lengths, so that they are left padded: two with an image or two, and two without."""
    if family in tiny.TEXT_FAMILIES:
        chat = (("system", "Answer briefly."), ("user", "What is this?"))
        return [sk.Sample(chat), sk.Sample("How do I bake a cake for the neighbour?")]
    images = (picture(1), picture(2)) if takes_several_images(family) else (picture(1),)
    chat = (("system", "Answer briefly."), ("user", "Why?"))
    return [
        sk.Sample("What is this?", images=(picture(0),)),
        sk.Sample("How do I bake a cake?"),
        sk.Sample("Describe the image in detail please.", images=images),
        sk.Sample("Why?" if family.startswith("instructblip") else chat),
    ]
