"""Each request gets its own vectors and nobody else's: tasks, threads, executors, servers, generators.

What each should get is measured alone, by plain hooks, before anything runs at once.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import Context
from multiprocessing.pool import ThreadPool
from typing import Any

import anyio.to_thread
import greenlet
import pytest
import torch
import transformers
from reference import WITH_IMAGE, adds, directions, edited, only, since, state, vector
from torch import Tensor

import steerkit as sk
from steerkit.engines.blocks import UnsteeredCallWarning
from steerkit.errors import NothingSteeredError

bystanders = pytest.mark.filterwarnings("ignore::steerkit.engines.blocks.UnsteeredCallWarning")


class Requests:
    """One prompt, three ways of steering it, and the logits that each must give."""

    def __init__(self, vlm: sk.VLM) -> None:
        self.model: Any = vlm.model
        self.inputs = vlm.inputs(WITH_IMAGE[:1])
        last = self.inputs["input_ids"].shape[1] - 1
        self.vectors = {}
        self.right = {"nothing": self.ask()}
        for seed, name in enumerate("AB"):
            tensors = directions(vlm, seed=seed)
            self.vectors[name] = vector(vlm, tensors)
            with edited(vlm.model, "llava", adds(tensors, only(last))):
                self.right[name] = self.ask()
        with edited(
            vlm.model, "llava", [*adds(directions(vlm, seed=0), only(last)), *adds(directions(vlm, seed=1), only(last))]
        ):
            self.right["A and B"] = self.ask()

    def ask(self) -> Tensor:
        with torch.no_grad():
            return self.model(**self.inputs).logits[:, -1]

    def named(self) -> str:
        """By whose vector a call that is made here is steered."""
        logits = self.ask()
        return next((name for name, right in self.right.items() if torch.allclose(logits, right, atol=1e-4)), "?")

    def steer(self, name: str, **options: Any) -> sk.steer:
        return sk.steer(self.model, self.vectors[name], policy="off", **options)


@pytest.fixture(scope="module")
def requests(vlm_of: Any) -> Requests:
    made = Requests(vlm_of("llava"))
    pairs = [(a, b) for a in made.right for b in made.right if a < b]
    assert all(not torch.allclose(made.right[a], made.right[b], atol=1e-2) for a, b in pairs)
    return made


@bystanders
def test_concurrent_tasks_of_one_event_loop(requests: Requests) -> None:
    before = state(requests.model)

    async def handle(name: str, order: list[str], turn: asyncio.Barrier) -> None:
        with requests.steer(name):
            await turn.wait()
            order.append(name + requests.named())
            await turn.wait()
            order.append(name + await asyncio.to_thread(requests.named))
            order.append(name + await asyncio.get_running_loop().run_in_executor(None, requests.named))
            order.append(name + await anyio.to_thread.run_sync(requests.named))
            order.append(name + await asyncio.create_task(soon()))

    async def soon() -> str:
        await asyncio.sleep(0)
        return requests.named()

    async def bystander(turn: asyncio.Barrier) -> list[str]:
        await turn.wait()
        first = requests.named()
        await turn.wait()
        return [first, await asyncio.to_thread(requests.named)]

    async def main() -> tuple[list[str], list[str]]:
        order: list[str] = []
        turn = asyncio.Barrier(3)
        *_, other = await asyncio.gather(handle("A", order, turn), handle("B", order, turn), bystander(turn))
        return order, other

    order, other = asyncio.run(main())
    assert sorted(order) == ["AA"] * 5 + ["BB"] * 5
    assert other == ["nothing"] * 2
    assert requests.named() == "nothing"
    assert state(requests.model) == before


@pytest.mark.parametrize("scope", ["context", "all"])
def test_streams_at_the_same_time(vlm_of: Any, scope: Any) -> None:
    vlm = vlm_of("qwen3")
    model, tokenizer = vlm.model, vlm.processor
    inputs = tokenizer("What is in this picture?", return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    length = inputs["input_ids"].shape[1]
    right = []
    for seed in range(2):
        with edited(model, "decoder", adds(directions(vlm, seed=seed), since(length - 1))):
            right.append(model.generate(**inputs, **options).tolist())
    assert right[0] != right[1]
    turn = threading.Barrier(2, timeout=60)
    found: dict[int, list[Any]] = {}

    def serve(seed: int) -> None:
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)

        def work() -> None:
            found[seed] = model.generate(**inputs, **options, streamer=streamer).tolist()

        with sk.steer(vlm, vector(vlm, directions(vlm, seed=seed)), policy="off", scope=scope):
            turn.wait()
            worker = threading.Thread(target=work)
            worker.start()
            assert "".join(streamer)
            worker.join()
            turn.wait()

    servers = [threading.Thread(target=serve, args=(seed,)) for seed in range(2)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    assert [found[0], found[1]] == right


@bystanders
def test_work_given_to_an_executor_is_steered_as_where_it_was_given(requests: Requests) -> None:
    """The workers are started by one request, and serve the next."""
    with ThreadPoolExecutor(2) as pool:
        for name in ("A", "B"):
            with requests.steer(name):
                assert list(pool.map(lambda _: requests.named(), range(4))) == [name] * 4
            assert pool.submit(requests.named).result() == "nothing"
        block = requests.steer("A")
        with block:
            requests.named()
            other = threading.Thread(target=lambda: found.append(requests.named()))
            found: list[str] = []
            other.start()
            other.join()
            assert found == ["A"]


@bystanders
@pytest.mark.parametrize("done", ["before", "inside", "after", "never"])
def test_what_is_called_once_a_future_is_done_is_steered_as_where_it_was_asked_for(
    requests: Requests, done: str
) -> None:
    before, go, found = state(requests.model), threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with requests.steer("A"):
            requests.named()
            future: Any = Future() if done == "never" else pool.submit(go.wait, 60)
            if done == "before":
                go.set()
                future.result()
            future.add_done_callback(lambda each: found.append((requests.named(), each is future)))
            if done == "inside":
                go.set()
                pool.submit(int).result()
        assert requests.named() == "nothing"
        go.set()
        pool.submit(int).result()
        assert found == ([] if done == "never" else [("A", True)])
        assert pool.submit(requests.named).result() == "nothing"
    del future
    gc.collect()
    assert state(requests.model) == before


POOLS: dict[str, Callable[[ThreadPool, Callable[[], str]], list[str]]] = {
    "apply": lambda pool, ask: [pool.apply(ask) for _ in range(3)],
    "apply_async": lambda pool, ask: [pool.apply_async(func=ask).get() for _ in range(3)],
    "map": lambda pool, ask: pool.map(lambda _: ask(), range(3)),
    "starmap": lambda pool, ask: pool.starmap(lambda *_: ask(), [(1, 2)] * 3),
    "map_async": lambda pool, ask: pool.map_async(lambda _: ask(), range(3)).get(),
    "imap": lambda pool, ask: list(pool.imap(lambda _: ask(), range(3))),
    "imap_unordered": lambda pool, ask: list(pool.imap_unordered(lambda _: ask(), range(3))),
}


@bystanders
@pytest.mark.parametrize("way", POOLS)
def test_work_given_to_a_pool_of_threads_is_steered_as_where_it_was_given(requests: Requests, way: str) -> None:
    """As by joblib. The threads are there before any block is opened."""
    with ThreadPool(2) as pool:
        for name in ("A", "B"):
            with requests.steer(name):
                assert POOLS[way](pool, requests.named) == [name] * 3
        assert POOLS[way](pool, requests.named) == ["nothing"] * 3


@bystanders
@pytest.mark.parametrize("way", ["apply_async", "map_async", "imap"])
def test_what_a_pool_of_threads_was_given_is_steered_to_its_end(requests: Requests, way: str) -> None:
    before, go = state(requests.model), threading.Event()

    def later(_: object) -> str:
        assert go.wait(60)
        return requests.named()

    with ThreadPool(2) as pool:
        with requests.steer("A"):
            requests.named()
            given: Any = pool.apply_async(later, (0,)) if way == "apply_async" else getattr(pool, way)(later, range(3))
        go.set()
        found = [given.get()] if way == "apply_async" else list(given.get() if way == "map_async" else given)
        assert set(found) == {"A"}
        pool.close()
        pool.join()
    assert state(requests.model) == before


@bystanders
def test_greenlets_that_switch_in_the_middle_of_a_call(requests: Requests) -> None:
    """As under gevent: several requests take turns in one thread, each between its own passes and layers."""
    right = {}
    for name in ("A", "B", "nothing"):
        with requests.steer(name) if name in requests.vectors else nullcontext():
            right[name] = answered(requests, [])
    found: dict[str, Tensor] = {}

    def serve(name: str) -> None:
        with requests.steer(name) if name in requests.vectors else nullcontext():
            found[name] = answered(requests, [lambda ids, scores: (hub.switch(), scores)[1]])

    hub = greenlet.getcurrent()
    waiting = [(greenlet.greenlet(serve), name) for name in right]
    # PyTorch's grad mode is the thread's: each generate would restore what the one before it has set
    with torch.no_grad():
        for one, name in waiting:
            one.switch(name)
        while any(not one.dead for one, _ in waiting):
            for one, _ in waiting:
                one.switch()
    for name, logits in right.items():
        torch.testing.assert_close(found[name], logits, atol=1e-4, rtol=1e-4)


def answered(requests: Requests, processors: list[Any]) -> Tensor:
    output = requests.model.generate(
        **requests.inputs,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=transformers.LogitsProcessorList(processors),
    )
    return torch.cat(output.logits)


def test_a_block_that_is_opened_at_start_up_says_that_requests_pass_it_by(requests: Requests) -> None:
    """As the lifespan of a server, which runs in a task of its own: the requests are other tasks."""

    @asynccontextmanager
    async def lifespan(scope: Any) -> AsyncIterator[Any]:
        with requests.steer("A", scope=scope) as receipt:
            requests.named()  # warm-up
            yield receipt

    async def serve(scope: Any) -> tuple[list[str], Any]:
        up, down = asyncio.Event(), asyncio.Event()
        receipts = []

        async def run() -> None:
            async with lifespan(scope) as receipt:
                receipts.append(receipt)
                up.set()
                await down.wait()

        running = asyncio.create_task(run())
        await up.wait()
        answers = [await asyncio.create_task(asyncio.to_thread(requests.named)) for _ in range(3)]
        down.set()
        await running
        return answers, receipts[0]

    with pytest.warns(UnsteeredCallWarning, match="scope='all'") as said:
        answers, receipt = asyncio.run(serve("context"))
    assert answers == ["nothing"] * 3
    assert len(said) == 1
    assert receipt.unsteered_calls == 3
    assert "3 calls from outside the block not steered" in str(receipt)
    answers, receipt = asyncio.run(serve("all"))
    assert answers == ["A"] * 3
    assert receipt.unsteered_calls == 0


def test_a_block_for_all_contexts_comes_on_top_of_a_requests_own(requests: Requests) -> None:
    with requests.steer("A", scope="all"), ThreadPoolExecutor(1) as pool:
        there_before = pool.submit(lambda: None)
        there_before.result()

        def request() -> str:
            with requests.steer("B"):
                return requests.named()

        assert pool.submit(Context().run, request).result() == "A and B"
        assert pool.submit(Context().run, requests.named).result() == "A"


# -- generators --------------------------------------------------------------------------------------------------------


@bystanders
def test_the_consumer_of_a_generator_is_not_inside_its_block(requests: Requests) -> None:
    def stream(name: str) -> Iterator[str]:
        with requests.steer(name):
            for _ in range(2):
                yield requests.named()

    one, other = stream("A"), stream("B")
    seen = [(next(one), requests.named(), next(other), requests.named()) for _ in range(2)]
    assert seen == [("A", "nothing", "B", "nothing")] * 2
    assert [*one, *other] == []


def test_the_consumer_is_told(requests: Requests) -> None:
    def stream() -> Iterator[str]:
        with requests.steer("A"):
            yield requests.named()

    opened = stream()
    assert next(opened) == "A"
    with pytest.warns(UnsteeredCallWarning):
        assert requests.named() == "nothing"
    opened.close()


@bystanders
def test_a_generator_that_each_step_resumes_in_another_context(requests: Requests) -> None:
    """As Starlette streams a plain generator: each value from a worker thread, in a copy of the request's context."""

    def stream() -> Iterator[str]:
        with requests.steer("A"):
            yield requests.named()
            with ThreadPoolExecutor(1) as pool:
                yield pool.submit(requests.named).result()
            yield requests.named()

    async def main() -> list[str]:
        values = stream()
        return [await asyncio.to_thread(next, values, "end") for _ in range(4)]

    assert asyncio.run(main()) == ["A", "A", "A", "end"]


