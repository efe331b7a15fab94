"""Generators that steering blocks are opened in: whether they run, wait, or are suspended.

A generator is no context of its own: between two of its values its consumer runs in the same one. So a block that is
opened in the body of a generator is open only while that body runs, wherever it is resumed. A generator behind
`contextlib.contextmanager` is the opposite: what it yields to is the body of the user's own `with`.
"""

from __future__ import annotations

import gc
import inspect
import sys
from types import AsyncGeneratorType, FrameType
from typing import Any

_MANAGERS = frozenset({"contextlib", "_pytest.fixtures", "pytest_asyncio.plugin"})
"""Modules that run a generator up to its `yield` and the body of a `with` (or a test) after it."""


def runs(frame: FrameType) -> bool:
    """Whether a frame is on the stack of this thread."""
    now: FrameType | None = sys._getframe(1)
    while now is not None:
        if now is frame:
            return True
        now = now.f_back
    return False


def bodies(frame: FrameType | None) -> list[Body]:
    """The bodies of generators on the stack, but for those that are context managers, or that drive coroutines.

    An event loop may be a generator (trio's is): while that is suspended, the coroutines that it drives wait.
    """
    found: list[Body] = []
    driven = False
    while frame is not None:
        above, flags = frame.f_back, frame.f_code.co_flags
        if flags & inspect.CO_ASYNC_GENERATOR or (flags & inspect.CO_GENERATOR and not driven):
            if above is None or str(above.f_globals.get("__name__")) not in _MANAGERS:
                found.append(Body(frame))
        driven = driven or bool(flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
        frame = above
    return found


class Body:
    """The body of a generator, which may be suspended at a `yield`."""

    def __init__(self, frame: FrameType) -> None:
        self._frame = frame
        self._generator: AsyncGeneratorType[Any, Any] | None = None

    def is_above(self) -> bool:
        """Whether the running code was called from it."""
        return runs(self._frame)

    def runs(self) -> bool:
        """Whether it runs or waits, be it in another thread or task, and is not suspended at a `yield`."""
        if self._frame.f_back is not None or self.is_above():
            return True
        if not self._frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
            return False
        if self._generator is None:
            # a frame names its generator from Python 3.14 on; until then only the collector knows it
            named = getattr(self._frame, "f_generator", None)
            known = [named] if named is not None else gc.get_objects()
            self._generator = next(
                each for each in known if type(each) is AsyncGeneratorType and each.ag_frame is self._frame
            )
        return self._generator.ag_await is not None
