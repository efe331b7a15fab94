"""The norms of a pack's directions by layer, as numbers, as SVG for a page and as PNG for a model card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Annotated

from pydantic import Field, model_validator

from steerkit._internal.text import clean
from steerkit.interventions import FiniteFloat, Frozen, site_label
from steerkit.vectors.formats import RawPack, parse_tensor_name
from steerkit_vectors_hub.charts import COLOR, Axis, Canvas, Chart


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


def svg(series: NormSeries, *, width: int = 400, height: int = 132) -> str:
    """One bar for each layer over three lines of a scale, as an SVG element that a screen reader can name."""
    largest = max(map(abs, series.norms), default=0.0) or 1.0
    left, top, bottom = 44, 10, height - 22
    slot = (width - left) / len(series.layers)
    bars = []
    for index, (layer, norm) in enumerate(zip(series.layers, series.norms, strict=True)):
        tall = max(1.0, (bottom - top) * min(abs(norm) / largest, 1.0))
        bars.append(
            f'<rect x="{left + (index + 0.12) * slot:.1f}" y="{bottom - tall:.1f}" width="{0.76 * slot:.1f}" '
            f'height="{tall:.1f}"><title>layer {layer:d}: {norm:.4g}</title></rect>'
        )
    scale = []
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - top)
        scale.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        scale.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{part * largest:.3g}</text>')
    step = -(-len(series.layers) // 10)
    for index in range(0, len(series.layers), step):
        middle = left + (index + 0.5) * slot
        scale.append(f'<text x="{middle:.1f}" y="{height - 6}" text-anchor="middle">{series.layers[index]:d}</text>')
    ends = f"{series.layers[0]:d} to {series.layers[-1]:d}"
    label = escape(clean(f"Norm of {series.title} by layer, {ends}, at most {largest:.4g}"))
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<g stroke="none" font-size="11">{"".join(scale)}</g><g fill="{COLOR}">{"".join(bars)}</g></svg>'
    )


def png(series: Sequence[NormSeries]) -> bytes:
    """All series below each other, as a PNG."""
    canvas = Canvas(len(series))
    for number, each in enumerate(series):
        chart = Chart(canvas, number, Axis.around(each.norms))
        chart.frame(f"Norm of the directions, {each.title}", "layer")
        slot = (chart.right - chart.left) / len(each.layers)
        step = math.ceil(len(each.layers) / 16)
        for index, (layer, norm) in enumerate(zip(each.layers, each.norms, strict=True)):
            x = chart.left + index * slot
            top = min(chart.height(norm), chart.bottom - 1)
            canvas.rectangle(x + 0.1 * slot, top, x + 0.9 * slot, chart.bottom, COLOR)
            if index % step == 0:
                canvas.text(x + slot / 2, chart.bottom + 4, str(layer), "middle")
    return canvas.png()
