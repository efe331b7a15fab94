"""JSON of unknown origin: bounded before it is parsed, and refused wherever two readers could read it differently.

The standard library keeps the last of repeated keys, reads `NaN` and half a surrogate pair, turns `1e999` into infinity
and nests as deep as the stack. Each of those lets a file mean one thing to a check and another to its user.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from steerkit.errors import PackFormatError, SteerKitError

MAX_DEPTH = 32
MAX_VALUES = 2**16
MAX_INTEGER = 2**64
"""Beyond it, other readers lose digits, and a conversion to float can overflow."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def json_object(
    text: str | bytes,
    what: str,
    *,
    error: type[SteerKitError] = PackFormatError,
    fix: str | None = None,
    most: int = MAX_VALUES,
) -> dict[str, Any]:
    """A JSON object; see `json_value`."""
    value = json_value(text, what, error=error, fix=fix, most=most)
    if not isinstance(value, dict):
        raise error(f"{what} is {_described(value)}", expected="a JSON object", fix=fix)
    return value


def json_value(
    text: str | bytes,
    what: str,
    *,
    error: type[SteerKitError] = PackFormatError,
    fix: str | None = None,
    most: int = MAX_VALUES,
) -> Any:
    """A JSON value: finite numbers, integers of at most 64 bits, every key once, whole characters, bounded.

    Args:
        text: The text; bytes are UTF-8.
        what: What messages call it.
        error: The error that is raised.
        fix: What its reader can do about it.
        most: The bound of the number of values.

    Raises:
        SteerKitError: It is something else; of the type `error`.
    """

    def refused(problem: str, expected: str) -> SteerKitError:
        return error(f"{what} {problem}", expected=expected, fix=fix)

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise refused(f"repeats the key {repeated[:80]!r}", "every key once")
        return table

    def finite(digits: str) -> float:
        if not math.isfinite(number := float(digits)):
            raise refused(f"holds {digits:.40}", "finite numbers")
        return number

    def whole(digits: str) -> int:
        if len(digits) > 21 or abs(number := int(digits)) >= MAX_INTEGER:
            raise refused(f"holds the integer {digits:.40}", "integers of at most 64 bits")
        return number

    try:
        raw = text.encode() if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as problem:
        raise refused(f"holds half a character ({problem.reason})", "Unicode") from problem
    plain = _STRING.sub(b"", raw)
    if (values := 1 + sum(map(plain.count, (b",", b"[", b"{")))) > most:
        raise refused(f"holds some {values} values", f"at most {most}")
    if _is_deep(plain):
        raise refused(f"is nested more than {MAX_DEPTH} deep", "a plain document")
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=distinct, parse_constant=finite, parse_float=finite, parse_int=whole
        )
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text, and could not be saved
    except SteerKitError:
        raise
    except (ValueError, RecursionError) as problem:
        raise refused(f"is not JSON ({str(problem)[:200]})", "JSON in UTF-8") from problem
    return value


def _is_deep(plain: bytes) -> bool:
    """Whether brackets outside strings nest too deeply, without recursion: each round takes the innermost pairs off."""
    brackets = plain.translate(_BRACKETS, _OTHERS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets


def _described(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(type(value), "a number")
