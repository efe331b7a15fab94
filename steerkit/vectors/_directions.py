"""Directions by layer, the interventions that use them, and their metadata: checked, and read by what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from types import MappingProxyType
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from steerkit._internal.validation import expect, expect_one_of
from steerkit._text import one_line, quoted
from steerkit.errors import LayerRangeError, NonFiniteError, OptionError
from steerkit.interventions import (
    Intervention,
    Site,
    StoredDirection,
    Tower,
    site_label,
)
from steerkit.vectors._metadata import ModelRecord, PackMetadata, StrengthRecord
from steerkit.vectors.formats import (
    tensor_name,
    tensors_digest,
)

Dtype = Literal["float32", "float16", "bfloat16"]

TORCH_TYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_FILE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Key(NamedTuple):
    """The address of a direction: 0-based block, site, a name where a layer has several, and the tower."""

    layer: int
    site: Site = "resid_post"
    name: str = ""
    tower: Tower = "language"


@dataclass(frozen=True, eq=False)
class Directions:
    """What a steering vector holds; see `SteeringVector`."""

    tensors: Mapping[Key, Tensor]
    metadata: PackMetadata
    source: str | None = None
    _places: Mapping[tuple[str, str, str], frozenset[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expect(Mapping, "{sk.Key(layer): tensor}", tensors=self.tensors)
        expect(PackMetadata, "a PackMetadata", metadata=self.metadata)
        for key, tensor in self.tensors.items():
            expect(tuple, "sk.Key(layer)", key=key)
            expect(Integral, "a whole number", **{f"the layer of {key!r}": key[0] if key else None})
            expect(Tensor, "a tensor of shape [hidden] or [k, hidden]", **{f"tensors[{key!r}]": tensor})
            if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
                kind = "nested" if tensor.is_nested else "on the device meta" if tensor.is_meta else str(tensor.layout)
                raise OptionError(
                    f"the direction at {tuple(key)} is {kind}", expected="a dense tensor that holds values"
                )
        # a copy: whoever holds the tensors that were given can't change the vector; gradients reach them through it
        tensors = {
            Key(*key): tensor.cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in sorted(self.tensors.items())
        }
        model = self.metadata.model
        for key, tensor in tensors.items():
            _check_direction(key, tensor, model)
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) > 1:
            raise OptionError(f"directions of several types {sorted(map(str, dtypes))}", expected="one type")
        for dtype in dtypes:
            name = str(dtype).removeprefix("torch.")
            object.__setattr__(self, "metadata", self.metadata.model_copy(update={"dtype": name}))
        object.__setattr__(self, "tensors", MappingProxyType(tensors))
        object.__setattr__(self, "_places", _places(tensors))
        for intervention in self.interventions:
            self._check_intervention(intervention)

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """What is done with the directions."""
        return self.metadata.interventions

    @property
    def directions(self) -> dict[int, Tensor]:
        """`{layer: [hidden] or [k, hidden]}`: the directions that the first intervention applies.

        Empty for a vector that is measured on each prompt, such as sample-level CMRM.
        """
        for intervention in self.interventions:
            direction = intervention.operation.stored
            if direction is not None:
                return {
                    key.layer: tensor
                    for key, tensor in self.tensors.items()
                    if (key.site, key.name, key.tower) == (intervention.site, direction.name, intervention.tower)
                }
        return {}

    def direction(self, stored: StoredDirection, layer: int, site: Site, tower: Tower = "language") -> Tensor | None:
        """The tensor that a stored direction means at a layer, or None if there is none."""
        expect(StoredDirection, "a StoredDirection, as an intervention names it", stored=stored)
        return self.tensors.get(Key(layer if stored.layer is None else stored.layer, site, stored.name, tower))

    def operand(self, intervention: Intervention, layer: int) -> Tensor | None:
        """The stored direction that an intervention works with at a layer; None where it stores none there."""
        stored = intervention.operation.stored
        return None if stored is None else self.direction(stored, layer, intervention.site, intervention.tower)

    @property
    def places(self) -> set[tuple[Site, Tower]]:
        """The sites and towers that the interventions steer."""
        return {(intervention.site, intervention.tower) for intervention in self.interventions}

    @property
    def layer_count(self) -> int:
        """Number of decoder blocks of the model that the vector belongs to."""
        return self.metadata.model.layer_count

    def to(self, dtype: Dtype) -> Self:
        """The same vector in another element type.

        Raises:
            OptionError: There is no such type.
            NonFiniteError: A value does not fit the type.
        """
        expect_one_of(TORCH_TYPES, dtype=dtype)
        tensors = {key: tensor.to(TORCH_TYPES[dtype]) for key, tensor in self.tensors.items()}
        return type(self)(tensors, self.metadata.model_copy(update={"dtype": dtype, "tensors_sha256": None}))

    def with_metadata(self, **fields: object) -> Self:
        """The same vector with other metadata fields (license, authors, description, metrics, strength ...).

        Raises:
            OptionError: A field is unknown or has an impossible value.
        """
        return type(self)(self.tensors, PackMetadata(**{**self.metadata.model_dump(), **fields}))

    def applied(self, **fields: object) -> Self:
        """The same vector, whose interventions have other fields: tokens, positions, rows, steps, strength ...

        What was measured of it at its own is not claimed of the new one.

        Example:
            >>> vector.applied(tokens="generated", positions=slice(4))  # the first four tokens of each answer
            >>> vector.applied(rows=[1.0, 0.0])  # the first prompt of a batch of two
            >>> vector.applied(steps=[1.0, 0.5, 0.25, 0.0])  # less and less, and none from the fourth token on

        Raises:
            OptionError: A field is unknown or has an impossible value.
        """
        known = [{name: getattr(each, name) for name in Intervention.model_fields} for each in self.interventions]
        changed = tuple(Intervention(**{**each, **fields}) for each in known)
        given = fields.get("strength")
        if isinstance(given, Mapping) and any(isinstance(each.strength, dict) for each in changed):
            steered = {layer for each in changed for layer in self.layers_of(each)}
            named = {layer for each in changed if isinstance(each.strength, dict) for layer in each.strength}
            if not named or named - steered:
                raise OptionError(
                    f"the strengths {quoted(given)} are of layers {_listed(named)}",
                    expected=f"one or more of {_listed(steered)}, the layers that are steered; others get 0",
                )
        return self.derived(dict(self.tensors), f"apply with {', '.join(sorted(fields))}", changed)

    def digest(self) -> str:
        """sha256 of the tensors, as in the pack."""
        return tensors_digest(
            {
                tensor_name(*key): (_FILE[tensor.dtype], tuple(tensor.shape), _bytes(tensor))
                for key, tensor in self.tensors.items()
            }
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and other processes get a vector that has passed the same checks."""
        return type(self), ({key: t.detach() for key, t in self.tensors.items()}, self.metadata, self.source)

    def __repr__(self) -> str:
        """Method, model, layers and type on one line."""
        model = self.metadata.model
        return one_line(
            f"SteeringVector({self.metadata.method.name}, {model.architecture}, "
            f"layers={sorted(self.directions) or 'measured'}, hidden={model.hidden_size}, {self.metadata.dtype})"
        )

    def derived(
        self,
        tensors: Mapping[Key, Tensor],
        step: str,
        interventions: tuple[Intervention, ...] | None = None,
        strength: StrengthRecord | None = None,
    ) -> Self:
        """A vector that was made of this one: what was measured of this one is not claimed of it.

        Args:
            tensors: Its directions.
            step: What was done, for its history.
            interventions: Its interventions; None: the same.
            strength: Its strength record, where that is known.
        """
        changes: dict[str, object] = {
            "history": (*self.metadata.history, step),
            "strength": strength or StrengthRecord(),
            "metrics": (),
            "tensors_sha256": None,
        }
        if interventions is not None:
            changes["interventions"] = interventions
        return type(self)(tensors, self.metadata.model_copy(update=changes))

    def _read_keys(self, intervention: Intervention) -> set[Key]:
        direction = intervention.operation.stored
        if direction is None:
            return set()
        site, name, tower = intervention.site, direction.name, intervention.tower
        present = self._places.get((site, name, tower), frozenset())
        return {Key(layer, site, name, tower) for layer in present if direction.layer in (None, layer)}

    def layers_of(self, intervention: Intervention) -> Sequence[int]:
        """The layers that an intervention steers; `all` means those that hold its direction."""
        expect(Intervention, "an sk.Intervention", intervention=intervention)
        if intervention.layers != "all":
            return sorted(intervention.layers)
        direction = intervention.operation.stored
        if direction is None or direction.layer is not None:
            return range(self.metadata.model.count(intervention.tower))
        return sorted({key.layer for key in self._read_keys(intervention)})

    def _check_intervention(self, intervention: Intervention) -> None:
        layers, count = self.layers_of(intervention), self.metadata.model.count(intervention.tower)
        if not count:
            raise OptionError(
                f"an intervention steers the {intervention.tower} tower, and the record of the model has none",
                expected="a record with vision_hidden_size and vision_layer_count",
            )
        named = (m.layer for m in intervention.measures if m.layer is not None)
        if (highest := max((layers[-1] if layers else 0, *named))) >= count:
            raise LayerRangeError(
                f"an intervention names layer {highest} of the {intervention.tower} tower", expected=f"below {count}"
            )
        site, tower = intervention.site, intervention.tower
        for stored in intervention.stored:
            present = self._places.get((site, stored.name, tower), frozenset())
            missing = set(layers if stored.layer is None else (stored.layer,)) - present
            if not present or missing:
                raise OptionError(
                    f"an intervention reads direction {stored.name!r} at {site_label(site, tower)} of layers "
                    f"{_listed(missing)}",
                    expected=f"layers that the vector holds: {_listed(present)}",
                )


