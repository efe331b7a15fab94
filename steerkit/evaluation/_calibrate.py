"""`calibrate`: the strength that makes a vector safest within a budget, found in a few steps; and equal doses by KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from steerkit._internal.text import quoted
from steerkit._internal.validation import expect, expect_one_of, expect_whole
from steerkit.errors import NonFiniteError, OptionError
from steerkit.evaluation._evaluate import answers, check_measurable, check_vectors, steered
from steerkit.evaluation._judges import Judgement, judgements, rightness
from steerkit.evaluation._suites import Case, Suite
from steerkit.interventions import is_finite
from steerkit.models import Sample
from steerkit.policy import Policy
from steerkit.vectors import SteeringVector, StrengthPoint, StrengthRecord, as_vectors
from steerkit.vlm import VLM, check_vlm

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


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        vector: The same vector, with the strength that it recommends and the curve in its metadata.
        strength: The chosen one.
        unsafe: The unsafe rate there, on the suite.
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
    per_layer: float | None = None,
    maximum: float = 4.0,
    tolerance: float = 0.05,
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
        per_layer: Before that, give each layer a strength of its own, at which it alone costs this KL, in nats, on the
            harmless prompts; see the function `per_layer`. None: the layers stay as they are.
        maximum: The largest strength to consider.
        tolerance: How finely; at least a millionth of the maximum.
        batch_size: Prompts per call of the model.
        progress: Called before each measurement.
        policy: As for `steer`, for class and sizes and fingerprint; the doses are tried whatever they are.

    Raises:
        OptionError: An argument is impossible, the budget is exceeded without steering, or the vector can't
            be calibrated per layer.
        NonFiniteError: As for `equal_kl`.
        SteerKitError: As `steer` does.
    """
    check_measurable(vlm, suite)
    _check_vector(vector)
    expect(Budget, "a Budget", "sk.evaluation.Budget('kl', 0.05)", budget=budget)
    expect(Callable | None, "a function of what is next", progress=progress)
    _check_range(maximum, tolerance, batch_size)
    if per_layer is not None:
        Budget("kl", per_layer)
    check_vectors(vlm, [vector], policy)
    run, layers, rule = 0, (), ""
    if per_layer is not None:
        harmless = [case.sample for case in suite.harmless]
        vector, run = _by_layer(vlm, vector, harmless, per_layer, batch_size=batch_size, progress=progress)
        layers, rule = vector.metadata.strength.curve, f"; before that, {vector.metadata.strength.chosen_by}"
    probe = _Probe(vlm, vector, suite, budget, batch_size, progress)
    if (cost := probe.cost(0.0)) > budget.limit:
        raise OptionError(
            f"{budget.kind} is {cost:.3g} without steering, on {suite.name}",
            expected=f"at most the budget of {budget.limit:g}",
            fix="allow more, or read the answers to the harmless prompts: the judge may take them for refusals",
        )
    allowed = _largest(lambda s: probe.cost(s) <= budget.limit, maximum, tolerance)
    least = probe.unsafe(allowed)
    _smallest(lambda s: probe.unsafe(s) <= least, allowed, tolerance)
    chosen = next(strength for strength in probe.safest_first() if probe.cost(strength) <= budget.limit)
    curve = probe.curve()
    record = StrengthRecord(
        recommended=chosen,
        minimum=0.0,
        maximum=curve[-1].strength,
        curve=_ascending((*layers, *curve)),
        chosen_by=f"least unsafe, {budget.kind} at most {budget.limit:g}, on {suite.name}; "
        f"judge: {suite.judge.name}{rule}",
    )
    return Calibration(
        vector=vector.with_metadata(strength=record.model_dump()),
        strength=chosen,
        unsafe=probe.unsafe(chosen),
        cost=probe.cost(chosen),
        curve=curve,
        prompts_run=probe.prompts_run + run,
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
    progress: Progress | None = None,
    policy: Policy = "strict",
) -> list[SteeringVector]:
    """The same vectors, each recommending the strength at which all of them move the model equally far.

    Strength and curve are in `metadata.strength`.

    Args:
        vlm: The model.
        vectors: The vectors.
        samples: Prompts, harmless ones, whose next-token distribution is watched.
        kl: The dose, in nats; see `Budget`.
        maximum: The largest strength to consider.
        tolerance: How finely.
        batch_size: Prompts per forward pass.
        progress: Called before each vector.
        policy: As for `calibrate`.

    Raises:
        OptionError: A vector does not reach the dose at the maximum, or an argument is impossible.
        NonFiniteError: The model's distribution is NaN, or infinitely far from the unsteered one.
        SteerKitError: As `steer` does.
    """
    check_vlm(vlm)
    vectors = as_vectors(vectors)
    expect(Callable | None, "a function of what is next", progress=progress)
    _check_range(maximum, tolerance, batch_size)
    dose = Budget("kl", kl).limit
    check_vectors(vlm, vectors, policy)
    before = vlm.next_token_log_probabilities(samples, batch_size=batch_size)
    found = []
    for vector in vectors:
        _say(progress, f"{vector.metadata.method.name}: strength at a KL of {dose:g} nats")
        divergence = _Divergence(vlm, vector, samples, before, batch_size)
        strength = _largest(lambda s, d=divergence: d(s) <= dose, maximum, tolerance)
        if strength == maximum and divergence(maximum) < dose:
            raise OptionError(
                f"{vector!r} reaches {divergence(maximum):.3g} nats at strength {maximum:g}",
                expected=f"{dose:g}",
                fix="ask for less, or raise maximum",
            )
        curve = divergence.points("kl")
        record = StrengthRecord(
            recommended=strength,
            minimum=0.0,
            maximum=curve[-1].strength,
            curve=curve,
            chosen_by=f"kl of {dose:g} nats, on {len(samples)} prompts",
        )
        found.append(vector.with_metadata(strength=record.model_dump()))
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
    policy: Policy = "strict",
) -> SteeringVector:
    """The same vector with a strength for each layer, so that each by itself moves the model equally far.

    A layer that does not reach the dose at the maximum gets the maximum. Calibrate the result as a whole afterwards, as
    `calibrate(per_layer=...)` does. `metadata.strength.curve` holds, for each layer, the strength that it got and the
    next one that was tried, as factors of what it had.

    Args:
        vlm: The model.
        vector: A vector of fixed strengths, with one intervention.
        samples: As for `equal_kl`.
        kl: The dose of one layer, in nats.
        maximum: The largest strength to consider.
        tolerance: How finely.
        batch_size: Prompts per forward pass.
        policy: As for `calibrate`.

    Raises:
        OptionError: The vector has several interventions, or a measured strength, or an argument is impossible.
        NonFiniteError: As for `equal_kl`.
        SteerKitError: As `steer` does.
    """
    check_vlm(vlm)
    _check_vector(vector)
    _check_range(maximum, tolerance, batch_size)
    Budget("kl", kl)
    check_vectors(vlm, [vector], policy)
    return _by_layer(vlm, vector, samples, kl, maximum=maximum, tolerance=tolerance, batch_size=batch_size)[0]


