"""Methods and adapters by name, found through entry points; the built-in ones are registered in the same way."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from steerkit.errors import PluginError, UnknownNameError, UnsupportedModelError

if TYPE_CHECKING:
    from steerkit.adapter import ModelAdapter
    from steerkit.method import SteeringMethod

METHODS = "steerkit.methods"
ADAPTERS = "steerkit.adapters"


def method_names() -> list[str]:
    """Names of all registered methods, without importing any."""
    return sorted(_points(METHODS))


def adapter_names() -> list[str]:
    """Names of all registered adapters, without importing any."""
    return sorted(_points(ADAPTERS))


def get_method(name: str) -> type[SteeringMethod]:
    """The method class registered under a name.

    Raises:
        UnknownNameError: No such method; the message suggests the nearest name.
        PluginError: The distribution that registers it can't be imported, or registers something else.
    """
    from steerkit.method import SteeringMethod

    return _load(METHODS, "method", name, SteeringMethod)


def get_adapter(name: str) -> type[ModelAdapter]:
    """The adapter class registered under a name; errors as for `get_method`."""
    from steerkit.adapter import ModelAdapter

    return _load(ADAPTERS, "adapter", name, ModelAdapter)


def adapter_for(model_type: str) -> ModelAdapter:
    """The adapter that serves a `config.model_type`.

    Raises:
        UnsupportedModelError: None does; the message lists what is supported.
        PluginError: None does, and an adapter that might could not be imported.
    """
    supported: dict[str, list[str]] = {}
    broken: list[PluginError] = []
    for name in adapter_names():
        try:
            adapter = get_adapter(name)
        except PluginError as error:
            broken.append(error)
            continue
        if model_type in adapter.model_types:
            return adapter()
        supported[name] = list(adapter.model_types)
    if broken:
        raise PluginError(
            f"no working adapter serves model type {model_type!r}, and {len(broken)} could not be loaded: {broken[0]}",
            fix="reinstall or remove the distribution that is named",
        ) from broken[0]
    known = "; ".join(f"{name}: {', '.join(types)}" for name, types in supported.items())
    hint = (
        "the first-generation Qwen-VL runs remote code and is not served: use Qwen2-VL or later"
        if model_type == "qwen"
        else "write an adapter and register it under the entry-point group 'steerkit.adapters'; of a module that only "
        "holds the model, pass the Hugging Face model inside"
    )
    raise UnsupportedModelError(
        f"no adapter serves model type {model_type!r}", expected=known or "an adapter", fix=hint
    )


@cache
def _points(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of each name: one, unless two distributions claim it."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        same = found.setdefault(point.name, [])
        if all(point.value != other.value for other in same):
            same.append(point)
    return found


def _owner(point: EntryPoint) -> str:
    return f"distribution {point.dist.name!r}" if point.dist is not None else f"the entry point {point.value!r}"


@cache
def _load(group: str, kind: str, name: str, base: type) -> Any:
    points = _points(group)
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        raise UnknownNameError(
            f"unknown {kind} {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            expected="one of " + (", ".join(sorted(points)) or "none (is steerkit-vlm installed?)"),
        )
    point, *others = points[name]
    if others:
        raise PluginError(
            f"{_owner(point)} and {_owner(others[0])} both register the {kind} {name!r}",
            expected="every name once",
            fix="remove one of the two distributions",
        )
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(
            f"{kind} {name!r} of {_owner(point)} failed to import: {type(error).__name__}: {error}",
            fix="see the traceback above; reinstall or remove that distribution",
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise PluginError(
            f"{kind} {name!r} of {_owner(point)} is {loaded!r}", expected=f"a subclass of steerkit.{base.__name__}"
        )
    missing = [
        *getattr(loaded, "__abstractmethods__", ()),
        *(x for x in base.__annotations__ if not hasattr(loaded, x)),
    ]
    if missing:
        raise PluginError(
            f"{kind} {name!r} of {_owner(point)} does not define {sorted(missing)}",
            expected=f"all that steerkit.{base.__name__} declares",
        )
    return loaded
