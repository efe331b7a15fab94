"""What a steering vector says of itself: the JSON document of a pack. This module needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from steerkit.errors import PackFormatError
from steerkit.intervention import FiniteFloat, Frozen, Intervention, Site, Tower

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
        head_count: Number of attention heads in a block, where it is known and the same in every block.
        head_size: Their width.
        vision_hidden_size: Width of the vision tower's hidden states, where the adapter declares it.
        vision_layer_count: Number of its blocks.
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
    head_count: Annotated[int, Field(gt=0)] | None = None
    head_size: Annotated[int, Field(gt=0)] | None = None
    vision_hidden_size: Annotated[int, Field(gt=0)] | None = None
    vision_layer_count: Annotated[int, Field(gt=0)] | None = None
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
