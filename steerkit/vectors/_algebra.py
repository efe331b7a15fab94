"""The algebra of steering vectors: what is made of them is a vector again, and says in its history what was done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from steerkit._internal.validation import as_layers, plain
from steerkit._text import quoted
from steerkit.errors import LayerRangeError, ModelMismatchError, OptionError
from steerkit.interventions import Intervention, _arithmetic as ops, is_finite
from steerkit.vectors._directions import TORCH_TYPES, Directions
from steerkit.vectors._metadata import StrengthRecord


class Algebra(Directions):
    """Directions that are selected, scaled and added; see `SteeringVector`."""

    def select(self, layers: Iterable[int]) -> Self:
        """The same vector on some decoder blocks only; what it does in the vision tower stays.

        For CMRM in increments, prefer `CMRM(layers=...)`: it measures the increments between the chosen layers, whereas
        this drops what the other layers contributed.

        Raises:
            OptionError: The layers are no whole numbers.
            LayerRangeError: The vector steers nothing at a layer.
        """
        wanted = tuple(dict.fromkeys(as_layers(layers)))
        if not wanted:
            raise LayerRangeError("no layer is selected", expected="at least one layer")
        steered = {layer for i in self.interventions if i.tower == "language" for layer in self.layers_of(i)}
        for layer in wanted:
            if layer not in steered:
                raise LayerRangeError(f"the vector steers nothing at layer {layer}", expected=f"of {sorted(steered)}")
        interventions = tuple(
            i if i.tower == "vision" else i.model_copy(update={"layers": kept})
            for i in self.interventions
            if (kept := tuple(layer for layer in wanted if layer in self.layers_of(i))) or i.tower == "vision"
        )
        shared = {d.layer for i in interventions if i.tower == "language" for d in i.stored if d.layer is not None}
        tensors = {
            key: t
            for key, t in self.tensors.items()
            if key.tower == "vision" or key.layer in wanted or key.layer in shared
        }
        return self.derived(tensors, f"select layers {list(wanted)}", interventions)

    def normalized(self) -> Self:
        """The same vector with every direction scaled to norm 1 (each row of a `[k, hidden]` direction).

        The references of measures are points, not directions, and stay what they are.

        Raises:
            OptionError: The vector stores no directions: they are measured on each prompt.
        """
        if not self.tensors:
            raise OptionError(
                "a vector that is measured on each prompt is normalised", expected="a vector that stores directions"
            )
        measures = [m for i in self.interventions for m in i.measures]
        points = {m.reference.name for m in measures if m.reference is not None} - {m.direction.name for m in measures}
        tensors = {
            key: t if key.name in points else ops.unit(t.double()).to(t.dtype) for key, t in self.tensors.items()
        }
        return self.derived(tensors, "normalise")

    def __mul__(self, factor: float) -> Self:
        """A vector that steers `factor` times as hard: added directions are scaled, other operations get the dose.

        The new vector at a strength is the old one at `factor` times that, and the strengths of the record are divided
        by it: at what it recommends, the new vector does what the old one did at its own. Where nothing was recommended
        the strength stays 1. A negative factor makes a vector of which nothing was measured: its record is empty.
        Metrics are dropped in any case, since at which strength they were measured is not recorded.

        Raises:
            OptionError: The factor is 0, or no finite number.
        """
        factor = plain(factor)
        if not is_finite(factor):
            raise OptionError(f"a vector is scaled by {quoted(factor)}", expected="a finite number")
        if factor == 0:
            raise OptionError("a vector is scaled by 0", expected="a factor that leaves something to apply")
        factor = float(factor)
        kept = {d.name for i in self.interventions if not _adds(i) for d in i.stored}
        dosed = [not _adds(i) or i.stored[0].name in kept for i in self.interventions]
        pairs = list(zip(self.interventions, dosed, strict=True))
        scaled = {key for i, by_dose in pairs if not by_dose for key in self._read_keys(i)}
        interventions = tuple(i.dosed(factor) if by_dose else i for i, by_dose in pairs)
        tensors = {key: (t.float() * factor).to(t.dtype) if key in scaled else t for key, t in self.tensors.items()}
        strength = _converted(self.metadata.strength, factor) if factor > 0 else None
        return self.derived(tensors, f"scale by {factor:g}", interventions, strength)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Self:
        """A vector that steers as hard as this one at a strength that is divided; see `*`.

        Raises:
            OptionError: The divisor is 0, or no finite number.
        """
        divisor = plain(divisor)
        if not is_finite(divisor) or not divisor or not is_finite(1.0 / divisor):
            raise OptionError(f"a vector is divided by {quoted(divisor)}", expected="a finite number other than 0")
        return self * (1.0 / divisor)

    def __neg__(self) -> Self:
        """The opposite vector, of which nothing was measured; see `*`."""
        return self * -1.0

    def __add__(self, other: Self) -> Self:
        """The sum of two vectors that add their directions at the same places; a missing layer counts as zero.

        Raises:
            ModelMismatchError: They belong to models of another shape.
            OptionError: They do something else with their directions than adding, or at other places.
        """
        if not isinstance(other, Algebra):
            return NotImplemented
        mine, theirs = self.metadata.model, other.metadata.model
        if (mine.architecture, mine.hidden_size, mine.layer_count) != (
            theirs.architecture,
            theirs.hidden_size,
            theirs.layer_count,
        ):
            raise ModelMismatchError(
                f"vectors of {mine.architecture} ({mine.hidden_size} x {mine.layer_count}) and "
                f"{theirs.architecture} ({theirs.hidden_size} x {theirs.layer_count}) are added",
                expected="the same model",
            )
        if self.interventions != other.interventions or not all(map(_adds, self.interventions)):
            raise OptionError(
                "the two vectors are not applied in the same way",
                expected="equal interventions that add stored directions",
                fix="apply them together instead: steer(model, [a, b])",
            )
        tensors = dict(self.tensors)
        dtype = TORCH_TYPES[self.metadata.dtype]
        for key, tensor in other.tensors.items():
            tensors[key] = (tensors[key].float() + tensor.float()).to(dtype) if key in tensors else tensor.to(dtype)
        return self.derived(tensors, f"add {other.metadata.method.name} {other.digest()[:12]}")

    def __radd__(self, begun: int) -> Self:
        """The vector itself, for `sum`, which begins with 0."""
        if type(begun) is not int or begun:
            return NotImplemented
        return self

    def __sub__(self, other: Self) -> Self:
        """The difference of two vectors; see `+`."""
        return self + (-other) if isinstance(other, Algebra) else NotImplemented


def _adds(intervention: Intervention) -> bool:
    """Whether scaling its directions is the same as scaling its dose (a measure would see the scaled direction too)."""
    return intervention.operation.additive and not intervention.measures


def _converted(record: StrengthRecord, factor: float) -> StrengthRecord:
    """The record of a vector that steers `factor` times as hard, a positive number; an empty one stays empty."""
    if record == StrengthRecord():
        return record
    named = {name: getattr(record, name) for name in ("recommended", "minimum", "maximum")}
    changes: dict[str, object] = {name: value / factor for name, value in named.items() if value is not None}
    changes["curve"] = tuple(point.model_copy(update={"strength": point.strength / factor}) for point in record.curve)
    return record.model_copy(update=changes)
