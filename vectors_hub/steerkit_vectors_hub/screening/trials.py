"""What is tried of a pack: at which strengths, in which ways its conditions hold, and on which tokens.

Tried are the strengths that it states, and those that a user might take instead. Held open all at once, two
interventions can cancel that never meet in use: so each condition (a gate open or shut, a measured strength at either
bound) is held by itself. And what selects no token of any canary is tried on tokens that there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, Literal, TypeAlias

from torch import Tensor, ones

from steerkit.interventions import Intervention, Phase, Site, Tokens
from steerkit.vectors import Key, SteeringVector, as_strengths

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


WAYS = 16
"""Ways that are tried at most: every one of four gates. Each costs an answer to every harmful canary."""

State: TypeAlias = Literal["shut", "open", "minimum", "maximum"]

Unit: TypeAlias = tuple[int, int, int]
"""Which vector, which of its interventions, and which of its layers."""

Way: TypeAlias = tuple[tuple[Intervention, ...], ...]
"""The interventions of each vector, without conditions."""

Lean: TypeAlias = Callable[[int, Intervention, int], float]
"""Called with (vector, intervention without conditions, layer): how far it leans towards refusal."""


@dataclass(frozen=True)
class _Condition:
    """What holds, or does not hold, for all of these at once.

    Attributes:
        units: What it decides about.
        states: The first is that in which least is done.
    """

    units: tuple[Unit, ...]
    states: tuple[State, ...]

    def first(self, *wanted: State) -> State:
        """The first of these that it can be in, else that in which least is done."""
        for state in wanted:
            if state in self.states:
                return state
        return self.states[0]


def ways(vectors: Sequence[SteeringVector], lean: Lean) -> tuple[list[Way], int]:
    """`(ways, count)`: the vectors as they act in each way, and how many there are; more than `WAYS` are not tried.

    Of too many, those are tried in which everything holds, everything that leans against refusal, nothing, one
    condition alone, and all but one. None for vectors without conditions.
    """
    found = _conditions(vectors)
    if all(len(condition.states) == 1 for condition in found):
        return [], 0
    count = math.prod(len(condition.states) for condition in found)
    every = product(*(condition.states for condition in found))
    tried = every if count <= WAYS else islice(dict.fromkeys(_telling(vectors, found, lean)), WAYS)
    held = [_held(vectors, found, states) for states in tried]
    # two ways may come to the same, and where nothing acts there is nothing to see
    return [way for index, way in enumerate(held) if any(way) and way not in held[:index]], count


def acting(vectors: Sequence[SteeringVector], way: Way) -> list[tuple[int, SteeringVector]]:
    """`(index, vector)` of those that do anything in this way."""
    return [
        (index, acting_as(vector, changes))
        for index, (vector, changes) in enumerate(zip(vectors, way, strict=True))
        if changes
    ]


def acting_as(
    vector: SteeringVector, interventions: Sequence[Intervention], tensors: Mapping[Key, Tensor] | None = None
) -> SteeringVector:
    """A vector with other interventions, and other directions where they are given."""
    metadata = vector.metadata.model_copy(update={"interventions": tuple(interventions)})
    return SteeringVector(vector.tensors if tensors is None else tensors, metadata)


def _telling(vectors: Sequence[SteeringVector], found: Sequence[_Condition], lean: Lean) -> Iterator[tuple[State, ...]]:
    """The ways that tell most, of too many."""
    rest: tuple[State, ...] = tuple(each.first() for each in found)
    high: tuple[State, ...] = tuple(each.first("open", "maximum") for each in found)
    yield high
    yield tuple(each.first("open", "minimum") for each in found)
    yield tuple(min(each.states, key=lambda state, each=each: _leaning(vectors, each, state, lean)) for each in found)
    yield rest
    for index, condition in enumerate(found):
        for state in condition.states[1:]:
            yield (*rest[:index], state, *rest[index + 1 :])
    for index in range(len(found)):
        yield (*high[:index], rest[index], *high[index + 1 :])


def _leaning(vectors: Sequence[SteeringVector], condition: _Condition, state: State, lean: Lean) -> float:
    total = 0.0
    for vector, index, layer in condition.units:
        change = _resolved(vectors[vector].interventions[index], {layer: state})
        total += 0.0 if change is None else lean(vector, change, layer)
    return total


def _conditions(vectors: Sequence[SteeringVector]) -> list[_Condition]:
    units: dict[Any, list[Unit]] = {}
    for number, vector in enumerate(vectors):
        for index, change in enumerate(vector.interventions):
            for layer in vector.layers_of(change) if change.measures else ():
                key = (number, *_condition(vector, change, index, layer))
                units.setdefault((key, _states(change)), []).append((number, index, layer))
    return [_Condition(tuple(found), states) for (_, states), found in units.items()]


def _condition(vector: SteeringVector, change: Intervention, index: int, layer: int) -> tuple[Any, ...]:
    """What is equal where conditions are bound to hold together.

    What is read at the steered token itself, an earlier intervention may have changed; it is each one's own. Increments
    are taken among the layers that are steered, so the same gate reads another number where those are others.
    """
    moving = [measure for measure in change.measures if measure.layer is None]
    own = index if any(measure.state is None for measure in moving) else None
    increments = any(each.state is not None and each.state.form == "increments" for each in change.measures)
    among = tuple(vector.layers_of(change)) if increments else None
    return change.site, change.tower, change.gate, change.rule, layer if moving else None, own, among


def _states(change: Intervention) -> tuple[State, ...]:
    rule = change.rule
    if rule is None:
        return ("shut", "open")
    bounds: tuple[State, ...] = ("minimum", "maximum")
    if rule.minimum == rule.maximum:
        bounds = ("maximum",)
    elif abs(rule.maximum) < abs(rule.minimum):
        bounds = ("maximum", "minimum")
    return ("shut", *bounds) if change.gates or rule.minimum < 0 < rule.maximum else bounds


def _held(vectors: Sequence[SteeringVector], found: Sequence[_Condition], states: Sequence[State]) -> Way:
    at: dict[tuple[int, int], dict[int, State]] = {}
    for condition, state in zip(found, states, strict=True):
        for vector, index, layer in condition.units:
            at.setdefault((vector, index), {})[layer] = state
    return tuple(
        tuple(
            change
            for index, given in enumerate(vector.interventions)
            if (change := _resolved(given, at[number, index]) if (number, index) in at else given) is not None
        )
        for number, vector in enumerate(vectors)
    )


def _resolved(change: Intervention, states: dict[int, State]) -> Intervention | None:
    """An intervention without its conditions; None where it does nothing.

    Layers at which it does nothing keep a strength of 0: increments are taken among all that are steered.
    """
    doses = {layer: 0.0 if state == "shut" else _dose(change, layer, state) for layer, state in states.items()}
    return change.model_copy(update={"gate": None, "strength": doses}) if any(doses.values()) else None


def _dose(change: Intervention, layer: int, state: State) -> float:
    if change.rule is not None:
        return change.rule.minimum if state == "minimum" else change.rule.maximum
    return change.strength_at(layer)


Place: TypeAlias = tuple[int, int]
"""Which vector, and which of its interventions."""

ELSEWHERE: tuple[tuple[Tokens, Phase | None], ...] = (("all", None), ("last", None), ("last", "prompt"))
"""Tokens that every prompt has, and in which phase (None: the intervention's own): there is tried what selects none."""


def selecting(vector: SteeringVector, change: Intervention) -> SteeringVector:
    """Something at one layer that selects the tokens that an intervention does, on every prompt that it means."""
    site: Site = change.site if change.tower == "vision" else "resid_post"
    layer = min(vector.layers_of(change), default=0)
    # whatever else says which tokens are meant stays as it is
    alike = change.model_copy(
        update={
            "operation": Intervention().operation,
            "layers": (layer,),
            "site": site,
            "gate": None,
            "strength": 1.0,
            "norm_preserving": False,
        }
    )
    direction = ones(vector.metadata.model.width(site, change.tower))
    return acting_as(vector, (alike,), {Key(layer, site, tower=change.tower): direction})


def described(vectors: Sequence[SteeringVector], place: Place) -> str:
    """An intervention in words, for a message."""
    number, index = place
    change = vectors[number].interventions[index]
    whose = f" of vector {number}" if len(vectors) > 1 else ""
    numbers = {"positions": change.positions, "rows": change.rows, "steps": change.steps}
    where = {"tokens": change.tokens, "phase": change.phase, "prompts": change.prompts}
    where |= {name: value for name, value in numbers.items() if value is not None}
    return f"intervention {index}{whose} ({', '.join(f'{name}={value!r:.40}' for name, value in where.items())})"


def counted(change: Intervention) -> bool:
    """Whether it picks tokens, prompts or steps by number: the canaries have few of those."""
    return (change.positions, change.rows, change.steps) != (None, None, None)


def of_every_row(vectors: Sequence[SteeringVector]) -> list[SteeringVector]:
    """The vectors for batches of any size: what has a factor for each row would fit one size only."""
    return [
        acting_as(vector, [change.model_copy(update={"rows": None}) for change in vector.interventions])
        if any(change.rows is not None for change in vector.interventions)
        else vector
        for vector in vectors
    ]


def moved(vectors: Sequence[SteeringVector], places: Sequence[Place]) -> Iterator[tuple[str, list[SteeringVector]]]:
    """`(where, vectors)`: with some interventions on other tokens, of every prompt; those in the vision tower stay.

    A factor of rows or steps counts at the ends of what it can be.
    """
    several = any(len(vectors[number].interventions[index].factors) > 1 for number, index in places)
    for (tokens, phase), end in product(ELSEWHERE, (-1, 0) if several else (0,)):
        found: list[SteeringVector] = []
        for number, vector in enumerate(vectors):
            changes = [
                _moved(change, tokens, phase or change.phase, change.factors[end])
                if (number, index) in places and change.tower == "language"
                else change
                for index, change in enumerate(vector.interventions)
            ]
            found.append(acting_as(vector, changes))
        yield f"on tokens={tokens!r}", found


def _moved(change: Intervention, tokens: Tokens, phase: Phase, factor: float) -> Intervention:
    """What is done, and how much of it, without what says where."""
    return Intervention(
        operation=change.operation,
        layers=change.layers,
        site=change.site,
        tokens=tokens,
        phase=phase,
        gate=change.gate,
        strength=change.dosed(factor).strength,
        norm_preserving=change.norm_preserving,
    )
