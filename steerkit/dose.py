"""The dose check: how large what a vector adds is, next to the hidden states that it is added to.

A dose is relative: the length of what is added at a layer divided by the norm of the model's own hidden state there.
What is added at the output of several blocks adds up along the residual stream, so at each layer the sum up to there
counts as well. That is a bound of the first order: the blocks in between may undo a part of it.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from steerkit.checks import Check
from steerkit.intervention import Ablate, Add, Clamp, Intervention, LinearStrength, Scale, StoredDirection
from steerkit.metadata import Fingerprint
from steerkit.vector import SteeringVector

HIGH = 1.0
"""Relative dose above which somebody should look. Measured: docs/trust.md."""

BREAKING = 10.0
"""Relative dose above which nothing of the model's own state is left. Measured: docs/trust.md."""

OUTLYING = 10.0
"""How many times the median of a vector's layers one layer's dose may be. Measured: docs/trust.md."""

FEW = 4
"""Layers below which a median says nothing."""

Norms = Mapping[int, float]
"""`{layer: norm}` of the model's hidden states at the last prompt token."""


def norms_of(fingerprint: Fingerprint) -> dict[int, float]:
    """The norm of the hidden states by layer: the mean over the probes."""
    by_layer = zip(*(probe.norms for probe in fingerprint.probes), strict=True)
    return {layer: sum(norms) / len(norms) for layer, norms in enumerate(by_layer)}


def stored_norms(vectors: Sequence[SteeringVector]) -> dict[int, float] | None:
    """The norms that the vectors' own fingerprints hold, the smaller where they differ; None where none has one.

    Vectors that are applied together are for models of one shape, so the fingerprints have the same layers.
    """
    known = [norms_of(vector.metadata.fingerprint) for vector in vectors if vector.metadata.fingerprint is not None]
    return {layer: min(norms[layer] for norms in known) for layer in known[0]} if known else None


def judgeable(vectors: Sequence[SteeringVector]) -> bool:
    """Whether the size of anything that the vectors do is known before the model runs, given its norms."""
    return any(
        True
        for vector in vectors
        for intervention in vector.interventions
        for _ in _sizes(vector, intervention, 1.0, dict.fromkeys(range(vector.layer_count), 1.0))
    )


def check_dose(
    vectors: Sequence[SteeringVector], strengths: Sequence[float], norms: Norms | None, reason: str = "", fix: str = ""
) -> Check:
    """Look for layers at which a vector adds more than the model's own hidden states hold.

    Args:
        vectors: What is applied, together.
        strengths: The strength of each.
        norms: Of the model; None if they are not known.
        reason: Why they are not known.
        fix: What to do about that.
    """
    if not judgeable(vectors):
        return Check("dose", "skip", "the size of what is done is not known before the prompt, or not by place")
    # without norms, what is a share of the state still has a size, and whatever else is added counts as nothing
    known = dict.fromkeys(range(vectors[0].layer_count), math.inf) if norms is None else norms
    doses = relative_doses(vectors, strengths, known)
    layer, largest = max(doses.items(), key=lambda item: item[1])
    details = {"by_layer": {str(each): round(dose, 4) for each, dose in doses.items()}}
    high = [each for each, dose in doses.items() if dose > HIGH]
    if not high and norms is None:
        return Check("dose", "skip", f"the norms of the model's hidden states are not known: {reason}", fix)
    if not high:
        text = f"the change is at most {largest:.2g} times the hidden state's norm, at layer {layer}"
        if lone := outliers(vectors, strengths, known):
            named = "; ".join(
                f"{dose:.2g} at layer {each}, the median is {usual:.2g}" for each, dose, usual in lone[:5]
            )
            return Check(
                "dose",
                "warn",
                f"{text}; a layer stands out among a vector's layers: {named}",
                "look at the norms (steerkit inspect): a direction may have been scaled or put in another's place",
                details,
            )
        return Check("dose", "pass", text, details=details)
    named = ", ".join(f"{doses[each]:.3g} at layer {each}" for each in sorted(high, key=lambda each: -doses[each])[:5])
    more = f" and {len(high) - 5} layers more" if len(high) > 5 else ""
    return Check(
        "dose",
        "fail" if largest > BREAKING else "warn",
        f"the change is larger than the hidden state itself: {named}{more}, relative to its norm",
        "use a lower strength, or a vector with shorter directions: this much breaks the model more than it steers it",
        details,
    )


