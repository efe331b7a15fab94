"""`calibrate`: the strength that makes a vector safest within a budget, found in a few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit._internal.validation import expect
from steerkit.errors import EmptyAnchorSetError
from steerkit.evaluation._disjoint import check_unseen
from steerkit.evaluation._evaluate import evaluate
from steerkit.evaluation._generate import check_measurable, check_vectors
from steerkit.evaluation._kl import Divergence, by_layer
from steerkit.evaluation._outcome import Judged, Outcome
from steerkit.evaluation._records import Kind
from steerkit.evaluation._search import (
    Budget,
    Progress,
    Unit,
    calibrated,
    check_range,
    check_vector,
    largest,
    say,
    smallest,
)
from steerkit.evaluation._suites import Suite
from steerkit.models import Sample, as_samples
from steerkit.policy import Policy
from steerkit.vectors import SteeringVector, StrengthPoint
from steerkit.vlm import VLM


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        vector: The same vector, with the strength that it recommends and the curve in its metadata.
        strength: The chosen one.
        unsafe: The unsafe rate there, on the suite: the share of harmful requests whose answer is not known to be safe,
            as `Outcome.not_safe`.
        cost: The cost there; never more than the budget.
        curve: Every strength that was tried, in ascending order, with what was measured. With `per_layer`, the pack's
            curve holds that of the layers as well.
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
    anchors: Sequence[Sample] = (),
    per_layer: float | None = None,
    maximum: float = 4.0,
    tolerance: float = 0.05,
    folder: str | Path | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    policy: Policy = "strict",
) -> Calibration:
    """Choose the strength: the least unsafe one within the budget, and of those that are equally safe the smallest.

    The cost is taken to rise with the strength: from an eighth of the maximum the strength is doubled while it stays
    within the budget, and the largest one that does is bracketed by bisection. The unsafe rate is taken to fall: the
    smallest strength as safe as that one is bracketed next. A sweep takes `maximum / tolerance` steps, this about twice
    the logarithm of it, and a step measures only the prompt set that it needs. Whatever the curve looks like, the
    choice is a strength whose cost was measured and is within the budget.

    Args:
        vlm: The model.
        vector: What to calibrate.
        suite: A small set of prompts, not those on which the vector will be reported.
        budget: What it may cost.
        anchors: On what the vector was fitted, to make sure that the suite holds none of it.
        per_layer: Before that, give each layer a strength of its own, at which it alone costs this KL, in nats, on the
            harmless prompts; see the function `per_layer`. None: the layers stay as they are.
        maximum: The largest strength to consider.
        tolerance: How finely; at least a millionth of the maximum.
        folder: Where answers and verdicts are kept, as by `evaluate`: a search that was interrupted goes on there.
        batch_size: Prompts per call of the model.
        progress: Called before each measurement.
        policy: As for `steer`, for class and sizes and fingerprint; the doses are tried whatever they are.

    Raises:
        OptionError: An argument is impossible, the budget is exceeded without steering, or the vector can't
            be calibrated per layer.
        SampleError: The suite holds anchors, or is the anchor set that the vector's record names.
        NonFiniteError: As for `equal_kl`.
        SteerKitError: As `steer` does.
    """
    check_measurable(vlm, suite)
    check_vector(vector)
    expect(Budget, "a Budget", "sk.evaluation.Budget('kl', 0.05)", budget=budget)
    expect(Callable | None, "a function of what is next", progress=progress)
    check_range(maximum, tolerance, batch_size)
    require_prompts(suite, "harmful", watched(budget.kind))
    if per_layer is not None:
        Budget("kl", per_layer)
    check_unseen(suite, vector, as_samples(anchors))
    check_vectors(vlm, [vector], policy)
    run, layers, rule = 0, (), ""
    if per_layer is not None:
        harmless = [case.sample for case in suite.harmless]
        vector, run = by_layer(vlm, vector, harmless, per_layer, batch_size=batch_size, progress=progress)
        layers, rule = vector.metadata.strength.curve, f"; before that, {vector.metadata.strength.chosen_by}"
    measured = _Measured(vlm, vector, suite, budget, {"folder": folder, "batch_size": batch_size}, progress)
    budget.check_unsteered(measured.cost(0.0), suite.name)
    allowed = largest(lambda s: measured.cost(s) <= budget.limit, maximum, tolerance)
    least = measured.unsafe(allowed)
    smallest(lambda s: measured.unsafe(s) <= least, allowed, tolerance)
    chosen = next(strength for strength in measured.safest_first() if measured.cost(strength) <= budget.limit)
    curve = measured.curve()
    rule = f"least unsafe, {budget.kind} at most {budget.limit:g}, on {suite.name}; judge: {suite.judge.name}{rule}"
    return Calibration(
        vector=calibrated(vector, chosen, curve, rule, layers),
        strength=chosen,
        unsafe=measured.unsafe(chosen),
        cost=measured.cost(chosen),
        curve=curve,
        prompts_run=measured.prompts_run + run,
        monotone=_monotone(curve),
    )


class _Measured:
    """Measures one vector at any strength, each figure once."""

    def __init__(
        self,
        vlm: VLM,
        vector: SteeringVector,
        suite: Suite,
        budget: Budget,
        options: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self._vlm, self._vector, self._suite, self._budget = vlm, vector, suite, budget
        self._options, self._progress = options, progress
        self._costs: dict[float, float] = {}
        self._unsafe: dict[float, float] = {}
        self.prompts_run = 0
        say(progress, f"{budget.kind} without steering")
        if budget.kind == "kl":
            samples = [case.sample for case in suite.harmless]
            before = vlm.next_token_log_probabilities(samples, batch_size=options["batch_size"])
            self._divergence = Divergence(vlm, vector, samples, before, options["batch_size"])
            self.prompts_run += len(samples)
            self._costs[0.0] = 0.0
        else:
            self._before = self._outcome(watched(budget.kind), 0.0)
            self._costs[0.0] = cost_of(budget.kind, self._before, self._before)

    def cost(self, strength: float) -> float:
        """In the budget's unit."""
        if strength not in self._costs:
            say(self._progress, f"{self._budget.kind} at strength {strength:.3g}")
            self._costs[strength] = self._cost(strength)
        return self._costs[strength]

    def unsafe(self, strength: float) -> float:
        """Share of the harmful requests whose answer is not known to be safe."""
        if strength not in self._unsafe:
            say(self._progress, f"unsafe rate at strength {strength:.3g}")
            self._unsafe[strength] = self._outcome("harmful", strength).not_safe.value
        return self._unsafe[strength]

    def safest_first(self) -> list[float]:
        """The strengths whose unsafe rate was measured; of equally safe ones the smallest first."""
        return sorted(self._unsafe, key=lambda strength: (self._unsafe[strength], strength))

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
        return cost_of(self._budget.kind, self._outcome(watched(self._budget.kind), strength), self._before)

    def _outcome(self, kind: Kind, strength: float) -> Outcome:
        suite, vector = self._suite.only(kind), self._vector if strength else None
        self.prompts_run += suite.size
        return evaluate(self._vlm, suite, vector, strength=strength, fluency=False, policy="off", **self._options)


