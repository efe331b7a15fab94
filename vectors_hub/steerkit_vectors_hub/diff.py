"""Two packs side by side: cosine and norm of each direction, and where their documents differ. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from steerkit.interventions import site_label
from steerkit.vectors.formats import RawPack, parse_tensor_name


@dataclass(frozen=True, slots=True)
class DirectionDifference:
    """One direction in both packs.

    Attributes:
        layer: 0-based decoder block.
        site: Where in the block.
        name: Its name, where a layer has several.
        norms: Of the rows' largest, in the first and in the second pack; None where it is not there.
        cosine: Of the two, over all rows; None where one is missing or their shapes differ.
        relative_change: Norm of the difference, relative to the first; None likewise.
    """

    layer: int
    site: str
    name: str
    norms: tuple[float | None, ...]
    cosine: float | None
    relative_change: float | None


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A field of the document that differs; None where it is not there."""

    field: str
    values: tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class PackDifference:
    """What differs between two packs.

    Attributes:
        same_tensors: Whether the tensors are equal, bit for bit.
        directions: Every direction of either, by site, name and layer.
        fields: Fields that differ, interventions apart.
        interventions: Fields of interventions that differ.
    """

    same_tensors: bool
    directions: tuple[DirectionDifference, ...]
    fields: tuple[FieldDifference, ...]
    interventions: tuple[FieldDifference, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.same_tensors and not self.fields and not self.interventions


def difference(first: RawPack, second: RawPack) -> PackDifference:
    """Compare two audited packs.

    Args:
        first: What the second is compared with.
        second: The other.
    """
    names = {(site_label(site, tower), name, layer): full for layer, site, name, tower, full in _names(first, second)}
    directions = tuple(_direction(first, second, key, full) for key, full in sorted(names.items()))
    mine, theirs = ({**pack.document, "tensors_sha256": None} for pack in (first, second))
    differing = list(_differences(mine, theirs))
    return PackDifference(
        same_tensors=first.document.get("tensors_sha256") == second.document.get("tensors_sha256"),
        directions=directions,
        fields=tuple(each for each in differing if not each.field.startswith("interventions")),
        interventions=tuple(each for each in differing if each.field.startswith("interventions")),
    )


def _names(*packs: RawPack) -> Iterator[tuple[Any, ...]]:
    return ((*parse_tensor_name(full), full) for pack in packs for full in pack.tensors)


def _direction(first: RawPack, second: RawPack, key: tuple[str, str, int], full: str) -> DirectionDifference:
    site, name, layer = key
    a, b = (np.atleast_2d(pack.array(full)) if full in pack.tensors else None for pack in (first, second))
    norms = tuple(None if each is None else float(np.linalg.norm(each, axis=-1).max()) for each in (a, b))
    cosine = change = None
    if a is not None and b is not None and a.shape == b.shape:
        lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        cosine = float(np.clip((a * b).sum() / (lengths[0] * lengths[1]), -1.0, 1.0))
        change = float(np.linalg.norm(b - a)) / lengths[0]
    return DirectionDifference(layer, site, name, norms, cosine, change)


def _differences(first: Any, second: Any, path: str = "") -> Iterator[FieldDifference]:
    """Every leaf at which two documents differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted({*first, *second}):
            yield from _differences(first.get(key), second.get(key), f"{path}.{key}" if path else str(key))
    elif all(isinstance(each, list) and any(isinstance(part, dict) for part in each) for each in (first, second)):
        for index, pair in enumerate(zip_longest(first, second)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif first != second:
        yield FieldDifference(path, (first, second))
