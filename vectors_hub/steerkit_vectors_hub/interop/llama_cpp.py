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

The files are read here, within bounds, and written by the `gguf` package (extra `gguf`). That package trusts counts and
lengths in reading: a file of 40 bytes that announces an array of 2^60 numbers keeps it busy for ever. A control vector
is small, so that every bound can be tight; and what is checked is what is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from steerkit.errors import LayerRangeError, OptionError
from steerkit.vectors import SteeringVector
from steerkit.vectors.formats.container import read_file
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, ForeignWriter, malformed

MAGIC = b"GGUF"
ARCHITECTURE = "controlvector"

MAX_HEADER = 2**20
MAX_ENTRIES = 4096
MAX_ELEMENTS = 2**16
MAX_NAME = 64

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_FLOATS = {0: ("<f4", 4), 1: ("<f2", 2)}
"""F32 and F16, the only tensor types a control vector is read in."""

_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")


def read_control_vector(path: Path) -> tuple[dict[int, Tensor], str]:
    """Directions by the number in their name, and the model that a file hints at.

    Raises:
        PackFormatError: A count, a length or an offset is out of bounds, or it is not a control vector.
    """
    data = read_file(path)
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC:
        raise malformed("it does not begin with 'GGUF'", "a GGUF file")
    version = cursor.number(4)
    if version not in (2, 3):
        raise malformed(f"GGUF version {version}", "2 or 3, little-endian")
    count, entries = cursor.number(8), cursor.number(8)
    if count > MAX_ENTRIES or entries > MAX_ENTRIES:
        raise malformed(f"{count} tensors and {entries} entries", f"at most {MAX_ENTRIES} of each")
    values: dict[str, object] = {}
    for _ in range(entries):
        key = cursor.text()
        if key in values:
            raise malformed(f"two entries are named {key[:80]!r}", "one of each")
        values[key] = cursor.value(cursor.number(4))
    if (architecture := values.get("general.architecture")) != ARCHITECTURE:
        raise malformed(f"general.architecture is {architecture!r:.80}", repr(ARCHITECTURE))
    hint = values.get(f"{ARCHITECTURE}.model_hint", "")
    if not isinstance(hint, str):
        raise malformed(f"the model hint is a {type(hint).__name__}", "text")
    tensors = [cursor.tensor() for _ in range(count)]
    return _directions(data, cursor.position, values.get("general.alignment", 32), tensors), hint[:200]


def _directions(
    data: bytes, header: int, alignment: object, tensors: list[tuple[int, int, int, int]]
) -> dict[int, Tensor]:
    """The tensors behind a header, given as (offset, layer, type, width), which neither overlap nor end too late."""
    if not isinstance(alignment, int) or alignment == 0 or alignment & (alignment - 1) or alignment > 2**16:
        raise malformed(f"an alignment of {alignment!r:.40}", "a power of two up to 65536")
    start = end = -(-header // alignment) * alignment
    found: dict[int, Tensor] = {}
    for offset, layer, kind, width in sorted(tensors):
        if offset % alignment or start + offset < end or layer in found:
            problem = f"a tensor direction.{layer} at offset {offset}"
            raise malformed(problem, f"aligned to {alignment}, without overlap, and one of each name")
        dtype, size = _FLOATS[kind]
        end = start + offset + width * size
        if end > len(data):
            raise malformed(f"it is truncated: {len(data)} bytes", f"at least {end}", "download it again")
        numbers = np.frombuffer(data, dtype, width, start + offset)
        found[layer] = torch.from_numpy(numbers.astype(dtype[1:]))
    return dict(sorted(found.items()))


def write_control_vector(path: Path, directions: Mapping[int, Tensor], model_hint: str) -> None:
    """Write float32 directions under the numbers that they will have in the file.

    Raises:
        OptionError: The package `gguf` is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise OptionError(
            "GGUF files are written by the package 'gguf'",
            expected="it installed",
            fix="pip install 'steerkit-vlm[gguf]'",
        ) from error
    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer, direction in directions.items():
            writer.add_tensor(f"direction.{layer}", direction.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


class _Cursor:
    """Reads forward through the header, never past its bound."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._elements = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > min(len(self._data), MAX_HEADER):
            raise malformed("its header is truncated, or too long", f"at most {MAX_HEADER} bytes, all of them there")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        return self.take(self.number(8)).decode(errors="replace")

    def value(self, kind: int) -> object:
        """A metadata value; only texts and unsigned numbers are of use."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, length = self.number(4), self.number(8)
            self._elements += length
            if self._elements > MAX_ELEMENTS or inner == _ARRAY:
                raise malformed(f"an array of {length} elements", "at most 65536, not nested")
            for _ in range(length):
                self.value(inner)
            return None
        if kind not in _SCALARS:
            raise malformed(f"a value of type {kind}", "a type of GGUF")
        raw = self.take(_SCALARS[kind])
        return int.from_bytes(raw, "little") if kind == 4 else raw

    def tensor(self) -> tuple[int, int, int, int]:
        """`(offset, layer, type, width)` of a tensor."""
        name = self.take(min(self.number(8), MAX_NAME + 1)).decode(errors="replace")
        match = _NAME.fullmatch(name)
        if match is None:
            raise malformed(f"a tensor is named {name!r}", "direction.{layer}")
        dimensions = self.number(4)
        if dimensions != 1:
            raise malformed(f"{name} has {dimensions} dimensions", "1")
        width, kind, offset = self.number(8), self.number(4), self.number(8)
        if kind not in _FLOATS:
            raise malformed(f"{name} has type {kind}", "F32 (0) or F16 (1)")
        if not 0 < width <= 2**20:
            raise malformed(f"{name} has {width} elements", "1 to 1048576")
        return offset, int(match[1]), kind, width


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