@bystanders
def test_an_async_generator_that_asks_in_other_threads_and_tasks(requests: Requests) -> None:
    async def stream() -> AsyncIterator[str]:
        with requests.steer("A"):
            yield requests.named()
            yield await asyncio.to_thread(requests.named)
            yield await anyio.to_thread.run_sync(requests.named)
            yield await asyncio.create_task(soon())

    async def soon() -> str:
        return requests.named()

    async def main() -> list[str]:
        found = []
        async for value in stream():
            found += [
                value,
                requests.named(),
                await asyncio.to_thread(requests.named),
                await asyncio.create_task(soon()),
            ]
        return found

    assert asyncio.run(main()) == ["A", "nothing", "nothing", "nothing"] * 4


def test_a_context_manager_of_ones_own_is_no_such_generator(requests: Requests) -> None:
    @contextmanager
    def polite(name: str) -> Iterator[None]:
        with requests.steer(name):
            yield

    with polite("A"):
        assert requests.named() == "A"

    def stream() -> Iterator[str]:
        with polite("A"):
            yield requests.named()

    values = stream()
    assert next(values) == "A"
    with pytest.warns(UnsteeredCallWarning):
        assert requests.named() == "nothing"
    values.close()


# -- left early --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["context", "all"])
@pytest.mark.parametrize("when", ["in the middle", "before the call"])
def test_what_was_started_inside_is_steered_to_its_end(vlm_of: Any, scope: Any, when: str) -> None:
    vlm = vlm_of("llava")
    model, inputs = vlm.model, vlm.inputs(WITH_IMAGE[:1])
    tokenizer, length = vlm.processor.tokenizer, inputs["input_ids"].shape[1]
    options: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    tensors = directions(vlm)
    both = sk.Intervention(phase="both")
    with edited(model, "llava", adds(tensors, since(length - 1))):
        right = model.generate(**inputs, **options)
    before = state(model)
    go = threading.Event()
    found: list[Tensor] = []

    def work(streamer: Any) -> None:
        if when == "before the call":
            assert go.wait(60)
        found.append(model.generate(**inputs, **options, streamer=streamer))

    streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60)
    with sk.steer(vlm, vector(vlm, tensors, both), policy="off", scope=scope) as receipt:
        worker = threading.Thread(target=work, args=(streamer,), daemon=True)
        worker.start()
        if when == "in the middle":
            next(iter(streamer))
    go.set()
    worker.join()
    assert torch.equal(found[0], right)
    assert receipt.generated_tokens == 29
    assert state(model) == before


