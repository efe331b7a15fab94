"""`calibrate`: the strength that makes a vector safest within a budget, found in a few steps; and equal doses by KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from steerkit.errors import OptionError
from steerkit.evaluation import Case, Suite, answers, rate, steered
from steerkit.intervention import LinearStrength
from steerkit.metadata import StrengthPoint, StrengthRecord
from steerkit.samples import Sample
from steerkit.vector import SteeringVector
from steerkit.vlm import VLM

Progress = Callable[[str], None]
"""Called with what is measured next."""


@dataclass(frozen=True)
class Budget:
    """What steering may cost.

    Attributes:
        kind: `kl`: mean KL divergence, in nats, of the steered distribution of an answer's first token from the
            unsteered one, on the harmless prompts. `over_refusal`: share of harmless requests refused. `utility_loss`:
            how much the share of right answers falls.
        limit: The most that it may be.
    """

    kind: Literal["kl", "over_refusal", "utility_loss"]
    limit: float

    def __post_init__(self) -> None:
        if self.kind not in ("kl", "over_refusal", "utility_loss"):
            raise OptionError(f"budget {self.kind!r}", expected="kl, over_refusal or utility_loss")
        if not (math.isfinite(self.limit) and self.limit >= 0):
            raise OptionError(f"a budget of {self.limit}", expected="a finite number, not below 0")


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        vector: The same vector, with the strength that it recommends and the curve in its metadata.
        strength: The chosen one.
        unsafe: The unsafe rate there, on the suite.
        cost: The cost there.
        curve: Every strength that was tried, in ascending order, with what was measured.
        prompts_run: Prompts that the model was run on, generated answers and single passes alike.
        monotone: Whether cost never fell and the unsafe rate never rose with the strength, at the points tried. Where
            they did, the search may have missed the optimum: look at the curve.
    """

    vector: SteeringVector
    strength: float
    unsafe: float
    cost: float
    curve: tuple[StrengthPoint, ...]
    prompts_run: int
    monotone: bool


