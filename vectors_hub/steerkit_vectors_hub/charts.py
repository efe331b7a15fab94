"""Charts of a model card, drawn with Pillow alone: what `norms` and `strength` plot, in one style."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

COLOR = "#1f6f8b"
SECOND = "#c4572f"
THIRD = "#6b8e23"
GREY = "#888888"
FAINT = "#dddddd"

WIDTH = 760
HEIGHT = 240

_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 34, 16, 34
_FINE = 4
"""Shapes are drawn so many times larger, and reduced, so that their edges are smooth."""

Anchor = Literal["left", "middle", "right"]


class Canvas:
    """A picture of several charts below each other; text is drawn last, and so over everything."""

    def __init__(self, charts: int) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self._image: Image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * charts * _FINE), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font: ImageFont | FreeTypeFont = ImageFont.load_default()
        self._texts: list[tuple[float, float, str, Anchor]] = []

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.0) -> None:
        """A line through points."""
        fine = [(x * _FINE, y * _FINE) for x, y in points]
        self._draw.line(fine, fill=color, width=round(width * _FINE), joint="curve")

    def dashed(self, x: float, top: float, bottom: float, color: str) -> None:
        """An upright line in dashes."""
        y = top
        while y < bottom:
            self.line([(x, y), (x, min(y + 5, bottom))], color)
            y += 9

    def rectangle(self, left: float, top: float, right: float, bottom: float, color: str) -> None:
        """A filled rectangle."""
        self._draw.rectangle([each * _FINE for each in (left, top, right, bottom)], fill=color)

    def marker(self, x: float, y: float, color: str, *, square: bool) -> None:
        """A point of a curve; two curves are told apart by its shape as well as by its colour."""
        box = [each * _FINE for each in (x - 3.5, y - 3.5, x + 3.5, y + 3.5)]
        (self._draw.rectangle if square else self._draw.ellipse)(box, fill=color)

    def text(self, x: float, y: float, text: str, anchor: Anchor = "left") -> float:
        """A line of text whose upper edge is at `y`; returns its width."""
        self._texts.append((x, y, text, anchor))
        return self._length(text)

    def png(self) -> bytes:
        """The picture."""
        from PIL import ImageDraw

        image = self._image.reduce(_FINE)
        draw = ImageDraw.Draw(image)
        for x, y, text, anchor in self._texts:
            back = {"left": 0.0, "middle": 0.5, "right": 1.0}[anchor] * self._length(text)
            draw.text((round(x - back), round(y)), text, fill="black", font=self._font)
        out = io.BytesIO()
        image.save(out, format="PNG")
        return out.getvalue()

    def _length(self, text: str) -> float:
        left, _, right, _ = self._font.getbbox(text)
        return right - left


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


@dataclass(frozen=True, slots=True)
class Chart:
    """The frame of one chart on a canvas: its title, its upright scale, and where a value lies.

    Attributes:
        canvas: What it is drawn on.
        number: Which one, from above.
        y: The upright scale.
        unit: What its numbers are multiplied by where they are written, such as 100 for per cent.
    """

    canvas: Canvas
    number: int
    y: Axis
    unit: float = 1.0

    @property
    def left(self) -> float:
        """Its left edge."""
        return _LEFT

    @property
    def right(self) -> float:
        """Its right edge."""
        return WIDTH - _RIGHT

    @property
    def top(self) -> float:
        """Its upper edge."""
        return HEIGHT * self.number + _TOP

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return HEIGHT * (self.number + 1) - _BOTTOM

    def frame(self, title: str, below: str) -> float:
        """Draw title and scale, and say what the lower side shows; returns where the title ends."""
        for tick in self.y.ticks(4):
            y = self.height(tick)
            self.canvas.line([(self.left, y), (self.right, y)], GREY if tick == 0 else FAINT)
            self.canvas.text(self.left - 6, y - 6, f"{tick * self.unit:.3g}", "right")
        self.canvas.text((self.left + self.right) / 2, self.bottom + 18, below, "middle")
        return self.left + self.canvas.text(self.left, self.top - 24, title)

    def height(self, value: float) -> float:
        """How far down a value lies."""
        return self.bottom - (self.bottom - self.top) * self.y.share(value)
