"""Charts, described once and drawn twice: as SVG for a page, and as PNG, with Pillow alone, for a model card."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from steerkit._text import clean

COLOR = "#1f6f8b"
SECOND = "#c4572f"
THIRD = "#6b8e23"
GREY = "#888888"
FAINT = "#dddddd"

WIDTH = 760
HEIGHT = 240
"""Pixels of one chart of a PNG."""

_FINE = 4
"""Shapes of a PNG are drawn so many times larger, and reduced, so that their edges are smooth."""

_WIDE = 6.0
"""About the width of a letter."""

_COLORS = (COLOR, SECOND, THIRD)
_Point = tuple[float, float]
_Shape = tuple[Any, ...]
"""A line, a box, a disc or a text: its kind, its numbers, and a colour, a title or where it is anchored."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at numbers, joined by lines.

    Attributes:
        title: What they are; it is written only where a chart has several.
        points: (number, value), in ascending order.
        share: Whether the values are shares, which are written in per cent.
    """

    title: str
    points: tuple[_Point, ...]
    share: bool = False

    def worded(self, value: float) -> str:
        """A value as text."""
        return f"{100 * value:.3g} %" if self.share else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Chart:
    """What one chart shows: bars, or curves.

    Attributes:
        title: What its values are.
        below: What its lower side shows.
        bars: (name, value) of each bar.
        curves: At most three.
        marked: A number of the lower side that is marked, and how.
        least: The upright scale reaches from 0 at least to here.
        unit: What values are multiplied by where they are written, such as 100 for per cent.
    """

    title: str
    below: str
    bars: tuple[tuple[str, float], ...] = ()
    curves: tuple[Curve, ...] = ()
    marked: tuple[float, str] | None = None
    least: float = 0.0
    unit: float = 1.0


@dataclass(frozen=True, slots=True)
class Axis:
    """The numbers that one side of a chart shows."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], least: float = 0.0) -> Axis:
        """One that holds all values, 0, and at least so much above it."""
        low, high = min(0.0, *values), max(least, *values)
        return cls(low, high if high > low else 1.0)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 at the low end to 1 at the high one."""
        scale = max(abs(self.low), abs(self.high))  # the difference of two numbers may be infinite
        low, high = self.low / scale, self.high / scale
        return (value / scale - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Round numbers on it, at most so many and one."""
        span = self.high - self.low
        if not 1e-290 < span < 1e290:  # of a pack's own numbers, any; there is no power of ten beside the last ones
            return [self.low, self.high]
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most + 1e-9)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def svg(chart: Chart, label: str) -> str:
    """One chart as an SVG element that a screen reader can name; the page has its colours, and its title beside it."""
    parts = []
    for kind, *given in _shapes(chart, 44, 10, 400, 110):
        if kind == "line":
            (x1, y1), (x2, y2), color, width = given
            place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            parts.append(f'<line {place} stroke="{color}" stroke-width="{width}"/>')
        elif kind == "text":
            x, y, text, anchor = given
            parts.append(f'<text x="{x:.1f}" y="{y + 10:.1f}" text-anchor="{anchor}">{_text(text)}</text>')
        else:
            left, top, right, bottom, color, title = given
            place = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
            round_ = ' rx="50%"' if kind == "disc" else ""
            parts.append(f'<rect {place}{round_} fill="{color}"><title>{_text(title)}</title></rect>')
    size = 'viewBox="0 0 400 132" width="400" height="132" font-size="11"'
    return f'<svg role="img" aria-label="{_text(label)}" {size}>{"".join(parts)}</svg>'


def png(charts: Sequence[Chart]) -> bytes:
    """Charts below each other; texts are drawn last, and so over everything."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * len(charts) * _FINE), "white")
    fine, texts = ImageDraw.Draw(image), []
    for top, chart in zip(range(0, HEIGHT * len(charts), HEIGHT), charts, strict=True):
        for kind, *given in _shapes(chart, 64, top + 34, WIDTH - 16, top + HEIGHT - 34, titled=True):
            if kind == "line":
                first, second, color, width = given
                fine.line([each * _FINE for each in (*first, *second)], fill=color, width=round(width * _FINE))
            elif kind == "text":
                texts.append(given)
            else:
                box = [each * _FINE for each in given[:4]]
                (fine.ellipse if kind == "disc" else fine.rectangle)(box, fill=given[4])
    image = image.reduce(_FINE)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for x, y, text, anchor in texts:
        back = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * draw.textlength(text, font)
        draw.text((round(x - back), round(y)), text, fill="black", font=font)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def _text(text: str) -> str:
    return escape(clean(text))


def _shapes(
    chart: Chart, left: float, top: float, right: float, bottom: float, *, titled: bool = False
) -> Iterator[_Shape]:
    values = [*(value for _, value in chart.bars), *(value for curve in chart.curves for _, value in curve.points)]
    scale = Axis.around(values, chart.least)

    def height(value: float) -> float:
        return bottom - (bottom - top) * scale.share(value)

    for tick in scale.ticks(4):
        y = height(tick)
        yield "line", (left, y), (right, y), GREY if tick == 0 else FAINT, 1.0
        yield "text", left - 6, y - 6, f"{tick * chart.unit:.3g}", "end"
    if titled:
        yield "text", left, top - 24, chart.title, "start"
        yield "text", (left + right) / 2, bottom + 18, chart.below, "middle"
    slot = (right - left) / max(len(chart.bars), 1)
    for index, (name, value) in enumerate(chart.bars):
        x, title = left + index * slot, f"{chart.below} {name}: {value:.4g}"
        yield "box", x + 0.1 * slot, min(height(value), bottom - 1), x + 0.9 * slot, bottom, COLOR, title
        if index % math.ceil(len(chart.bars) / 16) == 0:
            yield "text", x + slot / 2, bottom + 4, name, "middle"
    marked = [] if chart.marked is None else [chart.marked]
    numbers = [*(number for number, _ in marked), *(number for curve in chart.curves for number, _ in curve.points)]
    if not numbers:
        return
    axis = Axis.around(numbers)

    def across(number: float) -> float:
        return left + (right - left) * axis.share(number)

    for tick in axis.ticks(10):
        yield "text", across(tick), bottom + 4, f"{tick:.4g}", "middle"
    for number, _ in marked:
        yield from _dashes(across(number), top, bottom)
    for index, curve in reversed(list(enumerate(chart.curves))):
        line = [(across(number), height(value)) for number, value in curve.points]
        yield from (("line", *ends, _COLORS[index], 1.5) for ends in pairwise(line))
        yield from (_marker(x, y, index) for x, y in line)
    key = left + _WIDE * len(chart.title) + 24
    for index, curve in enumerate(chart.curves if len(chart.curves) > 1 else ()):
        yield _marker(key, top - 18, index)
        yield "text", key + 10, top - 24, curve.title, "start"
        key += _WIDE * len(curve.title) + 30
    for _, text in marked:
        yield from _dashes(key, top - 24, top - 12)
        yield "text", key + 10, top - 24, text, "start"


def _marker(x: float, y: float, index: int) -> _Shape:
    """A point of a curve; two curves are told apart by its shape as well as by its colour."""
    return "box" if index == 1 else "disc", x - 3.5, y - 3.5, x + 3.5, y + 3.5, _COLORS[index], ""


def _dashes(x: float, top: float, bottom: float) -> Iterator[_Shape]:
    return (("line", (x, y), (x, min(y + 5, bottom)), GREY, 1.0) for y in range(round(top), round(bottom), 9))
