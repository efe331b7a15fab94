"""From a foreign file to a steering vector with honest metadata, and back where the other format can say it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steerkit._internal import plugins
from steerkit._internal.faults import about, refused_as
from steerkit._internal.files import open_regular, replacing, user_path, writing
from steerkit._internal.validation import expect
from steerkit.errors import LayerRangeError, NonFiniteError, OptionError, PackFormatError, SteerKitError
from steerkit.interventions import Intervention, StoredDirection
from steerkit.vectors import Key, PackMetadata, SteeringVector
from steerkit.vectors.formats.container import MAX_FILE, MAX_HEADER
from steerkit_vectors_hub.interop.base import (
    FIX,
    REFERENCE,
    Choice,
    Foreign,
    ForeignReader,
    ForeignWriter,
    ModelFacts,
    malformed,
)
from steerkit_vectors_hub.interop.containers import PACK_KEY, direction, header_of, load


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
    path, choice = user_path(path), choice or Choice()
    if not path.exists():
        raise OptionError(f"{str(path)!r} does not exist", expected="a file of another library")
    reader = get_format(format or detect(path))
    for name in ("site", "direction", "reference", "numbering"):
        if getattr(choice, name) is not None and name not in reader.takes:
            takes = sorted(reader.takes) or "no choice"
            raise OptionError(f"{name!r} means nothing for {reader.title}", expected=f"of {takes}")
    choice = replace(choice, layer_count=model.layer_count, hidden_size=model.hidden_size)
    with about(path):
        return assemble(reader.read(path, choice), reader, choice, model, path)


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
        FileWriteError: The file can't be written.
    """
    path, writer = user_path(path), get_format(format)
    if not isinstance(writer, ForeignWriter):
        able = [each.name for each in registered_formats() if each.value and issubclass(each.value, ForeignWriter)]
        raise OptionError(f"the format {format!r} can only be read", expected="one of " + ", ".join(able))
    directions, lost = directions_to_add(vector, lossy=lossy)
    with writing(path), replacing(path) as partial:
        writer.write(vector, directions, partial)
    return lost


def assemble(
    foreign: Foreign, reader: ForeignReader, choice: Choice, model: ModelFacts, file: Path | None = None
) -> SteeringVector:
    """A steering vector from what a format read and the caller knows.

    Args:
        foreign: What the format read.
        reader: The format.
        choice: Which layers to keep.
        model: What the caller knows.
        file: What was read; None for an object in memory.

    Raises:
        SteerKitError: They contradict each other, or a pack can't hold it.
    """
    layers = _chosen(foreign, choice)
    tensors: dict[Key, Tensor] = {}
    for name, held in (("", foreign.directions), (REFERENCE, foreign.references)):
        for layer in layers if held else ():
            tensors[Key(layer + foreign.shift, foreign.site, name)] = _direction(held[layer], layer)
    widths = sorted({tensor.shape[-1] for tensor in tensors.values()})
    if len(widths) > 1:
        raise malformed(f"its directions have widths {widths}", "one width")
    record = model.record(foreign, widths[0])
    for key in tensors:
        if not 0 <= key.layer < record.layer_count:
            raise LayerRangeError(
                f"there is a direction for block {key.layer}",
                expected=f"0 to {record.layer_count - 1} for {record.architecture}",
                fix="name the right model, or choose layers",
            )
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        tensors = {key: tensor.float() for key, tensor in tensors.items()}
    said = (("model type", foreign.model_type, record.model_type), ("model", foreign.model_id, record.id))
    document: dict[str, Any] = {
        "method": foreign.method,
        "interventions": foreign.interventions or (Intervention(site=foreign.site, tokens="all"),),
        "model": record,
        "strength": foreign.strength,
        "history": (
            _origin(foreign, reader, layers, file),
            *foreign.notes,
            *(f"the file says {what} {theirs[:80]!r}" for what, theirs, ours in said if theirs and theirs != ours),
        ),
        "versions": plugins.versions(),
    }
    with refused_as(PackFormatError, "what it says", expected="what a pack can hold", wrong="is impossible"):
        metadata = PackMetadata.model_validate(document)
    try:
        return SteeringVector(tensors, metadata)
    except NonFiniteError:
        raise
    except SteerKitError as error:
        raise PackFormatError(error.problem, expected=error.expected, fix=error.fix or FIX) from error


def _chosen(foreign: Foreign, choice: Choice) -> list[int]:
    """The layers to convert, in the numbering of the file."""
    present = sorted(foreign.directions)
    wanted = present if choice.layers is None else sorted(set(choice.layers))
    if not present:
        raise malformed("it holds no direction", "at least one")
    if missing := [layer for layer in wanted if layer not in present]:
        raise LayerRangeError(f"it holds nothing for layer {missing[0]}", expected=f"of {present}")
    if not wanted:
        raise LayerRangeError("no layer is chosen", expected=f"at least one of {present}")
    if wrong := [foreign.outside[layer] for layer in wanted if layer in foreign.outside]:
        inside = [layer for layer in wanted if layer not in foreign.outside]
        raise LayerRangeError(
            f"it holds {' and '.join(wrong)}: no block's output",
            expected="neither the embedding nor the state behind the final norm",
            fix=f"choose the layers that you steer, on the command line --layers; it holds {inside}",
        )
    return wanted


def _direction(value: Tensor | Path, layer: int) -> Tensor:
    with about(value if isinstance(value, Path) else f"layer {layer}"):
        return direction(load(value) if isinstance(value, Path) else value)


