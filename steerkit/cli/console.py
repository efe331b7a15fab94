"""What goes to the terminal: results to stdout, everything else to stderr.

All of it passes here: text of others is cleaned, rich's markup is off, characters that the terminal lacks are escaped,
and a terminal that takes nothing (a full disk, a closed pipe) is an error like any other.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import typer

from steerkit._text import clean, one_line
from steerkit.errors import SteerKitError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_FIXES = {
    errno.ENOSPC: "free some space, or choose another place for the output",
    errno.EDQUOT: "free some space, or choose another place for the output",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), or choose another place for the output",
    errno.EROFS: "choose another place for the output",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


_MOST = 2000
"""Characters of each part of an error."""

_LEFT = (errno.EPIPE, errno.EINVAL)
"""Whoever reads the pipe has left, as `head` does (the second, on Windows): nothing is wrong, and nobody to be told."""


def prepare() -> None:
    """Let what the encoding of a terminal lacks, such as bars in ASCII, be escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def echo(text: object) -> None:
    """One line of a result."""
    _write(one_line(text))


def show(part: Any) -> None:
    """A part of a result: a text is one line; anything else is drawn by rich."""
    if isinstance(part, str):
        echo(part)
    else:
        console = _console()
        with console.capture() as drawn:
            console.print(part)
        _write(drawn.get().removesuffix("\n"))


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    _write(json.dumps(document, indent=2, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    """What `json` has no word for."""
    if hasattr(value, "as_json"):
        return value.as_json()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def fields(document: Any) -> Iterator[str]:
    """The leaves of a document, each on a line behind its dotted path."""
    leaves = [(one_line(path), value) for path, value in _leaves(json.loads(json.dumps(document, default=_plain)))]
    width = max((len(path) for path, _ in leaves), default=0)
    return (f"{path:<{width}}  {value}" for path, value in leaves)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{path}[{index}]")
    else:
        yield path, _cell(value)


def _cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or value in ("", {}, [], ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def say(text: object) -> None:
    """One line for people, on stderr; where that can't be written, there is nobody to tell."""
    _tell(one_line(text))


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]], *, plain: bool = False, **options: Any) -> Table:
    """A table for `show`.

    Args:
        heads: Titles of the columns.
        rows: Their cells: texts, numbers, lists or None. Columns of numbers are right-aligned.
        plain: Without lines.
        **options: As for rich's `Table`.
    """
    from rich.table import Table

    look: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0)} if plain else {}
    made = Table(**{**look, **options, "title": clean(options.get("title") or "") or None})
    body = [list(row) for row in rows]
    for index, head in enumerate(heads):
        numbers = all(isinstance(row[index], int | float | None) for row in body)
        made.add_column(clean(head), justify="right" if numbers else "left", overflow="fold")
    for row in body:
        texts = (f"{cell:.4g}" if isinstance(cell, float) else _cell(cell) for cell in row)
        made.add_row(*map(clean, texts))
    return made


def bar(value: float, largest: float, width: int) -> str:
    """A bar as long as a value, in characters that the terminal has."""
    mark = "#" if _console().options.ascii_only else "\N{FULL BLOCK}"
    return mark * max(1, round(width * value / largest))


def print_error(error: Exception, *, debug: bool = False) -> None:
    """An error as one block on stderr: the problem, what was expected, how to mend it."""
    shown = described(error)
    if debug:
        _tell(clean("".join(traceback.format_exception(error))))
    colours = sys.stderr is not None and sys.stderr.isatty() and "NO_COLOR" not in os.environ
    _tell((typer.style("error: ", fg="red", bold=True) if colours else "error: ") + _bounded(shown.problem))
    for name, text in (("expected", shown.expected), ("fix", shown.fix)):
        if text:
            _tell(f"  {name}: {_bounded(text)}")


def _bounded(text: str) -> str:
    """An error is to be read: what it quotes may be as long as a path or a list can get."""
    return text if len(text) <= _MOST else f"{text[: _MOST - 200]} ... {text[-195:]}"


def described(error: BaseException) -> SteerKitError:
    """Any error in the three parts of ours. What the system refuses is foreseen: it says which file, and why."""
    if isinstance(error, SteerKitError):
        return error
    if isinstance(error, OSError) and (error.strerror or error.errno is None):
        reason = error.strerror or str(error)
        where = f"{os.fsdecode(error.filename)!r}: " if isinstance(error.filename, str | bytes) else ""
        fix = _FIXES.get(error.errno or 0, "check the path, and that you may use it")
        return SteerKitError(f"{where}{reason}", expected="files and folders that can be read and written", fix=fix)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        fix = "a smaller --batch-size, --dtype bfloat16, or --device-map auto"
        return SteerKitError(f"out of memory ({error})", expected="memory for the model and one batch", fix=fix)
    fix = "this error was not expected: run the command again with --debug for the traceback, and report it"
    return SteerKitError(f"{type(error).__name__}: {error}", fix=fix)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False)


def close(code: int) -> int:
    """Write what is left in the buffer, at the end; returns the exit code, which is 1 where that failed."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _let_go()
        if error.errno not in _LEFT and code == 0:
            print_error(_unwritten(error))
        return code or 1
    return code


def _write(text: str) -> None:
    if sys.stdout is None:  # it was closed by whoever started the process
        return
    try:  # not by typer.echo, which writes UTF-8 to a terminal that says it has ASCII
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        _let_go()
        if error.errno in _LEFT:
            raise typer.Exit(1) from error
        raise _unwritten(error) from error


def _tell(text: str) -> None:
    with suppress(OSError, AttributeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _let_go() -> None:
    """What stays in the buffer of stdout would fail once more at exit, with an exit code of its own."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unwritten(error: OSError) -> SteerKitError:
    return SteerKitError(
        f"the output can't be written: {error.strerror}",
        expected="a terminal, a pipe or a file that takes it",
        fix=_FIXES.get(error.errno or 0),
    )
