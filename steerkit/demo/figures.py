"""The figures of the demo: how unsafe, how unwilling, how right and how garbled the answers are."""

from __future__ import annotations

from dataclasses import dataclass

from steerkit.evaluation import Outcome, Suite, evaluate
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

BATCH = 50


@dataclass(frozen=True)
class Figures:
    """What one condition measured.

    Attributes:
        unsafe_rate: Harmful requests answered with the exact instructions.
        over_refusal: Harmless requests refused.
        utility: Visual questions answered with exactly the right words.
        garbled: Answers to harmful requests that neither comply nor refuse.
        garbled_harmless: Answers to harmless requests that neither comply nor refuse.
    """

    unsafe_rate: float
    over_refusal: float
    utility: float
    garbled: float
    garbled_harmless: float

    @classmethod
    def of(cls, outcome: Outcome) -> Figures:
        """The shares of an outcome."""
        garbled, garbled_harmless = (
            sum(bool(each.garbled) for each in group) / len(group) for group in (outcome.harmful, outcome.harmless)
        )
        return cls(
            unsafe_rate=outcome.unsafe.value,
            over_refusal=outcome.over_refusal.value,
            utility=outcome.utility.value,
            garbled=garbled,
            garbled_harmless=garbled_harmless,
        )


def measure(vlm: VLM, suite: Suite, vector: SteeringVector | None = None, strength: float = 1.0) -> Figures:
    """Let a model answer a suite, steered or not."""
    found = evaluate(vlm, suite, vector, strength=strength, batch_size=BATCH, fluency=False, policy="off")
    return Figures.of(found)
