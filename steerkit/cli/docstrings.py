"""What a Google docstring says of each of its parameters: help texts are written there, and nowhere else."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

_ENTRY = re.compile(r"^ {4}(\w+)(?: \((.*?)\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)


class Entry(NamedTuple):
    """One entry of a section.

    Attributes:
        note: What stands in parentheses behind the name.
        text: The description, on one line.
    """

    note: str | None
    text: str


def entries(documented: object, title: str) -> dict[str, Entry]:
    """The entries of a section, such as `Args` or `Attributes`, by name."""
    section = re.split(r"\n(?=\S)", (inspect.getdoc(documented) or "").partition(f"\n{title}:\n")[2])[0]
    return {name: Entry(note or None, " ".join(text.split())) for name, note, text in _ENTRY.findall(section)}


def summary(documented: object) -> str:
    """What stands before the first section."""
    return re.split(r"\n(?:Args|Attributes|Raises|Returns):\n", inspect.getdoc(documented) or "")[0].strip()
