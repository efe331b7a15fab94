"""Add a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from steerkit.interventions._arithmetic import column, norm, unit
from steerkit.interventions._directions import Direction, MeasuredContrast, StoredDirection
from steerkit.interventions.operations._base import Arithmetic, Effect, Operation, Size

if TYPE_CHECKING:
    from torch import Tensor

    from steerkit.interventions._arithmetic import Dose, Rows, Vector


@final
class Add(Operation):
    """`h + s * d`, or `h + s * |h| * d / |d|` when `relative`."""

    kind: Literal["add"] = "add"
    direction: Direction = StoredDirection()
    relative: bool = False

    effect: ClassVar[Effect] = "moves"
    spans: ClassVar[bool] = False

    @property
    def stored(self) -> StoredDirection | None:
        """The direction, where it is stored."""
        return self.direction if isinstance(self.direction, StoredDirection) else None

    @property
    def measured(self) -> MeasuredContrast | None:
        """The direction, where it is measured."""
        return self.direction if isinstance(self.direction, MeasuredContrast) else None

    @property
    def additive(self) -> bool:
        """Unless the dose is relative, or the direction measured."""
        return self.stored is not None and not self.relative

    def prepare(self, direction: Tensor) -> Tensor:
        """The direction; of a relative dose, its line."""
        return unit(direction.double()).float() if self.relative else direction.float()

    def bind(self, direction: Tensor | None, contrast: Tensor | None) -> tuple[Arithmetic, tuple[Any, ...]]:
        """Add either; a relative addition takes a contrast at norm 1, as it does a stored direction."""
        if not self.relative:
            return add, (direction if contrast is None else contrast,)
        return add_relative, (direction if contrast is None else unit(contrast),)

    def size(self, strengths: tuple[float, ...], norm: float | None, length: float | None) -> Size:
        """The strength itself where it is relative; else in proportion to the lengths."""
        largest = max(map(abs, strengths))
        if self.relative:
            return Size(largest)
        if self.measured is not None:
            return Size(largest * self.measured.bound)
        return Size(None if norm is None or length is None else largest * length / norm)

    def removal(self, strength: float) -> float:
        """See the base."""
        return -strength

    def undoes(self, along: float) -> bool:
        """Where the two point in opposite directions."""
        return along < 0

    def alignment(self, direction: Tensor, target: Tensor) -> float:
        """Their cosine."""
        return float(unit(direction.double()) @ target.double())

    def describe(self) -> str:
        """See the base."""
        what = "adds a contrast that is measured on the prompt" if self.stored is None else "adds a direction"
        return f"{what}, relative to the norm of each token" if self.relative else what


def add(h: Rows, direction: Vector | Rows, strength: Dose = 1.0) -> Rows:
    """`h + s * d`."""
    return h + (column(strength) * direction).to(h.dtype)


def add_relative(h: Rows, line: Vector | Rows, strength: Dose = 1.0) -> Rows:
    """`h + s * |h| * u` with u of norm 1: the dose is a fraction of the token's own norm."""
    return (h.float() + column(strength) * norm(h) * line).to(h.dtype)
