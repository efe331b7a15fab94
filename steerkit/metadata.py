"""What a steering vector says of itself: the JSON document of a pack. This module needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from steerkit.errors import PackFormatError
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
    hidden_size: Annotated[int, Field(gt=0)]
    layer_count: Annotated[int, Field(gt=0)]
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


class StrengthPoint(Frozen):
    """What was measured at one strength.

    Attributes:
        strength: The strength.
        unsafe: Share of harmful requests complied with.
        cost: What it cost.
        cost_kind: In what: `kl`, `over_refusal` or `utility_loss`.
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
        history: What was done to the vector after it was fitted, oldest first.
        tensors_sha256: Digest of the tensors; filled in when the vector is saved.
    """

    format_version: Literal[1] = 1
    method: MethodRecord
    interventions: Annotated[tuple[Intervention, ...], Field(min_length=1)]
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
        found = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)[:5]
        )
        raise PackFormatError(
            f"{name}: the steerkit document is invalid ({found})",
            expected="a document of format v1",
            fix="get the file again from its publisher, or upgrade steerkit",
        ) from error
