"""Hidden states, read off one forward pass by torch hooks: those that stand for each prompt."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.engines.model_inputs import prompt_length
from steerkit.errors import EngineError
from steerkit.interventions import Pool, Site, Tower, last_positions
from steerkit.models import Architecture, Inputs, is_shown, merged, start_token

_innermost: ContextVar[object] = ContextVar("steerkit_innermost_capture", default=None)
"""Whose pass runs: a contrast that is measured while a steered pass is captured is a pass of its own."""


_NAMES = ("last_hidden_state", "hidden_state", "hidden_states")


def _place(output: Any) -> int | str | None:
    """Where the hidden state is in what holds more: in front, or under its name; None where that can't be told."""
    if isinstance(output, Tensor):
        return None
    if isinstance(output, (tuple, list)):
        return 0 if output else None
    names = list(output) if isinstance(output, dict) else [f.name for f in fields(output)] if _is_record(output) else []
    return next((name for name in _NAMES if name in names), names[0] if len(names) == 1 else None)


def _is_record(output: Any) -> bool:
    return is_dataclass(output) and not isinstance(output, (type, dict))


def hidden(output: Any) -> Tensor:
    """The hidden state in a module's output, which some families wrap in a tuple, a list, a dictionary or a dataclass.

    Raises:
        EngineError: It is wrapped in something else.
    """
    place = _place(output)
    h = output if place is None else getattr(output, str(place)) if _is_record(output) else output[place]
    if not isinstance(h, Tensor) or type(h).__name__ == "DTensor":  # which is spread over processes
        raise EngineError(
            f"a module that is steered or read gives a {type(h).__name__}",
            expected="a tensor that is whole in each process, a tuple or list that begins with one, or what names it "
            "hidden_states",
            fix="steer another site, or let the module return its hidden state",
        )
    return h


def with_hidden(output: Any, h: Tensor) -> Any:
    """The same output around another hidden state."""
    place = _place(output)
    if place is None:
        return h
    if _is_record(output):
        return replace(output, **{str(place): h})
    if isinstance(output, tuple):
        return output._replace(**{output._fields[0]: h}) if hasattr(output, "_fields") else (h, *output[1:])  # type: ignore[attr-defined]
    changed = copy.copy(output)
    changed[place] = h
    return changed


class _Reached(Exception):
    """Ends a forward pass at the last module whose output is wanted; never leaves this module."""


def capture(
    model: nn.Module,
    inputs: Inputs,
    architecture: Architecture,
    layers: Sequence[int],
    site: Site,
    tower: Tower = "language",
    pool: Pool | Sequence[int] = "last",
    whole: Callable[[Any], object] | None = None,
) -> dict[int, Tensor]:
    """`{layer: [batch, hidden]}`: the hidden state that stands for each prompt, from one forward pass.

    The pass ends at the highest layer that is wanted: neither the layers above nor the logits are computed, unless the
    whole is asked for.

    Args:
        model: The Hugging Face model.
        inputs: Keyword arguments of its forward pass (or of its text module's, where there is no image).
        architecture: The model's.
        layers: 0-based blocks.
        site: Where in the block.
        tower: Which tower. In the vision tower the pass must be of one prompt.
        pool: The last token, or the mean: over all tokens, or over so many at the end of each prompt; in the vision
            tower always over all tokens of all images.
        whole: Called with what the model returns.
    """
    found: dict[int, Tensor] = {}
    ran = {layer: _runs_before(layer, site, tower, inputs, architecture) for layer in layers}
    runs = dict.fromkeys(ran.values(), 0)
    owner = threading.get_ident()
    read = reader(inputs, architecture, tower, pool, site)
    last = max(runs) if not moves_weights(model) and whole is None else None

    def hook_at(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any = None) -> None:
            if threading.get_ident() != owner or _innermost.get() is not found:
                return
            runs[layer] += 1
            found[layer] = read(hidden(args if site == "head_out" else output)).detach()
            if layer == last and runs[layer] == (architecture.runs[layer] if architecture.runs else 1):
                raise _Reached

        return hook

    handles = []
    for layer in runs:
        module = model.get_submodule(architecture.site(layer, site, tower))
        register = module.register_forward_pre_hook if site == "head_out" else module.register_forward_hook
        handles.append(register(hook_at(layer)))
    token = _innermost.set(found)
    try:
        with torch.no_grad():
            output = call_target(model, inputs, architecture)(**forward_inputs(model, inputs, architecture))
            if whole is not None:
                whole(output)
    except _Reached:
        pass
    finally:
        _innermost.reset(token)
        for handle in handles:
            handle.remove()
    return {layer: found[ran[layer]] for layer in layers}


