r"""Text of unknown origin, made fit to be shown: it steers no terminal and no page, and passes for no other line.

Packs, servers, sample files and models write what reaches a terminal. Control characters (escape sequences among
them), marks that reorder or hide what stands beside them, line breaks that are not `\n`, and halves of characters are
shown as escapes, in Python's notation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NEVER = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline; NEL among them
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"  # soft hyphen, direction marks, zero width
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"  # line separators, overrides, fillers, operators
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # invisible marks of shorthand and of music
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags, which spell invisible ASCII
    "\ud800-\udfff"  # halves of characters; undecodable bytes of a path
)
_VARIATIONS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"

_CONTROL = re.compile(
    f"[{_NEVER}]"
    # joiners, where there is no script or emoji that needs them
    f"|(?<![^\x00-\x7f\u2000-\u206f{_NEVER}])[\u200c\u200d]"
    # variations, which behind anything else, and behind each other, spell whole invisible texts
    f"|(?<![^\x00-\x7f\u2000-\u200f{_NEVER}{_VARIATIONS}])(?!\ufe0f\u20e3)[{_VARIATIONS}]"
)


def clean(text: object) -> str:
    """Text of unknown origin with its control characters escaped; newlines and tabs stay."""
    return _CONTROL.sub(_escaped, str(text))


def one_line(text: object) -> str:
    """The same on one line, for a value that stands on a line of its own and must not forge the next."""
    return clean(text).replace("\n", " ")


def quoted(value: object, most: int = 80) -> str:
    """The beginning of a value's repr, for a message; of one whose repr fails, such as a huge integer, its type."""
    try:
        return f"{value!r:.{most}}"
    except Exception:
        return f"<{type(value).__name__}>"


def described(error: BaseException) -> str:
    """The type and the beginning of the message of another library's exception."""
    return f"{type(error).__name__}: {one_line(error)[:300]}".removesuffix(": ")


def first_line(error: BaseException) -> str:
    """The first line of another library's message; of one without any, its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the known one that it may be meant for, if any is like it."""
    from difflib import get_close_matches

    folded = {each.casefold(): each for each in known}
    close = get_close_matches(name.casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
