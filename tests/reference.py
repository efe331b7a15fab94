"""What steering must amount to, in plain PyTorch: forward hooks, hand-written module paths, positions as numbers.

Nothing here comes from steerkit's engines, operations or selectors, so an error there can't hide here as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor

import steerkit as sk
from steerkit.vectors import MethodRecord, PackMetadata

CAUSAL = "model.language_model.layers"
BLOCKS = {
    "instructblip-llama": "language_model.model.layers",
    "instructblip-t5": "language_model.decoder.block",
    "peft-llava": "base_model.model.model.language_model.layers",
    "decoder": "model.layers",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
}
INNER = {
    "instructblip-t5": {"resid_post": "", "mlp_out": ".layer.2.DenseReluDense", "attn_out": ".layer.0.SelfAttention"},
    "gpt2": {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".attn"},
    "gpt_neox": {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".attention"},
}
USUAL = {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".self_attn"}

CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"
"""What transformers calls the KV cache, as an argument and as a field of the output."""


def cache_of(output: Any) -> Any:
    """The KV cache of a model's output."""
    return output[CACHE]


Where = Callable[[Tensor], Tensor]
"""From the absolute positions `[tokens]` of a pass to the steered ones, `[tokens]` or `[rows, tokens]` booleans."""

Change = Callable[[Tensor, Tensor], Tensor]
"""From the steered tokens `[n, hidden]` and their rows `[n]` to what they become."""


