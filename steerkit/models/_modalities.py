"""Which prompts of a call hold anything other than text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import EngineError
from steerkit.models._architecture import Architecture

_VISUAL = ("pixel_values", "image_embeds", "image_features", "video_embeds", "video_features", "flattened_patches")
_OF_IMAGES = ("pixel", "image", "video", "patches", "vision")
_OTHER = ("input_features", "input_values", "audio", "speech", "feature_attention_mask")
_OF_TEXT = (
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "head_mask",
    "decoder_",
    "encoder_",
    "cross_attn",
    "bbox",
)


def visual_tokens(ids: Tensor, architecture: Architecture) -> Tensor:
    """Which ids stand for an image or a video; boolean, of the same shape."""
    return torch.isin(ids, torch.tensor(sorted(architecture.image_token_ids), device=ids.device, dtype=ids.dtype))


def visual_positions(given: Mapping[str, Any], architecture: Architecture, length: int) -> Tensor:
    """`[batch, length]` boolean: at which positions of a prompt the decoder reads an image or a video.

    Args:
        given: Keyword arguments of the call, `input_ids` among them.
        architecture: The model's.
        length: Number of positions that the decoder reads.

    Raises:
        EngineError: The image has no position: blocks attend to it.
    """
    ids: Tensor = given["input_ids"]
    if architecture.marks == "ids":
        return visual_tokens(ids[:, :length], architecture)
    if architecture.marks == "none":
        raise EngineError(
            "image tokens are named, and this model's blocks attend to an image that has no position in the prompt",
            expected="tokens='last', 'all' or 'generated'",
        )
    marked = torch.zeros((ids.shape[0], length), dtype=torch.bool, device=ids.device)
    if architecture.marks == "prefix":
        marked[:, : length - ids.shape[1]] = True
        return marked
    mask = given.get(architecture.marks.partition(":")[2])
    if mask is not None:
        marked[:, : mask.shape[1]] = mask[:, :length] > 0  # negative: tokens around the image
    return marked


def visual_rows(given: Mapping[str, Any], architecture: Architecture) -> Tensor:
    """`[batch]` boolean on the CPU: which prompts of a call hold an image or a video.

    Args:
        given: Keyword arguments of the call, `input_ids` among them.
        architecture: The model's.

    Raises:
        EngineError: The call holds something else beside text, or something visual that no token stands for.
    """
    beside = [name for name, value in given.items() if _is_content(name, value)]
    strange = [name for name in beside if not _is_visual(name)]
    if architecture.marks == "ids":
        held = visual_tokens(given["input_ids"], architecture).any(1).cpu()
    elif architecture.marks.startswith("mask"):
        held = visual_positions(given, architecture, given["input_ids"].shape[1]).any(1).cpu()
    else:
        held = _shown_rows(given, architecture)
        beside = [] if not strange else beside
    if strange or (beside and not bool(held.any())):
        raise EngineError(
            f"an intervention is for prompts by what they hold, and the call has {', '.join(strange or beside)}, "
            + ("which are neither text nor images" if strange else "for which none of its input_ids is known to stand"),
            expected="text, and images or videos whose tokens the model's config names, or its Family record",
            fix="set prompts='all' and tokens='last' or 'all' in the intervention, or name the tokens in the adapter",
        )
    return held


def _shown_rows(given: Mapping[str, Any], architecture: Architecture) -> Tensor:
    """Which prompts are shown an image that no token stands for; all zeros stand for none."""
    shown = next((given[name] for name in given if _is_visual(name) and _is_content(name, given[name])), None)
    ids = given.get("input_ids")
    count = len(ids) if ids is not None else (1 if shown is None else len(shown))
    if shown is None:
        return torch.zeros(count, dtype=torch.bool)
    return (shown.reshape(count, -1) != 0).any(1).cpu()


def _is_visual(name: str) -> bool:
    return any(part in name for part in _OF_IMAGES)


def is_shown(given: Mapping[str, Any]) -> bool:
    """Whether a call is given an image or a video."""
    return any(_is_visual(name) and _is_content(name, value) for name, value in given.items())


def _is_content(name: str, value: Any) -> bool:
    """Whether an argument is what a prompt holds beside text."""
    if value is None or name.startswith(_OF_TEXT) or name.endswith("mask"):
        return name.startswith(_OTHER) and value is not None
    if name.startswith((*_VISUAL, *_OTHER)):
        return True
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
