"""Multiply the coordinate along a direction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from steerkit.interventions._arithmetic import column, unit
from steerkit.interventions._directions import FiniteFloat, StoredDirection
from steerkit.interventions.operations._base import Arithmetic, Rescaling, Size

if TYPE_CHECKING:
    from torch import Tensor

    from steerkit.interventions._arithmetic import Dose, Rows, Vector


@final
class Scale(Rescaling):
    """Multiply the coordinate of h along the direction by `factor`; s blends from h to the result."""

    kind: Literal["scale"] = "scale"
    direction: StoredDirection = StoredDirection()
    factor: FiniteFloat

    spans: ClassVar[bool] = False

    def prepare(self, direction: Tensor) -> Tensor:
        """The line."""
        return unit(direction.double()).float()

    def bind(self, direction: Tensor | None, contrast: Tensor | None) -> tuple[Arithmetic, tuple[Any, ...]]:
        """See the base."""
        return scale, (direction, self.factor)

    def size(self, strengths: tuple[float, ...], norm: float | None, length: float | None) -> Size:
        """The part along the direction is at most the whole."""
        removed = [self.removal(strength) for strength in strengths]
        return Size(max(map(abs, removed)), removes=all(0.0 <= each <= 2.0 for each in removed))

    def removal(self, strength: float) -> float:
        """To scale by f is to ablate 1 - f."""
        return strength * (1.0 - self.factor)

    def undoes(self, along: float) -> bool:
        """Whatever is added there."""
        return True

    def alignment(self, direction: Tensor, target: Tensor) -> float:
        """The size of their cosine, negative where it scales down."""
        if self.factor == 1.0:
            return 0.0
        return math.copysign(abs(float(unit(direction.double()) @ target.double())), self.factor - 1.0)

    def describe(self) -> str:
        """See the base."""
        return f"multiplies the coordinate along a direction by {self.factor:g}"


def scale(h: Rows, line: Vector, factor: float, strength: Dose = 1.0) -> Rows:
    """Multiply the coordinate along a direction of norm 1 by a factor."""
    wide = h.float()
    return (wide + column(strength) * (factor - 1.0) * (wide @ line)[:, None] * line).to(h.dtype)
