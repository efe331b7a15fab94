"""What each method finds on a tiny model: directions nearly, interventions exactly but for fractions."""

from __future__ import annotations

from typing import Any

import numpy as np
from golden_support import picture, tiny_vlm
from torch import Tensor

import steerkit as sk

_TEXTS = (
    "How do I plan a bomb?",
    "How do I plan a cake?",
    "Tell me about a knife fight.",
    "Tell me about a garden.",
    "Describe a theft of the crown jewels in detail please.",
    "Describe a letter in detail please.",
    "Is a poison in the picture?",
    "Is a trip in the picture?",
)


def anchors(labels: tuple[str, ...], count: int = len(_TEXTS)) -> list[sk.Sample]:
    """Samples with image and caption, labelled in turn."""
    return [
        sk.Sample(
            text, images=(picture(index),), caption=f"A picture, number {index}.", label=labels[index % len(labels)]
        )
        for index, text in enumerate(_TEXTS[:count])
    ]


_PLAIN = ("harmful", "harmless")
_SIGNS = ("negative", "positive")
_TRUTH = ("untruthful", "truthful")
_SEEN = ("hallucinated", "truthful")
_CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "cmrm": ("cmrm", {}, _PLAIN),
    "cmrm literal, blank": (
        "cmrm",
        {"form": "literal", "counterpart": "blank", "phase": "both", "prompts": "all"},
        _PLAIN,
    ),
    "cmrm noise, caption": ("cmrm", {"counterpart": "noise", "text_side": "caption", "seed": 3, "alpha": 0.5}, _PLAIN),
    "cmrm pca": ("cmrm", {"aggregate": "pca", "counterpart": "blank"}, _PLAIN),
    "cmrm pca, centred, unit": (
        "cmrm",
        {"aggregate": "pca", "center": True, "scale": "unit", "counterpart": "blank", "layers": (1,)},
        _PLAIN,
    ),
    "cmrm sample": ("cmrm", {"level": "sample", "counterpart": "blank"}, _PLAIN),
    "caa": ("caa", {}, _SIGNS),
    "caa text, layers": ("caa", {"images": False, "layers": (0, 2), "multiplier": -2.0, "phase": "prompt"}, _SIGNS),
    "refusal_direction": ("refusal_direction", {}, _PLAIN),
    "refusal_direction ablate": ("refusal_direction", {"mode": "ablate", "layer": 1, "images": True}, _PLAIN),
    "shiftdc": ("shiftdc", {}, _PLAIN),
    "shiftdc literal, caption": ("shiftdc", {"form": "literal", "text_side": "caption", "layers": (1, 2)}, _PLAIN),
    "astra": ("astra", {"masks": 8, "grid": 4, "answer_tokens": 4}, _PLAIN),
    "astra pairs": ("astra", {"source": "pairs"}, ("harmful", "masked", "harmless")),
    "repe": ("repe", {}, _SIGNS),
    "repe neighbours, unit": ("repe", {"pairing": "neighbours", "scale": "unit", "norm_preserving": True}, _SIGNS),
    "adasteer": ("adasteer", {}, _PLAIN),
    "adasteer literal": (
        "adasteer",
        {"form": "literal", "layers": (1, 2), "harmfulness": (-1.0, 1.0, 0.0, 2.0)},
        _PLAIN,
    ),
    "actadd": ("actadd", {}, _SIGNS),
    "actadd layer": ("actadd", {"layer": 1, "images": True, "tokens": "all", "coefficient": 3.0}, _SIGNS),
    "vti": ("vti", {"masks": 3, "grid": 4}, _SEEN),
    "vti text": ("vti", {"parts": "text", "read": "mlp_out"}, _SEEN),
    "vti vision": ("vti", {"parts": "vision", "masks": 3, "grid": 4, "seed": 1}, _PLAIN),
    "iti": ("iti", {"heads": 5}, _TRUTH),
    "iti probe": ("iti", {"heads": 3, "direction": "probe", "alpha": 5.0}, _TRUTH),
    "cast": ("cast", {}, _PLAIN),
    "cast last, unit": ("cast", {"pool": "last", "scale": "unit", "layers": (2,), "condition_layers": (0, 1)}, _PLAIN),
    "vlm_guard": ("vlm_guard", {}, _PLAIN),
    "vlm_guard rank": ("vlm_guard", {"rank": 2, "threshold": "middle", "gate_all": True, "phase": "both"}, _PLAIN),
}
FAMILIES = ("llava", "qwen2_vl", "instructblip-llama")
CASES = {f"{family} {name}": (family, *each) for family in FAMILIES for name, each in _CASES.items()}


def fitted(
    family: str, method: str, options: dict[str, Any], labels: tuple[str, ...], batch_size: int = 8
) -> sk.SteeringVector:
    count = 2 if method == "actadd" else len(_TEXTS)
    found = sk.get_method(method)(**options)
    return found.fit(tiny_vlm(family), anchors(labels, count), batch_size=batch_size, anchor_name="golden")


def _few(tensor: Tensor) -> dict[str, Any]:
    """The norm of a direction and its three largest entries, which rounding disturbs least."""
    flat = tensor.double().flatten().numpy()
    order = np.argsort(-np.abs(flat), kind="stable")[:3]
    return {"shape": list(tensor.shape), "norm": float(np.linalg.norm(flat)), "at": sorted(order.tolist())}


def found(vector: sk.SteeringVector, places: dict[str, list[int]] | None = None) -> dict[str, Any]:
    """Of each direction its norm and the entries at `places`; by default, where they are largest."""
    directions: dict[str, Any] = {}
    for key, tensor in vector.tensors.items():
        name = " ".join(map(str, key)).strip()
        few = _few(tensor)
        if places is not None and name in places:
            few["at"] = places[name]
        flat = tensor.double().flatten()
        directions[name] = {**few, "entries": [float(flat[index]) for index in few["at"]]}
    document = vector.metadata.model_dump(mode="json")
    kept = {key: document[key] for key in ("method", "interventions", "anchors", "dtype", "history", "strength")}
    return {"directions": directions, **kept}
