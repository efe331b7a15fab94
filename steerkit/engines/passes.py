"""One forward pass of the decoder or of the vision tower, and which of its tokens a selector means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from steerkit.engines.prompts import Prompt
from steerkit.errors import EngineError
from steerkit.interventions import Prompts, Selector, last_positions, select


@dataclass(slots=True, eq=False)
class Selection:
    """Tokens of one pass: either one column of every row, or pairs of row and column."""

    column: int | None
    rows: Tensor | None = None
    columns: Tensor | None = None

    def read(self, h: Tensor) -> Tensor:
        """`[n, hidden]` from `[rows, tokens, hidden]`."""
        if self.column is not None:
            return h[:, self.column]
        return h[self.rows, self.columns]

    def write(self, h: Tensor, values: Tensor) -> Tensor:
        """A new tensor with the selected tokens replaced."""
        if self.column is not None and h.shape[1] == 1:
            return values.unsqueeze(1)
        changed = h.clone()
        if self.column is not None:
            changed[:, self.column] = values
        else:
            changed[self.rows, self.columns] = values
        return changed

    def per_row(self, values: Tensor) -> Tensor:
        """Spread one value per row of the pass over the selected tokens."""
        return values if self.column is not None else values[self.rows]

    def among(self, chosen: Tensor) -> Selection:
        """Those of the tokens that are chosen, `[n]` boolean."""
        if self.rows is None or self.columns is None:
            rows = chosen.nonzero()[:, 0]
            return Selection(None, rows, torch.full_like(rows, cast("int", self.column)))
        return Selection(None, self.rows[chosen], self.columns[chosen])

    def count(self, rows: int) -> int:
        """Number of selected tokens."""
        return rows if self.column is not None else int(self.rows.shape[0])  # type: ignore[union-attr]


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass of the decoder: `length` positions from absolute position `start`.

    Attributes:
        prompt: The call that it belongs to.
        rows: Number of sequences.
        start: Absolute position of its first token: what the KV cache holds.
        length: Number of positions.
        prompt_length: Number of positions of the prompt, padding included; of the longest, where rows differ.
        redone: Number of generated positions from `start` on that an earlier pass has seen: what an assistant model
            proposed there was rejected.
        parts: Where sequences are packed into one row: the columns of each, and its own pass.
    """

    prompt: Prompt
    rows: int
    start: int
    length: int
    prompt_length: int
    redone: int = 0
    parts: tuple[tuple[slice, Pass], ...] | None = None
    visited: set[Any] = field(default_factory=set)
    graded: bool = field(default_factory=torch.is_grad_enabled)
    selections: dict[Selector, Selection | None] = field(default_factory=dict)
    reads_prompt: bool = field(init=False)
    decodes: bool = field(init=False)

    def __post_init__(self) -> None:
        """Say once what every block asks: whether it reads any position of the prompt, or one token of an answer."""
        self.reads_prompt = self.start < self.prompt_length
        self.decodes = self.length == 1 and not self.reads_prompt

    def visit(self, apply: Callable[[Tensor, Pass], Tensor], h: Tensor) -> Tensor:
        """What a function makes of the hidden states: of each sequence by itself, where they are packed."""
        if self.parts is None:
            return apply(h, self)
        pieces = [h[:, columns] for columns, _ in self.parts]
        changed = [apply(piece, part) for piece, (_, part) in zip(pieces, self.parts, strict=True)]
        if all(before is after for before, after in zip(pieces, changed, strict=True)):
            return h
        return torch.cat(changed, dim=1)

    def select(self, selector: Selector, device: torch.device) -> Selection | None:
        """The tokens of this pass that a selector means, or None if there are none."""
        if selector not in self.selections:
            chosen = self.chosen(selector.prompts)
            selection = self._select(selector, device) if chosen is not False else None
            for rows in (
                chosen,
                True if selector.rows is None else self.each_row(torch.tensor(selector.rows, device="cpu")),
            ):
                if selection is not None and isinstance(rows, Tensor):
                    selection = selection.among(selection.per_row(rows.to(device)))
            self.selections[selector] = selection if selection is None or selection.count(self.rows) else None
        return self.selections[selector]

    def each_row(self, values: Tensor) -> Tensor:
        """One value for each prompt of the call, as one for each row of the pass: beams and answers repeat their own.

        Raises:
            EngineError: The call has another number of prompts, or does not say how many.
        """
        prompts = self.prompt.count
        if prompts is None or prompts != len(values) or self.rows % prompts:
            said = "an unknown number of" if prompts is None else prompts
            raise EngineError(
                f"an intervention has factors for {len(values)} rows, and the call has {said} prompts",
                expected="a call with as many prompts, in the same order",
                fix="give rows one factor for each prompt of the batch, or leave rows out",
            )
        return values.repeat_interleave(self.rows // prompts)

    def chosen(self, prompts: Prompts) -> Tensor | bool:
        """Which rows belong to such prompts: `[rows]` boolean, or one word for all of them.

        Raises:
            EngineError: The call does not say whether its prompts hold an image.
        """
        if prompts == "all":
            return True
        held = self.prompt.pictured()
        if isinstance(held, bool):
            return held is (prompts == "with_image")
        chosen = held if prompts == "with_image" else ~held
        return chosen.repeat_interleave(self.rows // chosen.shape[0])  # beams and several answers repeat each row

    def steps(self, selection: Selection) -> Tensor:
        """`[n]`: which generated token each of the selected ones is, from 0; negative for one of a prompt."""
        rows, columns = selection.rows, selection.columns
        assert rows is not None
        assert columns is not None
        if self.prompt.ends is None:
            return columns + (self.start - self.prompt_length)
        return columns + self.start - self.prompt.ends.to(columns.device)[rows]

    def generated(self, selection: Selection) -> int:
        """How many of the selected tokens belong to answers."""
        if not self.reads_prompt:
            return selection.count(self.rows)
        within = self.prompt.ends is None and self.start + self.length <= self.prompt_length
        return 0 if within or selection.columns is None else int((self.steps(selection) >= 0).sum())

    def _select(self, selector: Selector, device: torch.device) -> Selection | None:
        tokens, ends = selector.tokens, self.prompt.ends
        if selector.counts_answers:
            self.check_counted()
        if self.decodes and (ends is None or not selector.counts):
            decoded = selector.answers_at(self.start - self.prompt_length)
            if decoded is not None:
                return Selection(0) if decoded else None
        roles = self.prompt.roles(self.prompt_length, device, tokens)
        if roles.shape[0] != self.rows:
            roles = roles.repeat_interleave(self.rows // roles.shape[0], dim=0)
        whole = self.reads_prompt and self.start + self.length <= self.prompt_length and ends is None
        if tokens == "last" and whole and not selector.counts:
            column = self._common_last(roles) if selector.phase != "generation" else None
            if column is not None:
                return Selection(column)
        if ends is None:
            mask = select(selector, roles, self.start, self.length)
        else:
            mask = self._told(selector, roles, ends.to(device))
        rows, columns = mask.nonzero(as_tuple=True)
        return Selection(None, rows, columns) if rows.numel() else None

    def _told(self, selector: Selector, roles: Tensor, ends: Tensor) -> Tensor:
        """`[rows, length]`: the selected tokens where the caller has told the end of each prompt."""
        mask = torch.zeros((self.rows, self.length), dtype=torch.bool, device=roles.device)
        for end in ends.unique().tolist():
            alike = ends == end
            mask[alike] = select(selector, roles[alike, :end], self.start, self.length)
        return mask & self.prompt.real(self.start + self.length, roles.device)[:, self.start :]

    def check_counted(self) -> None:
        """Refuse to count the tokens of an answer whose beginning is not known.

        Raises:
            EngineError: The pass goes on from a KV cache in a call of its own.
        """
        if self.start and not self.prompt.generating and self.prompt.ends is None:
            raise EngineError(
                "an intervention counts generated tokens, in a forward pass that continues from a KV cache",
                expected="generate(), or prompt_lengths, which say where the answer begins",
                fix="use sk.prompt_lengths, or leave positions and steps of generated tokens out",
            )

    def _common_last(self, roles: Tensor) -> int | None:
        """The column of the last prompt token if it is the same in every row and in this pass (left padding)."""
        last = last_positions(roles)
        first = int(last[0])
        inside = self.start <= first < self.start + self.length
        return first - self.start if inside and bool((last == first).all()) else None


@dataclass(frozen=True, slots=True, eq=False)
class VisionPass:
    """One pass of the vision tower, as an application sees it: all of it belongs to the prompt.

    The tower runs before the decoder, once for each prompt that has images, and knows neither padding nor positions:
    its hidden states are `[images, tokens, hidden]`, or `[tokens, hidden]` where the patches of all images are packed.

    Attributes:
        prompt: The call that it belongs to.
        rows: Number of images, or 1 where they are packed.
        length: Tokens in a row.
        patches: Which of them stand for patches.
    """

    prompt: Prompt
    rows: int
    length: int
    patches: range
    start: int = 0
    redone: int = 0
    reads_prompt: bool = True
    decodes: bool = False

    @property
    def graded(self) -> bool:
        """Whether gradients can flow through it; a block that will be run again does not show that."""
        return self.prompt.graded

    @property
    def prompt_length(self) -> int:
        """All of the pass."""
        return self.length

    def visit(self, apply: Callable[[Tensor, VisionPass], Tensor], h: Tensor) -> Tensor:
        """What a function makes of the hidden states."""
        return apply(h, self)

    def generated(self, selection: Selection) -> int:
        """None of the tokens belongs to an answer."""
        return 0

    def select(self, selector: Selector, device: torch.device) -> Selection | None:
        """Every token for `all`, every patch for `image`."""
        places = self.patches if selector.tokens == "image" else range(self.length)
        numbers = torch.arange(self.length, device=device)
        mask = ((numbers >= places.start) & (numbers < places.stop)).expand(self.rows, -1)
        rows, columns = mask.nonzero(as_tuple=True)
        return Selection(None, rows, columns)


Observed: TypeAlias = Pass | VisionPass
"""A pass of either tower, as whatever is done to its hidden states sees it; `Pass` says what each name means."""
