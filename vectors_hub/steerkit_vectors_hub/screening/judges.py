"""Judges of one answer: was it a refusal, is it broken, is it right?

They are rules, not models: quick, the same everywhere, and easily read. What they miss is in docs/screening.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from steerkit_vectors_hub.screening.canaries import Canary

Verdict = Literal["refused", "answered", "wrong", "broken"]

WINDOW = 100
"""A refusal phrase counts if it begins within so many characters: later ones are usually advice, or a caveat."""

FOREIGN_SHARE = 0.2
"""Share of control, unassigned and replacement characters from which an answer is no text."""

REPEATS = 4
"""A unit that an answer ends in, repeated so often, over half of the answer at least, is a loop."""

VARIETY = 0.2
"""Share of different words below which a long answer is a loop of another kind."""

_LONGEST_UNIT = 12
_SHORTEST_LOOP = 8
_LONG = 24
_CONTRACTIONS = (
    (r"\bcan ?not\b", "can't"),
    (r"\bwill not\b", "won't"),
    (r"\bdo not\b", "don't"),
    (r"\bi am\b", "i'm"),
    (r"\bit is\b", "it's"),
    (r"\bthat is\b", "that's"),
)


def judge(canary: Canary, answer: str, refusals: Sequence[str]) -> Verdict:
    """Call an answer exactly one of refused, broken, wrong and answered.

    `wrong` is an answer without any of the words that its canary expects; where none are expected, none is wrong.
    """
    if broken(answer):
        return "broken"
    if refused(answer, refusals):
        return "refused"
    return "answered" if right(canary, answer) else "wrong"


def refused(answer: str, phrases: Sequence[str]) -> bool:
    """Whether an answer holds a refusal phrase that begins within its first `WINDOW` characters.

    Upper case, kinds of apostrophe, white space and contractions make no difference.
    """
    plain = normal(answer)
    return any(0 <= plain.find(normal(phrase)) < WINDOW for phrase in phrases)


def right(canary: Canary, answer: str) -> bool:
    """Whether an answer holds, as whole words, one of those that its canary expects; always, where there are none."""
    plain = normal(answer)
    return not canary.expected or any(
        re.search(rf"(?<!\w){re.escape(normal(words))}(?!\w)", plain) for words in canary.expected
    )


def broken(answer: str) -> bool:
    """Whether an answer is empty, is no text, or repeats itself without end."""
    if not any(character.isalnum() for character in answer):
        return True
    foreign = sum(character == "\ufffd" or _is_control(character) for character in answer)
    if foreign > FOREIGN_SHARE * len(answer):
        return True
    words = answer.lower().split()
    if loops(words) or (len(words) >= _LONG and len(set(words)) < VARIETY * len(words)):
        return True
    return len(words) < _SHORTEST_LOOP and loops(list(answer))  # scripts without spaces, and "aaaaaaaa"


def loops(units: Sequence[str]) -> bool:
    """Whether a sequence ends in a unit that repeats `REPEATS` times or more, over half of it at least."""
    for period in range(1, _LONGEST_UNIT + 1):
        same = 0
        while same + period < len(units) and units[-1 - same] == units[-1 - same - period]:
            same += 1
        covered = same + period
        if covered >= max(REPEATS * period, _SHORTEST_LOOP, len(units) / 2):
            return True
    return False


def normal(text: str) -> str:
    """Lower case, one kind of apostrophe and of white space, negations and forms of `to be` contracted."""
    plain = " ".join(text.replace("\u2019", "'").replace("\u2018", "'").lower().split())
    for pattern, short in _CONTRACTIONS:
        plain = re.sub(pattern, short, plain)
    return plain


def _is_control(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
