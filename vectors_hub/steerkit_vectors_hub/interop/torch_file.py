"""Files of `torch.save`, without executing anything in them.

Only torch's restricted unpickler reads them (`weights_only=True`, always), and before it sees them the archive is
checked: nothing compressed, so that nothing can unfold, and the pickle small. What a file holds is then checked
again, because a tensor can claim a shape that its few bytes do not have.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import OptionError, PackFormatError
from steerkit.vectors.formats.container import read_file
from steerkit_vectors_hub.interop.base import flat, malformed

MAX_PICKLE = 2**24
MAX_ENTRIES = 2**16
SAFE_TORCH = (2, 6)
"""Older releases can be made to execute code in spite of `weights_only=True` (CVE-2025-32434)."""


def load(path: Path, known: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Any:
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
    name, data = str(path), read_file(path)
    try:
        _check_archive(data, name)
        with known():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except PackFormatError:
        raise
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line), "")
        raise malformed(
            name,
            "it holds more than tensors and plain containers, and pickles are not executed here"
            + (f" ({reason.strip()[:200]})" if reason else ""),
            "a file that torch.load(weights_only=True) reads",
            "ask its publisher for plain tensors",
        ) from error
    except Exception as error:  # torch has no error class for damaged files
        reason = (str(error).splitlines() or [""])[0][:200]
        raise malformed(
            name, f"torch can't read it ({type(error).__name__}: {reason})", "a file of torch.save"
        ) from error


def vector(value: Any, what: str) -> Tensor:
    """One direction out of a loaded file; errors as for `dense`."""
    return flat(dense(value, what), what).clone()


def dense(value: Any, what: str) -> Tensor:
    """One tensor out of a loaded file.

    Raises:
        PackFormatError: It is something else, or a tensor that claims more than its bytes.
    """
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        raise malformed(what, f"a {type(value).__name__}", "a dense tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise malformed(what, f"{value.numel()} elements in {value.untyped_storage().nbytes()} bytes", "all of them")
    return value.detach()


def layer_number(value: Any, what: str) -> int:
    """A layer number out of a loaded file.

    Raises:
        PackFormatError: It is no natural number.
    """
    if type(value) is not int or not 0 <= value < 10_000:
        raise malformed(what, f"a layer {value!r:.40}", "a number from 0")
    return value


def _check_archive(data: bytes, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise malformed(name, f"{len(entries)} entries", f"at most {MAX_ENTRIES}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise malformed(name, "a compressed entry", "entries as torch.save writes them, not compressed")
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            raise malformed(name, f"a pickle of {entry.file_size} bytes", f"at most {MAX_PICKLE}")
    if sum(entry.file_size for entry in entries) > len(data):
        raise malformed(name, "entries that overlap", "an archive as torch.save writes it")
