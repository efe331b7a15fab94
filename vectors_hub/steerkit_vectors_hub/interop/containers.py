"""Files of tensors by torch, numpy and safetensors: nothing in them is executed, and no shape is believed.

Of torch's, only the restricted unpickler reads the pickle (`weights_only=True`, always), and before it sees one the
archive is checked: nothing compressed, so that nothing can unfold, and the pickle small. Arrays of numpy are read
without pickles, and only where the bytes are as many as their shape says. What a file holds is then checked again,
because a tensor can claim a shape that its few bytes do not have.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from steerkit._internal.faults import about
from steerkit._text import described
from steerkit.errors import OptionError, PackFormatError
from steerkit.vectors.formats.container import MAX_FILE, MAX_TENSORS, read_file, read_header
from steerkit_vectors_hub.interop.base import malformed

SUFFIXES = (".pt", ".npy", ".npz", ".safetensors")
MAX_PICKLE = 2**24
MAX_ENTRIES = 2**16
MAX_ARRAYS = 2**12
SAFE_TORCH = (2, 6)
"""Older releases can be made to execute code in spite of `weights_only=True` (CVE-2025-32434)."""

_FLOATS = {2: "<f2", 4: "<f4", 8: "<f8"}
_METADATA = "__metadata__"
PACK_KEY = "steerkit"
"""Of the metadata, by which a file says that it is a pack."""


def load(path: Path) -> Tensor | Mapping[Any, Any]:
    """What a file of one of the suffixes holds: one tensor, without places of size 1 in front, or tensors by key.

    Raises:
        PackFormatError: It is damaged, out of bounds, or holds something else.
    """
    if path.suffix in (".npy", ".npz"):
        value = load_numpy(path)
    elif path.suffix == ".safetensors":
        value = load_safetensors(path)[0]
    else:
        value = load_torch(path)
    return value if isinstance(value, Mapping) else without_ones(dense(value))


def without_ones(tensor: Tensor) -> Tensor:
    """The same numbers: `[1, hidden]` is a direction, and `[blocks, 1, hidden]` a stack of them."""
    return tensor.reshape((*(size for size in tensor.shape[:-1] if size != 1), *tensor.shape[-1:]))


def dense(value: Any) -> Tensor:
    """One tensor out of a loaded file.

    Raises:
        PackFormatError: It is something else, or a tensor that claims more than its bytes.
    """
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        raise malformed(f"a {type(value).__name__}", "a dense tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise malformed(f"{value.numel()} elements in {value.untyped_storage().nbytes()} bytes", "all of them")
    return value.detach()


def direction(value: Any) -> Tensor:
    """One direction out of a loaded file, in a type that packs have: float64 becomes float32.

    Raises:
        PackFormatError: It is not one vector of floating-point numbers.
    """
    tensor = dense(value)
    if not tensor.is_floating_point() or tensor.dim() != 1 or not 0 < tensor.shape[0] <= 2**20:
        raise malformed(f"shape {tuple(tensor.shape)} of {tensor.dtype}", "one vector of floating-point numbers")
    return (tensor.float() if tensor.element_size() == 8 else tensor).clone()


def layer_number(value: object) -> int:
    """A layer as a key of a loaded dictionary.

    Raises:
        PackFormatError: It is not the number of a layer.
    """
    if type(value) is not int or not 0 <= value < 10_000:
        raise malformed(f"a layer {value!r:.40}", "a number from 0")
    return value


def load_torch(path: Path, known: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Any:
    """What a file holds: tensors, numbers, strings and plain containers of them.

    Args:
        path: The file.
        known: Makes a context that lets named classes through, such as `torch.serialization.safe_globals`.

    Raises:
        PackFormatError: It is damaged, out of bounds, or holds anything that would have to be executed.
        OptionError: This torch can't be trusted with it.
    """
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < SAFE_TORCH:
        raise OptionError(f"torch {torch.__version__} can't read .pt files safely", expected="2.6 or later")
    data = read_file(path)
    try:
        with known():
            _check_archive(data)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except PackFormatError:
        raise
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), "")
        raise malformed(
            "it holds more than tensors and plain containers, and pickles are not executed here"
            + (f" ({reason.strip()[:200]})" if reason else ""),
            "a file that torch.load(weights_only=True) reads",
            "ask its publisher for plain tensors",
        ) from error
    except Exception as error:  # torch has no error class for damaged files
        raise malformed(
            f"torch can't read it ({described(error)})", "a file of torch.save, or .npy, .npz or .safetensors"
        ) from error


def load_numpy(path: Path) -> Tensor | dict[str, Tensor]:
    """The array of an `.npy` file, or the arrays of an `.npz` file by name.

    Raises:
        PackFormatError: The file is damaged, out of bounds, or holds anything but arrays of floating-point numbers.
    """
    data = read_file(path)
    if data[:6] == b"\x93NUMPY":
        return _array(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ARRAYS or total > MAX_FILE:
                raise malformed(
                    f"{len(entries)} arrays of {total} bytes", f"at most {MAX_ARRAYS}, and {MAX_FILE} bytes"
                )
            if len({entry.filename for entry in entries}) < len(entries):
                raise malformed("two arrays of one name", "each name once")
            arrays: dict[str, Tensor] = {}
            for entry in entries:  # what is read of each ends at the size that was added up above
                with about(entry.filename[:200]):
                    arrays[entry.filename.removesuffix(".npy")] = _array(archive.read(entry))
            return arrays
    except PackFormatError:
        raise
    except Exception as error:  # zipfile has no error class for all that a damaged archive makes it raise
        raise malformed(f"numpy's archive can't be read ({error})", "a file of np.save or np.savez") from error


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata.

    Raises:
        PackFormatError: The file is damaged or out of bounds.
    """
    data = read_file(path)
    metadata = _header(data).get(_METADATA, {})
    if PACK_KEY in metadata:  # read as plain tensors, one that was revoked would come out as a new pack
        raise malformed("it is a pack of steerkit", "a file of another library", "sk.load_vector(path) reads it")
    try:
        return safetensors.torch.load(data), metadata
    except Exception as error:  # besides SafetensorError, types that torch lacks
        raise malformed(f"it can't be read ({described(error)})", "a safetensors file") from error


