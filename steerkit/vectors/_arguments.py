"""What a caller may write for the vectors and strengths of `steer`, and what that means."""

from __future__ import annotations

from numbers import Real
from typing import Any, NoReturn

from torch import Tensor

from steerkit._internal.validation import is_series, plain
from steerkit._text import quoted
from steerkit.errors import OptionError
from steerkit.vectors._vector import SteeringVector


def as_vectors(given: Any) -> list[SteeringVector]:
    """One vector, or several, as a list.

    Raises:
        OptionError: There is none, or something that is none.
    """
    if isinstance(given, SteeringVector):
        return [given]
    several = is_series(given) and not isinstance(given, Tensor)
    vectors: list[SteeringVector] = []
    for vector in given if several else [given]:
        if not isinstance(vector, SteeringVector):
            raise OptionError(
                f"the vector is {quoted(vector)} of type {type(vector).__name__}",
                expected="a SteeringVector, or several",
                fix="sk.load_vector(path) for a pack, or what a method's fit returns",
            )
        vectors.append(vector)
    if not vectors:
        raise OptionError("no vector is given", expected="at least one")
    return vectors


def as_strengths(given: Any, count: int) -> list[float]:
    """A strength for each of `count` vectors, from one number or from as many.

    Numbers are those of Python and numpy, and arrays and tensors without a dimension.

    Raises:
        OptionError: It is something else, or another number of them.
    """
    given = plain(given)
    if isinstance(given, Real):
        return [_number(given)] * count
    if not is_series(given) or isinstance(given, Tensor):  # of which nothing can be read
        _refuse(given)
    strengths = [_number(each) for each in given]
    if len(strengths) != count:
        raise OptionError(
            f"{len(strengths)} strengths for {count} vectors", expected="one number, or one each", fix=_WITHIN
        )
    return strengths


_WITHIN = (
    "strengths for each row of a batch, generated token or layer are of the intervention: "
    "vector.applied(rows=[1.0, 0.0]), vector.applied(steps=[1.0, 0.5]), vector.applied(strength={12: 0.5})"
)


def _number(given: Any) -> float:
    """The number; whether it is finite is checked where it is compiled."""
    if isinstance(given, bool) or not isinstance(given, Real):
        _refuse(given)
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        _refuse(given)


def _refuse(given: Any) -> NoReturn:
    raise OptionError(
        f"the strength is {quoted(given)} of type {type(given).__name__}",
        expected="a finite number, or one for each vector",
        fix=f"strength=1.0 is the dose that the method intends; {_WITHIN}",
    )
