"""Remove what lies along a direction, or in the span of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from steerkit.interventions._arithmetic import column, orthonormal, project
from steerkit.interventions._directions import StoredDirection
from steerkit.interventions.operations._base import Arithmetic, Rescaling, Size

if TYPE_CHECKING:
    from torch import Tensor

    from steerkit.interventions._arithmetic import Basis, Dose, Rows


@final
class Ablate(Rescaling):
    """`h - s * P h` with P the projection on the direction, or on the span of `[k, hidden]` directions."""

    kind: Literal["ablate"] = "ablate"
    direction: StoredDirection = StoredDirection()

    spans: ClassVar[bool] = True

    def prepare(self, direction: Tensor) -> Tensor:
        """A basis of the span."""
        return orthonormal(direction)

    def bind(self, direction: Tensor | None, contrast: Tensor | None) -> tuple[Arithmetic, tuple[Any, ...]]:
        """See the base."""
        return ablate, (direction,)

    def size(self, strengths: tuple[float, ...], norm: float | None, length: float | None) -> Size:
        """The part along the direction is at most the whole."""
        return Size(max(map(abs, strengths)), removes=all(0.0 <= strength <= 2.0 for strength in strengths))

    def removal(self, strength: float) -> float:
        """See the base."""
        return strength

    def undoes(self, along: float) -> bool:
        """Whatever is added there."""
        return True

    def alignment(self, direction: Tensor, target: Tensor) -> float:
        """How much of the target lies in the span, which is removed."""
        return -float((orthonormal(direction).double() @ target.double()).norm())

    def describe(self) -> str:
        """See the base."""
        return "removes what lies along a direction, or in the span of several"


def ablate(h: Rows, basis: Basis, strength: Dose = 1.0) -> Rows:
    """`h - s * P h`: at s = 1 nothing is left of h along the basis."""
    return (h.float() - column(strength) * project(h, basis)).to(h.dtype)
