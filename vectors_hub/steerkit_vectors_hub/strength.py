"""What a calibration measured by strength, as numbers and as charts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steerkit._text import one_line
from steerkit.vectors import StrengthPoint, StrengthRecord
from steerkit_vectors_hub.charts import Chart, Curve

_SHARES = {"over_refusal": "over-refusal", "utility_loss": "loss of utility"}
"""Costs that are shares of answers, as the unsafe rate is: they are drawn over it, in per cent."""

_UNITS = {"kl": "KL from the unsteered model, nats"}
_ONE_LAYER = re.compile(r".*, layer [0-9]+")
_MOST = 3
"""Kinds of cost that are drawn; a calibration measures one."""


def strength_curves(record: StrengthRecord) -> tuple[Curve, ...]:
    """The unsafe rate and each kind of cost by strength, of the vector as a whole.

    Points of single layers are left out: their strengths are factors of a layer's own, and of no common scale.
    """
    whole = [point for point in record.curve if not _ONE_LAYER.fullmatch(point.cost_kind)]
    curves = [Curve("unsafe rate", _points(whole, "unsafe"), share=True)]
    for kind in dict.fromkeys(point.cost_kind for point in whole if point.cost is not None):
        title = _SHARES.get(kind) or _UNITS.get(kind) or one_line(kind)[:60] or "cost"
        points = _points([each for each in whole if each.cost_kind == kind], "cost")
        curves.append(Curve(title, points, share=kind in _SHARES))
    return tuple(each for each in curves if each.points)[: _MOST + 1]


def _points(points: Sequence[StrengthPoint], field: str) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((each.strength, value) for each in points if (value := getattr(each, field)) is not None))


def charts(curves: Sequence[Curve], recommended: float) -> list[Chart]:
    """Shares of answers in one chart, each other figure in one of its own, with the recommended strength marked."""
    marked = (recommended, f"recommended: {recommended:.3g}")
    shares = tuple(each for each in curves if each.share)
    together = [Chart("Share of answers, %", "strength", (), shares, marked, 1.0, 100.0)] if shares else []
    return together + [Chart(each.title, "strength", (), (each,), marked) for each in curves if not each.share]