def header_of(head: bytes) -> tuple[list[str], dict[str, str]]:
    """Names of the tensors, and metadata, of a file from its first bytes; empty where it is something else."""
    try:
        header = _header(head)
        return [name for name in header if name != _METADATA], header.get(_METADATA, {})
    except ValueError:
        return [], {}


def _check_archive(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise malformed(f"{len(entries)} entries", f"at most {MAX_ENTRIES}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise malformed("a compressed entry", "entries as torch.save writes them, not compressed")
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            raise malformed(f"a pickle of {entry.file_size} bytes", f"at most {MAX_PICKLE}")
    if sum(entry.file_size for entry in entries) > len(data):
        raise malformed("entries that overlap", "an archive as torch.save writes it")


def _array(data: bytes) -> Tensor:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise malformed(f"its header can't be read ({described(error)})", "an array as np.save writes it") from error
    if dtype.kind != "f" or dtype.itemsize not in _FLOATS:
        what = f"numbers of type {str(dtype)[:60]}"
        raise malformed(what, "float16, float32 or float64", "np.save(path, a.astype('f4'))")
    size, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if size != held:
        raise malformed(f"shape {list(shape)[:8]} in {held} bytes", f"{size} bytes, as it says")
    numbers = np.frombuffer(data, dtype, offset=stream.tell()).astype(_FLOATS[dtype.itemsize])
    return torch.from_numpy(np.ascontiguousarray(numbers.reshape(shape, order="F" if fortran else "C")))


def _header(data: bytes) -> dict[str, Any]:
    header, _ = read_header(data, "the file")
    if len(header) > MAX_TENSORS:
        raise malformed(f"{len(header)} tensors", f"at most {MAX_TENSORS}")
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise malformed("metadata that are not text", "text by name")
    return header
