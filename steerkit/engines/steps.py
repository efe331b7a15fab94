"""What is done at each place of a model: the steps of all interventions, grouped by the tokens that they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from steerkit.engines.receipt import SiteCount
from steerkit.errors import EngineError, LayerRangeError, NonFiniteError
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Intervention,
    LinearStrength,
    Phase,
    Prompts,
    Site,
    StoredDirection,
    Tokens,
    Tower,
    steers_answers,
)
from steerkit.models import Architecture
from steerkit.vectors import SteeringVector


class Place(NamedTuple):
    """Where in the model a hidden state is."""

    layer: int
    site: Site
    tower: Tower = "language"


@dataclass(frozen=True, eq=False)
class Step:
    """One intervention at one place; `layers` are all that it steers."""

    vector: SteeringVector
    intervention: Intervention
    layer: int
    dose: float
    layers: tuple[int, ...] = ()
    index: int = 0
    """Which of the vectors it comes from."""

    @property
    def plain(self) -> bool:
        """Whether all that happens is the addition of one and the same stored direction."""
        change = self.intervention
        unconditional = change.gate is None and not change.norm_preserving
        added = isinstance(change.operation, Add) and not change.operation.relative and change.contrast is None
        return unconditional and added and not isinstance(change.strength, LinearStrength)


@dataclass(frozen=True, eq=False)
class Sum:
    """Plain additions that follow each other on the same tokens: they commute, so they are one addition."""

    steps: tuple[Step, ...]
    scaled: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Group:
    """Changes that follow each other on the same tokens, which are read and written once for all of them."""

    tokens: Tokens
    phase: Phase
    prompts: Prompts
    changes: tuple[Step | Sum, ...]
    steps: tuple[Step, ...]


@dataclass(eq=False)
class Decoding:
    """What becomes of a token of the answer that is read by itself, where that is one sum or nothing.

    Blocks are visited for every token, so that what is spent here is what steering costs.
    """

    change: Sum | None
    answers_only: bool = False
    """Whether the first token is one to measure, and so none of these."""
    prompts: Prompts = "all"
    counts: tuple[SiteCount, ...] | None = None
    """Where it is counted, once something was."""


def grouped(steps: Sequence[Step]) -> list[Group]:
    """The steps of a place in order: neighbours on the same tokens together, plain additions among them summed."""
    groups: list[Group] = []
    for (tokens, phase, prompts), run in groupby(steps, key=lambda step: _selector(step.intervention)):
        members = tuple(run)
        changes: list[Step | Sum] = []
        for plain, neighbours in groupby(members, key=lambda step: step.plain):
            same = tuple(neighbours)
            changes += [Sum(same)] if plain else same
        groups.append(Group(tokens, phase, prompts, tuple(changes), members))
    return groups


def _selector(intervention: Intervention) -> tuple[Tokens, Phase, Prompts]:
    return intervention.tokens, intervention.phase, intervention.prompts


def decoding(groups: Sequence[Group]) -> Decoding | None:
    """What becomes of a token of the answer that is read by itself; None if that is more than a sum."""
    steering = [group for group in groups if steers_answers(group.tokens, group.phase)]
    if not steering:
        return Decoding(None)
    group = steering[0]
    change = group.changes[0]
    if len(steering) > 1 or len(group.changes) > 1 or not isinstance(change, Sum):
        return None
    return Decoding(change, answers_only(group), group.prompts)


def answers_only(group: Group) -> bool:
    """Whether no token of a prompt is changed."""
    return group.phase == "generation" or group.tokens == "generated"


def steered_layers(vector: SteeringVector, intervention: Intervention, architecture: Architecture) -> tuple[int, ...]:
    """The layers that an intervention steers.

    Raises:
        LayerRangeError: The model does not have one of them.
    """
    direction = intervention.operation.direction
    if intervention.layers != "all":
        layers = tuple(sorted(intervention.layers))
    elif isinstance(direction, StoredDirection) and direction.layer is None:
        wanted = (intervention.site, direction.name, intervention.tower)
        held = {key.layer for key in vector.tensors if key[1:] == wanted}
        layers = tuple(sorted(held))
    else:
        layers = tuple(range(architecture.count(intervention.tower)))
    if layers and layers[-1] >= (count := architecture.count(intervention.tower)):
        raise LayerRangeError(f"an intervention steers layer {layers[-1]}", expected=f"0 to {count - 1}")
    return layers


def check_single(vector: SteeringVector, intervention: Intervention, layers: Sequence[int]) -> None:
    """Refuse several directions where one is wanted: only projections know what to do with more.

    Raises:
        EngineError: It is so.
    """
    spans = isinstance(intervention.operation, (Ablate, AddProjection))
    for stored in intervention.stored[1 if spans else 0 :]:
        for layer in layers:
            found = vector.direction(stored, layer, intervention.site, intervention.tower)
            if found is not None and found.dim() != 1:
                raise EngineError(
                    f"an intervention of kind {intervention.operation.kind!r} reads {found.shape[0]} directions "
                    f"{stored.name!r} at layer {layer}",
                    expected="one direction [hidden]; only ablate and add_projection take [k, hidden]",
                )


def check_finite(step: Step, dtype: torch.dtype) -> None:
    """Refuse a direction that is not finite, at the dose and in the type in which it will be added.

    A vector refuses such directions when it is made; its tensors can be written to since, and a dose can overflow.

    Raises:
        NonFiniteError: It is so.
    """
    stored = step.intervention.operation.direction
    if not isinstance(stored, StoredDirection):
        return
    found = step.vector.direction(stored, step.layer, step.intervention.site, step.intervention.tower)
    if found is None:
        return
    adds = isinstance(step.intervention.operation, Add) and not step.intervention.operation.relative
    used = (step.dose if adds else 1.0) * found.detach().float()
    if not bool(torch.isfinite(used.to(dtype) if adds else used).all()):
        raise NonFiniteError(
            f"the direction at layer {step.layer}, times its dose of {step.dose:g}, holds NaN or infinity in {dtype}",
            expected="finite values",
            fix="use a lower strength, or load or fit the vector again",
        )
