"""Pictures of a few shapes, drawn twice: as SVG for a page, and as PNG, with Pillow alone; and charts made of them.

Positions are in pixels from the upper left. A text stands on its position, which is its start, middle or end.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from steerkit._text import one_line

COLORS = ("#2a88a8", "#cf6537", "#6f9424", "#946bc2", "#a88512", "#c05580", "#7b8d97")
"""Told apart by shape as well; dark enough on white and light enough on black."""

GREY, FAINT = "#8a979d", 0.35
"""Of lines that only guide the eye, on white and on black: their colour, and the opacity of most."""

WIDTH = 760
"""Pixels of a picture that stands by itself."""

_FINE = 4
"""Shapes of a PNG are drawn so many times larger, and reduced, so that their edges are smooth."""

_CORNERS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((0, -1), (1, 1), (-1, 1)),
    ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
)
"""Of the marks that are no discs, around their middle."""

Point: TypeAlias = tuple[float, float]


class Shape(NamedTuple):
    """One shape.

    Attributes:
        kind: A line through points, the area or the box between them, a disc around one, a text at one.
        points: Where.
        color: Of a text, that of the page.
        size: Width of a line, radius of a disc, height of a text.
        said: The text; of any other shape, what is told of it where one points at it.
        anchor: What of a text stands at its point.
        opacity: From 0 to 1.
    """

    kind: Literal["line", "area", "box", "disc", "text"]
    points: tuple[Point, ...]
    color: str = GREY
    size: float = 1.0
    said: str = ""
    anchor: Literal["start", "middle", "end"] = "start"
    opacity: float = 1.0


Shapes: TypeAlias = list[Shape]


def text(
    x: float, y: float, said: object, anchor: Literal["start", "middle", "end"] = "start", size: int = 12
) -> Shape:
    """A text on one line."""
    return Shape("text", ((x, y),), "", size, one_line(said), anchor)


def line(*points: Point, color: str = GREY, size: float = 1.0, opacity: float = 1.0) -> Shape:
    """A line through points."""
    return Shape("line", points, color, size, opacity=opacity)


def mark(x: float, y: float, number: int, said: str = "", size: float = 4.0, opacity: float = 1.0) -> Shape:
    """A mark of a shape and a colour of its own."""
    color, corners = COLORS[number % len(COLORS)], _CORNERS[number % len(_CORNERS)]
    if not corners:
        return Shape("disc", ((x, y),), color, size, said, opacity=opacity)
    points = tuple((x + size * dx, y + size * dy) for dx, dy in corners)
    return Shape("area", points, color, said=said, opacity=opacity)


@dataclass(frozen=True, slots=True)
class Axis:
    """The numbers that one side of a chart shows."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], least: float = 0.0) -> Axis:
        """One that holds all values, 0, and at least so much above it."""
        found = [0.0, *values]
        low, high = min(found), max(least, *found)
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


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a chart is drawn."""

    left: float
    top: float
    right: float
    bottom: float

    def across(self, axis: Axis) -> Callable[[float], float]:
        """From a number to where it lies from left to right."""
        return lambda number: self.left + (self.right - self.left) * axis.share(number)

    def height(self, axis: Axis) -> Callable[[float], float]:
        """From a value to where it lies from bottom to top."""
        return lambda value: self.bottom - (self.bottom - self.top) * axis.share(value)

    def titled(self, title: str, below: str) -> Shapes:
        """What stands above and below."""
        middle = (self.left + self.right) / 2
        return [text(4, self.top - 18, title, size=13), text(middle, self.bottom + 32, below, "middle", 11)]

    def scale(self, axis: Axis, percent: bool) -> Shapes:
        """The upright scale, with a line at each of its numbers."""
        found: Shapes = []
        for tick in axis.ticks(4):
            y, said = self.height(axis)(tick), f"{100 * tick:.3g} %" if percent else f"{tick:.3g}"
            found.append(line((self.left, y), (self.right, y), opacity=1.0 if tick == 0 else FAINT))
            found.append(text(self.left - 6, y + 4, said, "end", 11))
        return found


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at numbers, joined by lines.

    Attributes:
        title: What they are.
        points: (number, value), or (number, value, low, high) with the ends of an interval.
        percent: Whether the values are shares, which are written in per cent.
    """

    title: str
    points: tuple[tuple[float, ...], ...]
    percent: bool = False

    def worded(self, value: float) -> str:
        """A value as text."""
        return f"{100 * value:.3g} %" if self.percent else f"{value:.3g}"


def bars(frame: Frame, below: str, values: Sequence[tuple[str, float]]) -> Shapes:
    """A bar for each value, with its name."""
    axis = Axis.around(value for _, value in values)
    height, slot = frame.height(axis), (frame.right - frame.left) / max(len(values), 1)
    found = frame.scale(axis, percent=False)
    for index, (name, value) in enumerate(values):
        x, top = frame.left + index * slot, min(height(value), frame.bottom - 1)
        ends = ((x + 0.1 * slot, top), (x + 0.9 * slot, frame.bottom))
        found.append(Shape("box", ends, COLORS[0], said=f"{below} {name}: {value:.4g}"))
        if index % math.ceil(len(values) / 16) == 0:
            found.append(text(x + slot / 2, frame.bottom + 16, name, "middle", 11))
    return found


