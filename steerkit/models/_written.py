"""What chat templates and processors write for images and videos, as text and as regular expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile


def numbered(written: str) -> str:
    """A regular expression of what a template writes for one image, whatever number it gives it."""
    return (
        re.sub(r"\d+", lambda _: r"\d+", re.escape(written)) if re.search(r"\b\d+\b", written) else re.escape(written)
    )


def inserted(shorter: str, longer: str) -> str:
    """What was put into a text to make it longer."""
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(shorter, longer, strict=False)))
    return longer[start : start + len(longer) - len(shorter)]


def pattern_of(texts: Sequence[str], added: Sequence[str], *, times: bool = False) -> str:
    """A regular expression of what a processor makes of an image: first and last piece, any number in between.

    Args:
        texts: What it has made of some.
        added: The tokens between the pieces.
        times: Whether whatever is a number, or differs from one text to the next, may be another one.
    """
    between = "(" + "|".join(map(re.escape, added)) + ")"
    rows = [[piece for piece in re.split(between, text) if piece] for text in texts]
    opening = _common([row[0] for row in rows]) if times else numbered(rows[0][0])
    kind = _timed if times else numbered
    if len({kind(piece) for row in rows for piece in row}) == 1:
        return f"(?:{opening})+"
    inside = list(dict.fromkeys(kind(piece) for row in rows for piece in row[1:-1]))
    inner, last = "|".join(inside), "|".join(dict.fromkeys(kind(row[-1]) for row in rows))
    # the blank image may be larger than another, of which the first piece is all; if it is text, it is not enough
    some = "*" if kind(rows[0][0]) in inside else "+"
    return opening + (f"(?:{inner}){some}" if inner else "") + f"(?:{last})"


def _timed(text: str) -> str:
    return re.sub(r"\d+", lambda _: r"\d+", re.escape(text))


def _common(texts: Sequence[str]) -> str:
    """A regular expression of several texts that differ in numbers, be they written as words."""
    rows = [re.split(r"(\s+)", text) for text in texts]
    if len({len(row) for row in rows}) > 1:
        return f"(?:{'|'.join(dict.fromkeys(map(_timed, texts)))})"
    words = ((_timed(column[0]), {*map(_timed, column)}) for column in zip(*rows, strict=True))
    return "".join(first if len(kinds) == 1 else r"\S+" for first, kinds in words)
