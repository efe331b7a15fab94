"""Searching for a strength: the budget, and bisections that end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from steerkit._internal.validation import expect, expect_one_of, expect_whole
from steerkit._text import quoted
from steerkit.errors import OptionError
from steerkit.interventions import is_finite
from steerkit.vectors import SteeringVector, StrengthPoint, StrengthRecord

Progress = Callable[[str], None]
"""Called with what is measured next."""

FINEST = 1e-6
"""Of the tolerance, as a part of the maximum. Strengths closer than that have the same effect in float32, and bisection
down to the spacing of floats would not end."""

Unit: TypeAlias = Literal["kl", "over_refusal", "utility_loss"]


@dataclass(frozen=True)
class Budget:
    """What steering may cost.

    Attributes:
        kind: `kl`: mean KL divergence, in nats, of the steered distribution of an answer's first token from the
            unsteered one, on the harmless prompts. `over_refusal`: share of harmless requests refused, and with it
            what steering adds to the share that is garbled: such an answer complies no more than a refusal does.
            `utility_loss`: how much the share of right answers falls.
        limit: The most that it may be.
    """

    kind: Unit
    limit: float

    def __post_init__(self) -> None:
        expect_one_of(get_args(Unit), **{"the kind of budget": self.kind})
        if not is_finite(self.limit) or self.limit < 0:
            raise OptionError(f"a budget of {self.limit!r:.80}", expected="a finite number, not below 0")

    def check_unsteered(self, cost: float, suite: str) -> None:
        """Refuse a budget that is spent before anything steers.

        Raises:
            OptionError: It is.
        """
        if cost > self.limit:
            raise OptionError(
                f"{self.kind} is {cost:.3g} without steering, on {suite}",
                expected=f"at most the budget of {self.limit:g}",
                fix="allow more, or read the answers to the harmless prompts: the judge may take them for refusals",
            )


def largest(holds: Callable[[float], bool], maximum: float, tolerance: float) -> float:
    """The largest strength up to which something holds, looked for upwards from 0, where it is taken to hold."""
    low, high = 0.0, max(maximum / 8, tolerance)
    while holds(high):
        if high == maximum:
            return maximum
        low, high = high, min(2 * high, maximum)
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def smallest(holds: Callable[[float], bool], maximum: float, tolerance: float) -> float:
    """The smallest strength at which something holds that begins to hold somewhere and holds at the maximum."""
    if maximum == 0.0 or holds(0.0):
        return 0.0
    low, high = 0.0, maximum
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def ascending(points: Iterable[StrengthPoint]) -> tuple[StrengthPoint, ...]:
    return tuple(sorted(points, key=lambda point: point.strength))


def calibrated(
    vector: SteeringVector,
    strength: float,
    curve: Sequence[StrengthPoint],
    chosen_by: str,
    layers: Iterable[StrengthPoint] = (),
) -> SteeringVector:
    """The vector that recommends a strength, and says what was measured at which.

    Args:
        vector: The vector.
        strength: The strength.
        curve: Of the vector as a whole, in ascending order.
        chosen_by: How it was chosen.
        layers: What was measured of its layers before.
    """
    record = StrengthRecord(
        recommended=strength,
        minimum=curve[0].strength,
        maximum=curve[-1].strength,
        curve=ascending((*layers, *curve)),
        chosen_by=chosen_by,
    )
    return vector.with_metadata(strength=record.model_dump())


def say(progress: Progress | None, what: str) -> None:
    if progress is not None:
        progress(what)


def check_range(maximum: float, tolerance: float, batch_size: int) -> None:
    expect_whole(batch_size=batch_size)
    if not (is_finite(maximum) and is_finite(tolerance) and maximum * FINEST <= tolerance < maximum):
        raise OptionError(
            f"maximum {quoted(maximum)}, tolerance {quoted(tolerance)}",
            expected=f"finite numbers with {FINEST:g} * maximum <= tolerance < maximum",
        )


def check_vector(vector: object) -> None:
    expect(SteeringVector, "one SteeringVector", "sk.load_vector(path) for a pack", vector=vector)
