"""The safetensors container, read defensively: everything is bounded and cross-checked before anything is built.

The `safetensors` library checks its own format; what is checked here beyond that is what a pack must not contain and
what a reader must know before it allocates: sizes, names, element types, and that the bytes are all accounted for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steerkit._internal.files import FileRefused, read_bounded, user_path
from steerkit._internal.json import json_object
from steerkit.errors import PackFormatError

MAX_FILE = 2**31
MAX_HEADER = 2**23
MAX_TENSORS = 65_536
MAX_HEADER_VALUES = 2**20

FRAMEWORKS = ("pt", "tf", "flax", "np", "mlx")
"""What writers of safetensors put into the key `format` of the metadata; it changes nothing about the tensors."""

_BLOCK = 2**18
"""Elements that are widened at once, so that reading norms takes no memory in proportion to a tensor."""

_ELEMENT = {"F32": 4, "F16": 2, "BF16": 2}
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


DAMAGED = "get the file again from its publisher: it was damaged, or is not made by steerkit"


def refused(problem: str, expected: str, fix: str = DAMAGED) -> PackFormatError:
    """The error about a file that is not a pack."""
    return PackFormatError(problem, expected=expected, fix=fix)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the tensor table; `begin` and `end` count from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class RawPack:
    """An audited file: its document, as an object and as the text that it was, its tensor table, and its bytes."""

    document: dict[str, Any]
    text: str
    tensors: dict[str, TensorInfo]
    data: bytes

    def view(self, name: str) -> memoryview:
        """The bytes of one tensor."""
        info = self.tensors[name]
        return memoryview(self.data)[info.begin : info.end]

    def array(self, name: str) -> np.ndarray:
        """One tensor as a float64 numpy array."""
        info = self.tensors[name]
        return _wide(np.frombuffer(self.view(name), dtype=_STORED[info.dtype]), info.dtype).reshape(info.shape)

    def norms(self, name: str) -> np.ndarray:
        """The Euclidean norm of each row of one tensor, `[k]` in float64; not finite where a value is not."""
        info = self.tensors[name]
        table = np.frombuffer(self.view(name), dtype=_STORED[info.dtype]).reshape(-1, info.shape[-1])
        squares = np.zeros(len(table))
        rows = max(1, _BLOCK // table.shape[1])
        for top in range(0, len(table), rows):
            for left in range(0, table.shape[1], _BLOCK):
                block = _wide(table[top : top + rows, left : left + _BLOCK], info.dtype)
                squares[top : top + rows] += np.einsum("ij,ij->i", block, block)
        return np.sqrt(squares)


def _wide(block: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        block = (block.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN; it is refused by name
        return block.astype(np.float64)


def read_file(path: str | Path) -> bytes:
    """The whole file, read once, so that what is checked is what is used."""
    try:
        return read_bounded(user_path(path), MAX_FILE)
    except OSError as error:
        raise refused(
            str(error) if isinstance(error, FileRefused) else f"{str(path)!r:.300} can't be read ({error})",
            expected=f"an existing .safetensors file of at most {MAX_FILE} bytes",
            fix="check the path",
        ) from error


def read_header(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin.

    Raises:
        PackFormatError: It is out of bounds, truncated, or not JSON.
    """
    if len(data) < 8:
        raise refused(f"{name} has {len(data)} bytes", expected="a safetensors file, which has at least 8")
    (length,) = struct.unpack("<Q", data[:8])
    if length > MAX_HEADER:
        raise refused(
            f"{name}: the first 8 bytes announce a header of {length} bytes",
            expected=f"at most {MAX_HEADER}",
            fix="run `git lfs pull`: this is what git keeps in the place of the file"
            if data.startswith(b"version https://git-lfs.github.com/")
            else "this is not a safetensors file (a pickle or a text, perhaps); pickles are never read. "
            "Vectors of other libraries (.gguf, .npz, .pt) become packs by `steerkit pack convert`",
        )
    if len(data) < 8 + length:
        raise refused(
            f"{name} is truncated: {len(data)} bytes", expected=f"at least {8 + length}", fix="download it again"
        )
    header = json_object(data[8 : 8 + length], f"{name}: the header", fix=DAMAGED, most=MAX_HEADER_VALUES)
    return header, 8 + length


def parse_container(data: bytes, *, name: str, versions: Collection[int]) -> RawPack:
    """Split a safetensors file into document, tensor table and bytes.

    Args:
        data: The file.
        name: What messages call it.
        versions: The values of the document's `format_version` that can be read. It is judged before all that a later
            format may have changed, so that such a pack is not taken for a damaged one.

    Raises:
        PackFormatError: Any bound is exceeded or any two parts disagree, or the version is none of these.
    """
    header, start = read_header(data, name)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("steerkit"), str):
        raise refused(
            f"{name} has no 'steerkit' document in its metadata",
            expected="a steerkit pack",
            fix="if this is another library's vector, convert it first",
        )
    text = metadata["steerkit"].encode(errors="surrogatepass")
    document = json_object(text, f"{name}: the steerkit document", fix=DAMAGED)
    version = document.get("format_version")
    if type(version) is not int or version not in versions:
        raise refused(
            f"{name}: format_version is {version!r:.80}",
            expected="one of " + ", ".join(map(str, versions)),
            fix="upgrade steerkit, or ask the publisher for a pack of a known version",
        )
    if unknown := sorted(set(metadata) - {"steerkit", "format"}):
        raise refused(f"{name}: unknown metadata {unknown!r:.200}", expected="only 'steerkit' and 'format'")
    if "format" in metadata and metadata["format"] not in FRAMEWORKS:
        raise refused(
            f"{name}: the metadata's format is {metadata['format']!r:.80}",
            expected="none, or one of " + ", ".join(FRAMEWORKS) + ", the framework that wrote the file",
            fix="ask the publisher for a pack that says no other",
        )
    tensors = _tensor_table(header, start=start, size=len(data), name=name)
    return RawPack(document=document, text=metadata["steerkit"], tensors=tensors, data=data)


def _tensor_table(header: dict[str, Any], *, start: int, size: int, name: str) -> dict[str, TensorInfo]:
    if len(header) > MAX_TENSORS:
        raise refused(f"{name} lists {len(header)} tensors", expected=f"at most {MAX_TENSORS}")
    tensors: dict[str, TensorInfo] = {}
    for key, entry in header.items():
        where = f"{name}: tensor {key[:80]!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise refused(f"{where} has a malformed entry", expected="dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _ELEMENT:
            raise refused(f"{where} has type {dtype!r:.40}", expected="F32, F16 or BF16")
        if not _naturals(shape) or not 1 <= len(shape) <= 2 or 0 in shape:
            raise refused(f"{where} has shape {shape!r:.80}", expected="[hidden] or [k, hidden]")
        if not _naturals(offsets) or len(offsets) != 2:
            raise refused(f"{where} has offsets {offsets!r:.80}", expected="[begin, end]")
        length = math.prod(shape) * _ELEMENT[dtype]
        if offsets[1] - offsets[0] != length:
            raise refused(f"{where} spans {offsets[1] - offsets[0]} bytes", expected=f"{length} for its shape")
        tensors[key] = TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])
    position = start
    for key, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        if info.begin != position:
            raise refused(
                f"{name}: tensor {key[:80]!r} begins at byte {info.begin}",
                expected=f"{position}, right behind the tensor before it (no overlap, no hole)",
            )
        position = info.end
    if position != size:
        raise refused(
            f"{name} has {size} bytes",
            expected=f"{position} as its tensor table says",
            fix="the file is truncated or has been appended to: download it again",
        )
    return tensors


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_FILE for value in values)
