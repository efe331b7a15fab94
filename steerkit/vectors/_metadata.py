"""What a steering vector says of itself: the JSON document of a pack. This module needs no torch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from steerkit._internal.faults import refused_as
from steerkit.errors import PackFormatError
from steerkit.interventions import FiniteFloat, Frozen, Intervention, Site, Tower
from steerkit.vectors.formats.v1 import MAX_INTERVENTIONS, MAX_LAYERS, MAX_WIDTH

Width = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
Depth = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=20_000)]
Line = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(gt=0, le=2**31)]
Version = Annotated[int, Field(ge=1, le=1)]  # no literal, which true and 1.0 equal
Norm = Annotated[float, Field(ge=1e-6, le=1e12)]
"""Of a hidden state: bounded, so that what is divided by it stays a number."""

Pixel = Annotated[float, Field(ge=-1e6, le=1e6)]


SAMPLED = 1024
"""Logits that a fingerprint keeps beside those of the likeliest tokens."""


def _iso_time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("it is no ISO 8601 date or time, such as 2026-01-31T12:00:00+00:00") from None
    return text


Time = Annotated[str, Field(max_length=1000), AfterValidator(_iso_time)]


class MethodRecord(Frozen):
    """Which method fitted the vector, and how it was configured."""

    name: Annotated[str, Field(max_length=200)]
    config: dict[str, Any] = Field(default_factory=dict)
    paper: Text = ""


class ModelRecord(Frozen):
    """The model that the vector was fitted on.

    Attributes:
        id: Repository or folder name it was loaded from.
        revision: Commit of the repository, where there is one.
        architecture: Class name of the model.
        model_type: `config.model_type`.
        hidden_size: Width of the decoder's hidden states.
        layer_count: Number of decoder blocks.
        head_count: Number of attention heads in a block, where it is known and the same in every block.
        head_size: Their width.
        vision_hidden_size: Width of the vision tower's hidden states, where the adapter declares it.
        vision_layer_count: Number of its blocks.
        config_sha256: Fingerprint of the configuration.
        tokenizer_sha256: Fingerprint of the vocabulary and the chat template.
        processor_sha256: Fingerprint of the image processor's settings.
    """

    id: Text = ""
    revision: Line | None = None
    architecture: Annotated[str, Field(max_length=200)]
    model_type: Annotated[str, Field(max_length=200)]
    hidden_size: Width
    layer_count: Depth
    head_count: Width | None = None
    head_size: Width | None = None
    vision_hidden_size: Width | None = None
    vision_layer_count: Depth | None = None
    config_sha256: Sha256 | None = None
    tokenizer_sha256: Sha256 | None = None
    processor_sha256: Sha256 | None = None

    def count(self, tower: Tower) -> int:
        """Number of blocks of a tower; 0 where it is not recorded."""
        return self.layer_count if tower == "language" else self.vision_layer_count or 0

    def width(self, site: Site, tower: Tower) -> int:
        """Width of the hidden states at a site; 0 where it is not recorded."""
        if site == "head_out":
            return 0 if tower == "vision" else (self.head_count or 0) * (self.head_size or 0)
        return self.hidden_size if tower == "language" else self.vision_hidden_size or 0


def options_record(options: Mapping[str, Any]) -> str:
    """Options of a chat template as JSON; a template of its own by its digest; empty for none."""
    told = dict(options)
    if "chat_template" in told:
        told["chat_template"] = f"sha256 {hashlib.sha256(str(told['chat_template']).encode()).hexdigest()}"
    return json.dumps(told, sort_keys=True, ensure_ascii=False) if told else ""


class AnchorRecord(Frozen):
    """The samples that the vector was fitted on.

    Attributes:
        name: What the set is called.
        sha256: Digest of the samples, in order.
        size: Their number.
        license: Their licence.
        labels: How many carry each label.
        chat_template_kwargs: How many were shown with each set of options of the chat template, as JSON; those without
            any are not counted. The vector was measured on such prompts: an answer that is to be steered needs them,
            too.
    """

    name: Text = ""
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]
    license: Line | None = None
    labels: Annotated[dict[Line, int], Field(max_length=1000)] = Field(default_factory=dict)
    chat_template_kwargs: Annotated[dict[Text, int], Field(max_length=1000)] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that there are none of: documents written before there were any stay equal."""
        found = dump(self)
        return {key: value for key, value in found.items() if value or key != "chat_template_kwargs"}


