"""Threads steer one model differently at once, and a block that is asked to steers every thread."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from queue import Queue
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
import transformers
from reference import TEXT_ONLY, WITH_IMAGE, directions, state, vector

import steerkit as sk
from steerkit.engines.blocks import UnsteeredCallWarning
from steerkit.errors import NothingSteeredError

ROUNDS = 24
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
STRENGTHS = (1.0, -1.0, 0.0)
"""0.0: the third thread does not steer."""


def answer(vlm: sk.VLM, steering: sk.SteeringVector, inputs: Any, strength: float) -> torch.Tensor:
    with torch.no_grad():
        if not strength:
            return vlm.model.generate(**inputs, **OPTIONS)
        with sk.steer(vlm, steering, strength=strength):
            return vlm.model.generate(**inputs, **OPTIONS)


@pytest.mark.filterwarnings("ignore::steerkit.engines.blocks.UnsteeredCallWarning")
@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_threads_do_not_meet(llava: sk.VLM, level: str) -> None:
    if level == "sample":
        steering = sk.CMRM(level="sample", counterpart="blank", phase="both").fit(llava)
    else:
        steering = vector(llava, directions(llava))
    shown = [llava.inputs(WITH_IMAGE[:2]), llava.inputs(WITH_IMAGE[1:]), llava.inputs(TEXT_ONLY)]
    alone = [answer(llava, steering, *each) for each in zip(shown, STRENGTHS, strict=True)]
    unsteered = [answer(llava, steering, inputs, 0.0) for inputs in shown]
    assert [torch.equal(a, b) for a, b in zip(alone, unsteered, strict=True)] == [False, False, True]
    before = state(llava.model)
    barrier = Barrier(3, timeout=60)

    def work(index: int) -> list[torch.Tensor]:
        found = []
        for _ in range(ROUNDS):
            barrier.wait()
            found.append(answer(llava, steering, shown[index], STRENGTHS[index]))
        return found

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(work, range(3)))
    for found, expected in zip(answers, alone, strict=True):
        assert len(found) == ROUNDS
        assert all(torch.equal(one, expected) for one in found)
    assert state(llava.model) == before


def test_a_thread_that_was_there_before_is_not_steered_and_is_told(llava: sk.VLM) -> None:
    steering = vector(llava, directions(llava))
    inputs = llava.inputs(TEXT_ONLY)
    plain = llava.model.generate(**inputs, **OPTIONS)
    asked, answered = Queue[bool](), Queue[torch.Tensor]()

    def serve() -> None:
        while asked.get():
            answered.put(llava.model.generate(**inputs, **OPTIONS))

    server = Thread(target=serve)
    server.start()
    block = sk.steer(llava, steering)
    receipt = block.__enter__()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            asked.put(True)
            assert torch.equal(answered.get(timeout=60), plain)
    with pytest.raises(NothingSteeredError, match="scope='all'"):
        block.__exit__(None, None, None)
    asked.put(False)
    server.join()
    assert [each.category for each in said] == [UnsteeredCallWarning]
    assert said[0].filename == __file__
    assert receipt.unsteered_calls == 2


@pytest.mark.filterwarnings("ignore::steerkit.engines.blocks.UnsteeredCallWarning")
def test_another_threads_prompts_are_not_measured(llava: sk.VLM) -> None:
    """What this thread does not steer is not measured: its passes are as many as without a block."""
    steering = sk.CMRM(level="sample", counterpart="blank").fit(llava)
    image = llava.inputs(WITH_IMAGE)
    passes: list[int] = []
    decoder = llava.model.get_submodule(llava.architecture.decoder)
    counting = decoder.register_forward_pre_hook(lambda *_: passes.append(1))

    def run() -> tuple[torch.Tensor, int]:
        passes.clear()
        return llava.model.generate(**image, **OPTIONS), len(passes)

    plain, count = run()
    with ThreadPoolExecutor(1) as pool, sk.steer(llava, steering):
        ids, others = pool.submit(Context().run, run).result()  # a context that is nobody's
        assert torch.equal(ids, plain)
        assert others == count
        assert run()[1] == count + 2
    counting.remove()


@pytest.mark.parametrize("level", ["dataset", "sample"])
@pytest.mark.parametrize("scope", ["context", "all"])
def test_a_thread_that_is_started_inside_is_steered(llava: sk.VLM, level: str, scope: Any) -> None:
    if level == "sample":
        steering = sk.CMRM(level="sample", counterpart="blank").fit(llava)
    else:
        steering = vector(llava, directions(llava))
    inputs = llava.inputs(WITH_IMAGE[:1])
    tokenizer = llava.processor.tokenizer
    length = inputs["input_ids"].shape[1]

    def text(ids: torch.Tensor) -> str:
        return tokenizer.decode(ids[0, length:], skip_special_tokens=True)

    steered = text(answer(llava, steering, inputs, 1.0))
    assert steered != text(answer(llava, steering, inputs, 0.0))
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    with sk.steer(llava, steering, scope=scope) as receipt:
        worker = Thread(target=llava.model.generate, kwargs={**inputs, **OPTIONS, "streamer": streamer})
        worker.start()
        streamed = "".join(streamer)
        worker.join(timeout=60)
    assert streamed == steered
    assert receipt.prompt_tokens == 1
