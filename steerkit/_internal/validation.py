"""What a caller gave for an argument, looked at before it is used: the error names the argument and what was meant.

The arguments are passed by name, as in `expect_whole(batch_size=batch_size)`. This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from numbers import Integral
from os import PathLike
from types import UnionType
from typing import Any, NoReturn, get_args

from steerkit._text import quoted
from steerkit.errors import OptionError

PATH = str | PathLike
"""For `expect`: what names a file."""


def expect(kind: type | UnionType, expected: str, fix: str | None = None, /, **given: object) -> None:
    """Refuse what is not of a type; `kind | None` lets None pass, and a truth value is of no type but its own.

    Raises:
        OptionError: It is of another type.
    """
    for name, value in given.items():
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (get_args(kind) or (kind,))):
            _refuse(name, value, expected, fix)


def expect_each(kind: type | UnionType, expected: str, fix: str | None = None, /, **given: object) -> None:
    """Refuse what is not a list, or other collection, of things of a type; a string is not taken as one.

    Raises:
        OptionError: It is something else, or holds something else.
    """
    for name, value in given.items():
        if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping)):
            _refuse(name, value, expected, fix)
        for index, each in enumerate(value):
            expect(kind, expected, fix, **{f"{name}[{index}]": each})


def expect_whole(least: int = 1, /, **given: object) -> None:
    """Refuse what is not an integer (numpy's count) or is below the least.

    Raises:
        OptionError: It is something else.
    """
    for name, value in given.items():
        if not _is_whole(value) or value < least:  # type: ignore[operator]
            _refuse(name, value, f"a whole number, at least {least}", None)


def expect_one_of(allowed: Iterable[str], /, **given: object) -> None:
    """Refuse what is not one of a few words.

    Raises:
        OptionError: It is something else.
    """
    for name, value in given.items():
        if not isinstance(value, str) or value not in allowed:
            raise OptionError(f"{name} is {quoted(value)}", expected=" or ".join(map(repr, allowed)))


def is_series(given: object) -> bool:
    """Whether it has elements in an order: not a text, a mapping (whose elements are its keys) or a set."""
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping, Set))


def as_layers(given: Any) -> list[int]:
    """Numbers of layers, in the order and as often as they are given; whether the model has them is not asked.

    Raises:
        OptionError: It is something else.
    """
    series = isinstance(given, Iterable) and not isinstance(given, bytes)
    layers: list[Any] = list(map(plain, given)) if series else [given, None]
    if not all(map(_is_whole, layers)):
        _refuse("layers", given, "a list of whole numbers", "layers=[3] for one layer, layers=range(4, 9) for several")
    return [int(layer) for layer in layers]


def plain(value: Any) -> Any:
    """The same in Python's own numbers and lists, where it is numpy's or torch's, in whatever lists and dictionaries.

    What can't be read, such as a tensor on `meta`, stays as it is.
    """
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and callable(getattr(value, "tolist", None)):
        with suppress(Exception):  # of any type, that of the device
            return value.tolist()
    if type(value) is dict:
        return {_plain_key(key): plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return type(value)(map(_plain_key, value))
    if type(value) is tuple:
        return tuple(map(plain, value))
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return list(map(plain, value)) if isinstance(value, (list, Iterator)) else value


def _plain_key(key: Any) -> Any:
    made = plain(key)
    return key if isinstance(made, list) else made


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _refuse(name: str, value: object, expected: str, fix: str | None) -> NoReturn:
    raise OptionError(f"{name} is {quoted(value)} of type {type(value).__name__}", expected=expected, fix=fix)
