"""Text of unknown origin, made fit to be shown: it steers no terminal and no page, and passes for no other line."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """Text of unknown origin (packs, model answers) without control characters; lines and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def quoted(value: object, most: int = 80) -> str:
    """The beginning of a value's repr, for a message; of one whose repr fails, such as a huge integer, its type."""
    try:
        return f"{value!r:.{most}}"
    except Exception:
        return f"<{type(value).__name__}>"


def one_line(text: object) -> str:
    """The same on one line, for a value that stands on a line of its own and must not forge the next."""
    return clean(text).replace("\n", " ")
