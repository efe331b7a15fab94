"""What a pack does where no canary goes: interventions that select no token of any, tried on tokens that there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypeAlias

from torch import ones

from steerkit.interventions import Intervention, Phase, Site, Tokens
from steerkit.vectors import Key, SteeringVector
from steerkit_vectors_hub.screening.conditions import acting_as

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
