"""From a foreign file to a steering vector with honest metadata, and back where the other format can say it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from steerkit._internal.faults import faults
from steerkit._internal.files import open_regular, replacing
from steerkit._internal.validation import expect
from steerkit.errors import LayerRangeError, NonFiniteError, OptionError, SteerKitError
from steerkit.vectors import PackMetadata, SteeringVector
from steerkit.vectors.formats.container import MAX_FILE
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignWriter, malformed, same_width
from steerkit_vectors_hub.interop.expressible import directions_to_add
from steerkit_vectors_hub.interop.facts import ModelFacts
from steerkit_vectors_hub.interop.registry import detect, get_format, registered_formats


def read(
    path: str | Path, format: str | None = None, *, model: ModelFacts, choice: Choice | None = None
) -> SteeringVector:
    """Read a foreign file as a steering vector.

    Args:
        path: The file, or the folder where the format is one.
        format: Its name, see `format_names`; default: found out where that is certain.
        model: What the caller knows of the model.
        choice: What the file leaves open.

    Raises:
        SteerKitError: The file is damaged, forged, ambiguous or says something that steerkit can't express.
    """
    expect(ModelFacts, "a steerkit_vectors_hub.interop.ModelFacts", model=model)
    path, choice = Path(path), choice or Choice()
    if not path.exists():
        raise OptionError(f"{str(path)!r} does not exist", expected="a file of another library")
    name = format or detect(path)
    reader = get_format(name)
    for field in fields(choice):
        if (
            field.name not in ("layers", "layer_count")
            and getattr(choice, field.name) is not None
            and field.name not in reader.takes
        ):
            raise OptionError(
                f"{field.name!r} means nothing for {reader.title}", expected=f"of {sorted(reader.takes) or 'no choice'}"
            )
    foreign = reader.read(path, replace(choice, layer_count=model.layer_count))
    origin = f"converted from {reader.title} ({reader.convention}), {_digests(foreign.files or (path,))}"
    return assemble(foreign, model, str(path), origin)


def write(vector: SteeringVector, path: str | Path, format: str, *, lossy: bool = False) -> tuple[str, ...]:
    """Write a steering vector in a foreign format.

    Args:
        vector: It must do nothing but add stored directions at the output of blocks.
        path: Where to; replaced only once the whole file is written.
        format: A format that can be written.
        lossy: Leave out what the format can't say, instead of refusing: token positions, phases and norm preservation.

    Returns:
        What was left out; empty unless `lossy`.

    Raises:
        OptionError: The format can't be written, or can't express what the vector does.
        LayerRangeError: It can't express a layer.
    """
    path, writer = Path(path), get_format(format)
    if not isinstance(writer, ForeignWriter):
        able = [each.name for each in registered_formats() if each.value and issubclass(each.value, ForeignWriter)]
        raise OptionError(f"the format {format!r} can only be read", expected="one of " + ", ".join(able))
    directions, lost = directions_to_add(vector, lossy=lossy)
    with replacing(path) as partial:
        writer.write(vector, directions, partial)
    return lost


def assemble(foreign: Foreign, model: ModelFacts, name: str, origin: str) -> SteeringVector:
    """A steering vector from what a format read and the caller knows.

    Args:
        foreign: What the format read.
        model: What the caller knows.
        name: What errors call it.
        origin: The first line of its history.

    Raises:
        SteerKitError: They contradict each other, or a pack can't hold it.
    """
    record = model.record(foreign, same_width(foreign.tensors, name), name)
    notes = list(foreign.notes)
    if foreign.model_type is not None and foreign.model_type != record.model_type:
        notes.append(f"the file says model type {foreign.model_type[:80]!r}")
    if foreign.model_id and foreign.model_id != record.id:
        notes.append(f"the file says model {foreign.model_id[:80]!r}")
    for key in foreign.tensors:
        if not 0 <= key.layer < record.layer_count:
            raise LayerRangeError(
                f"{name} has a direction for block {key.layer}",
                expected=f"0 to {record.layer_count - 1} for {record.architecture}",
                fix="name the right model, or choose layers",
            )
        if foreign.last_is_normed and key.layer == record.layer_count - 1:
            raise LayerRangeError(
                f"{name} holds the hidden state behind the final norm, which is not the output of any block",
                expected="a layer below the last",
            )
    tensors = dict(foreign.tensors)
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        tensors = {key: tensor.float() for key, tensor in tensors.items()}
    document: dict[str, Any] = {
        "method": foreign.method,
        "interventions": foreign.interventions,
        "model": record,
        "strength": foreign.strength,
        "history": (origin, *notes),
        "versions": {"steerkit-vlm": importlib.metadata.version("steerkit-vlm"), "torch": torch.__version__},
    }
    try:
        return SteeringVector(tensors, PackMetadata.model_validate(document))
    except NonFiniteError:
        raise
    except (SteerKitError, ValidationError) as error:
        problem = faults(error) if isinstance(error, ValidationError) else str(error)
        raise malformed(name, problem, "directions that a pack can hold") from error


def _digests(files: tuple[Path, ...]) -> str:
    """Names and sha256 of files; of many, the sha256 of that list."""
    lines = []
    for file in files:
        with open_regular(file, MAX_FILE) as handle:
            lines.append(f"{file.name[:200]} sha256 {hashlib.file_digest(handle, 'sha256').hexdigest()}")
    text = ", ".join(lines)
    if len(files) <= 4:
        return text
    listed = hashlib.sha256(text.encode()).hexdigest()
    return f"{len(files)} files from {files[0].name[:200]} on, sha256 of their list {listed}"
