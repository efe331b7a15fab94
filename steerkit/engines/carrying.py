"""Takes the open blocks into threads, tasks and callbacks that are started inside them, and keeps them open for these.

`asyncio.to_thread`, anyio (so Starlette and FastAPI) and tasks of an event loop run in a copy of the context of whoever
starts them. `threading.Thread` and `concurrent.futures.ThreadPoolExecutor` (so `loop.run_in_executor`) run in the
context of nobody, before free-threaded Python 3.14. There is no other moment than the start of a thread at which it can
be known who started it: so these two methods are wrapped for as long as any block is open, and put back afterwards.
So are the methods of event loops by which tasks and callbacks begin: Python brings their context along, and would let a
block end before them.
Outside of blocks the wrappers change nothing; inside, the new thread gets the blocks and what else of ours is said in a
context (`carry_along`), and no other context variable.

The workers of an executor outlive what is submitted to them, so that each piece of work brings its own blocks along; so
it is with `multiprocessing.pool.ThreadPool`, which joblib uses for threads. Workers of other pools take their work from
a queue as well, and are given no blocks; anyio's bring contexts along.

A thread, a task or a piece of work keeps its blocks from being closed until it is done: what was started inside is
steered to its end, whether its call of the model came before the end of the block or after.
"""

from __future__ import annotations

import asyncio
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

_CALLBACK_AT = {"call_soon": 0, "call_soon_threadsafe": 0, "call_later": 1, "call_at": 1}
"""Which of the arguments is the callback."""
_ASYNCIO = {"asyncio", "_asyncio"}

_lock = threading.Lock()
_users = 0
_undo: list[Callable[[], None]] = []
_along: list[ContextVar[Any]] = []


def carry_along(variable: ContextVar[Any]) -> None:
    """Take a context variable, whose default is None, wherever blocks are taken."""
    _along.append(variable)


@contextmanager
def carried() -> Iterator[None]:
    """Threads and tasks that are started in the time of this context are inside the blocks of whoever starts them."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _undo.append(_wrap(threading.Thread, "start", _start))
            _undo.append(_wrap(ThreadPoolExecutor, "submit", _submit))
            _undo.append(_wrap(Future, "add_done_callback", _when_done))
            for name in _POOL_METHODS:
                _undo.append(_wrap(ThreadPool, name, functools.partial(_give, holds=name not in ("map", "starmap"))))
            for loop in asyncio.AbstractEventLoop.__subclasses__():  # asyncio's own, and uvloop's
                _undo.append(_wrap(loop, "create_task", _create))
                for name, at in _CALLBACK_AT.items():
                    _undo.append(_wrap(loop, name, functools.partial(_schedule, at=at)))
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
    if any(kind.__name__ == "InterpreterPoolExecutor" for kind in type(pool).__mro__):  # what it is given is pickled
        return inner(pool, work, *args, **kwargs)
    held = [block for block in blocks if block.hold()]
    work_inside = _inside(work, blocks, held)
    try:
        # a worker that is started now serves others later
        with inside(()), _saying([(variable, None) for variable in _along]):
            future = inner(pool, work_inside, *args, **kwargs)
            future.add_done_callback(lambda _: _release(held))  # it may be cancelled
    except BaseException:
        _release(held)
        raise
    return future


def _when_done(
    inner: Callable[..., None], blocks: tuple[Block, ...], future: Future[Any], callback: Callable[[Future[Any]], Any]
) -> None:
    """What is called by a worker of a pool once a future is done, in the context of nobody."""
    if {_package(callback), _package(type(callback))} & _ASYNCIO:
        inner(future, callback)
        return
    held = [block for block in blocks if block.hold()]
    called = _inside(callback, blocks, held)
    weakref.finalize(called, _release, held)  # the future may never be done
    inner(future, called)


def _inside(work: Callable[..., Any], blocks: tuple[Block, ...], held: list[Block]) -> Callable[..., Any]:
    """Work that runs once, inside of blocks, and lets go of them then."""
    said = _said()

    def work_inside(*args: Any, **kwargs: Any) -> Any:
        try:
            with inside(blocks), _saying(said):
                return work(*args, **kwargs)
        finally:
            _release(held)

    return work_inside


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


def _create(inner: Callable[..., Any], blocks: tuple[Block, ...], *given: Any, **named: Any) -> Any:
    if named.get("context") is not None:
        return inner(*given, **named)
    held = [block for block in blocks if block.hold()]
    try:
        with inside(blocks):
            task = inner(*given, **named)
    except BaseException:
        _release(held)
        raise
    task.add_done_callback(lambda _: _release(held))
    weakref.finalize(task, _release, held)  # of a loop that is closed before it is done
    return task


def _schedule(
    inner: Callable[..., Any],
    blocks: tuple[Block, ...],
    loop: asyncio.AbstractEventLoop,
    *given: Any,
    at: int,
    **named: Any,
) -> Any:
    callback = given[at] if len(given) > at else None
    # what asyncio itself puts off does not call the model; of another thread, it starts a task
    own = inner.__name__ != "call_soon_threadsafe" and {_package(callback), _package(type(callback))} & _ASYNCIO
    if own or callback is None or named.get("context") is not None:
        return inner(loop, *given, **named)
    held = [block for block in blocks if block.hold()]

    def work(*args: Any) -> Any:
        try:
            return callback(*args)
        finally:
            _release(held)

    weakref.finalize(work, _release, held)  # it may be cancelled
    with inside(blocks):
        return inner(loop, *given[:at], work, *given[at + 1 :], **named)


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
