"""What an event loop is given inside a block is steered to its end: callbacks, timers, tasks, other threads' loops."""

from __future__ import annotations

import asyncio
import gc
import threading
import types
from collections.abc import Callable, Generator, Iterator
from contextvars import Context, copy_context
from typing import Any

import pytest
import torch
from reference import WITH_IMAGE, adds, directions, edited, only, state, vector
from torch import Tensor

import steerkit as sk


class Asked:
    """One prompt, and the logits that it has with a vector and without."""

    def __init__(self, vlm: sk.VLM) -> None:
        self.model: Any = vlm.model
        self.inputs = vlm.inputs(WITH_IMAGE[:1])
        tensors = directions(vlm)
        self.vector = vector(vlm, tensors)
        self.plain = self.logits()
        with edited(vlm.model, "llava", adds(tensors, only(self.inputs["input_ids"].shape[1] - 1))):
            self.right = self.logits()
        self.before = state(vlm.model)

    def logits(self) -> Tensor:
        with torch.no_grad():
            return self.model(**self.inputs).logits[:, -1]

    def now(self) -> str:
        """How a call that is made here is steered."""
        logits = self.logits()
        names = {"steered": self.right, "plain": self.plain}
        return next((name for name, right in names.items() if torch.allclose(logits, right, atol=1e-4)), "?")

    def steer(self) -> sk.steer:
        return sk.steer(self.model, self.vector, policy="off")


@pytest.fixture(scope="module")
def asked(vlm_of: Any) -> Asked:
    made = Asked(vlm_of("llava"))
    assert not torch.allclose(made.right, made.plain, atol=1e-2)
    return made


WAYS: dict[str, Callable[[Any, Any], object]] = {
    "call_soon": lambda loop, work: loop.call_soon(work),
    "call_later": lambda loop, work: loop.call_later(0.01, work),
    "call_at": lambda loop, work: loop.call_at(loop.time() + 0.01, work),
    "call_soon_threadsafe": lambda loop, work: loop.call_soon_threadsafe(work),
    "a timer that starts a task": lambda loop, work: loop.call_later(0.01, lambda: loop.create_task(later(work))),
    "a task nobody waits for": lambda loop, work: loop.create_task(later(later_still(work))),
}
_kept: set[Any] = set()


async def later(work: Any) -> None:
    await asyncio.sleep(0.01)
    await work if asyncio.iscoroutine(work) else work()


async def later_still(work: Any) -> None:
    task = asyncio.get_running_loop().create_task(later(work))
    _kept.add(task)
    task.add_done_callback(_kept.discard)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_loop_is_given_is_steered_after_the_block(asked: Asked, way: str) -> None:
    async def main() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        with asked.steer():
            handle = WAYS[way](loop, lambda: done.set_result(asked.now()))
            assert asked.now() == "steered"
        here = asked.now()
        found = await done
        del handle
        return here, found

    assert asyncio.run(main()) == ("plain", "steered")
    gc.collect()
    assert state(asked.model) == asked.before


def test_a_coroutine_given_to_the_loop_of_another_thread(asked: Asked) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    go = threading.Event()

    async def ask() -> str:
        await asyncio.to_thread(go.wait, 60)
        return asked.now()

    try:
        with asked.steer():
            future = asyncio.run_coroutine_threadsafe(ask(), loop)
            assert asked.now() == "steered"
        go.set()
        assert future.result(60) == "steered"
        assert asyncio.run_coroutine_threadsafe(ask(), loop).result(60) == "plain"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    gc.collect()
    assert state(asked.model) == asked.before


@pytest.mark.parametrize("ends", ["cancelled", "the loop is closed"])
def test_a_callback_that_never_runs_holds_nothing(asked: Asked, ends: str) -> None:
    loop = asyncio.new_event_loop()

    async def main() -> Any:
        with asked.steer():
            handle = asyncio.get_running_loop().call_later(3600, asked.now)
            assert asked.now() == "steered"
        return handle

    handle = loop.run_until_complete(main())
    if ends == "cancelled":
        handle.cancel()
    loop.close()
    del loop, handle
    gc.collect()
    assert state(asked.model) == asked.before


def test_timers_of_asyncio_itself_keep_no_block_open(asked: Asked) -> None:
    async def main() -> list[Any]:
        with asked.steer():
            asleep = asyncio.ensure_future(asyncio.sleep(0.001))
            async with asyncio.timeout(3600):
                await asleep
            assert asked.now() == "steered"
        return state(asked.model)

    assert asyncio.run(main()) == asked.before


@pytest.mark.filterwarnings("ignore::steerkit.engines.blocks.UnsteeredCallWarning")
def test_a_loop_that_is_a_generator_waits_and_is_not_suspended(asked: Asked) -> None:
    """As trio's is: while it waits, its tasks' threads go on, which it gives a copy of the task's context."""
    found: list[str] = []
    contexts: list[Context] = []

    @types.coroutine
    def pause() -> Generator[None, None, None]:
        yield

    async def serve() -> None:
        with asked.steer():
            found.append(asked.now())
            contexts.append(copy_context())
            await pause()
            found.append(asked.now())

    def loop(task: Any) -> Iterator[None]:
        context = Context()
        try:
            while True:
                context.run(task.send, None)
                yield
        except StopIteration:
            return

    running = loop(serve())
    next(running)
    assert contexts[0].run(asked.now) == "steered"
    assert asked.now() == "plain"
    assert list(running) == []
    assert found == ["steered", "steered"]
    assert state(asked.model) == asked.before
