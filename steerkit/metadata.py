"""What a steering vector says of itself: the JSON document of a pack. This module needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from steerkit.errors import PackFormatError
from steerkit.formats.v1 import MAX_INTERVENTIONS, MAX_LAYERS, MAX_WIDTH
from steerkit.intervention import FiniteFloat, Frozen, Intervention

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=20_000)]


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
        config_sha256: Fingerprint of the configuration.
        tokenizer_sha256: Fingerprint of the vocabulary and the chat template.
        processor_sha256: Fingerprint of the image processor's settings.
    """

    id: Text = ""
    revision: str | None = None
    architecture: Annotated[str, Field(max_length=200)]
    model_type: Annotated[str, Field(max_length=200)]
    hidden_size: Annotated[int, Field(gt=0, le=MAX_WIDTH)]
    layer_count: Annotated[int, Field(gt=0, le=MAX_LAYERS)]
    config_sha256: Sha256 | None = None
    tokenizer_sha256: Sha256 | None = None
    processor_sha256: Sha256 | None = None


class AnchorRecord(Frozen):
    """The samples that the vector was fitted on."""

    name: Text = ""
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]
    license: str | None = None
    labels: dict[str, int] = Field(default_factory=dict)


class StrengthRecord(Frozen):
    """The recommended strength and the range in which it was tried."""

    recommended: FiniteFloat = 1.0
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None


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
        history: What was done to the vector after it was fitted, oldest first.
        tensors_sha256: Digest of the tensors; filled in when the vector is saved.
    """

    format_version: Literal[1] = 1
    method: MethodRecord
    interventions: Annotated[tuple[Intervention, ...], Field(min_length=1, max_length=MAX_INTERVENTIONS)]
    layer_convention: Literal["0-based decoder blocks, output of the block"] = (
        "0-based decoder blocks, output of the block"
    )
    model: ModelRecord
    anchors: AnchorRecord | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    strength: StrengthRecord = StrengthRecord()
    metrics: tuple[Metric, ...] = ()
    history: tuple[Text, ...] = ()
    license: str | None = None
    authors: tuple[str, ...] = ()
    description: Text = ""
    created: str | None = None
    tensors_sha256: Sha256 | None = None


def parse_metadata(document: dict[str, Any], *, name: str) -> PackMetadata:
    """Validate the document of a pack.

    Raises:
        PackFormatError: A field is missing, unknown or out of bounds; the message names each.
    """
    try:
        return PackMetadata.model_validate(document)
    except ValidationError as error:
        raise PackFormatError(
            f"{name}: the steerkit document is invalid ({faults(error)})",
            expected="a document of format v1",
            fix="get the file again from its publisher, or upgrade steerkit",
        ) from error


def faults(error: ValidationError) -> str:
    """The first faults of a document on one line; of more than a thousand, whose list would be large, the number."""
    if error.error_count() > 1000:
        return f"{error.error_count()} faults"
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])):.120}: {item['msg']:.200}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:5]
    )
