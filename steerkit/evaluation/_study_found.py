"""What a study finds, and its tables."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from steerkit.evaluation._paired import Paired, Power
from steerkit.evaluation._states import Plane
from steerkit.evaluation._statistics import Estimate
from steerkit.evaluation._tables import as_csv, as_plain


@dataclass(frozen=True)
class Cell:
    """What one condition measured on one suite.

    Attributes:
        stage: `dev`, or `test`.
        suite: Name of the suite.
        condition: The condition.
        method: What steers; empty for nothing.
        anchors: On which anchors it was fitted.
        layers: Which layers.
        strength: At which strength.
        figures: `unsafe`, `not_safe`, `refused`, `over_refusal`, `garbled`, `utility`, `truncated` and `relative`, as
            in `Outcome`.
        cost: What dev chooses by; see `study`. NaN on test.
    """

    stage: str
    suite: str
    condition: str
    method: str
    anchors: str
    layers: str
    strength: float
    figures: dict[str, Estimate]
    cost: float = math.nan

    @property
    def label(self) -> str:
        """What stands in tables and figures of one stage and suite."""
        what = ", ".join(dict.fromkeys(filter(None, (self.method or self.condition, self.layers))))
        return f"{what} at {self.strength:g}" if self.strength else what


@dataclass(frozen=True)
class Study:
    """What `study` found; intervals are of 95 %.

    Attributes:
        plan: What was settled before anything was run.
        choice: What dev has chosen, by method: strength and layers.
        digest: Of plan and choice, written before test was read.
        cells: Every condition on dev, then on test.
        comparisons: What changed against the image alone, and against the random direction.
        powers: What so many prompts can show.
        planes: Hidden states by layer.
        notes: What has to be known before the figures: what no judge could tell, and which one is not reliable.
    """

    plan: dict[str, Any]
    choice: dict[str, Any]
    digest: str
    cells: tuple[Cell, ...]
    comparisons: tuple[Paired, ...]
    powers: tuple[Power, ...]
    planes: tuple[Plane, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values; None for what is NaN."""
        return as_plain(self)

    def tables(self) -> dict[str, str]:
        """CSV tables by name: `cells`, `comparisons`, `powers` and `distances`."""
        distances = [
            {
                "suite": each.suite,
                "layer": each.layer,
                "condition": name,
                "distance": asdict(far),
                "in_plane": asdict(each.in_plane[name]),
            }
            for each in self.planes
            for name, far in each.distances.items()
        ]
        rows = {"cells": self.cells, "comparisons": self.comparisons, "powers": self.powers}
        return {
            **{name: as_csv(list(map(asdict, found))) for name, found in rows.items()},
            "distances": as_csv(distances),
        }
