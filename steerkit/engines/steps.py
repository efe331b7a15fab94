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
from steerkit.interventions import OPERATIONS, Intervention, Prompts, Selector, Site, Tower
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
        return change.fixed and change.operation.additive and not change.norm_preserving


@dataclass(frozen=True, eq=False)
class Sum:
    """Plain additions that follow each other on the same tokens: they commute, so they are one addition."""

    steps: tuple[Step, ...]
    scaled: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Group:
    """Changes that follow each other on the same tokens, which are read and written once for all of them."""

    selector: Selector
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
    for selector, run in groupby(steps, key=lambda step: step.intervention.selector):
        members = tuple(run)
        changes: list[Step | Sum] = []
        for plain, neighbours in groupby(members, key=lambda step: step.plain):
            same = tuple(neighbours)
            changes += [Sum(same)] if plain else same
        groups.append(Group(selector, tuple(changes), members))
    return groups


def decoding(groups: Sequence[Group]) -> Decoding | None:
    """What becomes of a token of the answer that is read by itself; None if that is more than a sum."""
    steering = [group for group in groups if group.selector.answers]
    if not steering:
        return Decoding(None)
    group = steering[0]
    change = group.changes[0]
    numbered = any(each.selector.counts or each.selector.rows for each in steering)
    if len(steering) > 1 or len(group.changes) > 1 or not isinstance(change, Sum) or numbered:
        return None
    return Decoding(change, answers_only(group), group.selector.prompts)


def answers_only(group: Group) -> bool:
    """Whether no token of a prompt is changed."""
    return not group.selector.reaches_prompts


def steered_layers(vector: SteeringVector, intervention: Intervention, architecture: Architecture) -> tuple[int, ...]:
    """The layers that an intervention steers.

    Raises:
        LayerRangeError: The model does not have one of them.
    """
    layers = tuple(vector.layers_of(intervention))
    if layers and layers[-1] >= (count := architecture.count(intervention.tower)):
        raise LayerRangeError(f"an intervention steers layer {layers[-1]}", expected=f"0 to {count - 1}")
    return layers


def check_single(vector: SteeringVector, intervention: Intervention, layers: Sequence[int]) -> None:
    """Refuse several directions where one is wanted: only projections know what to do with more.

    Raises:
        EngineError: It is so.
    """
    for stored in intervention.stored[1 if intervention.operation.spans else 0 :]:
        for layer in layers:
            found = vector.direction(stored, layer, intervention.site, intervention.tower)
            if found is not None and found.dim() != 1:
                raise EngineError(
                    f"an intervention of kind {intervention.operation.kind!r} reads {found.shape[0]} directions "
                    f"{stored.name!r} at layer {layer}",
                    expected="one direction [hidden]; "
                    f"only {' and '.join(kind for kind, each in OPERATIONS.items() if each.spans)} take [k, hidden]",
                )


def check_finite(step: Step, dtype: torch.dtype) -> None:
    """Refuse a direction that is not finite, at the dose and in the type in which it will be added.

    A vector refuses such directions when it is made; its tensors can be written to since, and a dose can overflow.

    Raises:
        NonFiniteError: It is so.
    """
    operation = step.intervention.operation
    stored = operation.stored
    if stored is None:
        return
    found = step.vector.direction(stored, step.layer, step.intervention.site, step.intervention.tower)
    if found is None:
        return
    used = (step.dose if operation.additive else 1.0) * found.detach().float()
    if not bool(torch.isfinite(used.to(dtype) if operation.additive else used).all()):
        raise NonFiniteError(
            f"the direction at layer {step.layer}, times its dose of {step.dose:g}, holds NaN or infinity in {dtype}",
            expected="finite values",
            fix="use a lower strength, or load or fit the vector again",
        )