def test_tasks_that_were_started_inside_are_steered_to_their_end(requests: Requests) -> None:
    before = state(requests.model)

    async def later(go: asyncio.Event) -> str:
        await go.wait()
        return requests.named()

    async def main() -> tuple[str, str]:
        go = asyncio.Event()
        with requests.steer("A"):
            task = asyncio.create_task(later(go))
            await asyncio.sleep(0)
        here = requests.named()
        go.set()
        return await task, here

    assert asyncio.run(main()) == ("A", "nothing")
    assert state(requests.model) == before


def test_what_such_a_task_starts_afterwards_is_steered_as_well(requests: Requests) -> None:
    before = state(requests.model)

    async def ask() -> str:
        return requests.named()

    async def later(go: asyncio.Event) -> list[str]:
        await go.wait()
        with ThreadPoolExecutor(1) as pool:
            in_pool = await asyncio.get_running_loop().run_in_executor(pool, requests.named)
        return [in_pool, await asyncio.create_task(ask()), await asyncio.to_thread(requests.named)]

    async def main() -> tuple[list[str], str]:
        go = asyncio.Event()
        with requests.steer("A"):
            task = asyncio.create_task(later(go))
            await asyncio.sleep(0)
        go.set()
        return await task, await asyncio.create_task(ask())

    assert asyncio.run(main()) == (["A", "A", "A"], "nothing")
    assert state(requests.model) == before