def outliers(
    vectors: Sequence[SteeringVector], strengths: Sequence[float], norms: Norms
) -> list[tuple[int, float, float]]:
    """`(layer, dose, median)` of layers whose own dose is out of proportion to the vector's other layers."""
    found: list[tuple[int, float, float]] = []
    for vector, strength in zip(vectors, strengths, strict=True):
        for intervention in vector.interventions:
            own = {layer: size for layer, _, size in _sizes(vector, intervention, strength, norms)}
            usual = statistics.median(own.values()) if len(own) >= FEW else 0.0
            found += [(layer, size, usual) for layer, size in own.items() if usual and size > OUTLYING * usual]
    return sorted(found, key=lambda each: -each[1] / each[2])


def relative_doses(vectors: Sequence[SteeringVector], strengths: Sequence[float], norms: Norms) -> dict[int, float]:
    """`{layer: dose}` of everything whose size is known before the model runs; gates count as open."""
    additions: dict[int, Tensor] = {}
    doses: dict[int, float] = {}
    for vector, strength in zip(vectors, strengths, strict=True):
        for intervention in vector.interventions:
            for layer, added, size in _sizes(vector, intervention, strength, norms):
                if added is not None:
                    additions[layer] = additions.get(layer, torch.zeros_like(added)) + added
                    size = _ratio(additions[layer], norms[layer])
                doses[layer] = max(doses.get(layer, 0.0), size)
    total: Tensor | None = None
    for layer in sorted(additions):
        total = additions[layer] if total is None else total + additions[layer]
        doses[layer] = max(doses[layer], _ratio(total, norms[layer]))
    return dict(sorted(doses.items()))


def _sizes(
    vector: SteeringVector, intervention: Intervention, strength: float, norms: Norms
) -> Iterator[tuple[int, Tensor | None, float]]:
    """`(layer, what is added, relative size)` wherever the size is known before the model runs."""
    if intervention.tower != "language" or intervention.site == "head_out":
        return  # not in the space of the hidden states whose norms are known
    for layer in vector.layers_of(intervention):
        found = _dose(vector, intervention, layer, strength, norms[layer])
        if isinstance(found, Tensor):
            yield layer, found, _ratio(found, norms[layer])
        elif found is not None:
            yield layer, None, _bounded(found)


def _dose(
    vector: SteeringVector, intervention: Intervention, layer: int, strength: float, norm: float
) -> Tensor | float | None:
    """What is added, or the largest relative size of the change; None where only the prompt decides it."""
    operation = intervention.operation
    factor = abs(strength) * _largest(intervention, layer)
    if isinstance(operation, Add) and isinstance(operation.direction, StoredDirection):
        direction = vector.direction(operation.direction, layer, intervention.site)
        if operation.relative:
            return factor
        if direction is not None and direction.dim() == 1:
            return strength * _signed(intervention, layer) * direction.detach().double()
    if isinstance(operation, Ablate):  # the part along the directions is at most the whole
        return factor
    if isinstance(operation, Scale):
        return factor * abs(operation.factor - 1.0)
    if isinstance(operation, Clamp):
        return factor * _clamped(operation, norm)
    return None


def _clamped(operation: Clamp, norm: float) -> float:
    """What a clamp adds to a state without a part along the direction, or the most that it takes from one that has it.

    A coordinate is at most the norm, so bounds that lie beyond it leave any state as it is.
    """
    lowest = -math.inf if operation.minimum is None else operation.minimum
    highest = math.inf if operation.maximum is None else operation.maximum
    away = max(lowest, -highest) / norm  # from zero; negative where zero is within the bounds
    return max(0.0, away, min(1.0, 1.0 + away))


def _ratio(added: Tensor, norm: float) -> float:
    return _bounded(float(added.norm()) / norm)


def _bounded(dose: float) -> float:
    """A dose that overflowed, as the largest number that there is: JSON has no infinity, and NaN exceeds no limit."""
    return dose if math.isfinite(dose) else sys.float_info.max


def _signed(intervention: Intervention, layer: int) -> float:
    strength = intervention.strength
    if isinstance(strength, LinearStrength):
        return max(strength.minimum, strength.maximum, key=abs)
    return intervention.strength_at(layer)


def _largest(intervention: Intervention, layer: int) -> float:
    return abs(_signed(intervention, layer))
