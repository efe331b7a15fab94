"""The views of a prompt: the same inputs without their images, or with meaningless images in their place.

Derived from the model's own inputs, so that raw `generate(**inputs)` and `VLM.generate(samples)` are measured alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steerkit.errors import EngineError, ProcessorError
from steerkit.interventions import View
from steerkit.models._architecture import Architecture, Inputs
from steerkit.models._format import PromptFormat
from steerkit.models._modalities import is_shown
from steerkit.models._text_view import TextView

_NOT_INPUTS = frozenset({"inputs", "inputs_embeds", "decoder_input_ids", "position_ids", "cache_position", "labels"})


def view(
    name: View,
    given: Mapping[str, Any],
    format: PromptFormat | None,
    architecture: Architecture,
    seed: int,
) -> Inputs:
    """The inputs of one view of a prompt.

    Args:
        name: The view.
        given: Keyword arguments of the model's call.
        format: The prompts of the model; None where it has no processor.
        architecture: The model's.
        seed: Seed of a noise view.

    Raises:
        EngineError: The view can't be derived from model inputs.
        ProcessorError: There is no processor.
    """
    if format is None:
        raise ProcessorError(
            f"the view {name!r} of a prompt must be built, and there is no processor",
            expected="a model that was loaded or wrapped with its processor",
            fix="pass the VLM instead of the raw model: sk.steer(sk.wrap(model, processor), ...)",
        )
    inputs = {k: v for k, v in given.items() if isinstance(v, Tensor) and k not in _NOT_INPUTS}
    if "input_ids" not in inputs:
        raise EngineError("a contrast is measured on a call without input_ids", expected="a call with input_ids")
    if name == "original":
        return inputs
    if name == "text":
        return without_image(inputs, format, architecture)
    if name == "caption":
        raise EngineError(
            "a vector measures the view 'caption' of a prompt, and the call has no samples",
            expected="vlm.generate(samples), with samples that have captions",
            fix="for raw calls of the model fit the method with text_side='query'",
        )
    return with_images(inputs, format, noise_seed=seed if name == "noise" else None)


def without_image(inputs: Inputs, format: PromptFormat, architecture: Architecture) -> Inputs:
    """The prompts with their images and placeholders removed, tokenised as they would be without them; left padded.

    Raises:
        EngineError: The ids do not say which text that would be.
    """
    if architecture.marks not in ("", "ids", "prefix") and is_shown(inputs):
        raise EngineError(
            "a vector measures the prompt without its image, and no token of this model's prompts stands for one",
            expected="vlm.generate(samples), which builds that prompt from the samples",
            fix="call it; or fit the method with another counterpart",
        )
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    text = TextView(format, architecture)
    rows = [row if mask is None else row[mask[index] != 0] for index, row in enumerate(ids)]
    return pad_left([text.without_images(row.tolist()) for row in rows], format.tokenizer, ids.device)


def with_images(inputs: Inputs, format: PromptFormat, noise_seed: int | None) -> Inputs:
    """The inputs with every image replaced by a white one, or by noise, of the size that the model sees.

    Prompts without an image are as they were.
    """
    if videos := sorted(key for key in inputs if "video" in key):
        raise EngineError(
            f"a vector measures a prompt with a meaningless image, and the call has {', '.join(videos)}",
            expected="a prompt with images",
            fix="fit the method with counterpart='original', which needs no such view",
        )
    if not is_shown(inputs):
        return inputs  # without an image there is nothing to replace: the contrast with the text alone is zero
    images = [[meaningless_image(size, noise_seed) for size in group] for group in format.image_sizes(inputs)]
    processed = format.processor.image_processor(images=images, return_tensors="pt")
    replaced: Inputs = dict(inputs)
    for key, value in processed.items():
        if key in inputs and value.shape == inputs[key].shape:
            replaced[key] = value.to(device=inputs[key].device, dtype=inputs[key].dtype)
        elif key in inputs:
            raise EngineError(
                f"a meaningless image gives {key} of shape {tuple(value.shape)}",
                expected=f"{tuple(inputs[key].shape)} as the prompt's own",
                fix="report this as a fault of image_sizes",
            )
    return replaced


def meaningless_image(size: tuple[int, int], seed: int | None) -> Image.Image:
    """A white image of `(height, width)`, or uniform RGB noise where a seed is given: one per seed and size."""
    if seed is None:
        return Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def decode(tokenizer: Any, ids: Tensor) -> str:
    """The exact text of the ids, special tokens included."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text in which special tokens are already written."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pad_left(rows: list[list[int]], tokenizer: Any, device: torch.device) -> Inputs:
    """Rows of ids as a left-padded batch."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id or 0), device=device)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, device=device)
        mask[index, width - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def system_lengths(ids: Tensor, real: Tensor, format: PromptFormat) -> Tensor:
    """`[rows]`: the position at which the user's turn opens; what is before it is padding or the system's."""
    marker, tokenizer = format.user_marker, format.tokenizer
    lengths = torch.zeros(ids.shape[0], dtype=torch.long, device="cpu")
    if marker is None:
        return lengths
    for index, row in enumerate(ids):
        begin = int(real[index].int().argmax())
        end = next(
            (k for k in range(begin + 1, len(row) + 1) if marker in decode(tokenizer, row[max(begin, k - 32) : k])),
            None,
        )
        if end is None:
            continue
        while marker in decode(tokenizer, row[begin:end]) and begin < end:
            begin += 1
        lengths[index] = begin - 1
    return lengths