def test_a_task_is_not_steered_after_another_one_has_closed_its_generator(requests: Requests) -> None:
    async def endpoint() -> AsyncIterator[str]:
        with requests.steer("A"):
            while True:
                yield requests.named()

    async def main() -> list[str]:
        generator, begun, go = endpoint(), asyncio.Event(), asyncio.Event()

        async def consume() -> list[str]:
            first = await anext(generator)
            begun.set()
            await go.wait()
            return [first, requests.named()]

        task = asyncio.create_task(consume())
        await begun.wait()
        await generator.aclose()  # type: ignore[attr-defined]
        go.set()
        return await task

    assert asyncio.run(main()) == ["A", "nothing"]


def test_generate_that_was_taken_inside_and_is_called_later_says_so(vlm_of: Any) -> None:
    vlm = vlm_of("llava")
    inputs = vlm.inputs(WITH_IMAGE[:1])
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}
    plain = vlm.model.generate(**inputs, **options)
    with sk.steer(vlm, vector(vlm, directions(vlm)), policy="off"):
        vlm.model(**inputs)
        taken = vlm.model.generate
    assert torch.equal(taken(**inputs, **options), plain)


def test_work_that_calls_nothing_after_its_block_was_left_is_reported(requests: Requests) -> None:
    go = threading.Event()

    def work() -> None:
        go.wait(60)

    worker = threading.Thread(target=work)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with requests.steer("A"):
            worker.start()
        go.set()
        worker.join()
    assert any("not steered once" in str(each.message) for each in said)


