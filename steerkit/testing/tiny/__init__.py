"""Tiny seeded models of every supported family: the real classes of transformers at toy size, with real processors.

`build(name)` returns a model in evaluation mode (float32, two to four layers, random weights that answer differently to
different texts and images) and its processor; `save(name, folder)` writes what a hub repository of it would hold.
Images are best 32 x 32 pixels; the families with dynamic resolution take any size up to 64 x 64.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from steerkit.errors import UnknownNameError
from steerkit.models import tokenizer_of
from steerkit.testing.tiny import decoder, text, vision
from steerkit.vlm import VLM, wrap

__all__ = ["FAMILIES", "TEXT_FAMILIES", "build", "families_of", "save", "scatter", "seeded", "text", "vlm"]

FAMILIES: tuple[str, ...] = tuple(vision.FAMILIES)
"""What `build` knows: each a `config.model_type`, and behind a hyphen what tells two models of that type apart."""

TEXT_FAMILIES: tuple[str, ...] = tuple(decoder.CHATS)
"""What `build` knows of language models, which take no images; their processor is the tokenizer."""


def build(name: str) -> tuple[Any, Any]:
    """The model and the processor of one family; the same weights at every call.

    Args:
        name: One of `FAMILIES` or `TEXT_FAMILIES`.

    Raises:
        UnknownNameError: There is no such family.
    """
    if name not in (*FAMILIES, *TEXT_FAMILIES):
        raise UnknownNameError(f"no tiny model {name!r}", expected="one of " + ", ".join((*FAMILIES, *TEXT_FAMILIES)))
    return seeded(partial(vision.make if name in FAMILIES else decoder.make, name))


def seeded(make: Callable[[], tuple[Any, Any]], seed: int = 0) -> tuple[Any, Any]:
    """A model and its processor as `build` returns them, from any function that makes the two.

    Args:
        make: Makes a model of transformers from a config, and its processor; see the modules beside this one.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = make()
        scatter(model)
    tokenizer = tokenizer_of(processor)
    for part in (model, getattr(model, "language_model", None)):
        config = getattr(part, "generation_config", None)
        if config is not None:
            config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False)
    return model.eval(), processor


def vlm(name: str) -> VLM:
    """The model and the processor of one family, wrapped with the adapter that is registered for it."""
    return wrap(*build(name))


def families_of(model_types: Collection[str]) -> list[str]:
    """The names of the tiny models whose `config.model_type` is one of these."""
    return [name for name in (*FAMILIES, *TEXT_FAMILIES) if name.partition("-")[0] in model_types]


def save(name: str, folder: str | Path) -> Path:
    """Write model and processor the way hub repositories hold them, and return the folder."""
    path = Path(folder)
    model, processor = build(name)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    if name in TEXT_FAMILIES:
        return path
    # A repository names the image processor that needs torchvision, and keeps its settings in a file of their own.
    document = path / "processor_config.json"
    settings: dict[str, Any] = json.loads(document.read_text())
    image = settings.pop("image_processor")
    image["image_processor_type"] = image["image_processor_type"].removesuffix("Pil")
    image["processor_class"] = settings["processor_class"]
    document.write_text(json.dumps(settings, indent=2))
    (path / "preprocessor_config.json").write_text(json.dumps(image, indent=2))
    if "video" in vision.FAMILIES[name]:
        content = {key: value for key, value in image.items() if key != "image_processor_type"}
        content["video_processor_type"] = vision.FAMILIES[name]["video"]
        (path / "video_preprocessor_config.json").write_text(json.dumps(content, indent=2))
    return path


@torch.no_grad()
def scatter(model: torch.nn.Module) -> None:
    """Give every weight a scale at which texts and images change the answer; the libraries' own 0.02 is too small here.

    Vectors (norms, biases, decay rates) keep what their classes gave them.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        wide = id(parameter) in embeddings or parameter.shape[0] == 1
        torch.nn.init.normal_(parameter, std=0.7 if wide else 1.2 / parameter[0].numel() ** 0.5)
