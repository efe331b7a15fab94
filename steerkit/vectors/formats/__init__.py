"""Reading and writing pack files: one module per format version, and every older one kept for ever.

To raise the format: add `v2.py` with the same two functions, list it in `_VERSIONS`, point `CURRENT` at it, keep
`v1.py` and its tests. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerkit.vectors.formats import v1
from steerkit.vectors.formats.container import RawPack, TensorInfo, parse_container, read_file, refused

CURRENT = 1
_VERSIONS = {1: v1}


def read_pack(path: str | Path) -> RawPack:
    """Read and audit a pack file without building any tensor.

    Args:
        path: The `.safetensors` file.

    Returns:
        The document, the tensor table and the bytes, all within bounds and consistent with each other.

    Raises:
        PackFormatError: The file is missing, truncated, forged, of an unknown version or not a steerkit pack.
    """
    return parse_pack(read_file(path), name=str(path))


def parse_pack(data: bytes, *, name: str = "the data") -> RawPack:
    """The same as `read_pack`, from bytes."""
    raw = parse_container(data, name=name, versions=_VERSIONS)
    _VERSIONS[raw.document["format_version"]].audit(raw, name=name)
    return raw


def tensor_name(layer: int, site: str, name: str = "", tower: str = "language") -> str:
    """The name of a direction inside the file, in the current format."""
    return _VERSIONS[CURRENT].tensor_name(layer, site, name, tower)


def parse_tensor_name(full: str) -> tuple[int, str, str, str]:
    """`(layer, site, name, tower)` of a direction's name, in the current format."""
    return _VERSIONS[CURRENT].parse_tensor_name(full)


def tensors_digest(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes | memoryview]]) -> str:
    """sha256 of tensors given as `{name: (dtype, shape, little-endian bytes)}`, in the current format."""
    return _VERSIONS[CURRENT].tensors_digest(tensors)


def encode_document(document: Mapping[str, Any]) -> dict[str, str]:
    """The `__metadata__` of a pack file."""
    return _VERSIONS[CURRENT].encode_document(document)


__all__ = [
    "CURRENT",
    "RawPack",
    "TensorInfo",
    "encode_document",
    "parse_pack",
    "parse_tensor_name",
    "read_file",
    "read_pack",
    "refused",
    "tensor_name",
    "tensors_digest",
]
