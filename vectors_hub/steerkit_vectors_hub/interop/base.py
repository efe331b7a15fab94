"""What every foreign format answers, how it is read and written, and what the caller must say of the model."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, TypeVar

from torch import Tensor

from steerkit._internal.files import user_path
from steerkit.errors import ModelMismatchError, OptionError, PackFormatError
from steerkit.interventions import Intervention, Site
from steerkit.vectors import MethodRecord, ModelRecord, SteeringVector, StrengthRecord

ValueT = TypeVar("ValueT")

FIX = "check --from, or get the file again from its publisher"

REFERENCE = "reference"
"""The name of directions that others are measured against."""


def malformed(problem: str, expected: str, fix: str = FIX) -> PackFormatError:
    """The error about a file that is not what its format demands; `about` adds which file."""
    return PackFormatError(problem, expected=expected, fix=fix)


def by_layer(
    named: Iterable[tuple[object, ValueT]], pattern: re.Pattern[str], what: str, expected: str
) -> dict[int, ValueT]:
    """Values by the layer that stands in the name of each, in the first group of a pattern.

    Raises:
        PackFormatError: A name says no layer, or two say the same.
    """
    found: dict[int, ValueT] = {}
    for name, value in named:
        match = pattern.fullmatch(str(name)) if isinstance(name, str | int) and not isinstance(name, bool) else None
        if match is None:
            raise malformed(f"the {what} {name!r:.120} names no layer", expected)
        if int(match[1]) in found:
            raise malformed(f"two {what}s name layer {match[1]}", "one of each")
        found[int(match[1])] = value
    return found


Numbering: TypeAlias = Literal["block", "block_input", "hidden_states"]
"""What a layer number N means: the output of block N, its input, or index N of transformers' `output_hidden_states`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the caller decides where the file leaves it open. A format refuses a choice that it has no use for.

    Attributes:
        layers: Keep these layers only, in the numbering of the file.
        site: Where the directions are added, for a file that does not say.
        direction: Which of several directions of a layer.
        reference: A second file that belongs to the first.
        numbering: What a layer number means; see `interop.tensors`.
        layer_count: Number of decoder blocks of the model, filled in from what the caller knows of it.
        hidden_size: Width of its hidden states, likewise.
    """

    layers: tuple[int, ...] | None = None
    site: Site | None = None
    direction: str | None = None
    reference: Path | None = None
    numbering: Numbering | None = None
    layer_count: int | None = None
    hidden_size: int | None = None


@dataclass(frozen=True)
class Foreign:
    """What a file holds, in its own numbering; `convert` chooses layers, moves them and checks the directions.

    Attributes:
        directions: One for each number; a path stands for the file that holds it, read only if the layer is chosen.
        shift: What is added to a number to get the block, from 0, whose output is meant.
        site: Where in the block.
        outside: Numbers that are the output of no block, and what they are instead.
        references: What directions are measured against, under the same numbers.
        method: How they came about, as far as the file says.
        interventions: What the other library does with them; None: it adds them at every token, as most do.
        strength: The dose that the file recommends.
        model_id: The model that the file names.
        model_type: The `config.model_type` that the file names.
        layer_count: Number of decoder blocks, where the file says.
        files: The files that were read, if others than the one that was named.
        notes: What else is worth remembering, for the history.
    """

    directions: Mapping[int, Tensor | Path]
    shift: int = 0
    site: Site = "resid_post"
    outside: Mapping[int, str] = field(default_factory=dict)
    references: Mapping[int, Tensor] = field(default_factory=dict)
    method: MethodRecord = field(default_factory=lambda: MethodRecord(name="unknown"))
    interventions: tuple[Intervention, ...] | None = None
    strength: StrengthRecord = field(default_factory=StrengthRecord)
    model_id: str = ""
    model_type: str | None = None
    layer_count: int | None = None
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class ForeignReader(ABC):
    """A format that can be read. Stateless; a class without arguments.

    Attributes:
        title: What the format is called among people.
        convention: Which layer a number of the file means, in one line.
        takes: The fields of `Choice`, beside the layers and what is known of the model, that it has a use for.
    """

    title: ClassVar[str]
    convention: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset()

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether a file is of this format for certain, from its name and its first 8 MiB; by default it never is."""
        return False

    @abstractmethod
    def read(self, path: Path, choice: Choice) -> Foreign:
        """Read a file.

        Raises:
            SteerKitError: The file is not of this format, is damaged or out of bounds, or says something that steerkit
                can't express. What is raised need not name the file.
        """


class ForeignWriter(ABC):
    """A format that can be written."""

    @abstractmethod
    def write(self, vector: SteeringVector, directions: Mapping[int, Tensor], path: Path) -> None:
        """Write float32 directions by 0-based block; their doses are multiplied in.

        Raises:
            SteerKitError: The format can't express a layer.
        """


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that a vector belongs to, as the caller states it.

    Attributes:
        architecture: Class name of the model, such as `LlavaForConditionalGeneration`.
        model_type: Its `config.model_type`; None where the file says it.
        layer_count: Number of decoder blocks; None where the file says it.
        hidden_size: Width of the hidden states; None to take that of the directions.
        id: Repository or folder name.
        revision: Commit of the repository.
    """

    architecture: str
    model_type: str | None = None
    layer_count: int | None = None
    hidden_size: int | None = None
    id: str = ""
    revision: str | None = None

    @classmethod
    def from_config(cls, folder: str | Path, *, id: str = "", revision: str | None = None) -> ModelFacts:
        """Read them from the `config.json` of a model; no weights are read and no code of the model is run.

        Raises:
            OptionError: The folder holds no configuration that transformers knows.
        """
        from transformers import AutoConfig

        folder = user_path(folder)
        if not (folder / "config.json").is_file():
            raise OptionError(
                f"the folder {str(folder)!r} holds no config.json", expected="a folder that holds a model"
            )
        try:
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            text = config.get_text_config(decoder=True)
            layers = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
            names = config.architectures or ()
            width = int(text.hidden_size)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise OptionError(
                f"{str(folder / 'config.json')!r} can't be used ({type(error).__name__}: {error})",
                expected="the configuration of a model that transformers knows",
                fix="state architecture, model_type and layer_count instead",
            ) from error
        if len(names) != 1:
            raise OptionError(f"the configuration names the architectures {list(names)}", expected="exactly one")
        return cls(str(names[0]), config.model_type, int(layers), width, id, revision)

    def record(self, foreign: Foreign, width: int) -> ModelRecord:
        """The model of a converted vector.

        Raises:
            ModelMismatchError: Caller and file contradict each other.
            OptionError: Neither says the model type or the number of layers.
        """
        for what, mine, theirs in (
            ("hidden_size", self.hidden_size, width),
            ("layer_count", self.layer_count, foreign.layer_count),
        ):
            if mine is not None and theirs is not None and mine != theirs:
                raise ModelMismatchError(
                    f"it has {what} {theirs}", expected=f"{mine}, as the model has", fix="name the right model"
                )
        model_type, layer_count = self.model_type or foreign.model_type, self.layer_count or foreign.layer_count
        if not self.architecture or not model_type or not layer_count:
            raise OptionError(
                "it does not say which model it belongs to "
                f"(architecture {self.architecture!r}, model_type {model_type!r}, layer_count {layer_count})",
                expected="all three",
                fix="give a folder with the model's config.json, or the three facts",
            )
        return ModelRecord(
            id=self.id or foreign.model_id,
            revision=self.revision,
            architecture=self.architecture,
            model_type=model_type,
            hidden_size=width,
            layer_count=layer_count,
        )
