"""The tokens of a pass that a selector means: pure functions of token roles and positions.

Positions are absolute: 0 is the first token of the sequence, padding included, and `prompt_length` is where generation
begins. So a selection is the same whether the prompt is read in one pass or in chunks, with a KV cache or without.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerkit.errors import OptionError
from steerkit.interventions._selection import Selector, Tokens


class TokenRole(IntEnum):
    """What a token of the prompt is."""

    PAD = 0
    SYSTEM = 1
    TEXT = 2
    IMAGE = 3
    VIDEO = 4
    AUDIO = 5


Roles = Int[Tensor, "rows prompt"]
Mask = Bool[Tensor, "rows tokens"]


def last_positions(roles: Roles) -> Int[Tensor, "rows"]:
    """Absolute position of each row's last real token.

    Raises:
        OptionError: A row is all padding.
    """
    real = roles != TokenRole.PAD
    if not bool(real.any(dim=1).all()):
        raise OptionError(
            "a row of the batch holds padding only",
            expected="at least one token in each row that the attention_mask does not hide",
            fix="leave empty prompts out of the batch",
        )
    return roles.shape[1] - 1 - real.flip(1).int().argmax(dim=1)


def prompt_mask(tokens: Tokens, roles: Roles) -> Bool[Tensor, "rows prompt"]:
    """The tokens of the prompt that are meant."""
    if tokens == "last":
        positions = torch.arange(roles.shape[1], device=roles.device)
        return positions == last_positions(roles)[:, None]
    if tokens == "generated":
        return torch.zeros_like(roles, dtype=torch.bool)
    if tokens == "all":
        return roles != TokenRole.PAD
    visual = (roles == TokenRole.IMAGE) | (roles == TokenRole.VIDEO)
    if tokens == "image":
        return visual
    if tokens == "after_image":
        seen = visual.flip(1).int().cumsum(1).flip(1)
        return (seen == 0) & visual.any(dim=1, keepdim=True) & (roles != TokenRole.PAD)
    return roles == TokenRole[tokens.upper()]


def select(selector: Selector, roles: Roles, start: int, length: int) -> Mask:
    """The tokens of one forward pass that a selector means.

    Which prompts hold an image, and which row of a batch is which prompt, is not seen here.

    Args:
        selector: The selector.
        roles: `[rows, prompt]` roles of the whole prompt.
        start: Absolute position of the pass's first token (what the KV cache already holds).
        length: Number of tokens in the pass.

    Returns:
        `[rows, length]`, true where the token is selected.
    """
    rows, prompt_length = roles.shape
    in_prompt = max(0, min(length, prompt_length - start))
    mask = torch.zeros((rows, length), dtype=torch.bool, device=roles.device)
    reads_prompt = selector.reaches_prompts and selector.phase != "generation"
    numbered = selector.positions is not None and selector.phase != "generation"
    whole = prompt_mask(selector.tokens, roles) if (reads_prompt and in_prompt) or numbered else None
    count = torch.zeros(rows, dtype=torch.long, device=roles.device) if whole is None else whole.sum(dim=1)
    if reads_prompt and in_prompt and whole is not None:
        chosen = whole if selector.positions is None else whole & _numbered(selector, whole.cumsum(1) - 1, count)
        mask[:, :in_prompt] = chosen[:, start : start + in_prompt]
    if in_prompt < length and selector.answers:
        step = torch.arange(start + in_prompt - prompt_length, start + length - prompt_length, device=roles.device)
        answers = torch.ones_like(mask[:, in_prompt:])
        if selector.positions is not None:
            answers &= _numbered(selector, count[:, None] + step, count)
        if selector.steps is not None:
            answers &= _within(selector.steps, step)
        mask[:, in_prompt:] = answers
    return mask


def _numbered(selector: Selector, numbers: Tensor, count: Tensor) -> Tensor:
    """`[rows, tokens]`: which numbers are meant, where so many tokens of each row's prompt are counted."""
    found = torch.zeros_like(numbers, dtype=torch.bool)
    from_front = torch.zeros_like(count)[:, None]
    for each in selector.positions or ():
        start, stop = each if isinstance(each, tuple) else (each, each + 1)
        # as in a slice, numbers before the first token are no tokens; a single -1 ends where the prompt does
        ends_prompt = isinstance(each, int) and each == -1
        inside = numbers >= (count[:, None] if start < 0 else from_front) + start
        if stop is not None:
            inside &= numbers < (count[:, None] if stop < 0 or ends_prompt else from_front) + stop
        found |= inside
    return found


def _within(spans: tuple[tuple[int, int | None], ...], numbers: Tensor) -> Tensor:
    found = torch.zeros_like(numbers, dtype=torch.bool)
    for start, stop in spans:
        found |= (numbers >= start) & (numbers < (torch.iinfo(numbers.dtype).max if stop is None else stop))
    return found
