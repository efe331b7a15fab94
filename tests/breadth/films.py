"""Prompts with a video or with audio, as transformers' own processors make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from breadth import prompts

Medium: TypeAlias = Literal["video", "audio"]

FRAMES, SECONDS, RATE = 4, 1, 16000
_FRAMES = {
    **{name: ("<|begin_of_video|>", "<|end_of_video|>") for name in prompts.GLM},
    **{name: ("<|vision_start|>", "<|vision_end|>") for name in ("qwen2_vl", "qwen2_5_vl", "exaone4_5")},
}
"""What the published templates write around a video that its processor does not write itself."""


def placeholder(name: str, processor: Any) -> str:
    """What a prompt of the type holds for one video."""
    before, after = _FRAMES.get(name, ("", ""))
    return f"{before}{getattr(processor, 'video_token', None) or '<video>'}{after}"


def clip(seed: int, side: int = 56) -> Any:
    """A video of random pixels, `[frames, height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8)


def sound(seed: int) -> Any:
    """A second of noise."""
    return np.random.default_rng(seed).normal(size=SECONDS * RATE).astype(np.float32)


def takes(name: str, processor: Any, medium: Medium) -> bool | None:
    """Whether a type's processor takes such a medium; None where what it needs for that is not installed."""
    part = "video_processor" if medium == "video" else "feature_extractor"
    if processor is None or part not in type(processor).get_attributes() or name in prompts.BARE:
        return False
    if medium == "video" and not is_torchvision_available():
        return None
    return bool(getattr(getattr(processor, part), "model_input_names", None)) and callable(getattr(processor, part))


def without(name: str, processor: Any, question: str) -> list[int]:
    """The tokens of a prompt with a video once its placeholder is taken out."""
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    bare = text.replace(placeholder(name, processor), "")
    return processor(text=[bare], return_tensors="pt")["input_ids"][0].tolist()


def encoded(
    name: str,
    processor: Any,
    medium: Medium,
    questions: Sequence[str],
    seeds: Sequence[int | None],
    *,
    timed: bool = True,
) -> dict[str, Tensor]:
    """What the model takes for prompts with one video, one sound or neither each, padded on the left.

    `timed` says what the frames are; without it, processors choose among them as they do by themselves.
    """
    texts = []
    for question, seed in zip(questions, seeds, strict=True):
        parts: list[dict[str, str]] = [] if seed is None else [{"type": medium}]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        texts.append(processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
    processor.tokenizer.padding_side = "left"
    given = [seed for seed in seeds if seed is not None]
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True, **prompts.CALLED_WITH.get(name, {})}
    if given and medium == "audio":
        options["audio"] = [sound(seed) for seed in given]
    elif given:
        side = prompts.SIDES.get(name, 56)
        options["videos"] = [clip(seed, side) for seed in given]
        told = [
            VideoMetadata(total_num_frames=FRAMES, fps=2.0, duration=2.0, frames_indices=list(range(FRAMES)))
            for _ in given
        ]
        options["videos_kwargs"] = {"return_metadata": True}
        if timed:
            options["videos_kwargs"] |= {"do_sample_frames": False, "video_metadata": told}
    made = processor(text=texts, **options)
    return {key: value for key, value in made.items() if isinstance(value, torch.Tensor) and key != "labels"}
