"""Documents of unknown origin as models: what a file, the system or pydantic refuses, as one error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from steerkit._internal.faults import faults
from steerkit.errors import SteerKitError


@contextmanager
def refused_as(
    error: type[SteerKitError], what: str, *, expected: str, fix: str | None = None, wrong: str = "is malformed"
) -> Iterator[None]:
    """Raise what goes wrong inside, in reading a file or in validating it, as an error of a kind.

    Args:
        error: The kind.
        what: What is read, for the message.
        expected: What it should be.
        fix: What to do about a wrong field.
        wrong: What is said of it before its faults.

    Raises:
        SteerKitError: Of that kind; it names what is wrong.
    """
    try:
        yield
    except OSError as cause:
        if isinstance(cause, SteerKitError):
            raise
        raise error(f"{what} can't be read ({cause})", expected=expected) from cause
    except ValidationError as cause:
        raise error(f"{what} {wrong} ({faults(cause, 'the file')})", expected=expected, fix=fix) from cause
