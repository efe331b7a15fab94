"""What the system and pydantic find wrong with a document of unknown origin, in one wording, as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steerkit._text import one_line, quoted
from steerkit.errors import SteerKitError

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_SHOWN = 5
MAX_LISTED = 1000
"""Of more faults, the list alone would take much memory; only their number is told."""


@contextmanager
def refused_as(
    error: type[SteerKitError], what: str, *, expected: str, fix: str | None = None, wrong: str = "is malformed"
) -> Iterator[None]:
    """Raise what goes wrong inside, in reading a file or in validating what it holds, as an error of a kind.

    Args:
        error: The kind.
        what: What is read, for the message.
        expected: What it should be.
        fix: What to do about it.
        wrong: What is said of it before its faults.

    Raises:
        SteerKitError: Of that kind; it names what is wrong.
    """
    from pydantic import ValidationError

    try:
        yield
    except SteerKitError:
        raise
    except ValidationError as cause:
        raise error(f"{what} {wrong} ({faults(cause)})", expected=expected, fix=fix) from cause
    except (OSError, UnicodeDecodeError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise error(f"{what} can't be read ({why})", expected=expected, fix=fix) from cause


@contextmanager
def about(name: object, kind: type[SteerKitError] | None = None) -> Iterator[None]:
    """Begin every error that is raised inside with the name of what it is about; it is then of a kind, or its own."""
    try:
        yield
    except SteerKitError as error:
        named, kind = str(name) in error.problem, kind or type(error)
        if named and isinstance(error, kind):
            raise
        problem = error.problem if named else f"{name}: {error.problem}"
        raise kind(problem, expected=error.expected, fix=error.fix) from error


def faults(error: ValidationError) -> str:
    """The first faults on one line; their words can come from an untrusted file, so each is bounded and cleaned."""
    count = error.error_count()
    if count > MAX_LISTED:
        return f"{count} faults"
    found = error.errors(include_url=False, include_context=False)
    more = [f"and {count - MAX_SHOWN} more"] if count > MAX_SHOWN else []
    return "; ".join([*(one_line(_worded(item)) for item in found[:MAX_SHOWN]), *more])


def _worded(item: Any) -> str:
    place = ".".join(map(str, item["loc"]))
    value, reason = item["input"], item["msg"].removeprefix("Value error, ")  # pydantic's prefix for what we raise
    shown = quoted(value, 60)
    if item["type"] != "missing" and isinstance(value, str | int | float) and shown not in reason:
        reason = f"{reason:.200} (got {shown})"
    return f"{place:.120}: {reason:.300}" if place else f"{reason:.300}"