def picture(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    """A random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


TEXTS = (
    "What is this?",
    "Describe the image in detail please.",
    "How do I bake a cake for the neighbour?",
)
WITH_IMAGE = tuple(sk.Sample(text, images=(picture(index),)) for index, text in enumerate(TEXTS))
TEXT_ONLY = tuple(sk.Sample(text) for text in TEXTS)
PICTURED = (True, False, True)
"""Which prompts of the batch that `mixed` makes hold an image."""


def white(sample: sk.Sample) -> sk.Sample:
    """The sample with white images of the same sizes."""
    return replace(sample, images=tuple(Image.new("RGB", image.size, "white") for image in sample.images))


def noisy(sample: sk.Sample, seed: int) -> sk.Sample:
    """The sample with uniform noise of the same sizes."""
    return replace(sample, images=tuple(picture(seed, image.height, image.width) for image in sample.images))


def mixed(vlm: sk.VLM) -> dict[str, Tensor]:
    """A padded batch of three prompts, the second without an image."""
    chats, images = [], []
    for index, held in enumerate(PICTURED):
        text = {"type": "text", "text": f"What is this{', and that' * index}?"}
        chats.append([{"role": "user", "content": [*([{"type": "image"}] if held else []), text]}])
        images += [[picture(index)] if held else []]
    texts = [vlm.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    flat = [image for held in images for image in held]
    return dict(vlm.processor(text=texts, images=flat, padding=True, padding_side="left", return_tensors="pt"))


def module_at(model: torch.nn.Module, family: str, layer: int, site: str = "resid_post") -> torch.nn.Module:
    """The module whose output is the site."""
    inner = INNER.get(family, USUAL)[site]
    block = model.get_submodule(f"{BLOCKS.get(family, CAUSAL)}.{layer}")
    if family == "qwen3_5" and site == "attn_out" and not hasattr(block, "self_attn"):
        inner = ".linear_attn"
    return block.get_submodule(inner.lstrip(".")) if inner else block


def target(model: Any, inputs: Mapping[str, Any]) -> Any:
    """What takes the inputs: InstructBLIP answers a text without an image by its language model."""
    if "pixel_values" not in inputs and hasattr(model, "qformer"):
        return model.language_model
    return model


def tensor_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass
class Edit:
    """One change of one module's output."""

    layer: int
    where: Where
    change: Change
    site: str = "resid_post"
    seen: int = field(default=0, init=False)


@contextmanager
def edited(model: torch.nn.Module, family: str, edits: Sequence[Edit], *, cached: bool = True) -> Iterator[None]:
    """Change outputs by plain hooks, for one call of the model.

    Args:
        model: The model.
        family: Its name in `tiny`.
        edits: What to change.
        cached: Whether passes continue where the last one ended; otherwise each begins at position 0, unless it is of a
            single token (InstructBLIP ignores `use_cache=False` where there is an image).
    """

    def hook(edit: Edit) -> Callable[..., Any]:
        def run(module: Any, args: Any, output: Any) -> Any:
            h = tensor_of(output)
            start = edit.seen if cached or h.shape[1] == 1 else 0
            edit.seen = start + h.shape[1]
            mask = edit.where(torch.arange(start, start + h.shape[1])).expand(h.shape[0], h.shape[1])
            rows, columns = mask.nonzero(as_tuple=True)
            if not len(rows):
                return output
            h = h.clone()
            h[rows, columns] = edit.change(h[rows, columns], rows).to(h.dtype)
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return run

    for edit in edits:
        edit.seen = 0
    handles = [module_at(model, family, e.layer, e.site).register_forward_hook(hook(e)) for e in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def captured(
    model: Any, family: str, inputs: Mapping[str, Any], site: str = "resid_post", position: int | Tensor = -1
) -> list[Tensor]:
    """`[batch, hidden]` of every layer at one position, from one whole forward pass."""
    found: list[Tensor] = []
    layers = len(model.get_submodule(BLOCKS.get(family, CAUSAL)))

    def keep(module: Any, args: Any, output: Any) -> None:
        h = tensor_of(output)
        found.append(h[torch.arange(h.shape[0]), position].clone())

    handles = [module_at(model, family, layer, site).register_forward_hook(keep) for layer in range(layers)]
    more = positions(model, inputs)
    if family == "instructblip-t5":
        more["decoder_input_ids"] = torch.zeros_like(inputs["input_ids"][:, :1])
    forget(model)
    try:
        with torch.no_grad():
            target(model, inputs)(**inputs, **more)
    finally:
        for handle in handles:
            handle.remove()
    return found


def positions(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` says of left-padded prompts, where the model does not count by itself."""
    counts_itself = any(hasattr(module, "rope_deltas") for module in model.modules())
    takes = "position_ids" in inspect.signature(model.forward).parameters
    if counts_itself or not takes or "attention_mask" not in inputs:
        return {}
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def forget(model: Any) -> None:
    """Qwen-VL keeps the offset of the last image prompt, and uses it for the next text."""
    inner = getattr(model, "model", None)
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = None


def no_images(model: Any) -> dict[str, Any]:
    """The option that keeps image tokens, which mean nothing in an answer, out of it."""
    token = getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None)
    return {} if token is None else {"suppress_tokens": [token]}


def generate(model: Any, inputs: Mapping[str, Any], steps: int = 5, **options: Any) -> Any:
    """Exactly `steps` new tokens, none of them an image's, with their logits; seeded."""
    forget(model)
    torch.manual_seed(5)
    return target(model, inputs).generate(
        **inputs,
        max_new_tokens=steps,
        min_new_tokens=steps,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **no_images(model),
        **options,
    )


def distance(one: Any, other: Any) -> float:
    """The largest difference of two generations' logits; infinite where their tokens differ."""
    if one.sequences.shape != other.sequences.shape or not torch.equal(one.sequences, other.sequences):
        return float("inf")
    pairs = [*zip(one.logits, other.logits, strict=True), *zip(one.scores, other.scores, strict=True)]
    return max(float((a - b).nan_to_num(0.0).abs().max()) for a, b in pairs)


def prompt_length(family: str, inputs: Mapping[str, Any]) -> int:
    """Positions of the prompt in the decoder, padding included."""
    return 1 if family == "instructblip-t5" else inputs["input_ids"].shape[1]


def directions(vlm: sk.VLM, norm: float = 6.0, seed: int = 0, site: str = "resid_post") -> dict[sk.Key, Tensor]:
    """A random direction for each layer."""
    generator = torch.Generator().manual_seed(100 + seed)
    made = torch.randn(vlm.record.layer_count, vlm.record.hidden_size, generator=generator)
    made = norm * made / made.norm(dim=1, keepdim=True)
    return {sk.Key(layer, site): row for layer, row in enumerate(made)}


def vector(
    vlm: sk.VLM, tensors: Mapping[sk.Key, Tensor], *interventions: sk.Intervention, **record: Any
) -> sk.SteeringVector:
    """A steering vector of any content for a model."""
    return sk.SteeringVector(
        tensors,
        PackMetadata(
            method=MethodRecord(name="test"),
            interventions=interventions or (sk.Intervention(),),
            model=vlm.record.model_copy(update=record),
        ),
    )


def adds(tensors: Mapping[sk.Key, Tensor], where: Where, strength: float = 1.0) -> list[Edit]:
    """Edits that add each direction at its layer."""
    return [
        Edit(key.layer, where, lambda h, rows, d=tensor: h + strength * d, key.site) for key, tensor in tensors.items()
    ]


def only(position: int) -> Where:
    """One position of every row."""
    return lambda positions: positions == position


def since(position: int) -> Where:
    """A position and all after it."""
    return lambda positions: positions >= position


def touched(model: Any, family: str, layer: int, steered: Callable[[], Any], call: Callable[[], Any]) -> list[Tensor]:
    """Which tokens steering changes: for each pass a `[rows, tokens]` mask of changed outputs of a block.

    Args:
        model: The model.
        family: Its name in `tiny`.
        layer: The block.
        steered: Opens the steering context. What the block's `forward` returns is before the change, what a hook sees
            that was there before is after it.
        call: Calls the model.
    """
    before: list[Tensor] = []
    after: list[Tensor] = []
    block = module_at(model, family, layer)
    own, forward = vars(block).get("forward"), block.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        before.append(tensor_of(output).detach().clone())
        return output

    block.forward = noted
    handle = block.register_forward_hook(lambda m, a, o: after.append(tensor_of(o).detach().clone()))
    try:
        with steered():
            call()
    finally:
        handle.remove()
        del block.forward
        if own is not None:  # nnsight's, or accelerate's
            block.forward = own
    return [(one != other).any(dim=-1) for one, other in zip(before, after, strict=True)]


def places(mask: Tensor) -> list[list[int]]:
    """The true columns of each row."""
    return [row.nonzero().flatten().tolist() for row in mask]


def state(model: torch.nn.Module) -> list[Any]:
    """Everything that steering might leave on a model: hooks and instance attributes of every module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return [
        (
            name,
            sorted(vars(module)),
            [len(getattr(module, each)) for each in (*hooks, "_forward_pre_hooks_with_kwargs")],
        )
        for name, module in model.named_modules()
    ]
