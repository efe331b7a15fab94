"""In which ways a pack's own conditions can hold: gates open or shut, measured strengths at either bound.

Held open all at once, two interventions can cancel that never meet in use. So each condition is held by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, Literal, TypeAlias

from torch import Tensor

from steerkit.interventions import Intervention
from steerkit.vectors import Key, SteeringVector

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