def require_prompts(suite: Suite, *kinds: Kind) -> None:
    """Refuse a suite without prompts of a kind.

    Raises:
        EmptyAnchorSetError: It is so.
    """
    for kind in kinds:
        if not suite.cases(kind):
            raise EmptyAnchorSetError(f"the suite {suite.name!r} has no {kind} prompts", expected="at least one")


def watched(kind: Unit) -> Kind:
    """The prompts that a budget is about."""
    return "utility" if kind == "utility_loss" else "harmless"


def cost_of(kind: Unit, found: Outcome, before: Outcome) -> float:
    """What steering costs by the answers with and without it, in a budget's unit."""
    if kind == "utility_loss":
        asked = before.of("utility")
        return (_counted(asked, "right") - _counted(found.of("utility"), "right")) / len(asked)
    asked, was = found.of("harmless"), before.of("harmless")
    more = max(_counted(asked, "garbled") - _counted(was, "garbled"), 0)
    return (_counted(asked, "refused") + more) / len(asked)


def _counted(judged: Sequence[Judged], part: str) -> int:
    """How many answers are judged to be so; of those that are unjudged, none can be counted on to be otherwise."""
    return sum(getattr(each.verdict, part) is not False for each in judged)


def _monotone(curve: Sequence[StrengthPoint]) -> bool:
    costs = [point.cost for point in curve if point.cost is not None]
    unsafe = [point.unsafe for point in curve if point.unsafe is not None]
    return costs == sorted(costs) and unsafe == sorted(unsafe, reverse=True)
