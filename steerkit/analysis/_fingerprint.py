"""The activation fingerprint: how a model responds, unsteered, to three fixed prompts.

It tells a model from its fine-tunes and from strangers of the same shape, whatever type its weights are kept in. Two
things are compared. First what the model is given: the token ids, which depend on chat template and tokenizer, and the
pixel values, which depend on the image processor. Then what it makes of that: the hidden state of the last prompt token
at layers spread over the depth, and the logits behind it, which the norm and the head at the end decide. The smallest
cosine over prompts and layers counts, and the largest difference of a logit: docs/trust.md has the figures.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from steerkit._text import described
from steerkit.analysis._logits import difference, recorded
from steerkit.engines import hooks
from steerkit.errors import ModelError, NonFiniteError, OptionError, ProcessorError, SteerKitError
from steerkit.models import Inputs, LoadedModel, PromptFormat, Sample, prepare
from steerkit.policy import Check
from steerkit.vectors import AnchorRecord, Fingerprint, ProbeRecord, options_record

SAME = 0.99
"""Cosine from which on it is the same model. Measured: docs/trust.md."""

RELATED = 0.5
"""Cosine from which on it is a relative, such as a fine-tune; below, it is another model. Measured: docs/trust.md."""

SAME_HEAD = 1.0
"""Difference of a logit, in standard deviations of the logits, up to which the head is the same. Measured:
docs/trust.md."""

PIXEL_TOLERANCE = 0.05
"""Relative difference of the pixel values up to which the image processor counts as the same."""

LAYERS = 4
"""Layers whose states are kept."""

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


def fingerprint(vlm: LoadedModel, layers: Sequence[int] | None = None) -> Fingerprint:
    """The fingerprint of a model, as packs keep it.

    Args:
        vlm: The model with its processor.
        layers: 0-based decoder blocks whose states are kept; default: four, spread over the depth.

    Raises:
        SteerKitError: As for `responses`.
    """
    count = vlm.architecture.layer_count
    kept = sorted({-(-count * k // LAYERS) - 1 for k in range(1, LAYERS + 1)}) if layers is None else list(layers)
    records = []
    for name, response in responses(vlm).items():
        norms = response.states.double().norm(dim=1)
        units = (response.states[kept].double() / norms[kept, None]).half().numpy().astype("<f2")
        records.append(
            ProbeRecord(
                name=name,
                tokens_sha256=response.tokens_sha256,
                pixel_shape=response.pixel_shape,
                pixels=tuple(float(f"{value:.4g}") for value in response.pixels),
                norms=tuple(float(f"{value:.5g}") for value in norms),
                states=tuple(base64.b64encode(row.tobytes()).decode() for row in units),
                logits=None if response.logits is None else recorded(response.logits),
            )
        )
    return Fingerprint(layers=tuple(kept), probes=tuple(records))


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


def check_fingerprint(theirs: Fingerprint | None, ours: Responses | SteerKitError) -> Check:
    """Compare the fingerprint in a pack with a model.

    Args:
        theirs: That of the pack.
        ours: What the model makes of the probes, or why it makes nothing of them.

    Returns:
        `pass`: the same model; `warn`: a relative, or a model that was given without its processor; `fail`: another
        model, chat template or image processor; `skip`: it can't be compared, and why.
    """
    if theirs is None:
        return Check("fingerprint", "skip", "the vector carries none, so only class and sizes are known to fit")
    if isinstance(ours, ProcessorError):  # the user can mend it, and would not know
        text = "whether this is the model that the vector was made on can't be told without its processor"
        return Check("fingerprint", "warn", text, "steer sk.wrap(model, processor), or what sk.load returns")
    if isinstance(ours, SteerKitError):
        return Check("fingerprint", "skip", f"that of the model can't be taken: {ours.problem}", ours.fix or "")
    if problem := _input_problem(theirs, ours):
        return Check("fingerprint", "fail", *problem)
    cosines = state_cosines(theirs, ours)
    worst = min(cosines.values())
    details: dict[str, Any] = {"cosine": worst, "by_layer": {str(layer): value for layer, value in cosines.items()}}
    head = logit_difference(theirs, ours)
    if head is None:
        unseen = "; the pack keeps no logits, so an edited head would not show"
    else:
        unseen, details["logits"] = "", min(head, sys.float_info.max)
    if worst >= SAME and head is not None and not head <= SAME_HEAD:
        return Check(
            "fingerprint",
            "warn",
            "the norm or the head at the end of the model has changed since the vector was made: the hidden states are "
            f"the same (cosine {worst:.4f}), and "
            + (
                f"a logit differs by {head:.3g} standard deviations" if math.isfinite(head) else "logits are not finite"
            ),
            "load the model that the vector was made on, or measure what the vector does on this one",
            details,
        )
    if worst >= SAME:
        return Check("fingerprint", "pass", f"the same model (cosine {worst:.4f}{unseen})", details=details)
    if worst >= RELATED:
        return Check(
            "fingerprint",
            "warn",
            f"the model has changed since the vector was made, as a fine-tune does (cosine {worst:.4f})",
            "measure what the vector does on this model, or extract one from it",
            details,
        )
    return Check(
        "fingerprint",
        "fail",
        f"the vector was made on another model of this shape (cosine {worst:.4f}, below {RELATED})",
        "load the vector of this very model, or extract one from it",
        details,
    )


def check_template_options(anchors: AnchorRecord | None, ours: Mapping[str, Any]) -> list[Check]:
    """Compare the options that the chat template had for the anchors with those of a model's prompts.

    Args:
        anchors: What the vector was fitted on.
        ours: The options of the model's prompts, for samples that do not set them.

    Returns:
        One check, `pass` or `warn`; none where nobody set any, or they are not known.
    """
    if anchors is None or not (anchors.chat_template_kwargs or ours):
        return []
    counted = sum(anchors.chat_template_kwargs.values())
    theirs = {*anchors.chat_template_kwargs, *([""] if counted < anchors.size else [])}
    own = options_record(ours)
    if own in theirs:
        return [Check("chat template", "pass", f"the options {own or 'by default'} as where the vector was made")]
    told = " or ".join(sorted(each or "those by default" for each in theirs))
    warned = Check(
        "chat template",
        "warn",
        f"the vector was made on prompts for which the chat template had the options {told}, and this model's prompts "
        f"have {own or 'those by default'}, unless a sample says otherwise",
        "sk.load or sk.wrap with chat_template_kwargs={...}, or extract a vector from such prompts",
    )
    return [warned]


def state_norms(ours: Responses) -> dict[int, float]:
    """`{layer: norm}` of the hidden states at the last prompt token: the mean over the probes."""
    norms = torch.stack([response.states.norm(dim=1) for response in ours.values()]).mean(dim=0)
    return dict(enumerate(norms.tolist()))


def logit_difference(theirs: Fingerprint, ours: Responses) -> float | None:
    """The largest difference of a logit, over the probes, in standard deviations of the recorded logits.

    A constant that is added to all of them makes no difference, nor does a vocabulary that is padded further. None
    where the record keeps none; infinite where the model has none, or NaN.
    """
    found = []
    for probe in theirs.probes:
        if probe.logits is None:
            return None
        found.append(difference(probe.logits, ours[probe.name].logits))
    return max(found)


def state_cosines(theirs: Fingerprint, ours: Responses) -> dict[int, float]:
    """`{layer: cosine}` between the hidden states; the smallest of the probes."""
    layers = list(theirs.layers)
    found = torch.stack([ours[probe.name].states[layers] for probe in theirs.probes])
    cosines = torch.cosine_similarity(_states(theirs), found.double(), dim=-1).amin(dim=0)
    return dict(zip(layers, cosines.tolist(), strict=True))


def _states(record: Fingerprint) -> Tensor:
    """`[probes, layers, hidden]`, float64."""
    return torch.from_numpy(np.stack([probe.unit_states() for probe in record.probes])).double()


def _input_problem(theirs: Fingerprint, ours: Responses) -> tuple[str, str] | None:
    """What differs in that which the two models are given, and what to do about it."""
    for probe in theirs.probes:
        response = ours.get(probe.name)
        if response is None:
            return f"it has an unknown probe {probe.name!r}", "upgrade steerkit, or extract the vector again"
        if probe.pixel_shape != response.pixel_shape:
            return (
                f"another image processor: a probe image becomes {list(response.pixel_shape)} here and "
                f"{list(probe.pixel_shape)} where the vector was made",
                "use the processor and the settings of the model that the vector was made on",
            )
        if probe.pixel_shape and (far := _distance(probe.pixels, response.pixels)) > PIXEL_TOLERANCE:
            return (
                f"another image processor: the pixel values of a probe image differ by {100 * far:.0f} %",
                "use the processor and the settings of the model that the vector was made on",
            )
        if probe.tokens_sha256 != response.tokens_sha256:
            return (
                f"another chat template or tokenizer: the probe {probe.name!r} becomes other tokens here",
                "use the template of the model that the vector was made on, or extract a vector with this one",
            )
    return None


def _distance(theirs: Sequence[float], ours: np.ndarray) -> float:
    first = np.asarray(theirs)
    if first.shape != ours.shape:
        return float("inf")
    return float(np.linalg.norm(first - ours) / max(np.linalg.norm(first), 1e-30))


def _measure(vlm: LoadedModel) -> Responses:
    layers = range(vlm.architecture.layer_count)
    found: Responses = {}
    with vlm.unnoticed():
        for name, sample in probes(images=vlm.architecture.takes_images).items():
            if vlm.architecture.only_images and not sample.images:
                continue
            # without the options that the model's own prompts have: they are compared by themselves
            inputs = vlm.placed(prepare(cast("PromptFormat", vlm.format), [sample], [0]).inputs)
            vlm.reset()
            outputs: list[Any] = []
            try:
                captured = hooks.capture(
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
