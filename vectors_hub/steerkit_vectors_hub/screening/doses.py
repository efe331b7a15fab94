"""At which strengths a pack is screened: those that it states, and those that a user might take instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from steerkit.vectors import SteeringVector, as_strengths

Dose: TypeAlias = tuple[float, ...]
"""A factor for each vector."""

FRACTIONS = (0.25, 0.5, 0.75)
"""What is tried between nothing and a stated strength: an effect need not grow with the strength."""

BETWEEN = 8
"""Strengths of the curves and in between that are tried at most; each costs an answer to every harmful canary."""

_CLOSE = 0.05
"""Relative distance below which two strengths count as one."""


def stated(vectors: Sequence[SteeringVector], strength: float | Sequence[float] | None) -> dict[Dose, bool]:
    """`{dose: whether it is only an end of the range that a pack names}`."""
    if strength is not None:
        return {tuple(as_strengths(strength, len(vectors))): False}
    records = [vector.metadata.strength for vector in vectors]
    recommended = tuple(record.recommended for record in records)
    found = {(1.0,) * len(vectors): False, recommended: False}
    for name in ("minimum", "maximum"):
        ends = [getattr(record, name) for record in records]
        end = tuple(middle if end is None else end for end, middle in zip(ends, recommended, strict=True))
        if any(end):  # a strength of 0 does nothing
            found.setdefault(end, True)
    return found


def between(vectors: Sequence[SteeringVector], tried: Sequence[Dose]) -> list[Dose]:
    """Doses on the packs' own curves, and fractions of the stated ones; those that lie farthest from what is tried."""
    candidates = [tuple(part * each for each in dose) for dose in tried for part in FRACTIONS]
    recommended = [vector.metadata.strength.recommended for vector in vectors]
    for number, vector in enumerate(vectors):
        for point in vector.metadata.strength.curve:
            if point.strength and "layer" not in point.cost_kind:  # those are of one layer by itself
                candidates.append((*recommended[:number], point.strength, *recommended[number + 1 :]))
    known, found = list(tried), list[Dose]()
    while candidates and len(found) < BETWEEN:
        farthest = max(candidates, key=lambda dose: min(_distance(dose, other) for other in known))
        if min(_distance(farthest, other) for other in known) < _CLOSE:
            break
        found.append(farthest)
        known.append(farthest)
    return sorted(found)


def _distance(one: Dose, other: Dose) -> float:
    """The largest relative distance of any of their strengths."""
    pairs = zip(one, other, strict=True)
    return max(abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0 for a, b in pairs)
