"""Counts what is done at a place into a receipt: which tokens each step changed, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steerkit.engines.passes import Observed, Selection
from steerkit.engines.receipt import Receipt
from steerkit.engines.steps import Group, Place, Step, Sum
from steerkit.interventions import _arithmetic as ops, site_label


@dataclass(frozen=True, eq=False)
class Done:
    """A group that has been applied: to which tokens, and, where it was measured, how large each step's change was.

    `opened` is for each step which of the tokens its gates let through, None for all. `sizes` is None where nothing was
    measured, and where the step is alone at its place: its change is the place's.
    """

    group: Group
    selection: Selection
    opened: tuple[Tensor | None, ...]
    sizes: tuple[Tensor, ...] | None
    measured: bool

    @cached_property
    def by_step(self) -> tuple[Selection, ...]:
        """The tokens that each step changed."""
        return tuple(self.selection if each is None else self.selection.among(each) for each in self.opened)

    @cached_property
    def changed(self) -> Selection:
        """The tokens that any step changed."""
        if len(self.opened) == 1:
            return self.by_step[0]
        masks = [each for each in self.opened if each is not None]
        if len(masks) < len(self.opened):
            return self.selection
        return self.selection.among(torch.stack(masks).any(0))

    def size_of(self, at: int, change: Tensor | None) -> Tensor | None:
        """How large one step's change of the tokens that it changed was."""
        if self.sizes is None:
            return change
        opened = self.opened[at]
        return self.sizes[at] if opened is None else self.sizes[at][opened]


def is_measured(group: Group, now: Observed) -> bool:
    """Whether the change is measured: on the prompt, or on the first token where only answers are steered."""
    return now.reads_prompt or (group.answers_only and now.start == now.prompt_length)


@torch.no_grad()
def sizes(change: Step | Sum, before: Tensor, previous: Tensor, after: Tensor) -> list[Tensor]:
    """`|change| / |hidden state|` of each token, for each step of a change."""
    if isinstance(change, Step):
        return [_relative(after.detach().float() - previous.detach().float(), before)]
    return [
        _relative(step.added().detach().to(device=before.device, dtype=torch.float32)[None], before)
        for step in change.steps
    ]


def count(receipt: Receipt, place: Place, before: Tensor, after: Tensor, done: Sequence[Done], now: Observed) -> None:
    """Count what several groups did at a place."""
    selection = done[0].changed if len(done) == 1 else _union([each.changed for each in done], before)
    counted: dict[int, tuple[int, int]] = {}

    def tokens(chosen: Selection) -> tuple[int, int]:
        if id(chosen) not in counted:  # steps without gates share a selection, and counting waits for the device
            counted[id(chosen)] = _tokens(chosen, now)
        return counted[id(chosen)]

    prompt, generated = tokens(selection)
    change: Tensor | None = None
    if any(each.measured for each in done):
        with torch.no_grad():
            wide = selection.read(before).detach().float()
            change = _relative(selection.read(after).detach().float() - wide, wide)
    whole = change if len(done) == 1 else None
    shares = [
        (step.index, *tokens(each.by_step[at]), each.size_of(at, whole))
        for each in done
        for at, step in enumerate(each.group.steps)
    ]
    site = site_label(place.site, place.tower)
    receipt.add(place.layer, site, prompt=prompt, generated=generated, change=change, shares=shares)


def _relative(change: Tensor, before: Tensor) -> Tensor:
    """`[n]`: the length of each change relative to its token's."""
    return (ops.norm(change) / ops.norm(before.detach()).clamp_min(1e-12))[:, 0]


def _tokens(selection: Selection, now: Observed) -> tuple[int, int]:
    """How many tokens of the prompt and of the answer are selected; what is read again is not counted again."""
    count = selection.count(now.rows)
    if not now.reads_prompt:
        # takes back as well what was counted of a proposal that has been rejected, beyond the end of this pass
        return 0, count - count // now.length * now.redone
    generated = now.generated(selection)
    return count - generated, generated


def _union(selections: Sequence[Selection], h: Tensor) -> Selection:
    """The tokens that any of the selections holds, each once."""
    mask = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    for selection in selections:
        if selection.column is not None:
            mask[:, selection.column] = True
        else:
            mask[selection.rows, selection.columns] = True
    return Selection(None, *mask.nonzero(as_tuple=True))
