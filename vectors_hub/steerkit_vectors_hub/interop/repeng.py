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

from steerkit.errors import OptionError
from steerkit.vectors import Key, MethodRecord, SteeringVector
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, ForeignWriter, chosen, flat, malformed
from steerkit_vectors_hub.interop.convert import assemble
from steerkit_vectors_hub.interop.expressible import directions_to_add
from steerkit_vectors_hub.interop.facts import ModelFacts
from steerkit_vectors_hub.interop.gguf_file import read_control_vector, write_control_vector

if TYPE_CHECKING:
    from repeng import ControlVector  # pyright: ignore[reportMissingImports]

_ORIGIN = "a repeng ControlVector"


@final
class Repeng(ForeignReader, ForeignWriter):
    """GGUF files by `ControlVector.export_gguf`."""

    title: ClassVar[str] = _ORIGIN
    convention: ClassVar[str] = "layer N is the output of block N, blocks from 0"

    def recognises(self, path: Path, head: bytes) -> bool:
        """Never: a GGUF file says nothing of who made it."""
        return False

    def read(self, path: Path, choice: Choice) -> Foreign:
        """As `ControlVector.import_gguf` would."""
        name, file = str(path), read_control_vector(path)
        layers = chosen(file.directions, choice, name)
        return _foreign({layer: file.directions[layer] for layer in layers}, file.model_hint)

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
        SteerKitError: It is no control vector, or holds something else than one finite vector per layer.
    """
    found: Any = getattr(control, "directions", None)
    if not isinstance(found, Mapping):
        raise OptionError(f"a {type(control).__name__} is given", expected="a repeng ControlVector")
    directions: dict[int, Tensor] = {}
    for layer, array in found.items():
        if not isinstance(layer, int) or layer < 0 or not isinstance(array, np.ndarray):
            raise malformed(_ORIGIN, f"directions[{layer!r:.40}] is a {type(array).__name__}", "{layer: numpy array}")
        directions[layer] = flat(torch.from_numpy(np.array(array)), f"{_ORIGIN}, layer {layer}")
    kept = chosen(directions, Choice(layers=layers), _ORIGIN)
    foreign = _foreign({layer: directions[layer] for layer in kept}, str(getattr(control, "model_type", "")))
    return assemble(foreign, model, _ORIGIN, f"converted from {_ORIGIN} ({Repeng.convention})")


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
    return Foreign(
        tensors={Key(layer): tensor for layer, tensor in directions.items()},
        method=MethodRecord(name="unknown"),
        model_type=model_type or None,
    )
