"""The views of a prompt, as vLLM takes prompts: without its images, or with meaningless ones in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from steerkit.errors import EngineError
from steerkit.interventions import View
from steerkit.models import Architecture, PromptFormat, view as view_of

if TYPE_CHECKING:
    from torch import Tensor


def view(
    name: View, prompt: Mapping[str, Any], format: PromptFormat, architecture: Architecture, seed: int
) -> dict[str, Any]:
    """An input of vLLM's engine that shows one view of another.

    Args:
        name: The view.
        prompt: The input as it was rendered.
        format: The prompts of the model.
        architecture: The model's.
        seed: Seed of a noise view.

    Raises:
        EngineError: The view can't be derived from it.
    """
    if name == "original" or prompt["type"] != "multimodal":
        return dict(prompt)
    kept = {key: prompt[key] for key in ("cache_salt",) if key in prompt}  # whose prefixes are whose
    ids = list(prompt["prompt_token_ids"])
    if name == "text":
        found = view_of("text", {"input_ids": torch.tensor([ids])}, format, architecture, seed)
        return {"type": "token", "prompt_token_ids": found["input_ids"][0].tolist(), **kept}
    if set(prompt["mm_kwargs"]) != {"image"}:
        raise EngineError(f"a contrast is measured on a prompt with {sorted(prompt['mm_kwargs'])}", expected="images")
    from vllm.multimodal.inputs import MultiModalKwargsItems

    items = [_meaningless(item, name, format, architecture, seed) for item in prompt["mm_kwargs"]["image"]]
    hashes = [f"steerkit-{name}-{seed}-{each}" for each in prompt["mm_hashes"]["image"]]
    return {
        "type": "multimodal",
        "prompt_token_ids": ids,
        "mm_kwargs": MultiModalKwargsItems({"image": items}),
        "mm_hashes": {"image": hashes},
        "mm_placeholders": prompt["mm_placeholders"],
        **kept,
    }


def _meaningless(item: Any, name: View, format: PromptFormat, architecture: Architecture, seed: int) -> Any:
    """One image's inputs, with a white image or noise of its size instead."""
    from vllm.multimodal.inputs import MultiModalKwargsItem

    if item is None:
        raise EngineError(
            "the pixels of the prompt's image are in vLLM's cache and can't be measured again",
            expected="a server that was started with the pack, which turns that cache off",
        )
    one = min(architecture.image_token_ids - architecture.video_token_ids)
    given: dict[str, Tensor] = {"input_ids": torch.tensor([[one]])}
    for key, element in item.items():
        data = element.data
        # what vLLM keeps of one image lacks the dimension that counts images, but where patches are packed
        flat = type(element.field).__name__ == "MultiModalFlatField"
        given[key] = data if flat else data[None]
    made = view_of(name, given, format, architecture, seed)
    replaced = {}
    for key, element in item.items():
        copy = type(element)(data=made[key].reshape(element.data.shape).to(element.data.dtype), field=element.field)
        replaced[key] = copy
    return MultiModalKwargsItem(replaced)
