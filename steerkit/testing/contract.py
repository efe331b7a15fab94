"""A check of a contract: a name, what is demanded, and a plain explanation where it is not so."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from unittest import SkipTest

from steerkit.errors import ContractError
from steerkit.policy import Check, enforce


@dataclass(frozen=True, slots=True)
class ContractCheck:
    """One demand on a method or an adapter; call it to check it.

    Attributes:
        name: The demand in a few words, as an identifier.
        meaning: What is demanded.
        run: Checks it.
    """

    name: str
    meaning: str
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> None:
        """Check it.

        Raises:
            ContractError: It is not so; or the code under test ended in an error, which is then the cause.
            SkipTest: The demand does not apply, and the message says why; pytest and unittest count it as skipped.
        """
        try:
            self.run()
        except ContractError as error:
            raise ContractError(f"{self.name}: {error.problem}", expected=self.meaning, fix=error.fix) from error
        except SkipTest:
            raise
        except Exception as error:
            raise ContractError(
                f"{self.name}: {type(error).__name__}: {error}",
                expected=self.meaning,
                fix="see the error above, which came out of the code under test",
            ) from error

    def outcome(self) -> Check:
        """The same, with what came of it as a value."""
        try:
            self()
        except ContractError as error:
            problem = error.problem.removeprefix(f"{self.name}: ")
            return Check(self.name, "fail", f"{problem} (expected: {self.meaning})", error.fix or "")
        except SkipTest as reason:
            return Check(self.name, "skip", str(reason))
        return Check(self.name, "pass", self.meaning)

    def __str__(self) -> str:
        """The name, for `pytest.mark.parametrize(..., ids=str)`."""
        return self.name


def checks_of(functions: Iterable[Callable[[Any], None]], case: Any, suffix: str = "") -> list[ContractCheck]:
    """A check for each function of a case: its name, and the first line of its docstring."""

    def bound(function: Callable[[Any], None]) -> Callable[[], None]:
        return lambda: function(case)

    return [
        ContractCheck(
            function.__name__ + suffix, (inspect.getdoc(function) or "").partition("\n")[0].rstrip("."), bound(function)
        )
        for function in functions
    ]


def run_all(checks: Iterable[ContractCheck]) -> list[Check]:
    """Run every check, whatever becomes of the others.

    Raises:
        ContractError: Some fail; the message names each and explains it.
    """
    found = [check.outcome() for check in checks]
    enforce([each for each in found if each.status == "fail"], "strict", ContractError)
    return found