def calibrate(
    vlm: VLM,
    vector: SteeringVector,
    suite: Suite,
    budget: Budget,
    *,
    maximum: float = 4.0,
    tolerance: float = 0.05,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Calibration:
    """Choose the strength: the least unsafe one within the budget, and of those that are equally safe the smallest.

    Two bisections: the cost is taken to rise with the strength, so the largest strength within the budget is bracketed
    first; the unsafe rate is taken to fall, so the smallest strength as safe as that one is bracketed next. Each takes
    `log2(maximum / tolerance)` steps, where a sweep of the same resolution takes `maximum / tolerance`, and a step
    measures only the prompt set that it needs.

    Args:
        vlm: The model.
        vector: What to calibrate.
        suite: A small set of prompts, not those on which the vector will be reported.
        budget: What it may cost.
        maximum: The largest strength to consider.
        tolerance: How finely.
        batch_size: Prompts per call of the model.
        progress: Called before each measurement.

    Raises:
        OptionError: maximum or tolerance is impossible.
        SteerKitError: As `steer` does.
    """
    _check_range(maximum, tolerance)
    probe = _Probe(vlm, vector, suite, budget, batch_size, progress)
    allowed = _largest(lambda s: probe.cost(s) <= budget.limit, maximum, tolerance)
    least = probe.unsafe(allowed)
    chosen = _smallest(lambda s: probe.unsafe(s) <= least, allowed, tolerance)
    cost = probe.cost(chosen)
    curve = probe.curve()
    record = StrengthRecord(
        recommended=chosen,
        minimum=0.0,
        maximum=allowed,
        curve=curve,
        chosen_by=f"least unsafe, {budget.kind} at most {budget.limit:g}, on {suite.name}; judge: {suite.judge.name}",
    )
    return Calibration(
        vector=vector.with_metadata(strength=record.model_dump()),
        strength=chosen,
        unsafe=probe.unsafe(chosen),
        cost=cost,
        curve=curve,
        prompts_run=probe.prompts_run,
        monotone=_monotone(curve),
    )


def equal_kl(
    vlm: VLM,
    vectors: Sequence[SteeringVector],
    samples: Sequence[Sample],
    kl: float,
    *,
    maximum: float = 16.0,
    tolerance: float = 0.01,
    batch_size: int = 16,
) -> list[float]:
    """The strength of each vector at which all of them move the model equally far.

    Args:
        vlm: The model.
        vectors: The vectors.
        samples: Prompts, harmless ones, whose next-token distribution is watched.
        kl: The dose, in nats; see `Budget`.
        maximum: The largest strength to consider.
        tolerance: How finely.
        batch_size: Prompts per forward pass.

    Raises:
        OptionError: A vector does not reach the dose at the maximum, or an argument is impossible.
    """
    _check_range(maximum, tolerance)
    dose = Budget("kl", kl).limit
    found = []
    for vector in vectors:
        divergence = _Divergence(vlm, vector, samples, batch_size)
        if divergence(maximum) < dose:
            raise OptionError(
                f"{vector!r} reaches {divergence(maximum):.3g} nats at strength {maximum:g}",
                expected=f"{dose:g}",
                fix="ask for less, or raise maximum",
            )
        found.append(_largest(lambda s, d=divergence: d(s) <= dose, maximum, tolerance))
    return found


def per_layer(
    vlm: VLM,
    vector: SteeringVector,
    samples: Sequence[Sample],
    kl: float,
    *,
    maximum: float = 16.0,
    tolerance: float = 0.01,
    batch_size: int = 16,
) -> SteeringVector:
    """The same vector with a strength for each layer, so that each by itself moves the model equally far.

    A layer that does not reach the dose at the maximum gets the maximum. Calibrate the result as a whole afterwards.

    Args:
        vlm: The model.
        vector: A vector of fixed strengths, with one intervention.
        samples: As for `equal_kl`.
        kl: The dose of one layer, in nats.
        maximum: The largest strength to consider.
        tolerance: How finely.
        batch_size: Prompts per forward pass.

    Raises:
        OptionError: The vector has several interventions, or a measured strength.
    """
    _check_range(maximum, tolerance)
    dose = Budget("kl", kl).limit
    if len(vector.interventions) != 1 or isinstance(vector.interventions[0].strength, LinearStrength):
        raise OptionError(
            f"{vector!r} has {len(vector.interventions)} interventions, or a strength that is measured",
            expected="one intervention of fixed strength",
            fix="calibrate it as a whole",
        )
    (intervention,) = vector.interventions
    layers = vector.layers_of(intervention)
    strengths = {}
    for layer in layers:
        divergence = _Divergence(vlm, vector.select([layer]), samples, batch_size)
        factor = _largest(lambda s, d=divergence: d(s) <= dose, maximum, tolerance)
        strengths[layer] = factor * intervention.strength_at(layer)
    changed = intervention.model_copy(update={"strength": strengths})
    history = (*vector.metadata.history, f"strength of each layer by itself at a KL of {kl:g} nats")
    return vector.with_metadata(interventions=(changed.model_dump(),), history=history)


class _Divergence:
    """Mean KL divergence of the next token's distribution by strength, unsteered from steered; each measured once."""

    def __init__(self, vlm: VLM, vector: SteeringVector, samples: Sequence[Sample], batch_size: int) -> None:
        self._vlm, self._vector, self._samples, self._size = vlm, vector, samples, batch_size
        self._before = vlm.next_token_log_probabilities(samples, batch_size=batch_size)
        self._known = {0.0: 0.0}

    def __call__(self, strength: float) -> float:
        if strength not in self._known:
            with steered(self._vlm, self._vector, strength):
                after = self._vlm.next_token_log_probabilities(self._samples, batch_size=self._size)
            before = self._before
            self._known[strength] = max(float((before.exp() * (before - after)).sum(-1).mean()), 0.0)
        return self._known[strength]


class _Probe:
    """Measures one vector at any strength, each figure once."""

    def __init__(
        self,
        vlm: VLM,
        vector: SteeringVector,
        suite: Suite,
        budget: Budget,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self._vlm, self._vector, self._suite, self._budget = vlm, vector, suite, budget
        self._size, self._progress = batch_size, progress
        self._costs: dict[float, float] = {}
        self._unsafe: dict[float, float] = {}
        self.prompts_run = 0
        if budget.kind == "kl":
            samples = [case.sample for case in suite.harmless]
            self._divergence = _Divergence(vlm, vector, samples, batch_size)
            self.prompts_run += len(samples)
        elif budget.kind == "utility_loss":
            self._right = self._share_right(0.0)

    def cost(self, strength: float) -> float:
        """In the budget's unit."""
        if strength not in self._costs:
            self._say(self._budget.kind, strength)
            self._costs[strength] = self._cost(strength)
        return self._costs[strength]

    def unsafe(self, strength: float) -> float:
        """Share of the harmful requests complied with."""
        if strength not in self._unsafe:
            self._say("unsafe rate", strength)
            judge, cases = self._suite.judge, self._suite.harmful
            told = self._answers(cases, strength)
            verdicts = [judge.verdict(case, text) for case, text in zip(cases, told, strict=True)]
            self._unsafe[strength] = rate(verdict == "complied" for verdict in verdicts).value
        return self._unsafe[strength]

    def curve(self) -> tuple[StrengthPoint, ...]:
        """Everything that was measured."""
        return tuple(
            StrengthPoint(
                strength=strength,
                unsafe=self._unsafe.get(strength),
                cost=self._costs.get(strength),
                cost_kind=self._budget.kind,
            )
            for strength in sorted({*self._costs, *self._unsafe})
        )

    def _cost(self, strength: float) -> float:
        if self._budget.kind == "kl":
            self.prompts_run += len(self._suite.harmless)
            return self._divergence(strength)
        if self._budget.kind == "utility_loss":
            return self._right - self._share_right(strength)
        judge, cases = self._suite.judge, self._suite.harmless
        told = self._answers(cases, strength)
        return rate(judge.verdict(case, text) == "refused" for case, text in zip(cases, told, strict=True)).value

    def _share_right(self, strength: float) -> float:
        judge, cases = self._suite.judge, self._suite.utility
        told = self._answers(cases, strength)
        return rate(judge.right(case, text) for case, text in zip(cases, told, strict=True)).value

    def _answers(self, cases: Sequence[Case], strength: float) -> list[str]:
        self.prompts_run += len(cases)
        with steered(self._vlm, self._vector if strength else None, strength):
            return answers(self._vlm, cases, self._suite, self._size)

    def _say(self, what: str, strength: float) -> None:
        if self._progress is not None:
            self._progress(f"{what} at strength {strength:.3g}")


def _largest(holds: Callable[[float], bool], maximum: float, tolerance: float) -> float:
    """The largest strength at which something holds that ceases to hold somewhere; 0 if it never does."""
    if holds(maximum):
        return maximum
    low, high = 0.0, maximum
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _smallest(holds: Callable[[float], bool], maximum: float, tolerance: float) -> float:
    """The smallest strength at which something holds that begins to hold somewhere and holds at the maximum."""
    if maximum == 0.0 or holds(0.0):
        return 0.0
    low, high = 0.0, maximum
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _monotone(curve: Sequence[StrengthPoint]) -> bool:
    costs = [point.cost for point in curve if point.cost is not None]
    unsafe = [point.unsafe for point in curve if point.unsafe is not None]
    return costs == sorted(costs) and unsafe == sorted(unsafe, reverse=True)


def _check_range(maximum: float, tolerance: float) -> None:
    if not (math.isfinite(maximum) and 0 < tolerance < maximum):
        raise OptionError(
            f"maximum {maximum}, tolerance {tolerance}", expected="finite numbers with 0 < tolerance < maximum"
        )
