"""Which tokens an intervention touches: pure functions of token roles and positions.

Positions are absolute: 0 is the first token of the sequence, padding included, and `prompt_length` is where generation
begins. So a selection is the same whether the prompt is read in one pass or in chunks, with a KV cache or without.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerkit.interventions._schema import Phase, Tokens


class TokenRole(IntEnum):
    """What a token of the prompt is."""

    PAD = 0
    SYSTEM = 1
    TEXT = 2
    IMAGE = 3


Roles = Int[Tensor, "rows prompt"]
Mask = Bool[Tensor, "rows tokens"]


def last_positions(roles: Roles) -> Int[Tensor, "rows"]:
    """Absolute position of each row's last real token.

    Raises:
        ValueError: A row is all padding.
    """
    real = roles != TokenRole.PAD
    if not bool(real.any(dim=1).all()):
        raise ValueError("a row of the batch holds padding only")
    return roles.shape[1] - 1 - real.flip(1).int().argmax(dim=1)


def prompt_mask(tokens: Tokens, roles: Roles) -> Bool[Tensor, "rows prompt"]:
    """The tokens of the prompt that a selector means."""
    if tokens == "last":
        positions = torch.arange(roles.shape[1], device=roles.device)
        return positions == last_positions(roles)[:, None]
    if tokens == "generated":
        return torch.zeros_like(roles, dtype=torch.bool)
    if tokens == "all":
        return roles != TokenRole.PAD
    if tokens == "after_image":
        image = roles == TokenRole.IMAGE
        seen = image.flip(1).int().cumsum(1).flip(1)
        return (seen == 0) & image.any(dim=1, keepdim=True) & (roles != TokenRole.PAD)
    role = {"image": TokenRole.IMAGE, "text": TokenRole.TEXT, "system": TokenRole.SYSTEM}[tokens]
    return roles == role


def steers_answers(tokens: Tokens, phase: Phase) -> bool:
    """Whether a selector means generated tokens, which it then all means."""
    return phase != "prompt" and tokens in ("last", "all", "generated")


def select(tokens: Tokens, phase: Phase, roles: Roles, start: int, length: int) -> Mask:
    """The tokens of one forward pass that a selector means.

    Args:
        tokens: The selector.
        phase: The phases in which it applies.
        roles: `[rows, prompt]` roles of the whole prompt.
        start: Absolute position of the pass's first token (what the KV cache already holds).
        length: Number of tokens in the pass.

    Returns:
        `[rows, length]`, true where the token is selected.
    """
    rows, prompt_length = roles.shape
    in_prompt = max(0, min(length, prompt_length - start))
    mask = torch.zeros((rows, length), dtype=torch.bool, device=roles.device)
    if in_prompt and phase != "generation":
        mask[:, :in_prompt] = prompt_mask(tokens, roles)[:, start : start + in_prompt]
    if steers_answers(tokens, phase):
        mask[:, in_prompt:] = True
    return mask
