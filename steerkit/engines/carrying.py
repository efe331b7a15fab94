"""Takes the open blocks into threads that are started inside them, which Python itself does not do.

`asyncio.to_thread`, anyio (so Starlette and FastAPI) and tasks of an event loop run in a copy of the context of whoever
starts them. `threading.Thread` and `concurrent.futures.ThreadPoolExecutor` (so `loop.run_in_executor`) run in the
context of nobody, before free-threaded Python 3.14. There is no other moment than the start of a thread at which it can
be known who started it: so these two methods are wrapped for as long as any block is open, and put back afterwards.
Outside of blocks the wrappers change nothing; inside, the new thread gets the blocks and what else of ours is said in a
context (`carry_along`), and no other context variable.

The workers of an executor outlive what is submitted to them, so that each piece of work brings its own blocks along; so
it is with `multiprocessing.pool.ThreadPool`, which joblib uses for threads. Workers of other pools take their work from
a queue as well, and are given no blocks; anyio's bring contexts along.

A thread or a piece of work keeps its blocks from being closed until it is done: what was started inside is steered to
its end, whether its call of the model came before the end of the block or after.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from multiprocessing.pool import ThreadPool
from typing import Any

from steerkit.engines.blocks import Block, blocks_here, inside

_POOLS = ("anyio", "multiprocessing", "tqdm")
_POOL_METHODS = ("apply_async", "map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered")

_lock = threading.Lock()
_users = 0
_undo: list[Callable[[], None]] = []
_along: list[ContextVar[Any]] = []


def carry_along(variable: ContextVar[Any]) -> None:
    """Take a context variable, whose default is None, wherever blocks are taken."""
    _along.append(variable)


@contextmanager
def carried() -> Iterator[None]:
    """Threads that are started in the time of this context are inside the blocks of whoever starts them."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _undo.append(_wrap(threading.Thread, "start", _start))
            _undo.append(_wrap(ThreadPoolExecutor, "submit", _submit))
            for name in _POOL_METHODS:
                _undo.append(_wrap(ThreadPool, name, functools.partial(_give, holds=name not in ("map", "starmap"))))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                while _undo:
                    _undo.pop()()


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    inner, own = getattr(owner, name), name in vars(owner)

    @functools.wraps(inner)
    def method(*args: Any, **kwargs: Any) -> Any:
        blocks = blocks_here()
        if not blocks and all(variable.get() is None for variable in _along):
            return inner(*args, **kwargs)
        return around(inner, blocks, *args, **kwargs)

    setattr(owner, name, method)

    def undo() -> None:
        if getattr(owner, name) is not method:  # somebody has wrapped it again, and calls it
            return
        if own:
            setattr(owner, name, inner)
        else:
            delattr(owner, name)

    return undo


def _start(inner: Callable[..., None], blocks: tuple[Block, ...], thread: threading.Thread) -> None:
    if _package(type(thread)) in _POOLS:
        inner(thread)
        return
    run, said = thread.run, _said()
    held = [block for block in blocks if block.hold()] if _ends(thread) else []

    def run_inside() -> None:
        vars(thread).pop("run", None)
        try:
            with inside(blocks), _saying(said):
                run()
        finally:
            _release(held)

    thread.run = run_inside
    try:
        inner(thread)
    except BaseException:
        vars(thread).pop("run", None)
        _release(held)
        raise


def _submit(
    inner: Callable[..., Future[Any]],
    blocks: tuple[Block, ...],
    pool: ThreadPoolExecutor,
    work: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Future[Any]:
    held, said = [block for block in blocks if block.hold()], _said()

    def work_inside() -> Any:
        try:
            with inside(blocks), _saying(said):
                return work(*args, **kwargs)
        finally:
            _release(held)

    try:
        # a worker that is started now serves others later
        with inside(()), _saying([(variable, None) for variable in _along]):
            future = inner(pool, work_inside)
    except BaseException:
        _release(held)
        raise
    future.add_done_callback(lambda _: _release(held))  # it may be cancelled
    return future


def _give(
    inner: Callable[..., Any],
    blocks: tuple[Block, ...],
    pool: ThreadPool,
    /,
    func: Callable[..., Any],
    *args: Any,
    holds: bool,
    **kwargs: Any,
) -> Any:
    """Give work to a pool; with `holds`, the caller does not wait for it, and may leave the block before it is done."""
    held, said = [block for block in blocks if holds and block.hold()], _said()

    def work_inside(*given: Any, **named: Any) -> Any:
        with inside(blocks), _saying(said):
            return func(*given, **named)

    weakref.finalize(work_inside, _release, held)  # the pool lets go of it with the last piece of the work
    return inner(pool, work_inside, *args, **kwargs)


def _said() -> list[tuple[ContextVar[Any], Any]]:
    return [(variable, variable.get()) for variable in _along]


@contextmanager
def _saying(said: list[tuple[ContextVar[Any], Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for variable, value in said:
            stack.callback(variable.reset, variable.set(value))
        yield


def _ends(thread: threading.Thread) -> bool:
    """Whether a thread was started for one piece of work, and not to serve for as long as the process lives."""
    if _package(getattr(thread, "_target", None)) == "torch":  # data loaders
        return False
    return not thread.daemon or type(thread).run is threading.Thread.run


def _package(owner: object) -> str:
    return str(getattr(owner, "__module__", "")).partition(".")[0]


def _release(held: list[Block]) -> None:
    while held:
        held.pop().release()
