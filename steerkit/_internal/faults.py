"""What pydantic finds wrong, in one wording: the place, the value where it is a short one, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerkit._text import one_line, quoted

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_SHOWN = 5
MAX_LISTED = 1000
"""Of more faults, the list alone would take much memory; only their number is told."""


def faults(error: ValidationError, whole: str = "") -> str:
    """The first faults on one line; their words can come from a stranger's file, so each is bounded and cleaned.

    Args:
        error: What pydantic raised.
        whole: What to call a place that is the whole document.
    """
    count = error.error_count()
    if count > MAX_LISTED:
        return f"{count} faults"
    found = error.errors(include_url=False, include_context=False)
    more = [f"and {count - MAX_SHOWN} more"] if count > MAX_SHOWN else []
    return "; ".join([*(one_line(_worded(item, whole)) for item in found[:MAX_SHOWN]), *more])


def _worded(item: Any, whole: str) -> str:
    place = ".".join(map(str, item["loc"])) or whole
    value, reason = item["input"], item["msg"].removeprefix("Value error, ")  # pydantic's prefix for what we raise
    shown = quoted(value, 60)
    if item["type"] != "missing" and isinstance(value, str | int | float) and shown not in reason:
        reason = f"{reason:.200} (got {shown})"
    return f"{place:.120}: {reason:.300}" if place else f"{reason:.300}"
