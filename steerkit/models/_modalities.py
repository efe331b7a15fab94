"""Which prompts of a call hold anything other than text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import EngineError
from steerkit.models._adapter import Architecture

_VISUAL = ("pixel_values", "image_embeds", "image_features", "video_embeds", "video_features")
_OTHER = ("input_features", "input_values", "audio", "speech", "feature_attention_mask")
_OF_TEXT = ("inputs_embeds", "attention_mask", "position_ids", "head_mask", "decoder_", "encoder_", "cross_attn")


def visual_tokens(ids: Tensor, architecture: Architecture) -> Tensor:
    """Which ids stand for an image or a video; boolean, of the same shape."""
    return torch.isin(ids, torch.tensor(sorted(architecture.image_token_ids), device=ids.device))


def visual_rows(given: Mapping[str, Any], architecture: Architecture) -> Tensor:
    """`[batch]` boolean on the CPU: which prompts of a call hold an image or a video.

    Args:
        given: Keyword arguments of the call, `input_ids` among them.
        architecture: The model's.

    Raises:
        EngineError: The call holds something else beside text, or something visual that no token stands for.
    """
    held = visual_tokens(given["input_ids"], architecture).any(1).cpu()
    beside = [name for name, value in given.items() if _is_content(name, value)]
    strange = [name for name in beside if not name.startswith(_VISUAL)]
    if strange or (beside and not bool(held.any())):
        raise EngineError(
            f"an intervention is for prompts by what they hold, and the call has {', '.join(strange or beside)}, "
            + ("which are neither text nor images" if strange else "for which none of its input_ids is known to stand"),
            expected="text, and images or videos whose tokens the model's adapter names as image_token_ids",
            fix="set prompts='all' and tokens='last' or 'all' in the intervention, or name the tokens in the adapter",
        )
    return held


def _is_content(name: str, value: Any) -> bool:
    """Whether an argument is what a prompt holds beside text."""
    if value is None or name.startswith(_OF_TEXT):
        return False
    if name.startswith((*_VISUAL, *_OTHER)):
        return True
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
