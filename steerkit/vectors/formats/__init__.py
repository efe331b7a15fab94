"""Reading and writing pack files: one module per format version, and every older one kept for ever.

To raise the format: add `v2.py` with the same functions, list it in `_VERSIONS`, import from it what writes, keep
`v1.py` and its tests. Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path

from steerkit.vectors.formats import v1
from steerkit.vectors.formats.container import RawPack, TensorInfo, parse_container, read_file, refused
from steerkit.vectors.formats.v1 import encode_document, parse_tensor_name, tensor_name, tensors_digest

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


__all__ = [
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