def _places(keys: Iterable[Key]) -> dict[tuple[str, str, str], frozenset[int]]:
    """`{(site, name, tower): layers}`."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for key in keys:
        found.setdefault((key.site, key.name, key.tower), set()).add(key.layer)
    return {place: frozenset(layers) for place, layers in found.items()}


def _listed(layers: Iterable[int], most: int = 100) -> str:
    ordered = sorted(layers)
    return f"[{', '.join(map(str, ordered[:most]))}{', ...' if len(ordered) > most else ''}]"


def _check_direction(key: Key, tensor: Tensor, model: ModelRecord) -> None:
    if tensor.dtype not in _FILE:
        raise OptionError(
            f"the direction at {tuple(key)} has type {tensor.dtype}", expected="float32, float16, bfloat16"
        )
    expect_one_of(get_args(Site), **{"the site of a direction": key.site})
    expect_one_of(get_args(Tower), **{"the tower of a direction": key.tower})
    count, width = model.count(key.tower), model.width(key.site, key.tower)
    if not count or not width:
        raise OptionError(
            f"there is a direction at {tuple(key)}, and the record of the model gives no sizes for that place",
            expected="a record with head_count and head_size (head_out), or vision_hidden_size and vision_layer_count",
        )
    if tensor.dim() not in (1, 2) or tensor.shape[-1] != width:
        raise OptionError(
            f"the direction at {tuple(key)} has shape {tuple(tensor.shape)}", expected=f"[{width}] or [k, {width}]"
        )
    if not 0 <= key.layer < count:
        raise LayerRangeError(
            f"a direction is at layer {key.layer}", expected=f"0 to {count - 1} for {model.architecture}"
        )
    norms = torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float64)
    if not norms.isfinite().all():
        raise NonFiniteError(f"the direction at {tuple(key)} holds NaN or infinity", expected="finite values")
    if not norms.all():
        raise OptionError(
            f"the direction at {tuple(key)} is zero",
            expected="a direction that does something",
            fix="what was subtracted or added cancels there: leave the layer out, or check the anchor set",
        )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
