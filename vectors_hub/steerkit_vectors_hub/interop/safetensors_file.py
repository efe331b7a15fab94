"""Safetensors files of other libraries: their tensors and their metadata, bounded before anything is built."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from steerkit._internal.json import json_object
from steerkit.vectors.formats.container import MAX_HEADER, MAX_HEADER_VALUES, MAX_TENSORS, read_file
from steerkit_vectors_hub.interop.base import FIX, malformed


def metadata_of(head: bytes) -> dict[str, str]:
    """The metadata of a file from its first bytes; empty where they are not enough, or the file is something else."""
    try:
        return _metadata(head, "the file")
    except ValueError:
        return {}


def names_of(head: bytes) -> list[str]:
    """The names of the tensors of a file from its first bytes; errors as for `metadata_of`."""
    try:
        return [name for name in _header(head, "the file") if name != "__metadata__"]
    except ValueError:
        return []


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata.

    Raises:
        PackFormatError: The file is damaged or out of bounds.
    """
    name, data = str(path), read_file(path)
    metadata = _metadata(data, name)
    try:
        return safetensors.torch.load(data), metadata
    except Exception as error:  # besides SafetensorError, types that torch lacks
        raise malformed(
            name, f"it can't be read ({type(error).__name__}: {str(error)[:200]})", "a safetensors file"
        ) from error


def _metadata(data: bytes, name: str) -> dict[str, str]:
    metadata = _header(data, name).get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise malformed(name, "metadata that are not text", "text by name")
    return metadata


def _header(data: bytes, name: str) -> dict[str, Any]:
    if len(data) < 8:
        raise malformed(name, f"{len(data)} bytes", "a safetensors file, which has at least 8")
    (length,) = struct.unpack("<Q", data[:8])
    if length > MAX_HEADER or len(data) < 8 + length:
        raise malformed(
            name, f"a header of {length} bytes in a file of {len(data)}", f"all of it, and at most {MAX_HEADER} bytes"
        )
    header = json_object(data[8 : 8 + length], f"{name}: the header", fix=FIX, most=MAX_HEADER_VALUES)
    if len(header) > MAX_TENSORS:
        raise malformed(name, f"{len(header)} tensors", f"at most {MAX_TENSORS}")
    return header
