"""Files of `np.save` and `np.savez`, without pickles, and without believing a shape before its bytes are counted."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steerkit.errors import PackFormatError
from steerkit.vectors.formats.container import MAX_FILE, read_file
from steerkit_vectors_hub.interop.base import malformed

MAX_ARRAYS = 2**12
_KINDS = {2: "<f2", 4: "<f4", 8: "<f8"}


def load(path: Path) -> Tensor | dict[str, Tensor]:
    """The array of an `.npy` file, or the arrays of an `.npz` file by name.

    Raises:
        PackFormatError: The file is damaged, out of bounds, or holds anything but arrays of floating-point numbers.
    """
    name, data = str(path), read_file(path)
    if data[:6] == b"\x93NUMPY":
        return _array(data, name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ARRAYS or total > MAX_FILE:
                raise malformed(
                    name, f"{len(entries)} arrays of {total} bytes", f"at most {MAX_ARRAYS}, and {MAX_FILE} bytes"
                )
            if len({entry.filename for entry in entries}) < len(entries):
                raise malformed(name, "two arrays of one name", "each name once")
            # what is read of an entry ends at the size that was added up above
            return {
                entry.filename.removesuffix(".npy"): _array(archive.read(entry), f"{name}, {entry.filename[:200]}")
                for entry in entries
            }
    except PackFormatError:
        raise
    except Exception as error:  # zipfile has no error class for all that a damaged archive makes it raise
        raise malformed(name, f"numpy's archive can't be read ({error})", "a file of np.save or np.savez") from error


def _array(data: bytes, name: str) -> Tensor:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise malformed(name, f"its header can't be read ({reason})", "an array as np.save writes it") from error
    if dtype.kind != "f" or dtype.itemsize not in _KINDS:
        raise malformed(
            name, f"numbers of type {str(dtype)[:60]}", "float16, float32 or float64", "np.save(path, a.astype('f4'))"
        )
    size, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if size != held:
        raise malformed(name, f"shape {list(shape)[:8]} in {held} bytes", f"{size} bytes, as it says")
    numbers = np.frombuffer(data, dtype, offset=stream.tell()).astype(_KINDS[dtype.itemsize])
    return torch.from_numpy(np.ascontiguousarray(numbers.reshape(shape, order="F" if fortran else "C")))
