"""Reading the answer to a question: does it say what is right?"""

from __future__ import annotations

import re
from typing import Literal

from steerkit._text import quoted
from steerkit.errors import OptionError
from steerkit.evaluation._text import folded, holds

Parser = Literal["exact", "choice", "yes_no", "number", "text", "reference"]
"""How the answer to a question is read; see `states`."""

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])|(?<![\w.])[-+]?\.\d+(?!\w)")
_YES_OR_NO = re.compile(r"(?<!\w)(yes|no)(?!\w)")
_CHOICE = re.compile(
    r"(?:\b(?:answer|option|choice)\s*(?:is|:)?\s*\(?([a-z])\)?(?![\w'])"
    r"|^\(?([a-z])(?:[).:,]|\s*$)"
    r"|\(([a-z])\))"
)


def states(answer: str, expected: str, parser: Parser | None = None) -> bool:
    """Whether an answer says what is expected.

    Args:
        answer: The answer.
        expected: What is right.
        parser: `exact`: nothing but that, letter by letter. `yes_no`: the first yes or no in the answer counts.
            `choice`: a letter, as in `B`, `(B)`, `B. Paris`, `The answer is B`. `number`: by value, any number of the
            answer. `text`: somewhere in the answer, as whole words. None: as the expected answer looks; a single
            capital letter is a choice. `reference`: an answer to compare with, which no parser can; it is refused here,
            and in `judge` such an answer stays unjudged.

    Raises:
        OptionError: The parser is `reference`.
    """
    wanted = folded(expected).strip(" .")
    told = folded(answer)
    kind = parser or parser_for(expected)
    if kind == "reference":
        raise OptionError("the parser is 'reference'", expected="one that can tell", fix="compare the two yourself")
    if kind == "exact":
        return answer.strip() == expected.strip()
    if not wanted:
        return not told
    if kind == "yes_no":
        first = _YES_OR_NO.search(told)
        return first is not None and first[1] == wanted
    if kind == "choice":
        chosen = _CHOICE.search(told)
        return chosen is not None and wanted.strip("().:") in chosen.groups()
    if kind == "number":
        return _value(wanted) in {_value(number) for number in _NUMBER.findall(told)}
    return holds(answer, expected.strip(" .")) >= 0


def check_expected(expected: str, parser: Parser) -> None:
    """Refuse a right answer that its parser can find in no answer.

    Raises:
        OptionError: It is such.
    """
    if parser in ("yes_no", "choice", "number") and parser_for(expected.strip().upper()) != parser:
        meant = {"yes_no": "yes or no", "choice": "a letter", "number": "a number"}[parser]
        raise OptionError(f"the right answer is {quoted(expected)}, read as {parser!r}", expected=meant)


def parser_for(expected: str) -> Parser:
    """How an answer is read when nothing else is said: as the right one looks."""
    if folded(expected).strip(" .") in ("yes", "no"):
        return "yes_no"
    if re.fullmatch(r"\(?[A-Z]\)?[.:]?", expected.strip()):
        return "choice"
    return "number" if _NUMBER.fullmatch(folded(expected).strip(" .")) else "text"


def _value(number: str) -> float:
    return float(number.replace(",", ""))