def curves(
    frame: Frame,
    title: str,
    below: str,
    lines: Sequence[Curve],
    *,
    least: tuple[float, float] = (0.0, 0.0),
    marked: tuple[float, str] | None = None,
) -> Shapes:
    """Curves with their names on the right.

    Args:
        frame: Where.
        title: What stands above it.
        below: What stands below it.
        lines: The curves.
        least: How far the two scales, of numbers and of values, reach at the least.
        marked: A number that is marked, and how.
    """
    points = [point for curve in lines for point in curve.points]
    upright = Axis.around((value for point in points for value in point[1:]), least[1])
    flat = Axis.around([point[0] for point in points] + ([marked[0]] if marked else []), least[0])
    x_of, y_of = frame.across(flat), frame.height(upright)
    found = frame.titled(title, below) + frame.scale(upright, all(curve.percent for curve in lines))
    found += [text(x_of(tick), frame.bottom + 16, f"{tick:.4g}", "middle", 11) for tick in flat.ticks(10)]
    key = [(curve.title, mark(frame.right + 16, 0, number)) for number, curve in enumerate(lines) if len(lines) > 1]
    if marked is not None:
        x = x_of(marked[0])
        found += [line((x, y), (x, min(y + 5, frame.bottom))) for y in range(round(frame.top), round(frame.bottom), 9)]
        key.append((marked[1], line((frame.right + 16, -5), (frame.right + 16, 5))))
    for number, curve in reversed(list(enumerate(lines))):  # the first is drawn last, over the others
        color, shift = COLORS[number % len(COLORS)], 3 * (number - len(lines) / 2)
        at = [(x_of(x), y_of(value)) for x, value, *_ in curve.points]
        found += [line(*ends, color=color, size=1.5) for ends in pairwise(at)]
        for (x, y), (where, value, *ends) in zip(at, curve.points, strict=True):
            between = f" ({curve.worded(ends[0])} to {curve.worded(ends[1])})" if ends else ""
            if ends and ends[1] > ends[0]:  # of one place they stand side by side
                found.append(line(*((x + shift, y_of(end)) for end in ends), color=color))
            found.append(mark(x, y, number, f"{curve.title}, {below} {where:g}: {curve.worded(value)}{between}"))
    for row, (said, shape) in enumerate(key):
        y = frame.top + 20 * row
        found.append(shape._replace(points=tuple((x, y + dy) for x, dy in shape.points)))
        found.append(text(frame.right + 28, y + 4, said if len(said) < 28 else said[:26] + "…", size=11))
    return found


def svg(title: str, shapes: Sequence[Shape], height: float, width: float = WIDTH) -> str:
    """An SVG element that a screen reader can name."""
    parts = [_tag("title", title)]
    for kind, points, color, size, said, anchor, opacity in shapes:
        (x, y), (right, bottom) = points[0], points[-1]
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if kind == "text":
            place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text_anchor": anchor, "font_size": size}
            parts.append(_tag("text", said, **place, fill="currentColor"))
            continue
        about = _tag("title", said) if said else ""
        look = {"fill": color, "opacity": f"{opacity:.2f}"}
        if kind == "line":
            parts.append(_tag("polyline", points=at, stroke=color, stroke_width=size, **{**look, "fill": "none"}))
        elif kind == "box":
            sides = {"width": f"{right - x:.1f}", "height": f"{bottom - y:.1f}"}
            parts.append(_tag("rect", inner=about, x=f"{x:.1f}", y=f"{y:.1f}", **sides, **look))
        elif kind == "disc":
            parts.append(_tag("circle", inner=about, cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, **look))
        else:
            parts.append(_tag("polygon", inner=about, points=at, **look))
    sizes = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
    named = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria_label": title}
    return _tag("svg", inner="".join(parts), **named, **sizes, font_family="system-ui, sans-serif")


def _tag(name: str, said: str = "", *, inner: str = "", **attributes: object) -> str:
    given = "".join(f' {key.replace("_", "-")}="{escape(one_line(value))}"' for key, value in attributes.items())
    return f"<{name}{given}>{escape(one_line(said))}{inner}</{name}>"


def png(panels: Sequence[Sequence[Shape]], height: int, width: int = WIDTH) -> bytes:
    """Pictures of one size below each other; texts are drawn last, and so over everything."""
    from PIL import Image, ImageColor, ImageDraw, ImageFont

    image = Image.new("RGB", (width * _FINE, height * len(panels) * _FINE), "white")
    draw, texts = ImageDraw.Draw(image), []
    for number, shapes in enumerate(panels):
        for kind, points, name, size, said, anchor, opacity in shapes:
            color = tuple(round(255 - opacity * (255 - part)) for part in ImageColor.getrgb(name or GREY))
            at = [(x, y + number * height) for x, y in points]
            fine = [(x * _FINE, y * _FINE) for x, y in at]
            if kind == "text":
                texts.append((at[0], said, anchor, size))
            elif kind == "line":
                draw.line(fine, fill=color, width=round(size * _FINE))
            elif kind == "box":
                draw.rectangle(fine, fill=color)
            elif kind == "disc":
                (x, y), radius = fine[0], size * _FINE
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
            else:
                draw.polygon(fine, fill=color)
    image = image.reduce(_FINE)
    draw = ImageDraw.Draw(image)
    for (x, y), said, anchor, size in texts:
        font = ImageFont.load_default(size)
        back = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * draw.textlength(said, font)
        draw.text((round(x - back), round(y - 0.8 * size)), said, fill="black", font=font)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