class LogitRecord(Frozen):
    """Some of the logits behind a prompt's last token: those of the likeliest tokens, and evenly spaced ones.

    Attributes:
        vocabulary: How many logits the model has.
        top: The likeliest tokens.
        values: Their logits and then those of the tokens `sampled`, less the mean of the latter; float16,
            little-endian, in base64.
    """

    vocabulary: Count
    top: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=64)]
    values: Annotated[str, Field(max_length=8192)]

    @staticmethod
    def sampled(vocabulary: int) -> np.ndarray:
        """Tokens spread over a vocabulary of so many."""
        return np.unique(np.linspace(0, vocabulary - 1, min(vocabulary, SAMPLED)).round().astype(np.int64))

    @property
    def tokens(self) -> np.ndarray:
        """The tokens whose logits are kept, in order."""
        return np.concatenate([np.array(self.top, np.int64), self.sampled(self.vocabulary)])

    def logits(self) -> np.ndarray:
        """The logits of `tokens`, float32, up to a constant.

        Raises:
            ValueError: They are not base64, too few or many, not finite or all equal, or of unknown tokens.
        """
        found = np.frombuffer(base64.b64decode(self.values, validate=True), dtype="<f2").astype(np.float32)
        if len(found) != len(self.tokens) or not np.isfinite(found).all() or max(self.top) >= self.vocabulary:
            raise ValueError(f"{len(found)} logits of {len(self.tokens)} tokens of {self.vocabulary}, or not finite")
        if not found.std() > 0:
            raise ValueError("the logits are all equal")
        return found


