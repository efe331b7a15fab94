"""A tiny model of every type with its processor: the two agree about ids, and weights are large enough to matter."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from breadth import configs, prompts
from breadth.processors import processor

NAMES: tuple[str, ...] = tuple(CLASSES)
_OF_TOKENIZER = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NAMELESS = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id")
"""Ids that a default configuration may leave out, and published ones say."""

_LARGEST = 80e6


def pair(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> tuple[Any, Any]:
    """The model of a type, in evaluation mode, and its processor with a chat template.

    Args:
        name: The type.
        changes: Entries of its configuration that are to be others than those of the table of sizes.

    Raises:
        ImportError: Something that the type needs is not installed.
        MemoryError: The model would not be tiny: the table of sizes lacks the type.
    """
    made = None if name in prompts.WITHOUT_PROCESSOR else processor(name)
    if made is not None:
        prompts.prepare(name, made)

    def change(document: dict[str, Any]) -> None:
        _agree(name, document, made)
        configs.override(document, changes)

    config = configs.tiny(name, change)
    with _patched(name):
        return build(getattr(transformers, CLASSES[name]), config), made


def build(kind: Any, config: Any) -> Any:
    """A model from a configuration, seeded, in evaluation mode.

    Raises:
        MemoryError: The model would not be tiny.
    """
    make = (lambda: kind(config=config)) if kind.__name__ == "VisionEncoderDecoderModel" else (lambda: kind(config))
    count = 0
    with contextlib.suppress(Exception), torch.device("meta"):  # some can't be made there, and are small
        count = sum(parameter.numel() for parameter in make().parameters())
    if count > _LARGEST:
        raise MemoryError(f"{count / 1e6:.0f} million parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().float()
        scatter(model)
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        settings.update(pad_token_id=0, eos_token_id=2, do_sample=False)
        if model.config.is_encoder_decoder and settings.decoder_start_token_id is None:
            settings.decoder_start_token_id = 0
    return model.eval()


@torch.no_grad()
def scatter(model: nn.Module) -> None:
    """Give every weight a scale at which texts and images change the answer, and no vector of zeros."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for weight in model.parameters():
        if not weight.dtype.is_floating_point or not weight.numel():
            continue
        if weight.ndim < 2:
            if float(weight.abs().max()) == 0:
                nn.init.normal_(weight, std=0.1)
        else:
            wide = id(weight) in embeddings or weight.shape[0] == 1
            nn.init.normal_(weight, std=0.7 if wide else 1.2 / weight[0].numel() ** 0.5)


def _agree(name: str, document: dict[str, Any], made: Any) -> None:
    """Ids of the configuration are those of the tokenizer."""
    if made is None:
        return
    found = ids_of(name, made)

    def visit(part: dict[str, Any]) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                visit(value)
            elif key in _ENDS:
                part[key] = _ENDS[key]
            elif isinstance(key, str) and not isinstance(value, bool):
                wanted = found.get(key.replace("_index", "_id"))
                nameless = value is None and key in _NAMELESS
                if wanted is not None and (isinstance(value, int) or nameless):
                    part[key] = wanted

    visit(document)
    prompts.IDS.get(name, lambda document, found: None)(document, found)


def ids_of(name: str, made: Any) -> dict[str, int]:
    """What the configuration is to call its tokens; the id that stands for an image is the one that repeats."""
    tokenizer = made.tokenizer
    found: dict[str, int] = {}
    for key in dir(made):
        if key.endswith("_id"):
            with contextlib.suppress(Exception):
                value = getattr(made, key)
                if isinstance(value, int):
                    found[key] = value
    for key, token in getattr(tokenizer, "_special_tokens_map", {}).items():
        if isinstance(token, str):
            found.setdefault(f"{key}_id", tokenizer.convert_tokens_to_ids(token))
    known = tokenizer.get_vocab()
    for key, token in _OF_TOKENIZER.items():
        if token in known:
            found.setdefault(key, known[token])
    row = prompts.encoded(name, made, ["image"], [[prompts.picture(0)]]).get("input_ids")
    if row is not None:
        special = set(tokenizer.get_added_vocab().values())
        counted = Counter(each for each in row[0].tolist() if each in special and each != tokenizer.pad_token_id)
        token, count = counted.most_common(1)[0] if counted else (0, 0)
        if count > 3:
            video = not hasattr(made, "image_processor")
            found["video_token_id" if video else "image_token_id"] = token
            found["image_token_id"] = token
    return found


@contextlib.contextmanager
def _patched(name: str) -> Iterator[None]:
    """llama4 of transformers 5.24.0 returns a field that its own output class does not have."""
    if name == "llama4":
        from transformers.models.llama4 import modeling_llama4

        modeling_llama4.MoeCausalLMOutputWithPast.image_outputs = None  # type: ignore[attr-defined]
    yield
