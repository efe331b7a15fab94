"""The built-in methods as they suit the toy world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerkit.evaluation import Entry
from steerkit.methods.actadd import ActAdd
from steerkit.methods.adasteer import AdaSteer
from steerkit.methods.astra import ASTRA
from steerkit.methods.caa import CAA
from steerkit.methods.cast import CAST
from steerkit.methods.cmrm import CMRM
from steerkit.methods.iti import ITI
from steerkit.methods.refusal_direction import RefusalDirection
from steerkit.methods.repe import RepE
from steerkit.methods.shiftdc import ShiftDC
from steerkit.methods.vlm_guard import VLMGuard
from steerkit.methods.vti import VTI
from steerkit.models import Sample


def entries(anchor_set: Sequence[Sample]) -> dict[str, Entry]:
    """Every built-in method as it suits the toy world, for `steerkit.compare`; labels, sizes and doses are set."""
    labels: dict[str, Any] = {"positive": "harmful", "negative": "harmless"}
    groups = {label: [s for s in anchor_set if s.label == label] for label in labels.values()}
    pairs = [sample for pair in zip(*groups.values(), strict=False) for sample in pair]
    few = [sample for group in groups.values() for sample in group[:10]]
    return {
        "cmrm": CMRM(),
        "cmrm, sample level": CMRM(level="sample"),
        "shiftdc": ShiftDC(),
        "adasteer": AdaSteer(),
        "caa": CAA(**labels),
        "repe": RepE(**labels),
        "refusal_direction": RefusalDirection(),
        "actadd": (ActAdd(**labels, images=True), [group[0] for group in groups.values()]),
        "astra": (ASTRA(grid=4, masks=32, alpha=1.0), few),
        "iti": ITI(**labels, heads=8, alpha=1.0),
        "cast": CAST(layers=(5,), pool="last"),
        "vlm_guard": VLMGuard(),
        "vti": (VTI(**labels, alpha_text=2.0, masks=2, grid=4, mask_ratio=0.5), pairs),
    }
