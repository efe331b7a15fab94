"""Blocks that return several residual streams: what is read is their mean, and what changes it is added to each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit.models._architecture import Architecture

if TYPE_CHECKING:
    from torch import Tensor


def merged(h: Tensor, architecture: Architecture) -> Tensor:
    """`[batch, tokens, hidden]`, float32, of what a block returns; of a plain state, itself."""
    if architecture.state == "plain" or (h.dim() == 3 and h.shape[-1] == architecture.hidden_size):
        return h
    if architecture.state == "streams_first":
        return h.float().mean(0)
    if architecture.state == "streams_third":
        return h.float().mean(2)
    return h.unflatten(-1, (-1, architecture.hidden_size)).float().mean(2)


def spread(h: Tensor, before: Tensor, after: Tensor, architecture: Architecture) -> Tensor:
    """The streams, each moved by what has become of their mean.

    Args:
        h: What the block returned.
        before: Its `merged` state.
        after: The same, steered.
        architecture: The model's.
    """
    change = (after - before).to(h.dtype)
    if architecture.state == "streams_first":
        return h + change
    if architecture.state == "streams_third":
        return h + change.unsqueeze(2)
    return h + change.repeat(1, 1, h.shape[-1] // architecture.hidden_size)
