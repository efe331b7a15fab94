"""Errors: their three parts, the built-in kinds they also are, and their way across processes."""

from __future__ import annotations

import pickle

import pytest

from steerkit import errors
from steerkit._internal.faults import about
from steerkit.errors import SteerKitError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SteerKitError) and kind is not SteerKitError
]
BUILT_IN = {
    "UnknownNameError": LookupError,
    "PluginError": ImportError,
    "LayerRangeError": IndexError,
    "EngineError": RuntimeError,
    "ModelError": RuntimeError,
    "JudgeError": RuntimeError,
    "FileWriteError": OSError,
    "NothingSteeredError": RuntimeError,
    "ContractError": AssertionError,
}


def test_the_message_has_problem_expectation_and_fix() -> None:
    error = SteerKitError("x is 3.", expected="x below 2", fix="lower x")
    assert str(error) == "x is 3. Expected: x below 2. Fix: lower x."
    assert (error.problem, error.expected, error.fix) == ("x is 3.", "x below 2", "lower x")
    assert str(SteerKitError("x is 3")) == "x is 3."


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_also_the_familiar_kind(kind: type[SteerKitError]) -> None:
    assert issubclass(kind, BUILT_IN.get(kind.__name__, ValueError))
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_a_process_boundary_whole(kind: type[SteerKitError]) -> None:
    error = pickle.loads(pickle.dumps(kind("p", expected="e", fix="f")))
    assert type(error) is kind
    assert (error.problem, error.expected, error.fix, str(error)) == ("p", "e", "f", "p. Expected: e. Fix: f.")


@pytest.mark.parametrize("said", ["it is bad", "line 3: it is bad"])
def test_an_error_names_once_what_it_is_about_and_is_of_the_kind_that_is_asked_for(said: str) -> None:
    for kind in (None, errors.SampleError):
        with pytest.raises(kind or errors.OptionError) as caught, about("line 3", kind):
            raise errors.OptionError(said, expected="good", fix="mend it")
        assert str(caught.value) == "line 3: it is bad. Expected: good. Fix: mend it."