@bystanders
def test_a_block_that_a_dead_thread_left_open_is_nobody_elses(requests: Requests) -> None:
    block = requests.steer("A")
    numbers = set()

    def leave_open() -> None:
        numbers.add(threading.get_ident())
        block.__enter__()
        assert requests.named() == "A"

    def later() -> None:
        numbers.add(threading.get_ident())
        found.append(requests.named())

    found: list[str] = []
    opener = threading.Thread(target=leave_open)
    opener.start()
    opener.join()
    for _ in range(3):
        reader = threading.Thread(target=later)
        reader.start()
        reader.join()
    block.__exit__(None, None, None)
    assert found == ["nothing"] * 3
    assert len(numbers) < 4  # the system gave a number twice


def test_threads_are_started_as_before_once_no_block_is_open(requests: Requests) -> None:
    start, submit, pools = threading.Thread.start, ThreadPoolExecutor.submit, dict(vars(ThreadPool))
    with requests.steer("A"), requests.steer("B"):
        assert threading.Thread.start is not start
        assert requests.named() == "A and B"
    assert threading.Thread.start is start
    assert ThreadPoolExecutor.submit is submit
    assert dict(vars(ThreadPool)) == pools
    with pytest.raises(NothingSteeredError), requests.steer("A"):
        pass
    assert threading.Thread.start is start


def test_a_thread_that_cannot_start_holds_nothing(requests: Requests) -> None:
    worker: Callable[..., Any] = threading.Thread(target=lambda: None).start
    worker()
    before = state(requests.model)
    with requests.steer("A"):
        requests.named()
        with pytest.raises(RuntimeError, match="once"):
            worker()
    assert state(requests.model) == before
