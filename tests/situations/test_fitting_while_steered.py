"""A vector is fitted while the model that it is measured on is steered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest
import torch
from reference import WITH_IMAGE, directions, vector

import steerkit as sk
from steerkit.errors import EngineError
from steerkit.testing import tiny

FITS: dict[str, Callable[[sk.VLM, Any], Any]] = {
    "fit": lambda vlm, engine: sk.CMRM(counterpart="blank").fit(vlm, WITH_IMAGE, engine=engine),
    "fit of the raw model": lambda vlm, engine: sk.CMRM(counterpart="blank").fit(
        vlm.model, vlm.processor, WITH_IMAGE, engine=engine
    ),
    "measure": lambda vlm, engine: sk.CMRM(counterpart="blank").measure(vlm, WITH_IMAGE, 0, engine=engine),
}


@pytest.fixture(scope="module")
def steering(llava: sk.VLM) -> sk.SteeringVector:
    return vector(llava, directions(llava))


def equal(one: sk.SteeringVector, other: sk.SteeringVector) -> bool:
    return all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("way", FITS)
def test_it_is_refused_and_the_block_named(llava: sk.VLM, steering: sk.SteeringVector, way: str, engine: str) -> None:
    for opened in ("hooks", "nnsight"):
        with sk.steer(llava, steering, engine=opened):  # type: ignore[arg-type]
            with pytest.raises(EngineError, match="inside a steering block") as caught:
                FITS[way](llava, engine)
            assert steering.metadata.method.name in caught.value.problem
            assert caught.value.fix
            llava.generate(WITH_IMAGE, max_new_tokens=1)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_what_is_measured_aside_is_as_before(llava: sk.VLM, steering: sk.SteeringVector, engine: str) -> None:
    expected = FITS["fit"](llava, engine)
    with sk.steer(llava, steering):
        with llava.unnoticed():
            found = FITS["fit"](llava, engine)
        llava.generate(WITH_IMAGE, max_new_tokens=1)
    assert equal(found, expected)


@pytest.mark.filterwarnings("ignore::steerkit.steering.UnsteeredCallWarning")
def test_blocks_of_other_contexts_and_models_do_not_matter(llava: sk.VLM, steering: sk.SteeringVector) -> None:
    expected, other = FITS["fit"](llava, "hooks"), tiny.vlm("llava")
    found: list[sk.SteeringVector] = []
    with sk.steer(llava, steering):
        found.append(Context().run(FITS["fit"], llava, "hooks"))
        llava.generate(WITH_IMAGE, max_new_tokens=1)
    with sk.steer(other, vector(other, directions(other))):
        found.append(FITS["fit"](llava, "hooks"))
        other.generate(WITH_IMAGE, max_new_tokens=1)
    assert all(equal(each, expected) for each in found)


def test_a_block_for_all_contexts_and_threads_of_one_are_found(llava: sk.VLM, steering: sk.SteeringVector) -> None:
    raised: list[BaseException | None] = []

    def fit() -> None:
        with pytest.raises(EngineError, match="inside a steering block"):
            FITS["fit"](llava, "hooks")
        raised.append(None)

    async def task() -> None:
        fit()
        await asyncio.to_thread(fit)

    with sk.steer(llava, steering, scope="all"):
        Context().run(fit)
        llava.generate(WITH_IMAGE, max_new_tokens=1)
    with sk.steer(llava, steering):
        asyncio.run(task())
        thread = threading.Thread(target=fit)
        thread.start()
        thread.join()
        llava.generate(WITH_IMAGE, max_new_tokens=1)
    assert len(raised) == 4


def test_a_block_for_all_that_is_opened_while_a_fit_runs_is_found(llava: sk.VLM, steering: sk.SteeringVector) -> None:
    blocks: list[Any] = []

    def opens(done: int, total: int) -> None:
        if not blocks:
            blocks.append(sk.steer(llava, steering, scope="all"))
            blocks[0].__enter__()

    with pytest.raises(EngineError, match="inside a steering block"):
        sk.CMRM(counterpart="blank").fit(llava, WITH_IMAGE, engine="hooks", batch_size=1, progress=opens)
    llava.generate(WITH_IMAGE, max_new_tokens=1)
    blocks[0].__exit__(None, None, None)
