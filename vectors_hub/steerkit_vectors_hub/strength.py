"""What a calibration measured by strength, as series and as PNG for a model card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from steerkit._internal.text import one_line
from steerkit.vectors import StrengthPoint, StrengthRecord
from steerkit_vectors_hub.charts import COLOR, GREY, SECOND, THIRD, Axis, Canvas, Chart

_SHARES = {"over_refusal": "over-refusal", "utility_loss": "loss of utility"}
"""Costs that are shares of answers, as the unsafe rate is: they are drawn over it, in per cent."""

_UNITS = {"kl": "KL from the unsteered model, nats"}
_ONE_LAYER = re.compile(r".*, layer [0-9]+")
_COLORS = (COLOR, SECOND, THIRD)
_MOST = 3
"""Kinds of cost that are drawn; a calibration measures one."""


@dataclass(frozen=True, slots=True)
class StrengthSeries:
    """One figure by strength.

    Attributes:
        title: What was measured.
        share: Whether it is a share of answers.
        points: (strength, value), in ascending order of strength.
    """

    title: str
    share: bool
    points: tuple[tuple[float, float], ...]

    def shown(self, value: float) -> str:
        """A value as text."""
        return f"{100 * value:.3g} %" if self.share else f"{value:.3g}"


def strength_series(record: StrengthRecord) -> tuple[StrengthSeries, ...]:
    """The unsafe rate and each kind of cost, of the vector as a whole.

    Points of single layers are left out: their strengths are factors of a layer's own, and of no common scale.
    """
    whole = [point for point in record.curve if not _ONE_LAYER.fullmatch(point.cost_kind)]
    series = [StrengthSeries("unsafe rate", True, _points(whole, "unsafe"))]
    for kind in dict.fromkeys(point.cost_kind for point in whole if point.cost is not None):
        title = _SHARES.get(kind) or _UNITS.get(kind) or one_line(kind)[:60] or "cost"
        series.append(
            StrengthSeries(title, kind in _SHARES, _points([each for each in whole if each.cost_kind == kind], "cost"))
        )
    return tuple(each for each in series if each.points)[: _MOST + 1]


def _points(points: Sequence[StrengthPoint], field: str) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((each.strength, value) for each in points if (value := getattr(each, field)) is not None))


def png(series: Sequence[StrengthSeries], recommended: float) -> bytes:
    """Shares of answers in one chart, each other figure in one of its own, with the recommended strength marked."""
    shares = [each for each in series if each.share]
    charts = [*([shares] if shares else []), *([each] for each in series if not each.share)]
    canvas = Canvas(len(charts))
    x = Axis.around([recommended, *(strength for each in series for strength, _ in each.points)])
    for number, drawn in enumerate(charts):
        factor, title = (100.0, "Share of answers, %") if drawn is shares else (1.0, drawn[0].title)
        values = [value for each in drawn for _, value in each.points]
        chart = Chart(canvas, number, Axis.around(values, least=1.0 if drawn is shares else 0.0), factor)
        key = chart.frame(title, "strength") + 24
        for tick in x.ticks(10):
            canvas.text(_across(chart, x, tick), chart.bottom + 4, f"{tick:.4g}", "middle")
        marked = _across(chart, x, recommended)
        canvas.dashed(marked, chart.top, chart.bottom, GREY)
        for index, each in reversed(list(enumerate(drawn))):
            line = [(_across(chart, x, strength), chart.height(value)) for strength, value in each.points]
            canvas.line(line, _COLORS[index], 1.5)
            for point in line:
                canvas.marker(*point, _COLORS[index], square=index % 2 == 1)
        for index, each in enumerate(drawn if drawn is shares else ()):
            canvas.marker(key, chart.top - 18, _COLORS[index], square=index % 2 == 1)
            key += 10 + canvas.text(key + 10, chart.top - 24, each.title) + 20
        canvas.dashed(key, chart.top - 24, chart.top - 12, GREY)
        canvas.text(key + 10, chart.top - 24, f"recommended: {recommended:.3g}")
    return canvas.png()


def _across(chart: Chart, x: Axis, strength: float) -> float:
    """How far to the right a strength lies."""
    return chart.left + (chart.right - chart.left) * x.share(strength)
