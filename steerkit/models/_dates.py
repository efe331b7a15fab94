"""The date that chat templates write: of today, or of a day that is set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_day: ContextVar[str] = ContextVar("steerkit_day", default="")


@contextmanager
def dated(day: str) -> Iterator[None]:
    """Chat templates that write the date of today write this one inside."""
    token = _day.set(day)
    try:
        yield
    finally:
        _day.reset(token)


def on_the_day(template: str) -> str:
    """The chat template, with the day that is set; itself where none is, or where it writes no date."""
    if not (day := _day.get()) or "strftime_now" not in template:
        return template
    # a macro of the template itself goes before what transformers gives it under that name
    return "{% macro strftime_now(_) %}" + day + "{% endmacro %}" + template
