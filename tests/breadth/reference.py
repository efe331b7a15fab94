"""What every type is compared with: plain PyTorch hooks on blocks that are written down here, nothing of steerkit's.

A prompt is run alone and unpadded. A direction is added to what the *next* block is given (behind the last block: to
what its caller gets), so a block that is hooked in the wrong place, or whose change is lost on the way, disagrees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from breadth import prompts

_USUAL = "model.language_model.layers"
_OPT = "language_model.model.decoder.layers"
BLOCKS: dict[str, str] = {
    "blip": "text_decoder.bert.encoder.layer",
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), _OPT),
    **dict.fromkeys(("chameleon", "idefics"), "model.layers"),
    **dict.fromkeys(("emu3", "idefics2", "idefics3", "smolvlm", "granite_docling"), "model.text_model.layers"),
    "florence2": "model.language_model.decoder.layers",
    "git": "git.encoder.layer",
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), "text_model.model.layers"),
    **dict.fromkeys(("llama4", "nemotron_h_omni"), "language_model.model.layers"),
    "pix2struct": "decoder.layer",
    "pp_formulanet": "model.decoder.layers",
    "t5gemma2": "model.decoder.layers",
    "udop": "decoder.block",
    "vision-encoder-decoder": "decoder.model.decoder.layers",
}
"""Where the decoder blocks are: read in the code of transformers, and seen to run last and in this order."""

TEXT_MODULES = {
    "blip": "text_decoder",
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), "language_model"),
    "kosmos-2": "text_model",
}
"""What answers a prompt without an image, where the model itself can't."""

STREAMS = {"gemma3n": "first", "glm5_next": "third", "hy_v4_vl": "third", "qwen4_exp": "flat"}
"""Where a block's output holds several residual streams."""

NEXT = {"idefics": "model.gated_cross_attn_layers"}
"""What is given a block's output, where it is not the next block of the list."""

REPEATED = ("inkling2_loop",)
"""Blocks run several times in a pass; the last run counts."""

SKIPPED = ("mllama",)
"""The next block may not run, for a prompt without an image: directions are added to what the block itself returns."""


