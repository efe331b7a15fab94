"""The forward passes that a fit can't do without, and nothing else: what `overhead.py` compares fitting with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch

import steerkit as sk


class Reached(Exception):
    """Ends a bare forward pass where the method that needs it looks no further."""


def bare_pass(vlm: sk.VLM, batch: Sequence[sk.Sample], images: Any, layer: int, tower: str) -> None:
    """A forward pass over a batch, to one block of a tower and no further, from which nothing is kept."""

    def stop(*_: Any) -> None:
        raise Reached

    handle = vlm.model.get_submodule(vlm.architecture.site(layer, "resid_post", tower)).register_forward_hook(stop)
    try:
        with torch.no_grad(), suppress(Reached):
            vlm.model.model(**vlm.inputs(batch, images), use_cache=False)
    finally:
        handle.remove()


def needed(vlm: sk.VLM, fit: Callable[[], Any]) -> Callable[[], None]:
    """The bare forward passes of a fit: what it captures, and what it lets the model answer, and nothing else.

    A vision tower is read one sample at a time, as `capture` says.
    """
    calls: list[Callable[[], Any]] = []
    capture = vlm.capture

    def captured(samples: Sequence[sk.Sample], *, images: Any = True, **options: Any) -> Any:
        tower = options.get("tower", "language")
        layer = max(vlm.check_layers(options.get("layers"), tower))
        shown = list(samples)
        size = 1 if tower == "vision" else options.get("batch_size", 8)
        for start in range(0, len(shown), size):
            batch = shown[start : start + size]
            calls.append(partial(bare_pass, vlm, batch, images, layer, tower))
        return capture(samples, images=images, **options)

    def repeated(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(partial(method, *args, **options))
            return method(*args, **options)

        return call

    with ExitStack() as stack:
        for name, double in (
            ("capture", captured),
            ("generate", repeated(vlm.generate)),
            ("log_likelihood", repeated(vlm.log_likelihood)),
        ):
            setattr(vlm, name, double)
            stack.callback(delattr, vlm, name)
        fit()

    def run() -> None:
        for call in calls:
            call()

    return run