def _runs_before(layer: int, site: Site, tower: Tower, inputs: Inputs, architecture: Architecture) -> int:
    """The block whose output is the state behind a layer: the one before, where a block needs an image to run.

    Raises:
        EngineError: What is read is inside a block that does not run.
    """
    if tower == "vision" or layer not in architecture.only_with_image or is_shown(inputs):
        return layer
    if site != "resid_post" or not layer:
        raise EngineError(
            f"{site} of block {layer} is read, which runs for prompts with an image alone",
            expected="resid_post, or a prompt with an image",
        )
    return _runs_before(layer - 1, site, tower, inputs, architecture)


def reader(
    inputs: Inputs, architecture: Architecture, tower: Tower, pool: Pool | Sequence[int], site: Site
) -> Callable[[Tensor], Tensor]:
    """What takes the hidden states of a pass to `[batch, hidden]`; see `capture`."""
    if tower == "vision":
        return lambda h: h.flatten(0, -2).float().mean(0, keepdim=True)
    # where the image is put in front of the ids, a state has more positions than they
    width = inputs["input_ids"].shape[1] if architecture.marks == "prefix" else None
    if pool == "last":
        index = last_index(inputs, architecture)

        def last(h: Tensor) -> Tensor:
            h = _one_state(merged(h, architecture), inputs, architecture, site)
            more = 0 if width is None else h.shape[1] - width
            return h[torch.arange(h.shape[0], device=h.device), index.to(h.device) + more]

        return last
    mask = None if architecture.encoder_decoder else inputs.get("attention_mask")

    def mean(h: Tensor) -> Tensor:
        h = _one_state(merged(h, architecture), inputs, architecture, site)
        real = torch.ones(h.shape[:2], device=h.device)
        if mask is not None:
            real[:, -mask.shape[1] :] = (mask != 0).to(h.device).float()
        if pool != "mean":
            from_end = real.flip(1).cumsum(1).flip(1)
            real *= from_end <= torch.tensor(pool, device=h.device)[:, None]
        return torch.einsum("bth,bt->bh", h.float(), real) / real.sum(1, keepdim=True)

    return mean


def _one_state(h: Tensor, inputs: Inputs, architecture: Architecture, site: Site) -> Tensor:
    """The state, once it is known to be one for each position of each prompt.

    Raises:
        EngineError: It is something else, of which the wrong part would be read.
    """
    rows = next(iter(inputs.values())).shape[0]
    told = architecture.marks in ("", "ids") and not architecture.encoder_decoder
    width = inputs["input_ids"].shape[1] if told else None
    wide = architecture.hidden_size if site == "resid_post" else h.shape[-1]
    if h.dim() != 3 or tuple(h.shape) != (rows, width or h.shape[1], wide):
        raise EngineError(
            f"a module gives a state of shape {tuple(h.shape)} for {rows} prompts",
            expected=f"({rows}, {width or 'positions'}, {architecture.hidden_size})",
            fix="read resid_post; or declare `state` in a Family record, where blocks return several streams",
        )
    return h


def moves_weights(model: nn.Module) -> bool:
    """Whether accelerate moves weights in for a pass: they move out only when the pass ends of itself."""
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(places) > 1 and bool(places & {"cpu", "disk"})


def call_target(model: nn.Module, inputs: Mapping[str, Any], architecture: Architecture) -> nn.Module:
    """The module that takes these inputs: the model, or its text module where there is no image."""
    return model if is_shown(inputs) else model.get_submodule(architecture.text_module)


def forward_inputs(model: nn.Module, inputs: Inputs, architecture: Architecture) -> dict[str, Any]:
    """Inputs completed for one forward pass that is not going to be continued."""
    completed: dict[str, Any] = {**inputs, "use_cache": False}
    if architecture.encoder_decoder and "decoder_input_ids" not in inputs:
        text = model.get_submodule(architecture.text_module) if architecture.text_module else model
        start = start_token(text)
        first = next(iter(inputs.values()))
        completed["decoder_input_ids"] = torch.full((first.shape[0], 1), start, device=first.device)
    if architecture.counts_padding and "attention_mask" in inputs and not bool(inputs["attention_mask"].all()):
        completed["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)  # as generate does
    return completed


def last_index(inputs: Inputs, architecture: Architecture) -> Tensor:
    """`[batch]` position of the last prompt token in the decoder's sequence."""
    if architecture.encoder_decoder:
        first, begun = next(iter(inputs.values())), prompt_length(inputs, architecture) or 1
        return torch.full((first.shape[0],), begun - 1, device=first.device)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    return last_positions(torch.ones_like(ids) if mask is None else mask)
