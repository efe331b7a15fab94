"""The norms of a pack's directions by layer, as numbers and as a chart."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from steerkit.interventions import FiniteFloat, Frozen, site_label
from steerkit.vectors.formats import RawPack, parse_tensor_name
from steerkit_vectors_hub.charts import Chart


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


def chart(series: NormSeries) -> Chart:
    """One bar for each layer."""
    bars = tuple((str(layer), norm) for layer, norm in zip(series.layers, series.norms, strict=True))
    return Chart(f"Norm of the directions, {series.title}", "layer", bars)
