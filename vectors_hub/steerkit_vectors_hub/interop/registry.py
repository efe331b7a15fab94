"""Foreign formats by name, found through the entry-point group `steerkit.interop`."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from steerkit.errors import OptionError, PluginError, UnknownNameError
from steerkit.formats.container import MAX_HEADER
from steerkit_vectors_hub.interop.base import ForeignReader
from steerkit_vectors_hub.interop.safetensors_file import metadata_of

GROUP = "steerkit.interop"


def format_names() -> list[str]:
    """Names of all registered formats, without importing any."""
    return sorted(point.name for point in entry_points(group=GROUP))


@cache
def get_format(name: str) -> ForeignReader:
    """The format registered under a name.

    Raises:
        UnknownNameError: No such format; the message suggests the nearest name.
        PluginError: It can't be imported, is claimed twice, or is something else.
    """
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not points:
        near = difflib.get_close_matches(name, format_names(), n=1)
        raise UnknownNameError(
            f"unknown format {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            expected="one of " + (", ".join(format_names()) or "none (is steerkit-vlm installed?)"),
        )
    if len(points) > 1:
        raise PluginError(f"{sorted(points)} all register the format {name!r}", expected="every name once")
    ((value, point),) = points.items()
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(
            f"the format {name!r} ({value}) failed to import: {type(error).__name__}: {error}",
            fix="reinstall or remove the distribution that registers it",
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, ForeignReader)):
        raise PluginError(f"the format {name!r} ({value}) is {loaded!r}", expected="a subclass of ForeignReader")
    return loaded()


def detect(path: Path) -> str:
    """The one format that a file is of for certain.

    Raises:
        OptionError: None is sure of it, or more than one.
    """
    head = _head(path)
    found = [name for name in format_names() if get_format(name).recognises(path, head)]
    if len(found) == 1:
        return found[0]
    problem = f"{path} could be of the formats {found}" if found else f"no format is sure to be that of {path}"
    raise OptionError(problem, expected="one of " + ", ".join(format_names()), fix="name it: --from FORMAT")


def is_pack(path: Path) -> bool:
    """Whether a file says that it is a pack of steerkit; its audit is another matter."""
    return "steerkit" in metadata_of(_head(path))


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(MAX_HEADER + 8)
