"""Loading a model for a command: checks that need no weights first, then the weights, with progress."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import steerkit as sk
from steerkit.cli import interrupts
from steerkit.cli.progress import loading_progress, progress


def import_libraries() -> None:
    """Import torch and what needs it, with progress: it takes seconds."""
    if "steerkit.steering" in sys.modules:
        return
    with progress("Importing torch and transformers"), interrupts.ending():
        for name in ("torch", "transformers", "steerkit.steering"):
            importlib.import_module(name)


def check_without_weights(model: str, options: Mapping[str, Any], check: Callable[[sk.VLM], object]) -> None:
    """Run a check on the model's skeleton, which has every shape and no weights.

    A model that can't be built so is left to the same check after loading.

    Raises:
        SteerKitError: What the check finds wrong, an unsupported model, or a source that is not a model.
    """
    import torch
    import transformers

    from steerkit.demo import bundled

    source = bundled(model)
    shared = {key: value for key, value in options.items() if key == "revision"}
    family = sk.models.family_of(source, trust_remote_code=options.get("trust_remote_code", False), **shared)
    skeleton = None
    with suppress(Exception), torch.device("meta"):
        # its type is served, so transformers has its class and needs none of the repository's code
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **shared)
        skeleton = sk.wrap(getattr(transformers, family.auto_class).from_config(config))
    if skeleton is not None:
        check(skeleton)


def load_model(model: str, options: Mapping[str, Any]) -> sk.VLM:
    """`steerkit.load` with progress, on the GPU where there is one.

    Raises:
        SteerKitError: The model can't be loaded.
    """
    import torch

    from steerkit.demo import bundled

    source = bundled(model)
    with loading_progress(f"Loading {model}"):
        vlm = sk.load(source, **options)
        if "device_map" not in options and torch.cuda.is_available():
            vlm.model.to("cuda")
    return vlm
