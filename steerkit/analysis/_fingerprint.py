"""The activation fingerprint: how a model responds, unsteered, to three fixed prompts.

It tells a model from its fine-tunes and from strangers of the same shape, whatever type its weights are kept in. Two
things are compared. First what the model is given: the token ids, which depend on chat template and tokenizer, and the
pixel values, which depend on the image processor. Then what it makes of that: the hidden state of the last prompt token
at layers spread over the depth, and the logits behind it, which the norm and the head at the end decide. The smallest
cosine over prompts and layers counts, and the largest difference of a logit: docs/trust.md has the figures.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerkit.analysis._logits import difference, recorded
from steerkit.analysis._responses import Responses, responses
from steerkit.errors import ProcessorError, SteerKitError
from steerkit.models import LoadedModel
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