@dataclass
class Facts:
    """What a pass of one prompt shows, by block.

    Attributes:
        states: What each block returns at the last token, in its last run: `[hidden]` of each stream.
        given: What each block is given, in its first run: `[tokens, hidden of all streams]`.
        order: The blocks that ran, in order.
        logits: `[vocabulary]` after the prompt.
    """

    states: dict[int, list[Tensor]] = field(default_factory=dict)
    given: dict[int, Tensor] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class Plain:
    """A model and its processor, as transformers offers them."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self.model, self.processor = name, model, processor
        self.path = BLOCKS.get(name, _USUAL)
        self.blocks: Any = model.get_submodule(self.path)
        text = model.config.get_text_config(decoder=True)
        self.width = int(getattr(text, "hidden_size", None) or text.d_model)
        self._facts: dict[int, tuple[Mapping[str, Tensor], Facts]] = {}
        self.encodes = bool(model.config.is_encoder_decoder or text.is_encoder_decoder)

    # -- inputs ------------------------------------------------------------------------------------------------------

    def shown(self, question: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """One prompt with images, as the processor of transformers makes it."""
        return prompts.encoded(self.name, self.processor, [question], [images])

    def written(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """One prompt of tokens alone."""
        row = torch.tensor([list(ids)])
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    def target(self, inputs: Mapping[str, Any]) -> Any:
        visual = any(not key.startswith(("input_ids", "attention_mask", "token_type")) for key in inputs)
        module = "" if visual else TEXT_MODULES.get(self.name, "")
        return self.model.get_submodule(module)

    def completed(self, inputs: Mapping[str, Tensor], target: Any) -> dict[str, Tensor]:
        takes = inspect.signature(target.forward).parameters
        made = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
        for key in ("token_type_ids",):
            if key not in takes and "kwargs" not in takes:
                made.pop(key, None)
            elif key in made and key not in takes:
                made.pop(key)
        if "token_type_ids" in takes and "token_type_ids" not in made and "input_ids" in made:
            made["token_type_ids"] = torch.zeros_like(made["input_ids"])
        if self.encodes and "decoder_input_ids" not in made:
            rows = len(next(iter(made.values())))
            settings = target.config
            inner = settings.get_text_config(decoder=True)
            start = next(
                (
                    value
                    for each in (getattr(target, "generation_config", None), settings, inner)
                    if (value := getattr(each, "decoder_start_token_id", None)) is not None
                ),
                1,
            )
            made["decoder_input_ids"] = torch.full((rows, 1), int(start), dtype=torch.long)
        return made

    # -- passes ------------------------------------------------------------------------------------------------------

    def facts(self, inputs: Mapping[str, Tensor]) -> Facts:
        """One pass as it is, with nothing added, kept for the next question about the same inputs."""
        key = id(inputs)
        if key not in self._facts:
            self._facts[key] = (inputs, self._observed(inputs))  # the inputs are held, so that their id stays theirs
        return self._facts[key][1]

    def _observed(self, inputs: Mapping[str, Tensor]) -> Facts:
        found = Facts()

        def keep(layer: int) -> tuple[Callable[..., None], Callable[..., None]]:
            def before(module: nn.Module, args: Any, options: Any) -> None:
                state = args[0] if args else options["hidden_states"]
                state = state.movedim(0, -2) if STREAMS.get(self.name) == "first" else state
                found.given.setdefault(layer, state[0].detach().flatten(1).clone())

            def after(module: nn.Module, args: Any, output: Any) -> None:
                found.order.append(layer)
                found.states[layer] = self.streams(first(output))

            return before, after

        handles = []
        for layer, block in enumerate(self.blocks):
            before, after = keep(layer)
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(block.register_forward_hook(after))
        try:
            found.logits = self.logits(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def watch(self, layer: int, seen: list[Tensor]) -> Any:
        """Note what a block is given from now on: `[tokens, hidden of all streams]`; the handle of the hook."""

        def hook(module: nn.Module, args: Any, options: Any) -> None:
            state = args[0] if args else options["hidden_states"]
            state = state.movedim(0, -2) if STREAMS.get(self.name) == "first" else state
            seen.append(state[0].detach().flatten(1).clone())

        return self.blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`[vocabulary]` after the prompt."""
        target = self.target(inputs)
        self.forget()
        with torch.no_grad():
            return target(**self.completed(inputs, target)).logits[0, -1]

    def forget(self) -> None:
        """Drop what a model of M-RoPE keeps from its last prompt."""
        for module in self.model.modules():
            if hasattr(module, "rope_deltas"):
                module.rope_deltas = None

    def streams(self, state: Tensor) -> list[Tensor]:
        """The last token of every residual stream of a batch of one, `[hidden]` each."""
        kind = STREAMS.get(self.name)
        if kind == "first":
            return list(state[:, 0, -1])
        if kind == "third":
            return list(state[0, -1])
        if kind == "flat":
            return list(state[0, -1].view(-1, self.width))
        return [state[0, -1]]

    def changed(self, state: Tensor, direction: Tensor, places: Any = -1) -> Tensor:
        """A copy of a state with a direction added, in every stream, to the tokens at these places."""
        state = state.clone()
        kind = STREAMS.get(self.name)
        if kind == "flat":
            direction = direction.repeat(state.shape[-1] // len(direction))
        if kind == "first":
            state[:, :, places] += direction
        else:
            state[:, places] += direction
        return state

    @contextmanager
    def adding(self, directions: Mapping[int, Tensor], places: Any = -1) -> Iterator[None]:
        """Add directions behind blocks: to what the next one is given."""
        undo: list[Callable[[], None]] = []
        following: Any = self.model.get_submodule(NEXT[self.name]) if self.name in NEXT else self.blocks
        try:
            for layer, direction in directions.items():
                if layer + 1 < len(self.blocks) and self.name not in (*REPEATED, *SKIPPED):
                    hook = following[layer + 1].register_forward_pre_hook(
                        self._given(direction, places), with_kwargs=True
                    )
                    undo.append(hook.remove)
                else:
                    undo.append(self._returned(self.blocks[layer], layer, direction, places))
            yield
        finally:
            for each in undo:
                each()

    def _given(self, direction: Tensor, places: Any) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, options: Any) -> Any:
            if args:
                return (self.changed(args[0], direction, places), *args[1:]), options
            return args, {**options, "hidden_states": self.changed(options["hidden_states"], direction, places)}

        return hook

    def _returned(self, block: Any, layer: int, direction: Tensor, places: Any) -> Callable[[], None]:
        original = block.forward
        runs = [0]

        def forward(*args: Any, **options: Any) -> Any:
            output = original(*args, **options)
            runs[0] += 1
            if runs[0] % self._runs(layer):
                return output
            state = self.changed(first(output), direction, places)
            return state if isinstance(output, Tensor) else (state, *output[1:])

        block.forward = forward

        def restore() -> None:
            del block.forward

        return restore

    def _runs(self, layer: int) -> int:
        text = self.model.config.get_text_config(decoder=True)
        if self.name not in REPEATED or not text.loop_layer_index_start <= layer < text.loop_layer_index_end:
            return 1
        return int(text.loop_num_passes)


def first(output: Any) -> Tensor:
    """The hidden state that a block returns."""
    return output if isinstance(output, Tensor) else output[0]


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest entry; infinite entries (masked logits) are left out."""
    one, other = one.detach().float().flatten(), other.detach().float().flatten()
    if one.shape != other.shape:
        return float("inf")
    both = one.isfinite() & other.isfinite() & (one.abs() < 1e9)
    if not torch.equal(one.isfinite(), other.isfinite()) or not both.any():
        return float("inf")
    return float((one[both] - other[both]).abs().max() / other[both].abs().max().clamp_min(1e-12))
