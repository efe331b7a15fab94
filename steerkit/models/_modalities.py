"""Which prompts of a call hold anything other than text, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import EngineError
from steerkit.models._architecture import Architecture

_VISUAL = ("pixel_values", "image_embeds", "image_features", "video_embeds", "video_features", "flattened_patches")
_OF_IMAGES = ("pixel", "image", "video", "patches", "vision")
_AUDIO = ("input_features", "input_values", "audio", "speech", "feature_attention_mask")
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


def _are(ids: Tensor, wanted: frozenset[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(wanted), device=ids.device, dtype=ids.dtype))


def visual_tokens(ids: Tensor, architecture: Architecture) -> Tensor:
    """Which ids stand for an image or a video; boolean, of the same shape."""
    return _are(ids, architecture.image_token_ids)


def video_tokens(given: Mapping[str, Any], ids: Tensor, architecture: Architecture) -> Tensor:
    """Which ids stand for a video; boolean, of the same shape.

    Args:
        given: Keyword arguments of the call.
        ids: `[batch, length]`, of the positions that are asked about.
        architecture: The model's.

    Raises:
        EngineError: The model takes no videos, or reads them as so many images.
    """
    videos, ends = _are(ids, architecture.video_token_ids), architecture.video_ends
    if ends is not None:
        inside = (ids == ends[0]).cumsum(1) > (ids == ends[1]).cumsum(1)
        videos |= inside & visual_tokens(ids, architecture)
    if not bool(videos.any()) and (_is_played(given) or not (architecture.video_token_ids or ends)):
        raise EngineError(
            "tokens='video' in a call or a model without a token that stands for videos alone",
            expected="a model that tells videos from images",
            fix="tokens='image', which means all that is visual",
        )
    return videos


def audio_tokens(ids: Tensor, architecture: Architecture) -> Tensor:
    """Which ids stand for audio; boolean, of the same shape.

    Raises:
        EngineError: The model takes no audio.
    """
    if not architecture.audio_token_ids:
        raise EngineError(
            "tokens='audio' in a model whose config names no token for it", expected="a model that takes audio"
        )
    return _are(ids, architecture.audio_token_ids)


def visual_positions(given: Mapping[str, Any], architecture: Architecture, length: int) -> Tensor:
    """`[batch, length]` boolean: at which positions of a prompt the decoder reads an image or a video.

    Args:
        given: Keyword arguments of the call, `input_ids` among them.
        architecture: The model's.
        length: Number of positions that the decoder reads.

    Raises:
        EngineError: The image has no position: blocks attend to it. Or the decoder does not read all positions.
    """
    ids: Tensor = given["input_ids"]
    if architecture.drops_video and _is_played(given):
        raise EngineError(
            "tokens are chosen by what a prompt holds, and this model reads fewer of a video than the prompt has",
            expected="tokens='last', 'all' or 'generated'",
            fix="set model.config.video_pruning_rate and the processor's to 0 before the model is built",
        )
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
    name = architecture.marks.partition(":")[2]
    mask = given.get(name)
    if mask is not None:
        if mask.dim() != 2:
            raise EngineError(
                f"{name}, which is said to mark where the image is, has the shape {list(mask.shape)}",
                expected="[batch, tokens]",
                fix="declare another input as marks in the Family record",
            )
        marked[:, : mask.shape[1]] = mask[:, :length] > 0  # negative: tokens around the image
    return marked


def check_beside(given: Mapping[str, Any], architecture: Architecture) -> None:
    """Refuse a call that holds something beside text of which no position is known.

    Args:
        given: Keyword arguments of the call, `input_ids` among them.
        architecture: The model's.

    Raises:
        EngineError: It is something else than images, videos and audio, or no token stands for it.
    """
    beside = [name for name, value in given.items() if _is_content(name, value)]
    heard = [name for name in beside if name.startswith(_AUDIO)]
    strange = [name for name in beside if name not in heard and not _is_visual(name)]
    ids = given.get("input_ids")
    if heard and (ids is None or not bool(_are(ids, architecture.audio_token_ids).any())):
        strange += heard
    unseen = architecture.marks.startswith(("ids", "mask")) and not bool(_held(given, architecture).any())
    unknown = strange or ([name for name in beside if _is_visual(name)] if unseen else [])
    if unknown:
        raise EngineError(
            f"an intervention is for prompts by what they hold, and the call has {', '.join(unknown)}, "
            "for which none of its input_ids is known to stand",
            expected="text, and images, videos or audio whose tokens the model's config names, or its Family record",
            fix="set prompts='all' and tokens='last' or 'all' in the intervention, or name the tokens in the config",
        )


def visual_rows(given: Mapping[str, Any], architecture: Architecture) -> Tensor:
    """`[batch]` boolean on the CPU: which prompts of a call hold an image or a video.

    Args:
        given: Keyword arguments of the call, `input_ids` among them.
        architecture: The model's.

    Raises:
        EngineError: See `check_beside`; or a prompt holds audio and nothing visual, which is neither the one nor the
            other.
    """
    check_beside(given, architecture)
    held, ids = _held(given, architecture), given.get("input_ids")
    if architecture.audio_token_ids and ids is not None:
        heard = _are(ids, architecture.audio_token_ids).any(1).cpu() & ~held
        if bool(heard.any()):
            raise EngineError(
                "an intervention is for prompts by what they hold: with something visual, or text alone; and prompt "
                f"{int(heard.int().argmax())} of the call holds audio, and nothing visual",
                expected="prompts with images or videos, or without audio",
                fix="set prompts='all' in the intervention, or leave such prompts out of the block",
            )
    return held


def _held(given: Mapping[str, Any], architecture: Architecture) -> Tensor:
    if architecture.marks == "ids":
        return visual_tokens(given["input_ids"], architecture).any(1).cpu()
    if architecture.marks.startswith("mask"):
        return visual_positions(given, architecture, given["input_ids"].shape[1]).any(1).cpu()
    return _shown_rows(given, architecture)


def _shown_rows(given: Mapping[str, Any], architecture: Architecture) -> Tensor:
    """Which prompts are shown an image that no token stands for; all zeros stand for none."""
    shown = next((given[name] for name in given if _is_visual(name) and _is_content(name, given[name])), None)
    ids = given.get("input_ids")
    count = len(ids) if ids is not None else (1 if shown is None else len(shown))
    if shown is None:
        return torch.zeros(count, dtype=torch.bool, device="cpu")
    return (shown.reshape(count, -1) != 0).any(1).cpu()


def _is_visual(name: str) -> bool:
    return any(part in name for part in _OF_IMAGES)


def _is_played(given: Mapping[str, Any]) -> bool:
    return any("video" in name and _is_content(name, value) for name, value in given.items())


def is_shown(given: Mapping[str, Any]) -> bool:
    """Whether a call is given an image or a video."""
    return any(_is_visual(name) and _is_content(name, value) for name, value in given.items())


def _is_content(name: str, value: Any) -> bool:
    """Whether an argument is what a prompt holds beside text."""
    if value is None or name.startswith(_OF_TEXT) or name.endswith("mask"):
        return name.startswith(_AUDIO) and value is not None
    if name.startswith((*_VISUAL, *_AUDIO)):
        return True
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
