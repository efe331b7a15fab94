"""Classes by name, found through entry points of any distribution; the built-in ones are registered in the same way."""

from __future__ import annotations

import warnings
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, NamedTuple

from steerkit._text import near
from steerkit.errors import PluginError, UnknownNameError

OURS = "steerkit-vlm"
"""The distribution whose names nobody else may take."""


def version_of(distribution: str) -> str | None:
    """The version that is installed; None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@cache  # a file is parsed for each
def versions() -> dict[str, str]:
    """The versions of steerkit and of what it computes with, for records; beside vLLM there may be no nnsight."""
    names = (OURS, "torch", "transformers", "nnsight")
    return {name: found for name in names if (found := version_of(name)) is not None}


class PluginWarning(UserWarning):
    """A distribution registers what steerkit itself has; it is passed over, and the warning names it."""


class Group(NamedTuple):
    """One entry-point group.

    Attributes:
        name: The group's name.
        kind: What its members are called in messages.
    """

    name: str
    kind: str


METHODS = Group("steerkit.methods", "method")
ADAPTERS = Group("steerkit.adapters", "adapter")
FORMATS = Group("steerkit.interop", "format")


class Registered(NamedTuple):
    """One entry point.

    Attributes:
        name: The name that it registers.
        distribution: Name and version of the distribution that registers it.
        value: The class, or None where it could not be loaded.
        error: Why it is not.
    """

    name: str
    distribution: str
    value: Any
    error: str | None


def names(group: Group) -> list[str]:
    """All names of a group, without importing anything."""
    return sorted(_points(group))


@cache
def load(group: Group, name: str, base: type) -> Any:
    """The class that is registered under a name. A name of steerkit's own means steerkit's, whoever else claims it.

    Args:
        group: The group.
        name: The name.
        base: What the class must derive from.

    Raises:
        UnknownNameError: There is no such name; the message suggests the nearest.
        PluginError: The distribution that registers it can't be imported, or registers something else; or two
            distributions claim it.
    """
    points = _points(group)
    if name not in points:
        raise UnknownNameError(
            f"unknown {group.kind} {name!r}.{near(name, points)}",
            expected="one of " + (", ".join(sorted(points)) or f"none (is {OURS} installed?)"),
        )
    claimed = points[name]
    entitled = [point for point in claimed if _is_ours(point)] or claimed
    if len(entitled) > 1:
        raise PluginError(
            f"{owner(entitled[0])} and {owner(entitled[1])} both register the {group.kind} {name!r}",
            expected="every name once",
            fix="remove one of the two distributions",
        )
    for other in claimed:
        if other is not entitled[0]:
            warnings.warn(f"{_taken(group, other)}: it is passed over", PluginWarning, stacklevel=3)
    return _imported(group, entitled[0], base)


def registered(group: Group, base: type) -> list[Registered]:
    """Every entry point of a group, by name; one that does not load hides no other."""
    found: list[Registered] = []
    for name, points in sorted(_points(group).items()):
        for point in points:
            try:
                if _is_ours(point) or len(points) == 1:
                    value, error = _imported(group, point, base), None
                elif any(map(_is_ours, points)):
                    value, error = None, _taken(group, point)
                else:
                    value, error = load(group, name, base), None
            except PluginError as problem:
                value, error = None, problem.problem
            distribution = "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"
            found.append(Registered(name, distribution, value, error))
    return found


def owner(point: EntryPoint) -> str:
    """Who registers an entry point, for messages."""
    return f"distribution {point.dist.name!r}" if point.dist is not None else f"the entry point {point.value!r}"


def owner_of(group: Group, name: str) -> str:
    """Who registers a name, for messages."""
    return owner(_points(group)[name][0])


def is_ours(group: Group, name: str) -> bool:
    """Whether a name is one of steerkit's own."""
    return any(map(_is_ours, _points(group).get(name, [])))


def forget() -> None:
    """Look at what is installed anew, after the search path has changed."""
    _points.cache_clear()
    load.cache_clear()


@cache
def _points(group: Group) -> dict[str, list[EntryPoint]]:
    """The entry points of each name: one, unless two distributions claim it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group.name):
        same = found.setdefault(point.name, [])
        if all((point.value, owner(point)) != (other.value, owner(other)) for other in same):
            same.append(point)
    return found


def _is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == OURS


def _taken(group: Group, point: EntryPoint) -> str:
    return f"{owner(point)} registers the {group.kind} {point.name!r}, which is a name of steerkit's own"


def _imported(group: Group, point: EntryPoint, base: type) -> Any:
    what = f"{group.kind} {point.name!r} of {owner(point)}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # a script that was registered by mistake may well call sys.exit
        raise PluginError(
            f"{what} failed to import: {type(error).__name__}: {error}",
            fix="see the traceback above; reinstall or remove that distribution",
        ) from error
    public = f"{base.__module__.partition('.')[0]}.{base.__name__}"
    if is_dataclass(base):
        return _records(what, found, base, public)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(f"{what} is {found!r}", expected=f"a subclass of {public}")
    missing = [
        *getattr(found, "__abstractmethods__", ()),
        *(each for each in base.__annotations__ if not hasattr(found, each)),
    ]
    if missing:
        raise PluginError(f"{what} does not define {sorted(missing)}", expected=f"all that {public} declares")
    for attribute, declared in base.__annotations__.items():
        value = getattr(found, attribute)
        text = declared == "ClassVar[str]"
        if not (isinstance(value, str) if text else _are_texts(value)):
            raise PluginError(
                f"{what} has {attribute} = {value!r}", expected="a text" if text else 'texts, such as ("llava",)'
            )
    if "name" in base.__annotations__ and found.name != point.name:
        raise PluginError(
            f"{what} calls itself {found.name!r}",
            expected="one name: packs record it, and it must lead back to the class",
            fix="use the same name in the class and in the entry point",
        )
    return found


def _records(what: str, found: Any, base: type, public: str) -> tuple[Any, ...]:
    """One record or several, once they are known to be of the right kind."""
    records = found if isinstance(found, tuple) else (found,)
    if not records or not all(isinstance(record, base) for record in records):
        raise PluginError(f"{what} is {found!r:.80}", expected=f"a {public}, or a tuple of them")
    return records


def _are_texts(value: object) -> bool:
    """A single text is not accepted: `in` would look for a part of it."""
    return isinstance(value, (tuple, list, set, frozenset)) and all(isinstance(each, str) for each in value)
