"""The dose check: how large what a vector adds is, next to the hidden states that it is added to.

A dose is relative: the length of what is added at a layer divided by the norm of the model's own hidden state there.
What is added at the output of several blocks adds up along the residual stream, so at each layer the sum up to there
counts as well. That is a bound of the first order: the blocks in between may undo a part of it. Additions cancel only
where they always act together; otherwise the worst combination counts, since a prompt or a token may meet but one.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from steerkit.interventions import (
    Intervention,
    site_label,
)
from steerkit.policy import Check
from steerkit.vectors import Fingerprint, SteeringVector

HIGH = 1.0
"""Relative dose above which somebody should look. Measured: docs/trust.md."""

BREAKING = 10.0
"""Relative dose above which nothing of the model's own state is left. Measured: docs/trust.md."""

SLACK = 6.0
"""How many times as high the limits are for what is measured on a prompt, which is judged by a bound: a contrast of two
states is twice a state at most, and the shifts of the demo models stay far below. Strength 3 is let through."""

ABSURD = 100.0
"""Strength that no direction calls for, where the norm of what it is added to is not known; ITI's paper has 15."""

OUTLYING = 10.0
"""How many times the median of a vector's layers one layer's dose may be. Measured: docs/trust.md."""

FEW = 4
"""Layers below which a median says nothing."""

Norms = Mapping[int, float]
"""`{layer: norm}` of the model's hidden states at the last prompt token."""

Where: TypeAlias = int | str
"""A layer; with its site in brackets where that is not the residual stream of the language model."""

_ORDER = {"attn_out": 0, "mlp_out": 1, "resid_post": 2, "head_out": 3}

_COMBINED = 5
"""Groups of additions up to which every combination is tried; of more, the lengths are added up: that is never less."""

