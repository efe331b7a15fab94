"""Methods by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerkit._internal.plugins import METHODS, load, names
from steerkit._internal.validation import expect

if TYPE_CHECKING:
    from steerkit.methods._base import SteeringMethod


def method_names() -> list[str]:
    """Names of all registered methods, without importing any."""
    return names(METHODS)


def get_method(name: str) -> type[SteeringMethod]:
    """The method class registered under a name.

    Raises:
        OptionError: The name is not a text.
        UnknownNameError: No such method; the message suggests the nearest name.
        PluginError: The distribution that registers it can't be imported, or registers something else.
    """
    from steerkit.methods._base import SteeringMethod

    expect(str, "a name, such as sk.methods.method_names() lists", name=name)
    return load(METHODS, name, SteeringMethod)
