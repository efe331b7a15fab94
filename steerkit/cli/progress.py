"""Progress on stderr: a bar with the time left on a terminal, elsewhere one line at the start and one at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steerkit._text import one_line
from steerkit.cli.console import say

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[float, int], None]
"""Called with (done, total); a step may be done in part."""


@contextmanager
def progress(label: str, *, total: int | None = None, done: int = 0) -> Iterator[Report]:
    """Show how far a piece of work is.

    Args:
        label: What is being done.
        total: Number of steps, where it is known.
        done: Steps that were done before, which say nothing of the speed.
    """
    if not _on_a_terminal():
        start = time.monotonic()
        say(f"{label} ..." if total is None else f"{label}: {done} of {total} ...")
        yield lambda done, total: None
        say(f"{label}: done in {time.monotonic() - start:.1f} s")
        return
    with _bars() as bars:
        task = bars.add_task(one_line(label), total=total, completed=done)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def loading_progress(label: str) -> Iterator[None]:
    """Show how far transformers is with loading weights; downloads show bars of the hub's own."""
    from transformers.utils import logging

    if not _on_a_terminal():
        with without_bars(), progress(label):
            yield
        return
    say(f"{label} ...")
    hook = getattr(logging, "set_tqdm_hook", None)
    previous = hook(_rich_instead) if hook else None
    try:
        yield
    finally:
        if hook:
            hook(previous)


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


def _rich_instead(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """In place of a tqdm over a sequence, the same sequence under a rich bar."""
    items = args[0] if args else options.get("iterable")
    if items is None or not hasattr(items, "__len__"):
        return factory(*args, **options)
    return _tracked(items, options.get("desc") or "Loading")


def _tracked(items: Any, label: str) -> Iterator[Any]:
    with _bars() as bars:
        yield from bars.track(items, total=len(items), description=label)


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
    )
