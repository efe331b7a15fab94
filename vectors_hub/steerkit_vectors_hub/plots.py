"""What is drawn of a pack: the norms of its directions by layer, and what a calibration measured by strength."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field, model_validator

from steerkit._internal import drawing
from steerkit._internal.drawing import Curve, Frame, Shape
from steerkit._text import one_line
from steerkit.interventions import FiniteFloat, Frozen, site_label
from steerkit.vectors import StrengthPoint, StrengthRecord
from steerkit.vectors.formats import RawPack, parse_tensor_name

HEIGHT = 240
"""Pixels of one panel of a PNG."""

_FRAME = Frame(64, 34, drawing.WIDTH - 190, HEIGHT - 40)


class NormSeries(Frozen):
    """The directions of one site and name: their layers, and the norm at each (of several rows, the largest).

    Attributes:
        site: Where in the layer.
        name: Name of the directions; empty for the only ones.
        layers: 0-based decoder blocks.
        norms: As many as layers.
    """

    site: Annotated[str, Field(max_length=32)]
    name: Annotated[str, Field(max_length=64)] = ""
    layers: Annotated[tuple[Annotated[int, Field(ge=0, lt=100_000)], ...], Field(min_length=1, max_length=4096)]
    norms: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, max_length=4096)]

    @model_validator(mode="after")
    def _as_many(self) -> NormSeries:
        if len(self.layers) != len(self.norms):
            raise ValueError(f"{len(self.layers)} layers and {len(self.norms)} norms")
        return self

    @property
    def title(self) -> str:
        """Site and name."""
        return f"{self.site} {self.name}".strip()


def norm_series(raw: RawPack) -> tuple[NormSeries, ...]:
    """The norms of all directions of a pack, by site and name."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for full in raw.tensors:
        layer, site, name, tower = parse_tensor_name(full)
        found.setdefault((site_label(site, tower), name), {})[layer] = float(raw.norms(full).max())
    return tuple(
        NormSeries(
            site=site,
            name=name,
            layers=tuple(sorted(by_layer)),
            norms=tuple(float(f"{by_layer[layer]:.6g}") for layer in sorted(by_layer)),
        )
        for (site, name), by_layer in sorted(found.items())
    )


def norms_png(series: Sequence[NormSeries]) -> bytes:
    """A panel for each, of a bar for each layer."""
    frame = replace(_FRAME, right=drawing.WIDTH - 16)  # without names of curves
    titles = (frame.titled(f"Norm of the directions, {each.title}", "layer") for each in series)
    return drawing.png([title + _bars(frame, each) for title, each in zip(titles, series, strict=True)], HEIGHT)


def norms_svg(series: NormSeries) -> str:
    """The same for a page."""
    label = f"Norm of {series.title} by layer, {series.layers[0]} to {series.layers[-1]}"
    return drawing.svg(label, _bars(Frame(44, 10, 400, 110), series), 132, 400)


def _bars(frame: Frame, series: NormSeries) -> list[Shape]:
    return drawing.bars(frame, "layer", list(zip(map(str, series.layers), series.norms, strict=True)))


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
    curves = [Curve("unsafe rate", _points(whole, "unsafe"), percent=True)]
    for kind in dict.fromkeys(point.cost_kind for point in whole if point.cost is not None):
        title = _SHARES.get(kind) or _UNITS.get(kind) or one_line(kind)[:60] or "cost"
        points = _points([each for each in whole if each.cost_kind == kind], "cost")
        curves.append(Curve(title, points, percent=kind in _SHARES))
    return tuple(each for each in curves if each.points)[: _MOST + 1]


def _points(points: Sequence[StrengthPoint], field: str) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((each.strength, value) for each in points if (value := getattr(each, field)) is not None))


def strength_png(curves: Sequence[Curve], recommended: float) -> bytes:
    """Shares of answers in one panel, each other figure in one of its own, with the recommended strength marked."""
    marked = (recommended, f"recommended: {recommended:.3g}")
    shares = [each for each in curves if each.percent]
    panels = [("Share of answers", shares, 1.0)] if shares else []
    panels += [(each.title, [each], 0.0) for each in curves if not each.percent]
    drawn = (
        drawing.curves(_FRAME, title, "strength", lines, least=(0.0, top), marked=marked)
        for title, lines, top in panels
    )
    return drawing.png(list(drawn), HEIGHT)
