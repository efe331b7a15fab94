"""Control vectors as GGUF files, read and written through the `gguf` package; extra `gguf`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from steerkit._text import described
from steerkit.errors import OptionError
from steerkit.vectors.formats.container import read_file
from steerkit_vectors_hub.interop.base import malformed
from steerkit_vectors_hub.interop.gguf_audit import audit

ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")


def import_gguf() -> ModuleType:
    """The package.

    Raises:
        OptionError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise OptionError(
            "GGUF files need the package 'gguf'", expected="it installed", fix="pip install 'steerkit-vlm[gguf]'"
        ) from error
    return gguf


def read_control_vector(path: Path) -> tuple[dict[int, Tensor], str]:
    """Directions by the number in their name, and the model that a file hints at; what is audited is what is read.

    Raises:
        PackFormatError: It is damaged, out of bounds, or no control vector.
    """
    gguf, data = import_gguf(), read_file(path)
    audit(data)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "audited.gguf"
        copy.write_bytes(data)
        try:
            reader = gguf.GGUFReader(copy)
            values = {key: field.contents() for key, field in reader.fields.items()}
            tensors = [(each.name, np.array(each.data)) for each in reader.tensors]
        except Exception as error:  # the package has no error class of its own
            raise malformed(f"gguf can't read it ({described(error)})", "a GGUF file") from error
        finally:
            reader = None
    if values.get("general.architecture") != ARCHITECTURE:
        raise malformed(f"general.architecture is {values.get('general.architecture')!r:.80}", repr(ARCHITECTURE))
    directions: dict[int, Tensor] = {}
    for label, array in tensors:
        match = _NAME.fullmatch(label)
        if match is None:
            raise malformed(f"a tensor is named {label[:80]!r}", "direction.{layer}")
        directions[int(match[1])] = torch.from_numpy(array)
    hint = values.get(f"{ARCHITECTURE}.model_hint", "")
    if not isinstance(hint, str):
        raise malformed(f"the model hint is a {type(hint).__name__}", "text")
    return directions, hint[:200]


def write_control_vector(path: Path, directions: Mapping[int, Tensor], model_hint: str) -> None:
    """Write float32 directions under the numbers that they will have in the file."""
    writer = import_gguf().GGUFWriter(path, ARCHITECTURE)
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
