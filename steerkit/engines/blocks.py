"""Which open steering blocks a call of the model belongs to: those of the context in which it is made.

A block belongs to the context (`contextvars`) that opens it, so that concurrent tasks of an event loop, which share a
thread, each have their own. `carrying` takes it into the threads that are started inside, and keeps it open for them,
for tasks and for callbacks.

What begins inside a block belongs to it to its end: a call that runs, a thread or a task that was started. Where the
`with` is left before, the model is put back when the last of them is done, and not in the middle of an answer.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

from steerkit._text import one_line
from steerkit.engines.suspension import bodies

_LIBRARIES = ("torch", "transformers", "steerkit", "accelerate", "peft", "contextlib")


class UnsteeredCallWarning(UserWarning):
    """A model was called where a steering block of it was open for others, or was no longer open."""


class Block:
    """One open steering block.

    Args:
        begin: Called with each prompt that belongs to the block, before the model reads it.
        everywhere: Whether calls from every context belong to it.
        overlooked: Called when the model is called from a context that no block is for.
        at_the_end: Whether it does nothing, and reads nothing, before a prompt's last token.
        name: What it is called in messages.
    """

    def __init__(
        self,
        begin: Callable[[Any], None],
        *,
        everywhere: bool = False,
        overlooked: Callable[[], None] | None = None,
        at_the_end: bool = False,
        name: str = "of another library",
    ) -> None:
        self.begin = begin
        self.name = name
        self.everywhere = everywhere
        self.at_the_end = at_the_end
        self.close: Callable[..., None] = _nothing
        """Called once the block has ended, and so has all work that began in it."""
        self.left = False
        """Whether the `with` was left while work that had begun inside went on."""
        self.failure: Exception | None = None
        """What was raised in a call of it where nobody passes that on."""
        self._overlooked = overlooked or _nothing
        self._said = False
        self._bodies = tuple(bodies(sys._getframe(1)))
        self._lock = threading.Lock()
        self._uses = 1
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether its `with` is over."""
        return self._ended

    def enter(self) -> None:
        """Let calls from this context belong to it."""
        # one that was closed from another context is still named in this one
        _open.set((*(entry for entry in _open.get() if entry[1] or not entry[0].ended), (self, False)))
        if self._bodies:
            _in_generators.add(self)

    def end(self, *passing: Any) -> None:
        """No further call belongs to it but from what was started inside; it is closed when the last one is done.

        Args:
            passing: The exception that ends it, as `__exit__` is given it; `close` gets it where nothing goes on.
        """
        _open.set(tuple(entry for entry in _open.get() if entry[0] is not self))
        _in_generators.discard(self)
        self._ended, self._bodies = True, ()
        self.left = self._uses > 1
        self.release(*passing)

    def hold(self) -> bool:
        """Keep it from being closed; whether it is still there to be held."""
        with self._lock:
            if not self._uses:
                return False
            self._uses += 1
            return True

    def release(self, *passing: Any) -> None:
        """The opposite of `hold`."""
        with self._lock:
            self._uses -= 1
            last = not self._uses
        if last:
            try:
                self.close(*passing)
            finally:
                # contexts that were copied inside live on, and what they hold of it should not
                self.begin = self.close = self._overlooked = _nothing

    def is_mine(self) -> bool:
        """Whether the running code is inside the block."""
        for block, carried in _open.get():
            if block is self:
                return carried or (not self._ended and all(body.runs() for body in self._bodies))
        return bool(self._bodies) and all(body.is_above() for body in self._bodies)

    def overlook(self) -> None:
        """Note that a call was made that no block is for; say it the first time."""
        self._overlooked()
        if not self._said:
            self._said = True
            warn_unsteered(
                "the model is called outside of every steering block, while one is open in another context (another "
                "thread, task or request): this call is not steered. If it is to be, open the block in the code that "
                "makes the call, or with scope='all'; if not, filter UnsteeredCallWarning"
            )


_open: ContextVar[tuple[tuple[Block, bool], ...]] = ContextVar("steerkit_blocks", default=())
"""The blocks of this context, the outermost first, and whether each was carried into it."""

_in_generators: set[Block] = set()
"""The open blocks that were opened in the body of a generator, which may be resumed in another context."""


def blocks_here() -> tuple[Block, ...]:
    """The open blocks, of whatever model, that the running code is inside of."""
    known = [block for block, _ in _open.get()]
    known += [block for block in tuple(_in_generators) if block not in known]
    return tuple(block for block in known if block.is_mine())


@contextmanager
def inside(blocks: tuple[Block, ...]) -> Iterator[None]:
    """Let the code inside, in whatever thread, be inside the blocks."""
    token = _open.set(tuple((block, True) for block in blocks))
    try:
        yield
    finally:
        _open.reset(token)


def carried_and_ended() -> bool:
    """Whether this context was started inside a block that has ended since."""
    return any(carried and block.ended for block, carried in _open.get())


def owners(opened: tuple[Block, ...]) -> tuple[Block, ...]:
    """Those of a model's open blocks that a call made here belongs to.

    Blocks of every context come on top of the context's own, unless it has such a one itself: two streams that each
    open a block for all contexts are each steered by their own.
    """
    mine = [block for block in opened if block.is_mine()]
    others = not any(block.everywhere for block in mine)
    return tuple(block for block in opened if block in mine or (block.everywhere and others and not block.ended))


def warn_unsteered(message: str) -> None:
    """Warn where the user's code calls the model."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame) in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(one_line(message), UnsteeredCallWarning, stacklevel=level)


def _nothing(*_: Any) -> None:
    pass


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