_PICTURED = (True, False)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one intervention does at one layer.

    Attributes:
        vector: Which vector's it is.
        where: The layer.
        intervention: The intervention.
        kind: `share`: the state changes by so much; `within`: it loses no more than that, however often that is done;
            `measured`: what only the prompt decides, by its bound; `unknown`: its size is not known.
        size: Relative to the norm of the state; of what is unknown, the strength.
        added: `[n, hidden]`: the direction that is added to the residual stream, at the bounds of the strength.
        together: The same for parts that act on the same tokens whenever either does, equally strongly; None: no other
            part does.
    """

    vector: int
    where: Where
    intervention: Intervention
    kind: Literal["share", "within", "measured", "unknown"]
    size: float
    added: Tensor | None = None
    together: Hashable = None


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


def needs_norms(vectors: Sequence[SteeringVector]) -> bool:
    """Whether the model's norms say anything about the size of what the vectors do."""
    return any(
        intervention.operation.size((1.0,), None, None).relative is None
        for vector in vectors
        for intervention in vector.interventions
        if intervention.in_stream
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
    parts = _parts(vectors, strengths, norms)
    doses, bounds = _doses(parts, norms), _bounds(parts)
    details = {"by_layer": {str(each): round(dose, 4) for each, dose in doses.items()}}
    if bounds:
        details["bound_by_layer"] = {str(each): round(bound, 4) for each, bound in bounds.items()}
    for found, scale, what in (
        (doses, 1.0, "the change is larger than the hidden state itself"),
        (bounds, SLACK, "what is measured on the prompt is added too strongly: at most"),
    ):
        if high := sorted((each for each in found if found[each] > scale * HIGH), key=lambda each: -found[each]):
            named = ", ".join(f"{found[each]:.3g} at layer {each}" for each in high[:5])
            more = f" and {len(high) - 5} layers more" if len(high) > 5 else ""
            return Check(
                "dose",
                "fail" if found[high[0]] > scale * BREAKING else "warn",
                f"{what}{':' if found is doses else ''} {named}{more}, relative to its norm",
                "use a lower strength, or a vector with shorter directions: this much breaks the model more than it "
                "steers it",
                details,
            )
    # where the residual stream is steered, its norms are missing; elsewhere nobody has them
    unknown = [part for part in parts if part.kind == "unknown" and isinstance(part.where, str)]
    places = " and ".join(sorted({site_label(each.intervention.site, each.intervention.tower) for each in unknown}))
    strongest = max((part.size for part in unknown), default=0.0)
    if strongest > ABSURD:
        return Check(
            "dose",
            "warn",
            f"the strength at {places} is {strongest:.3g}, and how large the states are there is not known",
            "measure what the vector does to the model's answers, or use a lower strength",
            details,
        )
    if norms is None and needs_norms(vectors):
        return Check("dose", "skip", f"the norms of the model's hidden states are not known: {reason}", fix)
    said = [
        f"{what} is at most {max(found.values()):.2g} times the hidden state's norm, at layer "
        f"{max(found, key=lambda each: found[each])}"
        for what, found in (("the change", doses), ("what is measured on the prompt", bounds))
        if found
    ]
    if not said:
        text = f"how large the states at {places} are is not known; the strength is at most {strongest:.3g}"
        return Check("dose", "skip", text, details=details)
    text = "; ".join([*said, f"not judged is what is added at {places}"] if unknown else said)
    if lone := _outliers(parts):
        named = "; ".join(f"{dose:.2g} at layer {each}, the median is {usual:.2g}" for each, dose, usual in lone[:5])
        return Check(
            "dose",
            "warn",
            f"{text}; a layer stands out among a vector's layers: {named}",
            "look at the norms (steerkit pack inspect): a direction may have been scaled or put in another's place",
            details,
        )
    return Check("dose", "pass", text, details=details)


def _outliers(parts: Sequence[_Part]) -> list[tuple[Where, float, float]]:
    """`(layer, dose, median)` of layers whose own dose is out of proportion to the vector's other layers.

    What a vector does of one kind is taken together, however many interventions it is written in.
    """
    pools: dict[tuple[int, str, str], dict[Where, float]] = defaultdict(lambda: defaultdict(float))
    for part in parts:
        if part.kind != "unknown" and part.size:
            tower = "" if isinstance(part.where, int) else site_label(part.intervention.site, part.intervention.tower)
            kind = "measured" if part.kind == "measured" else part.intervention.operation.kind
            pools[part.vector, kind, tower][part.where] += part.size
    found: list[tuple[Where, float, float]] = []
    for pool in pools.values():
        usual = statistics.median(pool.values()) if len(pool) >= FEW else math.inf
        found += [(where, size, usual) for where, size in pool.items() if size > OUTLYING * usual]
    return sorted(found, key=lambda each: -each[1] / each[2])


def relative_doses(
    vectors: Sequence[SteeringVector], strengths: Sequence[float], norms: Norms | None
) -> dict[Where, float]:
    """`{layer: dose}` of everything whose size is known before the model runs; gates count as open."""
    return _doses(_parts(vectors, strengths, norms), norms)


def _doses(parts: Sequence[_Part], norms: Norms | None) -> dict[Where, float]:
    known = [part for part in parts if part.kind in ("share", "within")]
    found: dict[Where, float] = {}
    done: list[_Part] | None = None
    for pictured in _PICTURED:
        met = [part for part in known if pictured in part.intervention.reach.pictured]
        if met == done:  # prompts of both kinds are steered alike
            continue
        done = met
        for where, dose in _along(met, norms or {}):
            found[where] = max(found.get(where, 0.0), dose)
    return found


def _along(met: Sequence[_Part], norms: Norms) -> Iterator[tuple[Where, float]]:
    """`(layer, dose)` of what acts on one prompt, in the order of the forward pass."""
    total: dict[Hashable, Tensor] = {}
    lasting = 0.0  # not relative
    for where, at_layer in groupby(met, key=lambda part: part.where):
        norm = norms.get(where, 1.0) if isinstance(where, int) else 1.0
        own: dict[Hashable, Tensor] = {}
        apart = passing = within = 0.0
        for _, at_place in groupby(at_layer, key=lambda part: part.intervention.site):
            added = interrupted = False
            for part in at_place:
                yield where, part.size
                if part.added is None:
                    # what is removed or bounded in between can't be undone by adding the opposite later
                    interrupted = added
                added = added or part.added is not None
                if part.kind == "within":
                    within = max(within, part.size)
                elif part.added is not None and part.together is not None and not interrupted:
                    for sums in (own, total):
                        before = sums.get(part.together)
                        sums[part.together] = part.added if before is None else before + part.added
                else:
                    apart += part.size
                    passing += part.size if part.added is None else 0.0
                    lasting += part.size * norm if part.added is not None else 0.0
            yield where, max(within, _bounded(_worst(own) / norm + apart))
            yield where, _bounded((_worst(total) + lasting) / norm + passing)


def _worst(sums: Mapping[Hashable, Tensor]) -> float:
    """The largest length of what is added, whichever of these groups act on a token, and at which of their bounds."""
    if len(sums) == 1 or len(sums) > _COMBINED:
        return sum(float(group.norm(dim=-1).max()) for group in sums.values())
    worst = torch.zeros(1, 1, dtype=torch.float64, device="cpu")
    for group in sums.values():
        choices = torch.cat([torch.zeros_like(group[:1]), group])
        worst = (worst[:, None] + choices).flatten(0, 1)
    return float(worst.norm(dim=-1).max())


def _bounds(parts: Sequence[_Part]) -> dict[Where, float]:
    """`{layer: bound}` of what is measured on the prompt, each layer for itself."""
    found: dict[Where, float] = {}
    for pictured in _PICTURED:
        measured = [part for part in parts if part.kind == "measured"]
        met = [part for part in measured if pictured in part.intervention.reach.pictured]
        for where, here in groupby(met, key=lambda part: part.where):
            found[where] = max(found.get(where, 0.0), _bounded(sum(part.size for part in here)))
    return found


def _parts(vectors: Sequence[SteeringVector], strengths: Sequence[float], norms: Norms | None) -> list[_Part]:
    """What is done, in the order of the forward pass."""
    found = [
        _part(index, vector, intervention, layer, strength, norms)
        for index, (vector, strength) in enumerate(zip(vectors, strengths, strict=True))
        for intervention in vector.interventions
        for layer in vector.layers_of(intervention)
    ]
    return [part for _, part in sorted(found, key=lambda each: each[0])]


def _part(
    index: int, vector: SteeringVector, intervention: Intervention, layer: int, strength: float, norms: Norms | None
) -> tuple[tuple[str, int, int], _Part]:
    """What an intervention does at a layer, and where that is in the forward pass."""
    operation, site = intervention.operation, intervention.site
    inside = intervention.in_stream
    label = "" if inside else site_label(site, intervention.tower)
    where: Where = layer if inside else f"{layer} ({label})"
    norm = norms[layer] if inside and norms is not None else None
    factors = tuple(strength * factor for factor in intervention.strength_bounds(layer))
    direction = vector.operand(intervention, layer)
    length = None if direction is None or direction.dim() != 1 else float(direction.detach().double().norm())
    bound = operation.size(factors, norm, length)
    added: Tensor | None = None
    kind: Literal["share", "within", "measured", "unknown"] = "within" if bound.removes else "share"
    size = max(map(abs, factors)) if bound.relative is None else bound.relative
    if operation.measured is not None:
        kind = "measured"
    elif bound.relative is None:
        kind = "unknown"
    elif operation.additive and direction is not None:
        added = torch.stack([factor * direction.detach().double().cpu() for factor in factors])
    part = _Part(index, where, intervention, kind, _bounded(size), added, _together(index, intervention))
    return (label, layer, _ORDER[site]), part


def _together(index: int, intervention: Intervention) -> Hashable:
    """The same for interventions that act on the same tokens of a prompt whenever either does, equally strongly."""
    if any(measure.layer is None for measure in intervention.measures):
        return None  # measured anew on what the one before has changed
    if intervention.norm_preserving:
        return id(intervention)  # what another adds is rescaled in between
    if not intervention.measures:
        return _tokens(intervention)
    return index, intervention.site, *_tokens(intervention), intervention.gate, intervention.rule


def _tokens(intervention: Intervention) -> tuple[Hashable, ...]:
    """The same for interventions that, on the prompts that both are for, change the same tokens in the same ratio."""
    given = intervention.selector
    return given.tokens, given.phase, given.positions, intervention.rows, intervention.steps


def _bounded(dose: float) -> float:
    """A dose that overflowed, as the largest number that there is: JSON has no infinity, and NaN exceeds no limit."""
    return dose if math.isfinite(dose) else sys.float_info.max
