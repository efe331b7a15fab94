"""What a model makes, unsteered, of three fixed prompts, which is measured once until the model changes."""

from __future__ import annotations

import hashlib
import json
import threading
import weakref
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from steerkit._text import described
from steerkit.engines import capturing
from steerkit.errors import ModelError, NonFiniteError, OptionError, SteerKitError
from steerkit.models import Inputs, LoadedModel, PromptFormat, Sample, dated, prepare

_SWITCHES = ("_active_adapter", "_disable_adapters", "scaling", "merged_adapters")
"""What PEFT keeps in a layer of which adapters run, and how strongly."""

_OF_MODEL = 3
"""So many entries of a model's state are of the model itself; the others are of its processor."""

_PIXELS = 128
_SIZE = (336, 448)
"""Height and width of the probe images, which no processor takes as they are: it has to scale, crop or cut them."""


def _pattern() -> Image.Image:
    """Stripes, gradients and squares: pixels that scaling, cropping and normalisation all change."""
    y, x = np.mgrid[: _SIZE[0], : _SIZE[1]]
    red = (x * 255) // (_SIZE[1] - 1)
    green = (y * 255) // (_SIZE[0] - 1)
    blue = 255 * (((x // 3) + (y // 5)) % 2)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def probes(images: bool = True) -> dict[str, Sample]:
    """The fixed prompts, by name; for a language model, without their images."""
    found = {
        "text": Sample("Explain in one sentence why the sky is blue."),
        "blank": Sample("Describe this picture.", images=(Image.new("RGB", (_SIZE[1], _SIZE[0]), (255, 255, 255)),)),
        "pattern": Sample("Which colours do you see here?", images=(_pattern(),)),
    }
    return found if images else {name: Sample(sample.text) for name, sample in found.items()}


@dataclass(frozen=True, eq=False)
class Response:
    """What a model makes of one probe.

    Attributes:
        tokens_sha256: Digest of its token ids.
        pixel_shape: Shape of its pixel values; empty without an image.
        pixels: `[n]`: some of them.
        states: `[layers, hidden]`: the last prompt token at the output of every decoder block; float32, on the CPU.
        logits: `[vocabulary]`: what the model predicts behind it; None for a model without a head.
    """

    tokens_sha256: str
    pixel_shape: tuple[int, ...]
    pixels: np.ndarray
    states: Tensor
    logits: Tensor | None = None


Responses = dict[str, Response]

_DAY = "26 Jul 2024"
"""The date in prompts of templates that write one: a model is the same on the day after."""

_known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Responses]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def responses(vlm: LoadedModel) -> Responses:
    """What a model makes of the probes; measured again when its parameters or its processor have changed.

    Raises:
        ProcessorError: There is no processor.
        OptionError: The model has no weights yet, or is in training mode.
        NonFiniteError: Its hidden states hold NaN or infinity.
        SteerKitError: The probes can't be prompts of this model.
    """
    vlm.require_processor("the fingerprint of a model")
    with _lock:
        state = state_of(vlm)
        known = _known.get(vlm.model)
        if known is None or known[0] != state:
            _check_measurable(vlm)
            known = _known[vlm.model] = (state, _measure(vlm))
        return known[1]


def responses_or_reason(vlm: LoadedModel, *, remembered: bool = True) -> Responses | SteerKitError:
    """The responses, or the error that says why there are none.

    Args:
        vlm: The model. Without its processor it can't be measured.
        remembered: For a model without its processor, take what was measured with one, if it has not changed since.
    """
    if vlm.processor is None and remembered:
        with _lock:
            known = _known.get(vlm.model)
            if known is not None and known[0][:_OF_MODEL] == state_of(vlm)[:_OF_MODEL]:
                return known[1]
    try:
        return responses(vlm)
    except SteerKitError as error:
        return error


def _measure(vlm: LoadedModel) -> Responses:
    layers = range(vlm.architecture.layer_count)
    found: Responses = {}
    with vlm.unnoticed():
        for name, sample in probes(images=vlm.architecture.takes_images).items():
            if vlm.architecture.only_images and not sample.images:
                continue
            # without the options that the model's own prompts have: they are compared by themselves
            with dated(_DAY):
                inputs = vlm.placed(prepare(cast("PromptFormat", vlm.format), [sample], [0]).inputs)
            vlm.reset()
            outputs: list[Any] = []
            try:
                captured = capturing.capture(
                    vlm.model, inputs, vlm.architecture, layers, "resid_post", whole=outputs.append
                )
            except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
                if isinstance(error, SteerKitError):
                    raise
                raise ModelError(
                    f"the model fails on the probe {name!r}: {described(error)}", expected="a model that runs"
                ) from error
            states = torch.stack([captured[layer][0].float().cpu() for layer in layers])
            if not torch.isfinite(states).all():
                raise NonFiniteError(
                    f"the model's hidden states hold NaN or infinity on the probe {name!r}",
                    expected="finite values",
                    fix="load the model in bfloat16 or float32: float16 may overflow",
                )
            shape, pixels = _pixels(inputs)
            logits = getattr(outputs[0], "logits", None)
            logits = None if logits is None else logits[0, -1].detach().float().cpu()
            found[name] = Response(_tokens_digest(inputs), shape, pixels, states, logits)
    return found


def _tokens_digest(inputs: Inputs) -> str:
    rows = {key: value[0].tolist() for key, value in inputs.items() if key.endswith("input_ids")}
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _pixels(inputs: Inputs) -> tuple[tuple[int, ...], np.ndarray]:
    values = inputs.get("pixel_values", inputs.get("flattened_patches"))
    if values is None:
        return (), np.empty(0)
    flat = values.detach().float().cpu().flatten()
    index = torch.linspace(0, flat.numel() - 1, min(_PIXELS, flat.numel()), device=flat.device).long()
    return tuple(values.shape), flat[index].double().numpy()


def state_of(vlm: LoadedModel) -> tuple[Any, ...]:
    """What the responses depend on, cheaply: it differs once parameters are replaced or written to.

    Not noticed: what is written through `parameter.data`, which PyTorch does not count, and offloaded weights.
    """
    found: list[int] = []
    switches: list[str] = []
    for module in vlm.model.modules():
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                # accelerate makes the stand-ins of offloaded weights anew after every pass
                if tensor is not None and not tensor.is_meta:
                    found += (id(tensor), _pointer(tensor), _version(tensor))
        # PEFT switches its adapters without touching a weight
        if "_active_adapter" in vars(module):
            switches.append(str([vars(module).get(name) for name in _SWITCHES]))
    images = getattr(vlm.processor, "image_processor", None)
    return (
        vlm.model.training,
        found,
        switches,
        id(vlm.processor),
        getattr(vlm.processor, "chat_template", None),
        getattr(getattr(vlm.processor, "tokenizer", None), "chat_template", None),
        None if images is None else str(images.to_dict()),
    )


def _check_measurable(vlm: LoadedModel) -> None:
    """Refuse a model whose responses mean nothing.

    Raises:
        OptionError: See `responses`.
    """
    if vlm.model.training:
        raise OptionError(
            "the model is in training mode", expected="a model that answers the same twice", fix="model.eval()"
        )
    offloaded = getattr(vlm.model, "hf_device_map", None) is not None
    if not offloaded and any(tensor.is_meta for tensor in vlm.model.parameters()):
        raise OptionError("the model has no weights", expected="a model that was loaded")


def _pointer(tensor: Tensor) -> int:
    """Address of the values; 0 where there is none: offloaded weights, and quantised ones of some libraries."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _version(tensor: Tensor) -> int:
    """How often the values were written to; tensors of inference mode do not count that."""
    return -1 if tensor.is_inference() else tensor._version
