"""JSON of unknown origin, bounded."""

from __future__ import annotations

import json
import math
from typing import Any

from steerkit.errors import PackFormatError
from steerkit_vectors_hub.interop.base import malformed

MAX_DEPTH = 32


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object: finite numbers, every key once, nested at most 32 deep.

    Raises:
        PackFormatError: See above.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise malformed(what, "a key is repeated", "every key once")
        return table

    def finite(value: str) -> float:
        number = float(value)
        if not math.isfinite(number):
            raise malformed(what, f"it holds {value[:40]}", "finite numbers")
        return number

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=finite, parse_float=finite)
    except PackFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise malformed(
            what, f"it is not JSON ({type(error).__name__}: {str(error)[:200]})", "a JSON object"
        ) from error
    if not isinstance(value, dict) or _deeper(value, MAX_DEPTH):
        raise malformed(what, f"a {type(value).__name__}, or too deep", f"a JSON object, at most {MAX_DEPTH} deep")
    return value


def _deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
