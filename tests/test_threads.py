"""Threads steer one model differently at once, and a block that is asked to steers every thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
import transformers
from reference import TEXT_ONLY, WITH_IMAGE, directions, state, vector

import steerkit as sk
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


def test_another_threads_calls_are_not_steered(llava: sk.VLM) -> None:
    steering = vector(llava, directions(llava))
    inputs = llava.inputs(TEXT_ONLY)
    plain = llava.model.generate(**inputs, **OPTIONS)
    with ThreadPoolExecutor(1) as pool, pytest.raises(NothingSteeredError, match="threads='all'"):
        with sk.steer(llava, steering):
            found = pool.submit(lambda: llava.model.generate(**inputs, **OPTIONS)).result()
    assert torch.equal(found, plain)


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
        ids, others = pool.submit(run).result()
        assert torch.equal(ids, plain)
        assert others == count
        assert run()[1] == count + 2
    counting.remove()


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_a_worker_thread_is_steered_on_demand(llava: sk.VLM, level: str) -> None:
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
    with sk.steer(llava, steering, threads="all") as receipt:
        worker = Thread(target=llava.model.generate, kwargs={**inputs, **OPTIONS, "streamer": streamer})
        worker.start()
        streamed = "".join(streamer)
        worker.join(timeout=60)
    assert streamed == steered
    assert receipt.prompt_tokens == 1
