"""`calibrate_gate`: whom to steer, and how strongly, within several budgets at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from steerkit._internal.validation import expect, expect_each, expect_whole
from steerkit.errors import OptionError
from steerkit.evaluation._calibrate import Calibration, cost_of, require_prompts, watched
from steerkit.evaluation._disjoint import check_unseen
from steerkit.evaluation._evaluate import outcomes
from steerkit.evaluation._generate import Condition, check_measurable, check_vectors
from steerkit.evaluation._outcome import Judged, Outcome
from steerkit.evaluation._search import Budget, Progress, Unit, calibrated, say
from steerkit.evaluation._suites import Suite
from steerkit.interventions import Gate, MeasuredContrast, StoredDirection, _arithmetic as ops, is_finite
from steerkit.models import Sample, as_samples
from steerkit.policy import Policy
from steerkit.vectors import Key, SteeringVector, StrengthPoint, as_vectors
from steerkit.vlm import VLM

STRENGTHS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Choice:
    """A threshold and a strength of a vector, and what they come to."""

    vector: SteeringVector
    strength: float
    threshold: float
    unsafe: float
    costs: tuple[float, ...]
    moved: float
    """How far the threshold lies from the fitted one."""

    @property
    def merit(self) -> tuple[float, float, float, float]:
        return self.unsafe, sum(self.costs), self.moved, self.strength


def calibrate_gate(
    vlm: VLM,
    vectors: SteeringVector | Sequence[SteeringVector],
    suite: Suite,
    budgets: Budget | Sequence[Budget],
    *,
    anchors: Sequence[Sample] = (),
    strengths: Sequence[float] = STRENGTHS,
    folder: str | Path | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    policy: Policy = "strict",
) -> Calibration:
    """Choose the threshold of a gate and the strength behind it: the least unsafe within all budgets.

    A prompt is answered as without steering where the gate is shut, and where it is open as if there were none. So the
    suite is answered once unsteered and once at each strength of each vector with its gate held open, and what every
    threshold would give is put together from these answers and one reading of each prompt: any number of thresholds
    costs no more than one. Of equally safe choices the cheapest is taken, then the threshold nearest to the fitted one,
    then the smallest strength.

    Args:
        vlm: The model.
        vectors: What to calibrate, each with one gate that is read on the prompt at one layer, such as
            `CMRM(spared=...)` makes; of several, the best is chosen.
        suite: Prompts of all kinds that the budgets need, not those on which the vector will be reported.
        budgets: What it may cost; `over_refusal` and `utility_loss`, one or both.
        anchors: As for `calibrate`.
        strengths: Which strengths to try.
        folder: Where answers and verdicts are kept, as by `evaluate`: a search that was interrupted goes on there.
        batch_size: Prompts per call of the model.
        progress: Called before each measurement.
        policy: As for `calibrate`.

    Returns:
        The chosen vector with its threshold and strength. `cost` is that of the first budget; `curve` has the best
        choice within the budgets for each strength of the chosen vector, with the cost of each budget.

    Raises:
        OptionError: A vector has no such gate, a budget is exceeded without steering, or an argument is impossible.
        EmptyAnchorSetError: The suite lacks a kind of prompts.
        SampleError: As for `calibrate`.
        SteerKitError: As `steer` does.
    """
    check_measurable(vlm, suite)
    vectors = as_vectors(vectors)
    allowed = (budgets,) if isinstance(budgets, Budget) else budgets
    expect_each(Budget, "one or several Budgets", "sk.evaluation.Budget('over_refusal', 0.2)", budgets=allowed)
    expect(Callable | None, "a function of what is next", progress=progress)
    expect_whole(batch_size=batch_size)
    kinds: list[Unit] = [budget.kind for budget in allowed]
    if not kinds or "kl" in kinds or len(set(kinds)) < len(kinds):
        raise OptionError(
            f"budgets of {kinds or 'nothing'}",
            expected="over_refusal, utility_loss, or one of each",
            fix="a KL is of all prompts together: use calibrate for it",
        )
    doses = tuple(strengths) if isinstance(strengths, Sequence) else (strengths,)
    if not doses or not all(is_finite(dose) and dose > 0 for dose in doses):
        raise OptionError(f"strengths {doses!r:.80}", expected="finite numbers above 0")
    doses = tuple(dict.fromkeys(map(float, doses)))
    gates = [_gate(vector) for vector in vectors]
    require_prompts(suite, "harmful", *map(watched, kinds))
    check_unseen(suite, *vectors, as_samples(anchors))
    check_vectors(vlm, vectors, policy)
    options: Any = {"folder": folder, "batch_size": batch_size}
    say(progress, "unsteered")
    (before,) = outcomes(vlm, suite, [Condition("unsteered")], **options).values()
    plain = before.judged
    for budget in allowed:
        budget.check_unsteered(cost_of(budget.kind, before, before), suite.name)
    samples = [suite.named[each.answer.kind, each.answer.row].sample for each in plain]
    called = [f"vector {number}, gate open" for number in range(1, len(vectors) + 1)]
    opened = [_with(vector, None) for vector in vectors]
    say(progress, f"gates open, at {len(doses)} strengths")
    conditions = [Condition(*each, dose) for each in zip(called, opened, strict=True) for dose in doses]
    tried = outcomes(vlm, suite, conditions, **options)
    found: list[_Choice] = []
    for name, vector, gate in zip(called, vectors, gates, strict=True):
        say(progress, f"{vector.metadata.method.name}: what its gate reads")
        read = _readings(vlm, vector, gate, samples, batch_size)
        for dose in doses:
            steered = tried[name, dose].judged
            for threshold in _thresholds(read, gate.threshold):
                mixed = Outcome(tuple(map(_pick(gate, threshold), read, steered, plain)))
                costs = tuple(cost_of(kind, mixed, before) for kind in kinds)
                if all(cost <= budget.limit for cost, budget in zip(costs, allowed, strict=True)):
                    moved = abs(threshold - gate.threshold)
                    found.append(_Choice(vector, dose, threshold, mixed.not_safe.value, costs, moved))
    best = min(found, key=lambda choice: choice.merit)
    prompts = suite.size * (1 + len(conditions) + len(vectors))
    return _calibration(best, found, allowed, suite, prompts)


def _calibration(
    best: _Choice, found: Sequence[_Choice], budgets: Sequence[Budget], suite: Suite, prompts: int
) -> Calibration:
    mine = [choice for choice in found if choice.vector is best.vector]
    doses = sorted({choice.strength for choice in mine})
    bests = [min((each for each in mine if each.strength == dose), key=lambda each: each.merit) for dose in doses]
    curve = tuple(
        StrengthPoint(strength=each.strength, unsafe=each.unsafe, cost=cost, cost_kind=budget.kind)
        for each in bests
        for budget, cost in zip(budgets, each.costs, strict=True)
    )
    within = " and ".join(f"{budget.kind} at most {budget.limit:g}" for budget in budgets)
    rule = f"least unsafe threshold ({best.threshold:.6g}) and strength, {within}, on {suite.name}"
    gate = _gate(best.vector).model_copy(update={"threshold": best.threshold})
    rates = [each.unsafe for each in bests]
    return Calibration(
        vector=calibrated(_with(best.vector, gate), best.strength, curve, f"{rule}; judge: {suite.judge.name}"),
        strength=best.strength,
        unsafe=best.unsafe,
        cost=best.costs[0],
        curve=curve,
        prompts_run=prompts,
        monotone=rates == sorted(rates, reverse=True),
    )


def _gate(vector: SteeringVector) -> Gate:
    """The one gate of all interventions of a vector, read on the prompt at one layer.

    Raises:
        OptionError: It has none, or another.
    """
    found = [each.gates for each in vector.interventions]
    first = found[0][0] if found and found[0] else None
    if first is None or any(each != (first,) for each in found) or not _readable(first):
        raise OptionError(
            f"{vector!r} has no gate whose threshold can be searched",
            expected="one gate for all interventions, read on the prompt at one layer",
            fix="fit CMRM(spared=...), or calibrate the strength alone",
        )
    return first


def _readable(gate: Gate) -> bool:
    measure = gate.measure
    return measure.layer is not None and (measure.state is None or measure.state.negative is None)


def _with(vector: SteeringVector, gate: Gate | None) -> SteeringVector:
    changed = [each.model_copy(update={"gate": gate}).model_dump() for each in vector.interventions]
    return vector.with_metadata(interventions=changed)


def _readings(
    vlm: VLM, vector: SteeringVector, gate: Gate, samples: Sequence[Sample], batch_size: int
) -> Sequence[float]:
    """What the gate reads on each sample, unsteered."""
    measure = gate.measure
    layer, state = measure.layer, measure.state or MeasuredContrast(positive="original", negative=None, form="literal")
    assert layer is not None, "checked"
    states = vlm.capture(
        samples, images=state.positive, layers=[layer], pool=measure.pool, batch_size=batch_size, seed=state.seed
    )[layer]

    def stored(of: StoredDirection) -> Tensor:
        return vector.tensors[Key(layer if of.layer is None else of.layer, name=of.name)].double().to(states.device)

    reference = None if measure.reference is None else stored(measure.reference).float()
    direction = ops.unit(stored(measure.direction)).float()
    return ops.MEASURES[measure.kind](states.float(), direction, reference).tolist()


def _thresholds(read: Sequence[float], fitted: float) -> Iterator[float]:
    """One for every way to part the prompts, half way between two that it parts, and the fitted one."""
    values = sorted(set(read))
    yield fitted
    yield math.nextafter(values[-1], math.inf)
    yield math.nextafter(values[0], -math.inf)
    for low, high in pairwise(values):
        yield (low + high) / 2


def _pick(gate: Gate, threshold: float) -> Callable[[float, Judged, Judged], Judged]:
    return lambda value, steered, plain: steered if (value > threshold) == gate.above else plain