def _origin(foreign: Foreign, reader: ForeignReader, layers: Sequence[int], file: Path | None) -> str:
    """Where a vector is from: format and convention, names and sha256 of files; of many, the sha256 of that list."""
    title = f"converted from {reader.title} ({reader.convention})"
    if file is None:
        return title
    held = tuple(each for layer in layers if isinstance(each := foreign.directions[layer], Path))
    files = foreign.files + held or (file,)
    lines = []
    for each in files:
        with open_regular(each, MAX_FILE) as handle:
            lines.append(f"{each.name[:200]} sha256 {hashlib.file_digest(handle, 'sha256').hexdigest()}")
    text = ", ".join(lines)
    if len(files) > 4:
        listed = hashlib.sha256(text.encode()).hexdigest()
        text = f"{len(files)} files from {files[0].name[:200]} on, sha256 of their list {listed}"
    return f"{title}, {text}"


def format_names() -> list[str]:
    """Names of all registered formats, without importing any."""
    return plugins.names(plugins.FORMATS)


def registered_formats() -> list[plugins.Registered]:
    """Every format with who registers it; one that can't be loaded has an error instead of a class."""
    return plugins.registered(plugins.FORMATS, ForeignReader)


def get_format(name: str) -> ForeignReader:
    """The format registered under a name.

    Raises:
        UnknownNameError: No such format; the message suggests the nearest name.
        PluginError: It can't be imported, is claimed twice, or is something else; the message names the distribution.
    """
    return plugins.load(plugins.FORMATS, name, ForeignReader)()


def detect(path: Path) -> str:
    """The one format that a file is of for certain.

    Raises:
        OptionError: None is sure of it, or more than one.
    """
    head = _head(path)
    formats = registered_formats()
    found = [each.name for each in formats if each.value is not None and each.value().recognises(path, head)]
    if len(found) == 1:
        return found[0]
    problem = f"{path} could be of the formats {found}" if found else f"no format is sure to be that of {path}"
    broken = "; ".join(each.error for each in formats if each.error is not None)
    raise OptionError(
        problem + (f"; of others it is not known: {broken}" if broken else ""),
        expected="one of " + ", ".join(format_names()),
        fix="name it: --from FORMAT",
    )


def is_pack(path: Path) -> bool:
    """Whether a file says that it is a pack of steerkit; its audit is another matter."""
    return PACK_KEY in header_of(_head(path))[1]


def _head(path: Path) -> bytes:
    try:
        with open_regular(path, MAX_FILE) as file:
            return file.read(MAX_HEADER + 8)
    except OSError:  # a folder is a format as well; what else can't be read, reading it will say
        return b""


_LOST = (
    ("tokens", "all", "the tokens {!r}; the file will steer all"),
    ("positions", None, "tokens by their positions; the file will steer all"),
    ("prompts", "all", "prompts {} only; the file will steer all"),
    ("phase", "both", "in the phase {!r}; the file will steer in both"),
    ("norm_preserving", False, "while preserving norms; the file will not"),
)
"""What the file can't say and may be left out: a field, what it is where nothing is lost, and what is said of it."""


def directions_to_add(vector: SteeringVector, *, lossy: bool) -> tuple[dict[int, Tensor], tuple[str, ...]]:
    """Float32 directions by block with the interventions' doses multiplied in, and what that leaves out.

    The dose given to `steer` and the recommended one are not multiplied in.

    Raises:
        OptionError: The vector does something else, or something is left out and `lossy` is False.
    """
    lost: list[str] = []
    summed: dict[int, Tensor] = {}
    for index, intervention in enumerate(vector.interventions):
        stored = _stored(intervention, index)
        lost += [
            f"intervention {index} steers {said.format(value)}"
            for name, plain, said in _LOST
            if (value := getattr(intervention, name)) != plain
        ]
        layers = [key.layer for key in vector.tensors if key[1:] == ("resid_post", stored.name, "language")]
        if intervention.layers != "all":
            layers = list(intervention.layers)
        for layer in layers:
            tensor = vector.tensors[Key(layer if stored.layer is None else stored.layer, "resid_post", stored.name)]
            if tensor.dim() != 1:
                raise _refused(f"the direction of layer {layer} has {tensor.shape[0]} rows", "one row")
            dose = intervention.strength_at(layer)
            if dose:
                term = tensor.float() * dose
                summed[layer] = summed[layer] + term if layer in summed else term
    if lost and not lossy:
        raise OptionError(
            "the format can't say all of it: " + "; ".join(lost),
            expected="a vector that adds its directions at every token",
            fix="allow the loss with lossy=True, on the command line --lossy",
        )
    if not summed:
        raise _refused("every dose is zero", "something to add")
    return dict(sorted(summed.items())), tuple(lost)


def _stored(intervention: Intervention, index: int) -> StoredDirection:
    what = f"intervention {index}"
    operation = intervention.operation
    stored = operation.stored
    if stored is None:
        raise _refused(f"{what} measures its direction on each prompt", "stored directions")
    if not operation.additive:
        raise _refused(f"{what} {operation.describe()}", "only additions of stored directions")
    if intervention.measures:
        raise _refused(f"{what} depends on a measured quantity", "a fixed dose")
    if not intervention.fixed:
        raise _refused(f"{what} has strengths by row or by step", "one dose for all tokens")
    if intervention.site != "resid_post" or intervention.tower != "language":
        raise _refused(f"{what} steers {intervention.site} of the {intervention.tower} tower", "outputs of the blocks")
    return stored


def _refused(problem: str, expected: str) -> OptionError:
    return OptionError(f"{problem}, which the format can't say", expected=expected)
