"""Add the part of a measured contrast that lies along a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from steerkit.interventions._arithmetic import column, orthonormal, project
from steerkit.interventions._directions import MeasuredContrast, StoredDirection
from steerkit.interventions.operations._base import Arithmetic, Effect, Operation, Size

if TYPE_CHECKING:
    from torch import Tensor

    from steerkit.interventions._arithmetic import Basis, Dose, Rows


@final
class AddProjection(Operation):
    """`h + s * P c`: add the part of a measured contrast `c` that lies along a stored direction."""

    kind: Literal["add_projection"] = "add_projection"
    contrast: MeasuredContrast
    direction: StoredDirection = StoredDirection()

    effect: ClassVar[Effect] = "injects"
    spans: ClassVar[bool] = True

    @property
    def stored(self) -> StoredDirection:
        """See the base."""
        return self.direction

    @property
    def measured(self) -> MeasuredContrast:
        """See the base."""
        return self.contrast

    @property
    def additive(self) -> bool:
        """It depends on the prompt."""
        return False

    def prepare(self, direction: Tensor) -> Tensor:
        """A basis of the span."""
        return orthonormal(direction)

    def bind(self, direction: Tensor | None, contrast: Tensor | None) -> tuple[Arithmetic, tuple[Any, ...]]:
        """See the base."""
        return add_projection, (contrast, direction)

    def size(self, strengths: tuple[float, ...], norm: float | None, length: float | None) -> Size:
        """The part along the direction is at most the whole contrast."""
        return Size(max(map(abs, strengths)) * self.contrast.bound)

    def removal(self, strength: float) -> float:
        """See the base."""
        return -strength

    def undoes(self, along: float) -> bool:
        """Which way the contrast of a prompt points is not known."""
        return False

    def alignment(self, direction: Tensor, target: Tensor) -> float:
        """Which way the contrast of a prompt points is not known."""
        return 0.0

    def describe(self) -> str:
        """See the base."""
        return "adds the part of a contrast measured on the prompt that lies along a direction"


def add_projection(h: Rows, contrast: Rows, basis: Basis, strength: Dose = 1.0) -> Rows:
    """`h + s * P c`."""
    return (h.float() + column(strength) * project(contrast, basis)).to(h.dtype)
