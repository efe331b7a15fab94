"""Ctrl-C: exit code 130 and one line, at any moment.

While modules are half imported, and while the interpreter shuts down, an exception would surface anywhere or nowhere,
and there is nothing to save: the process ends at once. While a command works, Ctrl-C is the usual exception, which lets
it keep what is finished.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ours = False
"""Whether this process is the command itself; in any other, its signals are none of our business."""


def end_at_once() -> None:
    """From here on, Ctrl-C ends the process; where the shell has it ignored, as in the background, it stays so."""
    global _ours
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _ours = True
        signal.signal(signal.SIGINT, _end)


def ignore() -> None:
    """From here on, Ctrl-C changes nothing: the work is done and its exit code stands."""
    if _ours:  # the interpreter would take the handler away before its last steps, and the signal would kill it
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def raised() -> Iterator[None]:
    """Inside the block, Ctrl-C raises KeyboardInterrupt."""
    with _handled_by(signal.default_int_handler):
        yield


@contextmanager
def ending() -> Iterator[None]:
    """Inside the block, which is inside one of `raised`, Ctrl-C ends the process again."""
    with _handled_by(_end):
        yield


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    if not _ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(*ignored: Any) -> None:
    os.write(2, b"Stopped.\n")
    os._exit(130)
