"""What a pack does where no canary goes: interventions that select no token of any, tried on tokens that there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import ones

from steerkit.interventions import Intervention, Site, Tokens
from steerkit.vectors import Key, SteeringVector

Place: TypeAlias = tuple[int, int]
"""Which vector, and which of its interventions."""

ELSEWHERE: tuple[Tokens, ...] = ("all", "last")
"""Tokens that every prompt has: on these is tried what selects none."""


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
    metadata = vector.metadata.model_copy(update={"interventions": (alike,), "fingerprint": None})
    return SteeringVector({Key(layer, site, tower=change.tower): direction}, metadata)


def described(vectors: Sequence[SteeringVector], place: Place) -> str:
    """An intervention in words, for a message."""
    number, index = place
    change = vectors[number].interventions[index]
    whose = f" of vector {number}" if len(vectors) > 1 else ""
    return f"intervention {index}{whose} (tokens={change.tokens!r}, phase={change.phase!r}, prompts={change.prompts!r})"


def moved(vectors: Sequence[SteeringVector], places: Sequence[Place], tokens: Tokens) -> list[SteeringVector]:
    """The vectors with some interventions on other tokens, of every prompt; those in the vision tower stay."""
    found = []
    for number, vector in enumerate(vectors):
        changes = [
            _moved(change, tokens) if (number, index) in places and change.tower == "language" else change
            for index, change in enumerate(vector.interventions)
        ]
        metadata = vector.metadata.model_copy(update={"interventions": tuple(changes), "fingerprint": None})
        found.append(SteeringVector(vector.tensors, metadata))
    return found


def _moved(change: Intervention, tokens: Tokens) -> Intervention:
    """What is done, and how much of it, without what says where and when."""
    return Intervention(
        operation=change.operation,
        layers=change.layers,
        site=change.site,
        tokens=tokens,
        phase=change.phase,
        gate=change.gate,
        strength=change.strength,
        norm_preserving=change.norm_preserving,
    )
