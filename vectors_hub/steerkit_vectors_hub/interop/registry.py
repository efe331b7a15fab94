"""Foreign formats by name, found through the entry-point group `steerkit.interop`."""

from __future__ import annotations

from pathlib import Path

from steerkit._internal import plugins
from steerkit._internal.files import open_regular
from steerkit.errors import OptionError
from steerkit.vectors.formats.container import MAX_FILE, MAX_HEADER
from steerkit_vectors_hub.interop.base import ForeignReader
from steerkit_vectors_hub.interop.containers import header_of


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
    return "steerkit" in header_of(_head(path))[1]


def _head(path: Path) -> bytes:
    try:
        with open_regular(path, MAX_FILE) as file:
            return file.read(MAX_HEADER + 8)
    except OSError:  # a folder is a format as well; what else can't be read, reading it will say
        return b""
