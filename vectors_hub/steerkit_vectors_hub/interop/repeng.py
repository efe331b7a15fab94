"""repeng: its `ControlVector` object and the GGUF file that it exports.

Layer convention: `directions[N]` is added at the output of the decoder block with index N, blocks counting from 0:
the same as steerkit. `ControlModel` wraps `model.layers[N]` and adds to what it returns; `batched_get_hiddens`
measures the same place, `hidden_states[N + 1]`. `export_gguf` writes `direction.{N}` with the same number. Unlike
llama.cpp it knows layer 0. It steers every token that is not padding.

`controlvector.model_hint` is `config.model_type` here. A `ControlVector` trains every layer; `ControlModel` steers
those that it was made for, and the dose is given to `set_control`: neither is in the file. Choose with `layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from steerkit._internal.faults import about
from steerkit.errors import OptionError
from steerkit.vectors import SteeringVector
from steerkit_vectors_hub.interop.base import (
    Choice,
    Foreign,
    ForeignReader,
    ForeignWriter,
    ModelFacts,
    malformed,
)
from steerkit_vectors_hub.interop.convert import assemble, directions_to_add
from steerkit_vectors_hub.interop.llama_cpp import read_control_vector, write_control_vector

if TYPE_CHECKING:
    from repeng import ControlVector  # pyright: ignore[reportMissingImports]


@final
class Repeng(ForeignReader, ForeignWriter):
    """GGUF files by `ControlVector.export_gguf`."""

    title: ClassVar[str] = "a repeng ControlVector"
    convention: ClassVar[str] = "layer N is the output of block N, blocks from 0"

    def read(self, path: Path, choice: Choice) -> Foreign:
        """As `ControlVector.import_gguf` would."""
        return _foreign(*read_control_vector(path))

    def write(self, vector: SteeringVector, directions: Mapping[int, Tensor], path: Path) -> None:
        """As `ControlVector.export_gguf` would."""
        write_control_vector(path, directions, vector.metadata.model.model_type)


def from_control_vector(
    control: ControlVector, *, model: ModelFacts, layers: tuple[int, ...] | None = None
) -> SteeringVector:
    """A repeng `ControlVector` as a steering vector.

    Args:
        control: The object; only its `directions` and `model_type` are read.
        model: What the caller knows of the model.
        layers: Keep these layers only.

    Raises:
        SteerKitError: It is not a control vector, or holds something else than one finite vector per layer.
    """
    found: Any = getattr(control, "directions", None)
    if not isinstance(found, Mapping):
        raise OptionError(f"a {type(control).__name__} is given", expected="a repeng ControlVector")
    with about(Repeng.title):
        for layer, array in found.items():
            if not isinstance(layer, int) or layer < 0 or not isinstance(array, np.ndarray):
                raise malformed(f"directions[{layer!r:.40}] is a {type(array).__name__}", "{layer: numpy array}")
        directions = {layer: torch.from_numpy(np.array(array)) for layer, array in found.items()}
        foreign = _foreign(directions, str(getattr(control, "model_type", "")))
        return assemble(foreign, Repeng(), Choice(layers=layers), model)


def to_control_vector(vector: SteeringVector, *, lossy: bool = False) -> ControlVector:
    """A steering vector as a repeng `ControlVector`; doses of its interventions are multiplied in.

    Raises:
        OptionError: repeng is not installed, or the vector does more than adding directions at every token.
    """
    directions, _ = directions_to_add(vector, lossy=lossy)
    try:
        from repeng import ControlVector  # pyright: ignore[reportMissingImports]
    except Exception as error:  # release 0.4 fails with an AttributeError under NumPy 2
        raise OptionError(
            f"repeng can't be imported ({type(error).__name__}: {error})",
            expected="a release of it that works with the installed NumPy",
            fix="write a GGUF file instead: interop.write(vector, path, 'repeng')",
        ) from error
    return ControlVector(
        model_type=vector.metadata.model.model_type,
        directions={layer: tensor.numpy() for layer, tensor in directions.items()},
    )


def _foreign(directions: Mapping[int, Tensor], model_type: str) -> Foreign:
    return Foreign(directions, model_type=model_type or None)
