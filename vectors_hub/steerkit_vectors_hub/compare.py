"""Two packs side by side: cosine and norm of each direction, and where their documents differ. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerkit.interventions import site_label
from steerkit.vectors.formats import RawPack, parse_tensor_name

_ABSENT = None
_VOLATILE = ("tensors_sha256",)


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
    norms: tuple[float | None, float | None]
    cosine: float | None
    relative_change: float | None


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A field of the document that differs; None where it is not there."""

    field: str
    values: tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
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


def compare(first: RawPack, second: RawPack) -> Comparison:
    """Compare two audited packs.

    Args:
        first: What the second is compared with.
        second: The other.
    """
    names = {(site, name, layer): full for layer, site, name, full in _keys(first, second)}
    directions = tuple(_direction(first, second, key, full) for key, full in sorted(names.items()))
    a, b = dict(first.document), dict(second.document)
    digests = [document.get("tensors_sha256") for document in (a, b)]
    for field in _VOLATILE:
        a.pop(field, None)
        b.pop(field, None)
    mine, theirs = a.pop("interventions", []), b.pop("interventions", [])
    return Comparison(
        same_tensors=digests[0] == digests[1],
        directions=directions,
        fields=tuple(_differences(a, b, "")),
        interventions=tuple(_differences(mine, theirs, "interventions")),
    )


def _keys(*packs: RawPack) -> Iterator[tuple[int, str, str, str]]:
    for pack in packs:
        for full in pack.tensors:
            layer, site, name, tower = parse_tensor_name(full)
            yield layer, site_label(site, tower), name, full


def _direction(first: RawPack, second: RawPack, key: tuple[str, str, int], full: str) -> DirectionDifference:
    site, name, layer = key
    rows = [_rows(pack, full) for pack in (first, second)]
    norms = [None if each is None else float(np.linalg.norm(each, axis=-1).max()) for each in rows]
    a, b = rows
    cosine = change = None
    if a is not None and b is not None and a.shape == b.shape:
        lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        cosine = float(np.clip((a * b).sum() / (lengths[0] * lengths[1]), -1.0, 1.0))
        change = float(np.linalg.norm(b - a)) / lengths[0]
    return DirectionDifference(layer, site, name, (norms[0], norms[1]), cosine, change)


def _rows(pack: RawPack, full: str) -> np.ndarray | None:
    if full not in pack.tensors:
        return None
    array = pack.array(full)
    return array.reshape(-1, array.shape[-1]).astype(np.float64)


def _differences(first: Any, second: Any, path: str) -> Iterator[FieldDifference]:
    """Every leaf at which two documents differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted({*first, *second}):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(first.get(key, _ABSENT), second.get(key, _ABSENT), inner)
    elif _structured(first) and _structured(second):
        for index in range(max(len(first), len(second))):
            pair = [each[index] if index < len(each) else _ABSENT for each in (first, second)]
            yield from _differences(pair[0], pair[1], f"{path}[{index}]")
    elif first != second:
        yield FieldDifference(path, (first, second))


def _structured(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)
