"""Bound the coordinate along a direction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from pydantic import model_validator

from steerkit.interventions._arithmetic import column, unit
from steerkit.interventions._directions import FiniteFloat, StoredDirection
from steerkit.interventions.operations._base import Arithmetic, Rescaling, Size

if TYPE_CHECKING:
    from torch import Tensor

    from steerkit.interventions._arithmetic import Dose, Rows, Vector


@final
class Clamp(Rescaling):
    """Bound the coordinate of h along the unit direction to `[minimum, maximum]`; s blends from h to the result."""

    kind: Literal["clamp"] = "clamp"
    direction: StoredDirection = StoredDirection()
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None

    spans: ClassVar[bool] = False

    @model_validator(mode="after")
    def _bounded(self) -> Clamp:
        if self.minimum is None and self.maximum is None:
            raise ValueError("a clamp needs a minimum or a maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} exceeds maximum {self.maximum}")
        return self

    def prepare(self, direction: Tensor) -> Tensor:
        """The line."""
        return unit(direction.double()).float()

    def bind(self, direction: Tensor | None, contrast: Tensor | None) -> tuple[Arithmetic, tuple[Any, ...]]:
        """See the base."""
        return clamp, (direction, self.minimum, self.maximum)

    def size(self, strengths: tuple[float, ...], norm: float | None, length: float | None) -> Size:
        """How far from zero the bounds hold the coordinate decides, next to the norm.

        A state without a part along the direction gets that, and one that has it loses at most the whole: a coordinate
        is at most the norm, so bounds that lie beyond it leave any state as it is.
        """
        if norm is None:
            return Size(None)
        lowest = -math.inf if self.minimum is None else self.minimum
        highest = math.inf if self.maximum is None else self.maximum
        away = max(lowest, -highest) / norm
        removes = away <= 0.0 and all(0.0 <= strength <= 1.0 for strength in strengths)
        return Size(max(map(abs, strengths)) * max(0.0, away, min(1.0, 1.0 + away)), removes)

    def removal(self, strength: float) -> float:
        """See the base."""
        return strength

    def undoes(self, along: float) -> bool:
        """Where there is a bound on that side."""
        return (self.maximum if along > 0 else self.minimum) is not None

    def alignment(self, direction: Tensor, target: Tensor) -> float:
        """The size of their cosine: negative where the bound keeps the state from moving towards the target."""
        cosine = float(unit(direction.double()) @ target.double())
        return -abs(cosine) if cosine and self.undoes(cosine) else abs(cosine)

    def describe(self) -> str:
        """See the base."""
        lowest = "" if self.minimum is None else f" from {self.minimum:g}"
        highest = "" if self.maximum is None else f" to {self.maximum:g}"
        return f"bounds the coordinate along a direction{lowest}{highest}"


def clamp(h: Rows, line: Vector, minimum: float | None, maximum: float | None, strength: Dose = 1.0) -> Rows:
    """Bound the coordinate along a direction of norm 1."""
    wide = h.float()
    coordinate = (wide @ line)[:, None]
    return (wide + column(strength) * (coordinate.clamp(minimum, maximum) - coordinate) * line).to(h.dtype)
