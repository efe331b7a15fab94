"""Packs as somebody might forge them: taken apart and put together by the specification, not by our code."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any] | str | bytes, body: bytes = b"") -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + body


def rewritten(whole: bytes, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The pack after `change(header, document)`."""
    header, body = split(whole)
    document = json.loads(header["__metadata__"]["steerkit"])
    del document["document_sha256"]  # who changes a document can leave its digest out
    change(header, document)
    header["__metadata__"]["steerkit"] = json.dumps(document)
    return joined(header, body)


def with_values(whole: bytes, name: str, values: np.ndarray) -> bytes:
    """The pack with other values in one tensor, its digest made to agree: by the specification, not by our code."""
    header, body = split(whole)
    begin, end = header[name]["data_offsets"]
    forged = body[:begin] + values.astype("<f4").tobytes() + body[end:]
    assert len(forged) == len(body)
    state = hashlib.sha256()
    for key in sorted(set(header) - {"__metadata__"}):
        first, last = header[key]["data_offsets"]
        state.update(f'["{key}","F32",{json.dumps(header[key]["shape"], separators=(",", ":"))}]\n'.encode())
        state.update(forged[first:last])
    document = json.loads(header["__metadata__"]["steerkit"])
    document["tensors_sha256"] = state.hexdigest()
    del document["document_sha256"]
    header["__metadata__"]["steerkit"] = json.dumps(document)
    return joined(header, forged)
