"""The engine on torch forward hooks: for raw `generate`, for several threads, and for speed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.adapter import Architecture, Inputs
from steerkit.engines import compiled
from steerkit.engines.application import Application, Place
from steerkit.engines.calls import CallTracker
from steerkit.intervention import Site
from steerkit.positions import last_positions


def hidden(output: Any) -> Tensor:
    """The hidden state in a module's output, which some families wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, h: Tensor) -> Any:
    """The same output around another hidden state."""
    return (h, *output[1:]) if isinstance(output, tuple) else h


@contextmanager
def applied(model: nn.Module, tracker: CallTracker, application: Application, *, any_thread: bool) -> Iterator[None]:
    """Steer a model by hooks on the places that the application names.

    Args:
        model: The Hugging Face model.
        tracker: The tracker installed on it.
        application: What to apply.
        any_thread: Steer calls from any thread, not only from the one that opens the context.
    """
    owner = None if any_thread else threading.get_ident()
    with ExitStack() as stack:
        stack.callback(setattr, application, "closed", True)
        for place in application.places:
            slot = compiled.acquire(model, place)
            stack.callback(compiled.release, slot)
            slot.steer = _traced(tracker, application, place, owner)
            module = model.get_submodule(tracker.architecture.site(*place))
            hook = _hook(tracker, application, place, owner, slot.number)
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _hook(
    tracker: CallTracker, application: Application, place: Place, owner: int | None, slot: int
) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling():
            return with_hidden(output, compiled.steered(hidden(output), slot))
        now = tracker.current
        if now is None or application.closed or (owner is not None and threading.get_ident() != owner):
            return None
        h = hidden(output)
        changed = application.apply(place, h, now)
        return None if changed is h else with_hidden(output, changed)

    return hook


def _traced(tracker: CallTracker, application: Application, place: Place, owner: int | None) -> compiled.Steer:
    """What the hook does where it was traced into a graph."""

    def steer(h: Tensor) -> Tensor:
        if owner is not None and threading.get_ident() != owner:
            return h
        now = tracker.in_graph(place, application)
        return h if now is None else application.apply(place, h, now)

    return steer


class _Reached(Exception):
    """Ends a forward pass at the last module whose output is wanted; never leaves this module."""


def capture(
    model: nn.Module, inputs: Inputs, architecture: Architecture, layers: Sequence[int], site: Site
) -> dict[int, Tensor]:
    """`{layer: [batch, hidden]}`: the hidden state of the last prompt token, from one forward pass.

    The pass ends at the highest layer that is wanted: neither the layers above nor the logits are computed.

    Args:
        model: The Hugging Face model.
        inputs: Keyword arguments of its forward pass (or of its text module's, where there is no image).
        architecture: The model's.
        layers: 0-based decoder blocks.
        site: Where in the block.
    """
    found: dict[int, Tensor] = {}
    owner = threading.get_ident()
    index = last_index(inputs, architecture)
    # weights that accelerate moves in for a pass move out only when the pass ends of itself
    last = max(layers) if getattr(model, "hf_device_map", None) is None else None

    def hook_at(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != owner:
                return
            h = hidden(output)
            found[layer] = h[torch.arange(h.shape[0], device=h.device), index.to(h.device)].detach()
            if layer == last:
                raise _Reached

        return hook

    handles = [
        model.get_submodule(architecture.site(layer, site)).register_forward_hook(hook_at(layer)) for layer in layers
    ]
    try:
        with torch.no_grad():
            call_target(model, inputs, architecture)(**forward_inputs(model, inputs, architecture))
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {layer: found[layer] for layer in layers}


def call_target(model: nn.Module, inputs: Mapping[str, Any], architecture: Architecture) -> nn.Module:
    """The module that takes these inputs: the model, or its text module where there is no image."""
    without_image = not any(key.startswith("pixel_values") for key in inputs)
    return model.get_submodule(architecture.text_module) if without_image else model


def forward_inputs(model: nn.Module, inputs: Inputs, architecture: Architecture) -> dict[str, Any]:
    """Inputs completed for one forward pass that is not going to be continued."""
    completed: dict[str, Any] = {**inputs, "use_cache": False}
    if architecture.encoder_decoder and "decoder_input_ids" not in inputs:
        text = model.get_submodule(architecture.text_module) if architecture.text_module else model
        start: int = text.config.decoder_start_token_id  # type: ignore[union-attr,assignment]
        completed["decoder_input_ids"] = torch.full_like(inputs["input_ids"][:, :1], start)
    if architecture.counts_padding and "attention_mask" in inputs:
        completed["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)  # as generate does
    return completed


def last_index(inputs: Inputs, architecture: Architecture) -> Tensor:
    """`[batch]` position of the last prompt token in the decoder's sequence."""
    ids = inputs["input_ids"]
    if architecture.encoder_decoder:
        return torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)
    mask = inputs.get("attention_mask")
    return last_positions(torch.ones_like(ids) if mask is None else mask)