class ProbeRecord(Frozen):
    """What a model, its template and its processor make of one fixed prompt.

    Attributes:
        name: Which prompt; `steerkit/analysis/_responses.py` holds them.
        tokens_sha256: Digest of the token ids that the template and the tokenizer make of it.
        pixel_shape: Shape of what the image processor makes of its image; empty without one.
        pixels: A few of those values, evenly spaced over the flattened tensor.
        norms: Norm of the last prompt token's hidden state at the output of every decoder block.
        states: The hidden states at the fingerprint's layers: divided by their norm, float16, little-endian, in base64.
        logits: What the model makes of the last state; None in older packs, and for a model without a head.
    """

    name: Annotated[str, Field(max_length=32)]
    tokens_sha256: Sha256
    pixel_shape: Annotated[tuple[Count, ...], Field(max_length=8)] = ()
    pixels: Annotated[tuple[Pixel, ...], Field(max_length=256)] = ()
    norms: Annotated[tuple[Norm, ...], Field(min_length=1, max_length=4096)]
    states: Annotated[tuple[Annotated[str, Field(max_length=2**20)], ...], Field(min_length=1, max_length=8)]

    logits: LogitRecord | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Documents written before logits were kept stay equal."""
        return {key: value for key, value in dump(self).items() if key != "logits" or value is not None}

    def unit_states(self) -> np.ndarray:
        """`[layers, hidden]`, float32: the states, each of norm 1 but for rounding.

        Raises:
            ValueError: They are not base64, differ in length, or are not of norm 1.
        """
        rows = np.stack([np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2") for text in self.states])
        units = rows.astype(np.float32)
        if not (np.abs(np.linalg.norm(units, axis=1) - 1) < 0.05).all():  # NaN fails as well
            raise ValueError(f"the states of probe {self.name!r} are not of norm 1")
        return units


class Fingerprint(Frozen):
    """How the model that a vector was fitted on responds, unsteered, to a few fixed prompts.

    Attributes:
        version: Which prompts; a fingerprint of another version can't be compared.
        layers: 0-based decoder blocks of the states, ascending.
        probes: One for each prompt.
    """

    version: Version = 1
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=8)]
    probes: Annotated[tuple[ProbeRecord, ...], Field(min_length=2, max_length=4)]


class StrengthPoint(Frozen):
    """What was measured at one strength.

    Attributes:
        strength: The strength.
        unsafe: Share of harmful requests complied with.
        cost: What it cost.
        cost_kind: In what: `kl`, `over_refusal` or `utility_loss`; `kl, layer 3` where layer 3 alone steered.
    """

    strength: FiniteFloat
    unsafe: FiniteFloat | None = None
    cost: FiniteFloat | None = None
    cost_kind: Annotated[str, Field(max_length=200)] = ""


class StrengthRecord(Frozen):
    """The recommended strength and the range in which it was tried.

    Attributes:
        curve: What was measured, in ascending order of strength.
        chosen_by: The rule by which the strength was chosen.
    """

    recommended: FiniteFloat = 1.0
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None
    curve: Annotated[tuple[StrengthPoint, ...], Field(max_length=1000)] = ()
    chosen_by: Text = ""


class Metric(Frozen):
    """One measured figure, with who judged it on what."""

    name: Annotated[str, Field(max_length=200)]
    value: FiniteFloat
    condition: Text = ""
    judge: Text = ""
    dataset: Text = ""


class PackMetadata(Frozen):
    """The document of a pack, format version 1.

    Attributes:
        layer_convention: Layer numbers count decoder blocks from 0; a direction belongs to the output of its block.
        fingerprint: How the model that the vector was fitted on responds to a few fixed prompts.
        history: What was done to the vector after it was fitted, oldest first.
        tensors_sha256: Digest of the tensors; filled in when the vector is saved.
    """

    format_version: Version = 1
    method: MethodRecord
    interventions: Annotated[tuple[Intervention, ...], Field(min_length=1, max_length=MAX_INTERVENTIONS)]
    layer_convention: Literal["0-based decoder blocks, output of the block"] = (
        "0-based decoder blocks, output of the block"
    )
    model: ModelRecord
    fingerprint: Fingerprint | None = None
    anchors: AnchorRecord | None = None
    versions: Annotated[dict[Line, Line], Field(max_length=1000)] = Field(default_factory=dict)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    strength: StrengthRecord = StrengthRecord()
    metrics: Annotated[tuple[Metric, ...], Field(max_length=10_000)] = ()
    history: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    license: Line | None = None
    authors: Annotated[tuple[Line, ...], Field(max_length=1000)] = ()
    description: Text = ""
    created: Time | None = None
    tensors_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _fingerprint_fits_model(self) -> PackMetadata:
        if self.fingerprint is None:
            return self
        layers, model = self.fingerprint.layers, self.model
        if list(layers) != sorted(set(layers)) or layers[-1] >= model.layer_count:
            raise ValueError(f"the fingerprint's layers {list(layers)} are not ascending below {model.layer_count}")
        for probe in self.fingerprint.probes:
            if len(probe.norms) != model.layer_count:
                raise ValueError(f"probe {probe.name!r} has {len(probe.norms)} norms for {model.layer_count} layers")
            if (found := probe.unit_states().shape) != (len(layers), model.hidden_size):
                raise ValueError(f"the states of probe {probe.name!r} have shape {found}")
            if probe.logits is not None:
                probe.logits.logits()
        return self


def parse_metadata(document: dict[str, Any], *, name: str) -> PackMetadata:
    """Validate the document of a pack; nothing is converted: `"1"` is not a number, and `1` is not a string.

    Raises:
        PackFormatError: A field is missing, unknown or out of bounds; the message names each.
    """
    what, fix = f"{name}: the steerkit document", "get the file again from its publisher, or upgrade steerkit"
    with refused_as(PackFormatError, what, expected="a document of format v1", fix=fix, wrong="is invalid"):
        # as JSON: a strict reading of Python objects would refuse lists where tuples are meant
        return PackMetadata.model_validate_json(json.dumps(document), strict=True)