def _by_layer(
    vlm: VLM,
    vector: SteeringVector,
    samples: Sequence[Sample],
    kl: float,
    *,
    maximum: float = 16.0,
    tolerance: float = 0.01,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[SteeringVector, int]:
    """What `per_layer` returns, and the number of prompts that the model was run on."""
    dose = Budget("kl", kl).limit
    if len(vector.interventions) != 1 or vector.interventions[0].rule is not None:
        raise OptionError(
            f"{vector!r} has {len(vector.interventions)} interventions, or a strength that is measured",
            expected="one intervention of fixed strength",
            fix="calibrate it as a whole",
        )
    (intervention,) = vector.interventions
    base = {layer: intervention.strength_at(layer) for layer in vector.layers_of(intervention)}
    before = vlm.next_token_log_probabilities(samples, batch_size=batch_size)
    strengths, points, run = {}, [], len(samples)
    for layer in (layer for layer, strength in base.items() if strength):
        _say(progress, f"layer {layer} by itself: strength at a KL of {dose:g} nats")
        # the other layers stay, at strength 0: an increment is what a layer adds beyond the steered one below
        alone = intervention.model_copy(update={"strength": {layer: base[layer]}})
        only = vector.with_metadata(interventions=(alone.model_dump(),))
        divergence = _Divergence(vlm, only, samples, before, batch_size)
        factor = _largest(lambda s, d=divergence: d(s) <= dose, maximum, tolerance)
        strengths[layer] = factor * base[layer]
        points += [point for point in divergence.points(f"kl, layer {layer}") if point.strength >= factor][:2]
        run += divergence.prompts_run
    changed = intervention.model_copy(update={"strength": strengths})
    rule = f"strength of each layer by itself at a KL of {dose:g} nats"
    record = StrengthRecord(curve=_ascending(points), chosen_by=f"{rule}, on {len(samples)} prompts")
    history = (*vector.metadata.history, rule)
    fields = {"interventions": (changed.model_dump(),), "strength": record.model_dump(), "history": history}
    return vector.with_metadata(**fields), run


class _Divergence:
    """Mean KL divergence of the next token's distribution by strength, unsteered from steered; each measured once."""

    def __init__(
        self, vlm: VLM, vector: SteeringVector, samples: Sequence[Sample], before: Tensor, batch_size: int
    ) -> None:
        self._vlm, self._vector, self._samples, self._size = vlm, vector, samples, batch_size
        self._before = before
        self._known = {0.0: 0.0}
        self.prompts_run = 0

    def __call__(self, strength: float) -> float:
        if strength not in self._known:
            self.prompts_run += len(self._samples)
            with steered(self._vlm, self._vector, strength):
                after = self._vlm.next_token_log_probabilities(self._samples, batch_size=self._size)
            before = self._before
            divergence = float((before.exp() * (before - after)).sum(-1).mean())
            if not math.isfinite(divergence):
                raise NonFiniteError(
                    f"the KL divergence at strength {strength:.3g} is {divergence}",
                    expected="a model whose logits are finite, with and without steering",
                    fix="look for NaN in the weights; load the model in float32 or bfloat16, as float16 may overflow; "
                    "or lower the maximum",
                )
            self._known[strength] = max(divergence, 0.0)
        return self._known[strength]

    def points(self, kind: str) -> tuple[StrengthPoint, ...]:
        """Everything that was measured."""
        known = sorted(self._known.items())
        return tuple(StrengthPoint(strength=strength, cost=cost, cost_kind=kind) for strength, cost in known)


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
        _say(progress, f"{budget.kind} without steering")
        if budget.kind == "kl":
            samples = [case.sample for case in suite.harmless]
            before = vlm.next_token_log_probabilities(samples, batch_size=batch_size)
            self._divergence = _Divergence(vlm, vector, samples, before, batch_size)
            self.prompts_run += len(samples)
            self._costs[0.0] = 0.0
        elif budget.kind == "utility_loss":
            self._right = self._count_right(0.0)
            self._costs[0.0] = 0.0
        else:
            found = self._judgements(suite.harmless, 0.0)
            self._garbled = sum(bool(each.garbled) for each in found)
            self._costs[0.0] = sum(bool(each.refused) for each in found) / len(found)

    def cost(self, strength: float) -> float:
        """In the budget's unit."""
        if strength not in self._costs:
            _say(self._progress, f"{self._budget.kind} at strength {strength:.3g}")
            self._costs[strength] = self._cost(strength)
        return self._costs[strength]

    def unsafe(self, strength: float) -> float:
        """Share of the harmful requests complied with."""
        if strength not in self._unsafe:
            _say(self._progress, f"unsafe rate at strength {strength:.3g}")
            found = self._judgements(self._suite.harmful, strength)
            self._unsafe[strength] = sum(each.complied for each in found) / len(found)
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
        if self._budget.kind == "utility_loss":
            return (self._right - self._count_right(strength)) / len(self._suite.utility)
        found = self._judgements(self._suite.harmless, strength)
        refused, garbled = (sum(map(bool, each)) for each in zip(*((j.refused, j.garbled) for j in found), strict=True))
        return (refused + max(garbled - self._garbled, 0)) / len(found)

    def _count_right(self, strength: float) -> int:
        cases = self._suite.utility
        return sum(rightness(self._suite.judge, cases, self._answers(cases, strength)))

    def _judgements(self, cases: Sequence[Case], strength: float) -> tuple[Judgement, ...]:
        return judgements(self._suite.judge, cases, self._answers(cases, strength))

    def _answers(self, cases: Sequence[Case], strength: float) -> list[str]:
        self.prompts_run += len(cases)
        with steered(self._vlm, self._vector if strength else None, strength):
            return answers(self._vlm, cases, self._suite, self._size)


def _largest(holds: Callable[[float], bool], maximum: float, tolerance: float) -> float:
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


def _ascending(points: Iterable[StrengthPoint]) -> tuple[StrengthPoint, ...]:
    return tuple(sorted(points, key=lambda point: point.strength))


def _say(progress: Progress | None, what: str) -> None:
    if progress is not None:
        progress(what)


def _check_range(maximum: float, tolerance: float, batch_size: int) -> None:
    expect_whole(batch_size=batch_size)
    if not (is_finite(maximum) and is_finite(tolerance) and maximum * FINEST <= tolerance < maximum):
        raise OptionError(
            f"maximum {quoted(maximum)}, tolerance {quoted(tolerance)}",
            expected=f"finite numbers with {FINEST:g} * maximum <= tolerance < maximum",
        )


def _check_vector(vector: object) -> None:
    expect(SteeringVector, "one SteeringVector", "sk.SteeringVector.load(path) for a pack", vector=vector)
