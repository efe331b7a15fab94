"""What every foreign format answers: its layer convention, how it is read, and how it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor

from steerkit.errors import LayerRangeError, PackFormatError
from steerkit.interventions import Intervention, Site
from steerkit.vectors import Key, MethodRecord, SteeringVector, StrengthRecord

EVERY_TOKEN = Intervention(tokens="all", phase="both")
"""What most libraries do: add the direction at every token, of the prompt and of the answer."""


FIX = "check --from, or get the file again from its publisher"


def malformed(name: str, problem: str, expected: str, fix: str = FIX) -> PackFormatError:
    """The error about a file that is not what its format demands."""
    return PackFormatError(f"{name}: {problem}", expected=expected, fix=fix)


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
    """

    layers: tuple[int, ...] | None = None
    site: Site | None = None
    direction: str | None = None
    reference: Path | None = None
    numbering: Numbering | None = None
    layer_count: int | None = None


@dataclass(frozen=True)
class Foreign:
    """What a file holds, in steerkit's terms: tensors under 0-based blocks, output of the block.

    Attributes:
        tensors: The directions.
        method: How they came about, as far as the file says.
        interventions: What the other library does with them.
        strength: The dose that the file recommends.
        model_id: The model that the file names.
        model_type: The `config.model_type` that the file names.
        layer_count: Number of decoder blocks, where the file says.
        last_is_normed: A direction for the last block was measured behind the final norm, where no site is: refuse it.
        files: The files that were read, if others than the one that was named.
        notes: What else is worth remembering, for the history.
    """

    tensors: Mapping[Key, Tensor]
    method: MethodRecord
    interventions: tuple[Intervention, ...] = (EVERY_TOKEN,)
    strength: StrengthRecord = field(default_factory=StrengthRecord)
    model_id: str = ""
    model_type: str | None = None
    layer_count: int | None = None
    last_is_normed: bool = False
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


class ForeignReader(ABC):
    """A format that can be read. Stateless; a class without arguments.

    Attributes:
        title: What the format is called among people.
        convention: Which layer a number of the file means, in one line.
        takes: The fields of `Choice`, beside `layers` and `layer_count`, that it has a use for.
    """

    title: ClassVar[str]
    convention: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether a file is of this format for certain, from its name and its first 8 MiB."""

    @abstractmethod
    def read(self, path: Path, choice: Choice) -> Foreign:
        """Read a file.

        Raises:
            SteerKitError: The file is not of this format, is damaged or out of bounds, or says something that steerkit
                can't express.
        """


class ForeignWriter(ABC):
    """A format that can be written."""

    @abstractmethod
    def write(self, vector: SteeringVector, directions: Mapping[int, Tensor], path: Path) -> None:
        """Write float32 directions by 0-based block; their doses are multiplied in.

        Raises:
            SteerKitError: The format can't express a layer.
        """


def chosen(found: Iterable[int], choice: Choice, name: str) -> list[int]:
    """The layers of a file to convert, in its own numbering.

    Raises:
        LayerRangeError: One that was chosen is not in the file, or none is left.
    """
    present = sorted(found)
    if choice.layers is None:
        if not present:
            raise malformed(name, "there is no direction in it", "at least one")
        return present
    for layer in choice.layers:
        if layer not in present:
            raise LayerRangeError(f"{name} holds nothing for layer {layer}", expected=f"of {present}")
    if not choice.layers:
        raise LayerRangeError("no layer is chosen", expected=f"at least one of {present}")
    return sorted(set(choice.layers))


def flat(tensor: Tensor, what: str) -> Tensor:
    """A direction in a type that packs have: float64 becomes float32.

    Raises:
        PackFormatError: It is not one vector of floating-point numbers.
    """
    if not tensor.is_floating_point() or tensor.dim() != 1 or not 0 < tensor.shape[0] <= 2**20:
        raise malformed(what, f"shape {tuple(tensor.shape)} of {tensor.dtype}", "one vector of floating-point numbers")
    return tensor.float() if tensor.element_size() == 8 else tensor


def same_width(tensors: Mapping[Key, Tensor], name: str) -> int:
    """The width of all directions.

    Raises:
        PackFormatError: They differ.
    """
    widths = sorted({tensor.shape[-1] for tensor in tensors.values()})
    if len(widths) != 1:
        raise malformed(name, f"its directions have widths {widths}", "one width")
    return widths[0]
