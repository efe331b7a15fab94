"""Strengths at which vectors, or the layers of one, move a model equally far, by KL divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from steerkit._internal.validation import expect
from steerkit.errors import NonFiniteError, OptionError
from steerkit.evaluation._generate import check_vectors, steered
from steerkit.evaluation._search import Budget, Progress, ascending, calibrated, check_range, check_vector, largest, say
from steerkit.models import Sample
from steerkit.policy import Policy
from steerkit.vectors import SteeringVector, StrengthPoint, StrengthRecord, as_vectors
from steerkit.vlm import VLM, check_vlm


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
    check_range(maximum, tolerance, batch_size)
    dose = Budget("kl", kl).limit
    check_vectors(vlm, vectors, policy)
    before = vlm.next_token_log_probabilities(samples, batch_size=batch_size)
    found = []
    for vector in vectors:
        say(progress, f"{vector.metadata.method.name}: strength at a KL of {dose:g} nats")
        divergence = Divergence(vlm, vector, samples, before, batch_size)
        strength = largest(lambda s, d=divergence: d(s) <= dose, maximum, tolerance)
        if strength == maximum and divergence(maximum) < dose:
            raise OptionError(
                f"{vector!r} reaches {divergence(maximum):.3g} nats at strength {maximum:g}",
                expected=f"{dose:g}",
                fix="ask for less, or raise maximum",
            )
        rule = f"kl of {dose:g} nats, on {len(samples)} prompts"
        found.append(calibrated(vector, strength, divergence.points("kl"), rule))
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
    check_vector(vector)
    check_range(maximum, tolerance, batch_size)
    Budget("kl", kl)
    check_vectors(vlm, [vector], policy)
    return by_layer(vlm, vector, samples, kl, maximum=maximum, tolerance=tolerance, batch_size=batch_size)[0]


def by_layer(
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
        say(progress, f"layer {layer} by itself: strength at a KL of {dose:g} nats")
        # the other layers stay, at strength 0: an increment is what a layer adds beyond the steered one below
        alone = intervention.model_copy(update={"strength": {layer: base[layer]}})
        only = vector.with_metadata(interventions=(alone.model_dump(),))
        divergence = Divergence(vlm, only, samples, before, batch_size)
        factor = largest(lambda s, d=divergence: d(s) <= dose, maximum, tolerance)
        strengths[layer] = factor * base[layer]
        points += [point for point in divergence.points(f"kl, layer {layer}") if point.strength >= factor][:2]
        run += divergence.prompts_run
    changed = intervention.model_copy(update={"strength": strengths})
    rule = f"strength of each layer by itself at a KL of {dose:g} nats"
    record = StrengthRecord(curve=ascending(points), chosen_by=f"{rule}, on {len(samples)} prompts")
    history = (*vector.metadata.history, rule)
    fields = {"interventions": (changed.model_dump(),), "strength": record.model_dump(), "history": history}
    return vector.with_metadata(**fields), run


class Divergence:
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
