"""What is registered under an entry-point group, broken or not, and who registers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from steerkit.errors import PluginError


class Plugin(NamedTuple):
    """One registered name.

    Attributes:
        name: The name.
        distribution: Name and version of the distribution that registers it.
        value: The class, or None where it can't be loaded.
        error: Why it can't.
    """

    name: str
    distribution: str
    value: Any
    error: str | None


def plugins(group: str, load: Callable[[str], Any]) -> Iterator[Plugin]:
    """Every name of a group; one that fails to load does not hide the others.

    Args:
        group: The entry-point group.
        load: Turns a name into a class or raises PluginError.
    """
    points = {(point.name, point.value): point for point in entry_points(group=group)}
    for _, point in sorted(points.items()):
        try:
            yield Plugin(point.name, _distribution(point), load(point.name), None)
        except PluginError as error:
            yield Plugin(point.name, _distribution(point), None, error.problem)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown"
