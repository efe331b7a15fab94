"""What is done at each place of a model: the steps of all interventions, grouped by the tokens that they change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from steerkit.engines.receipt import SiteCount
from steerkit.errors import NonFiniteError
from steerkit.interventions import (
    Gate,
    Intervention,
    Measure,
    MeasuredContrast,
    Prompts,
    Selector,
    Site,
    Tower,
    _arithmetic as ops,
)

LARGEST = 1e18
"""Entry of an addition beyond which every norm that the model takes overflows, since it squares in float32."""


class Place(NamedTuple):
    """Where in the model a hidden state is."""

    layer: int
    site: Site
    tower: Tower = "language"


class Kept:
    """A tensor that is made once for each device and type; anew in each pass where gradients must reach the vector.

    The graph of one pass is no other's, nor is what was made without gradients. What is kept is made outside inference
    mode, to serve passes with gradients too.
    """

    def __init__(self, make: Callable[[torch.dtype], Tensor], *, keeps: bool) -> None:
        self.make = make
        self._keeps = keeps
        self._made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor there."""
        found = self._made.get((device, dtype))
        # asked for here, because the mode that making one needs costs more than all the rest
        return self._on(device, dtype) if found is None else found

    @torch.inference_mode(False)
    def _on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        made = self.make(dtype).to(device=device, dtype=dtype)
        if self._keeps:
            self._made[device, dtype] = made
        return made


@dataclass(frozen=True, eq=False)
class Together:
    """A contrast that is measured on each prompt, in one pass at all layers that need it.

    Attributes:
        contrast: The contrast.
        site: Where in the blocks.
        among: Of increments, the layers among which they are taken.
        layers: The layers at which it is measured, gathered while a program is compiled.
    """

    contrast: MeasuredContrast
    site: Site
    among: tuple[int, ...]
    layers: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Reading:
    """A measure, ready to be read off hidden states.

    Attributes:
        measure: The measure.
        direction: Its direction.
        reference: What is subtracted first.
        layer: Where what it reads is; of a measure of the very token that is steered, that token's.
        state: The contrast that is read instead of the hidden state.
    """

    measure: Measure
    direction: Kept
    reference: Kept | None
    layer: int
    state: Together | None = None

    def of(self, h: Tensor) -> Tensor:
        """`[n]` from `[n, hidden]`."""
        reference = None if self.reference is None else self.reference.on(h.device)
        return ops.MEASURES[self.measure.kind](h, self.direction.on(h.device), reference)


@dataclass(frozen=True, eq=False)
class Step:
    """One intervention at one place.

    Attributes:
        index: Which of the vectors it comes from.
        intervention: The intervention.
        layer: The layer.
        dose: The strength there, but for what is measured and for the factors of rows and steps.
        direction: What its operation uses of the stored direction.
        contrast: The contrast that its operation needs.
        gates: Its gates, each with what it reads.
        rule: What its strength is read off.
    """

    index: int
    intervention: Intervention
    layer: int
    dose: float
    direction: Kept | None = None
    contrast: Together | None = None
    gates: tuple[tuple[Gate, Reading], ...] = ()
    rule: Reading | None = None

    @property
    def plain(self) -> bool:
        """Whether all that happens is the addition of one and the same stored direction."""
        change = self.intervention
        return change.fixed and change.operation.additive and not change.norm_preserving

    def added(self) -> Tensor:
        """What a plain addition adds: float64, on the CPU, so that no tiny or huge factor is lost on the way."""
        assert self.direction is not None
        return self.dose * self.direction.on(torch.device("cpu")).double()

    def check(self, dtype: torch.dtype) -> None:
        """Refuse a direction that is not finite, or would not be at its doses in this type, or would be nothing.

        A vector refuses such directions when it is made; its tensors can be written to since, and a dose can overflow.

        Raises:
            NonFiniteError: It is so.
        """
        if self.direction is None:
            return
        largest = _largest(self.direction.on(torch.device("cpu")))
        if not largest:
            raise NonFiniteError(f"the direction at layer {self.layer} is zero", expected="a direction")
        if not self.intervention.operation.additive:
            check_added(largest, dtype, self.layer, "the direction")
            return
        ends = self.intervention.strength_bounds(self.layer)
        fixed = self.intervention.strength_at(self.layer)
        for end in ends:
            dose = self.dose * end / fixed if fixed else 0.0
            check_added(abs(dose) * largest, dtype, self.layer, f"the direction, times its dose of {dose:g},")


def _largest(x: Tensor) -> float:
    """The largest entry by absolute value; NaN if any entry is."""
    return float(x.detach().double().abs().max())


def check_added(largest: float, dtype: torch.dtype, layer: int, what: str) -> None:
    """Refuse what can't be added in a type, by its largest entry: all others fare better.

    Raises:
        NonFiniteError: It is NaN or infinite there, or a value that the model can't take, or vanishes.
    """
    there = float(torch.tensor(largest, dtype=torch.float64, device="cpu").to(dtype))
    if not math.isfinite(there):
        problem = f"holds NaN or infinity in {dtype}"
    elif largest > LARGEST:
        problem = f"has an entry of {largest:.3g}, whose square overflows in every norm of the model"
    elif largest and not there:
        problem = f"vanishes: its largest entry is {largest:.3g}, which is 0 in {dtype}"
    else:
        return
    raise NonFiniteError(
        f"{what} at layer {layer} {problem}",
        expected="finite values that the type can hold",
        fix="use another strength, vector.normalized(), or load or fit the vector again",
    )


@dataclass(frozen=True, eq=False)
class Sum:
    """Plain additions that follow each other on the same tokens: they commute, so they are one addition."""

    steps: tuple[Step, ...]
    total: Kept

    def exact(self) -> Tensor:
        """The sum, float64."""
        return _exact(self.steps).detach()

    @classmethod
    def of(cls, steps: tuple[Step, ...], *, keeps: bool) -> Sum:
        """The sum of steps, in double precision so that their order makes no difference."""

        def total(dtype: torch.dtype) -> Tensor:
            found = _exact(steps)
            what = "the direction, times its dose," if len(steps) == 1 else f"the sum of {len(steps)} additions"
            check_added(_largest(found), dtype, steps[0].layer, what)
            return found.float()

        return cls(steps, Kept(total, keeps=keeps))


def _exact(steps: Sequence[Step]) -> Tensor:
    return torch.stack([step.added() for step in steps]).sum(dim=0)


@dataclass(frozen=True, eq=False)
class Group:
    """Changes that follow each other on the same tokens, which are read and written once for all of them."""

    selector: Selector
    changes: tuple[Step | Sum, ...]
    steps: tuple[Step, ...]

    @property
    def answers_only(self) -> bool:
        """Whether no token of a prompt is changed."""
        return not self.selector.reaches_prompts


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


def grouped(steps: Sequence[Step], *, keeps: bool) -> list[Group]:
    """The steps of a place in order: neighbours on the same tokens together, plain additions among them summed."""
    groups: list[Group] = []
    for selector, run in groupby(steps, key=lambda step: step.intervention.selector):
        members = tuple(run)
        changes: list[Step | Sum] = []
        for plain, neighbours in groupby(members, key=lambda step: step.plain):
            same = tuple(neighbours)
            changes += [Sum.of(same, keeps=keeps)] if plain else same
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
    return Decoding(change, group.answers_only, group.selector.prompts)
