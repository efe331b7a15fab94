"""What goes to the terminal: results to stdout, everything else to stderr, control characters to nowhere."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

from steerkit._internal.text import clean, one_line
from steerkit.errors import SteerKitError

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """For results."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def say(text: str) -> None:
    """One line for people, on stderr."""
    typer.echo(one_line(text), err=True)


def wants_traceback(ctx: Any) -> bool:
    """Whether `--debug` was given, to the program or to the command."""
    return bool(ctx.meta.get("steerkit.debug"))


def print_error(error: Exception, *, traceback: bool = False) -> None:
    """An error as one block on stderr: the problem, what was expected, how to mend it."""
    if traceback:
        from traceback import print_exception

        print_exception(error, file=sys.stderr)
    if isinstance(error, SteerKitError):
        problem, expected, fix = error.problem, error.expected, error.fix
    else:
        problem, expected = f"{type(error).__name__}: {error}", None
        fix = "this was not foreseen: run the command again with --debug to see where it happened"
    lines = [(typer.style("error: ", fg="red", bold=True), problem)]
    lines += [(f"  {name}: ", text) for name, text in (("expected", expected), ("fix", fix)) if text]
    for head, text in lines:
        typer.echo(head + clean(text).replace("\n", "\n    "), err=True)
