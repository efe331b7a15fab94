"""llama.cpp control vectors (`--control-vector`).

Layer convention: `direction.{N}` is added at the output of the decoder block with index N, blocks counting from 0:
the same as steerkit. But block 0 can't be steered: the loader refuses `direction.0` ("invalid (zero) direction tensor
layer index"), and `llama_adapter_cvec::init` never makes a tensor for it. So layer 0 is an error here in both
directions and never becomes layer 1.

Read from `common_control_vector_load_one` (common/common.cpp: float32 and one dimension only), `llama_adapter_cvec`
(src/llama-adapter.cpp) and `build_cvec`, which the model graphs call after the last residual addition of block `il`.
It steers every token, of prompt and answer. Several files, and their scales, are summed by llama.cpp itself, so that
the scale is not in the file.

`controlvector.model_hint` is the name llama.cpp has for the architecture ("llama", "qwen2vl"), not always
`config.model_type`: it is noted, and not taken for it. Files by `llama-cvector-generator` measure a direction one
block below the one they steer; that does not matter for what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from steerkit.errors import LayerRangeError
from steerkit.vectors import SteeringVector
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, ForeignWriter, malformed
from steerkit_vectors_hub.interop.gguf_file import MAGIC, read_control_vector, write_control_vector


@final
class LlamaCpp(ForeignReader, ForeignWriter):
    """Control vectors for `llama-cli --control-vector` and its relatives."""

    title: ClassVar[str] = "a llama.cpp control vector"
    convention: ClassVar[str] = "layer N is the output of block N, blocks from 0; layer 0 does not exist"

    def recognises(self, path: Path, head: bytes) -> bool:
        """Any GGUF file."""
        return head[:4] == MAGIC

    def read(self, path: Path, choice: Choice) -> Foreign:
        """As llama.cpp would apply it."""
        directions, hint = read_control_vector(path)
        if 0 in directions:
            raise malformed(
                "it holds direction.0, which llama.cpp refuses",
                "layers from 1",
                "if it was written for repeng, read it as that: --from repeng",
            )
        if any(tensor.dtype != torch.float32 for tensor in directions.values()):
            raise malformed("a direction is not float32, which llama.cpp refuses", "float32")
        notes = (f"the file hints at the llama.cpp architecture {hint!r}",) if hint else ()
        return Foreign(directions, notes=notes)

    def write(self, vector: SteeringVector, directions: Mapping[int, Tensor], path: Path) -> None:
        """As llama.cpp reads it."""
        if 0 in directions:
            raise LayerRangeError(
                "the vector steers layer 0, which llama.cpp can't",
                expected="layers from 1",
                fix="leave it out on purpose: vector.select(...), on the command line --layers",
            )
        write_control_vector(path, directions, vector.metadata.model.model_type)
