"""Progress on stderr: a bar with the time left on a terminal, elsewhere one line at the start and one at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from steerkit._text import one_line
from steerkit.cli.console import say

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[..., None]
"""Called with (done, total), and what is done before them, if anything; a step may be done in part."""


@contextmanager
def progress(label: str, *, total: int | None = None, done: int = 0, bars: bool = True) -> Iterator[Report]:
    """Show how far a piece of work is.

    Args:
        label: What is being done.
        total: Number of steps, where it is known.
        done: Steps that were done before, which say nothing of the speed.
        bars: Whether there are bars on a terminal.
    """
    if not (bars and _on_a_terminal()):
        start = time.monotonic()
        say(f"{label} ..." if total is None else f"{label}: {done} of {total} ...")
        yield lambda *told: None
        say(f"{label}: done in {time.monotonic() - start:.1f} s")
        return
    with _bars() as drawn:
        task = drawn.add_task(one_line(label), total=total, completed=done)
        yield lambda *told: drawn.update(task, completed=told[-2], total=told[-1])


@contextmanager
def loading_progress(label: str) -> Iterator[None]:
    """Show how far a model is with loading: transformers and the hub have bars of their own for a terminal."""
    with nullcontext() if _on_a_terminal() else without_bars(), progress(label, bars=False):
        yield


@contextmanager
def without_bars() -> Iterator[None]:
    """Let transformers load without bars of its own, which would be drawn over ours or into a file."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _bars() -> Progress:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("elapsed,"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("left"),
    )
    return rich.Progress(*columns, console=Console(stderr=True))


class TokenProgress:
    """Progress of a generation by token, so that the time left of one long answer is known: a streamer of `generate`.

    Counts the samples that are done, and of the running batch the part that its tokens make.

    Args:
        report: Told of the progress.
        total: Number of samples.
        max_new_tokens: Length of a whole answer.
    """

    def __init__(self, report: Report, total: int, max_new_tokens: int) -> None:
        self._report = report
        self._total = total
        self._length = max_new_tokens
        self._done = self._tokens = 0

    def batch_done(self, done: int, total: int) -> None:
        """A batch is complete."""
        self._done, self._tokens = done, 0
        self._report(done, total)

    def put(self, tokens: Any) -> None:
        """The prompts of a batch, `[rows, tokens]`, or the next token of each, `[rows]`."""
        if tokens.dim() == 1:
            self._tokens += 1
            part = len(tokens) * min(1.0, self._tokens / self._length)
            self._report(min(self._done + part, self._total), self._total)

    def end(self) -> None:
        """A batch has all its tokens."""
