"""Which model it is: the Hugging Face model inside what was given, its record, and whether a processor is its own."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from steerkit.errors import OptionError, ProcessorError, UnsupportedModelError
from steerkit.models._architecture import Architecture
from steerkit.models._processors import tokenizer_of
from steerkit.vectors import ModelRecord


def hugging_face(model: nn.Module) -> nn.Module:
    """The model, unwrapped, once it is known to be one that says its type.

    Raises:
        OptionError: It is something else.
        UnsupportedModelError: See `unwrapped`.
    """
    while _of_torch(type(model)) and isinstance(getattr(model, "module", None), nn.Module):
        model = cast("nn.Module", model.module)  # what spreads a model over devices calls the one that it holds
    model = unwrapped(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or not isinstance(model_type, str):
        raise OptionError(
            f"{type(model).__name__} is not a Hugging Face model",
            expected="a model with a config",
            fix="pass what from_pretrained returned; of what holds it, the model inside: pipe.model of a pipeline",
        )
    return model


def class_name(model: nn.Module) -> str:
    """The model's class as transformers knows it: FSDP makes one of its own from it, for each model."""
    return next(kind.__name__ for kind in type(model).__mro__ if not _of_torch(kind))


def _of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT model, or the model itself.

    PEFT changes the layers of that model in place and calls it, so whatever is done to it is done to both.

    Raises:
        UnsupportedModelError: An adapter puts tokens of its own in front of the prompt, at positions that no selector
            knows.
    """
    peft: Any = sys.modules.get("peft")  # whoever holds a PEFT model has imported it
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    wrapper = cast("Any", model)
    if prompting := sorted(name for name, config in wrapper.peft_config.items() if config.is_prompt_learning):
        raise UnsupportedModelError(
            f"the PEFT adapters {prompting} put tokens of their own in front of the prompt",
            expected="adapters that change layers, such as LoRA",
            fix="steer the model inside, model.get_base_model(), and call the PEFT model; prompts that are made of "
            "samples are read without the adapters",
        )
    return wrapper.get_base_model()


def check_processor(processor: Any, architecture: Architecture, name: str) -> None:
    """Refuse what is not a processor, or none of such a model.

    Args:
        processor: What was given.
        architecture: The model's.
        name: The model's class.

    Raises:
        ProcessorError: A vision-language model is given something else than a processor with a tokenizer and an image
            processor; a language model something else than a tokenizer; or the processor is another model's.
    """
    tokenizer = tokenizer_of(processor)
    reads = all(callable(getattr(tokenizer, method, None)) for method in ("get_vocab", "decode", "__call__"))
    images = any(getattr(processor, part, None) is not None for part in ("image_processor", "video_processor"))
    if not reads or images is not architecture.takes_images:
        lacks = "no tokenizer" if not reads else ("an image processor" if images else "no image processor")
        raise ProcessorError(
            f"the processor of this {name} is a {type(processor).__name__}, which has {lacks}",
            expected="a processor with a tokenizer and an image processor"
            if architecture.takes_images
            else "its tokenizer: the model takes no images",
            fix="AutoProcessor.from_pretrained(name)"
            if architecture.takes_images
            else "AutoTokenizer.from_pretrained(name), or processor.tokenizer",
        )


def weights_digest(model: nn.Module) -> str:
    """Digest of the type and of a few values of every weight; see `VLM.weights_digest`."""
    state = hashlib.sha256()
    whole_numbers = ((name, each) for name, each in model.named_buffers() if not each.is_floating_point())
    for name, tensor in (*model.named_parameters(), *whole_numbers):  # quantised weights may lie in buffers
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _parts(tensor.detach()):
            if not part.is_meta and part.numel():
                few = part.flatten()[:: max(part.numel() // 16, 1)]
                state.update(few.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of, such as the integers and the scales of a quantised one."""
    if type(tensor).__module__.startswith("torch.distributed"):
        return  # the part of it that is here would differ from rank to rank
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor.as_subclass(Tensor)


def model_record(model: nn.Module, processor: Any, architecture: Architecture, revision: str | None) -> ModelRecord:
    """What a model is, as written into packs, but for its vocabulary: see `vocabulary_digest`."""
    config = cast("Any", model).config
    images = getattr(processor, "image_processor", None)
    return ModelRecord(
        id=str(config.name_or_path or ""),
        revision=revision or getattr(config, "_commit_hash", None),
        architecture=class_name(model),
        model_type=config.model_type,
        hidden_size=architecture.hidden_size,
        layer_count=architecture.layer_count,
        head_count=None if architecture.heads is None else architecture.heads.count,
        head_size=None if architecture.heads is None else architecture.heads.size,
        vision_hidden_size=None if architecture.vision is None else architecture.vision.hidden_size,
        vision_layer_count=None if architecture.vision is None else architecture.vision.layer_count,
        config_sha256=_digest(_stable(config.to_dict())),
        processor_sha256=None if images is None else _digest(_stable(images.to_dict())),
    )


def vocabulary_digest(processor: Any, template: Any) -> str:
    """Digest of a processor's vocabulary and of a chat template; half a second for 150,000 tokens."""
    return _digest({"vocabulary": tokenizer_of(processor).get_vocab(), "template": template})


def _stable(settings: Any) -> Any:
    """Settings without what changes from one library version or loading option to the next."""
    volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation", "_commit_hash"}
    volatile |= {"quantization_config"}
    if isinstance(settings, dict):
        return {str(key): _stable(value) for key, value in settings.items() if key not in volatile}
    return settings


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
