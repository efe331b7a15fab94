"""The tracker knows which prompt a thread is at, whatever happens, and leaves the model alone."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack
from typing import Any

import pytest
import tiny
import torch
from reference import CACHE, TEXT_ONLY, WITH_IMAGE, cache_of, generate, no_images, state

import steerkit as sk
from steerkit.engines.blocks import Block
from steerkit.engines.calls import CallTracker
from steerkit.engines.passes import Pass, Selection
from steerkit.engines.prompts import Prompt


class Watched:
    """Prompts and decoder passes of a model, as the tracker reports them."""

    def __init__(self, vlm: sk.VLM, tracker: CallTracker) -> None:
        self.prompts: list[Prompt] = []
        self.passes: list[Pass | None] = []
        self._stack = ExitStack()
        following = Block(self.prompts.append)
        self._stack.enter_context(tracker.follow(following))
        following.enter()
        self._stack.callback(following.end)
        block = vlm.model.get_submodule(vlm.architecture.site(0, "resid_post"))
        self._stack.callback(block.register_forward_hook(lambda *_: self.passes.append(tracker.current)).remove)
        self.stop = self._stack.close

    @property
    def extents(self) -> list[tuple[int, int, int, int]]:
        """`(rows, start, length, prompt length)` of each pass."""
        return [(p.rows, p.start, p.length, p.prompt_length) for p in self.passes if p is not None]


@pytest.fixture
def watched(llava: sk.VLM) -> Any:
    with CallTracker.of(llava.model, llava.architecture) as tracker:
        seen = Watched(llava, tracker)
        yield seen
        seen.stop()


def test_generate_is_one_prompt(llava: sk.VLM, watched: Watched) -> None:
    generate(llava.model, llava.inputs(WITH_IMAGE), steps=3)
    assert watched.extents == [(3, 0, 45, 45), (3, 45, 1, 45), (3, 46, 1, 45)]
    assert len(watched.prompts) == 1
    assert {id(p.prompt) for p in watched.passes if p is not None} == {id(watched.prompts[0])}
    assert watched.prompts[0].generating
    assert watched.prompts[0].length == 45


def test_passes_of_beams_chunks_and_no_cache(llava: sk.VLM, watched: Watched) -> None:
    inputs = llava.inputs(TEXT_ONLY)  # 27 positions
    generate(llava.model, inputs, steps=2, num_beams=2)
    generate(llava.model, inputs, steps=2, use_cache=False)
    generate(llava.model, inputs, steps=1, prefill_chunk_size=10)
    assert watched.extents == [
        *[(6, 0, 27, 27), (6, 27, 1, 27)],
        *[(3, 0, 27, 27), (3, 0, 28, 27)],
        *[(3, 0, 10, 27), (3, 10, 10, 27), (3, 20, 7, 27)],
    ]
    assert len(watched.prompts) == 3


def test_each_bare_pass_is_a_prompt(llava: sk.VLM, watched: Watched) -> None:
    inputs = llava.inputs(TEXT_ONLY)
    with torch.no_grad():
        cache = cache_of(llava.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]))
        llava.model(input_ids=torch.tensor([[70]] * 3), **{CACHE: cache})
        llava.model(input_ids=torch.tensor([[70, 71]] * 3), **{CACHE: cache})
        llava.model.model.language_model(input_ids=inputs["input_ids"])  # without the model around it
    assert watched.extents == [(3, 0, 27, 27), (3, 27, 1, 27), (3, 28, 2, 30), (3, 0, 27, 27)]
    assert [p.continues for p in watched.prompts] == [False, True, True, False]
    assert torch.equal(watched.prompts[0].input_ids, inputs["input_ids"])  # given by position


def test_an_encoder_decoder_begins_at_its_start_token(vlm_of: Any) -> None:
    vlm = vlm_of("instructblip-t5")
    for samples in (WITH_IMAGE, TEXT_ONLY):  # the whole model, and its language model
        with CallTracker.of(vlm.model, vlm.architecture) as tracker:
            seen = Watched(vlm, tracker)
            generate(vlm.model, vlm.inputs(samples), steps=3)
            seen.stop()
        assert seen.extents == [(3, 0, 1, 1), (3, 1, 1, 1), (3, 2, 1, 1)]
        assert len(seen.prompts) == 1


def test_a_language_model_inside_is_not_a_call_of_its_own(vlm_of: Any) -> None:
    vlm = vlm_of("instructblip-llama")
    with CallTracker.of(vlm.model, vlm.architecture) as tracker:
        seen = Watched(vlm, tracker)
        inputs = vlm.inputs(WITH_IMAGE)
        generate(vlm.model, inputs, steps=2)
        with torch.no_grad():
            vlm.model(**inputs)
        generate(vlm.model, vlm.inputs(TEXT_ONLY), steps=2)
        seen.stop()
    assert [set(p.inputs) >= {"pixel_values"} for p in seen.prompts] == [True, True, False]
    assert [p.length for p in seen.prompts] == [inputs["input_ids"].shape[1], None, seen.extents[-1][3]]


def test_unobserved_passes_are_nobodys(llava: sk.VLM) -> None:
    inputs = llava.inputs(TEXT_ONLY)
    with CallTracker.of(llava.model, llava.architecture) as tracker:
        seen = Watched(llava, tracker)
        with tracker.unobserved(), torch.no_grad():
            llava.model(**inputs)
            generate(llava.model, inputs, steps=2)
        assert seen.passes == [None] * 3
        assert seen.prompts == []
        generate(llava.model, inputs, steps=1)
        assert len(seen.prompts) == 1
        seen.stop()


def test_every_user_shares_a_tracker_and_the_last_removes_it(llava: sk.VLM) -> None:
    model = llava.model
    generate(model, llava.inputs(WITH_IMAGE), steps=1)  # the library keeps some hooks of its own
    before = state(model)
    with CallTracker.of(model, llava.architecture) as outer:
        with CallTracker.of(model, llava.architecture) as inner:
            assert outer is inner
        assert "generate" in vars(model)
        assert len(model._forward_pre_hooks) == 1
    assert state(model) == before
    with CallTracker.of(model, llava.architecture) as later:
        assert later is not outer


def test_a_tracker_does_not_keep_its_model() -> None:
    model, processor = tiny.build("vipllava")
    vlm = sk.wrap(model, processor)
    with CallTracker.of(model, vlm.architecture):
        vlm.generate(TEXT_ONLY[:1], max_new_tokens=1, **no_images(model))
    reference = weakref.ref(model)
    del model, vlm, processor
    gc.collect()
    assert reference() is None


def test_a_selection_reads_and_writes_its_own_tokens_only() -> None:
    h = torch.arange(24.0).reshape(2, 4, 3)
    kept = h.clone()
    column = Selection(1)
    pairs = Selection(None, torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]))
    assert torch.equal(column.read(h), h[:, 1])
    assert torch.equal(pairs.read(h), torch.stack([h[0, 3], h[1, 0], h[1, 2]]))
    assert (column.count(2), pairs.count(2)) == (2, 3)
    per_row = torch.tensor([5.0, 7.0])
    assert column.per_row(per_row).tolist() == [5.0, 7.0]
    assert pairs.per_row(per_row).tolist() == [5.0, 7.0, 7.0]
    for selection in (column, pairs):
        changed = selection.write(h, selection.read(h) + 100)
        assert torch.equal(h, kept)
        assert (changed != h).any(-1).sum() == selection.count(2)
        assert torch.equal(selection.read(changed), selection.read(h) + 100)


def test_padding_is_known_without_a_mask_as_generate_knows_it(llava: sk.VLM, watched: Watched) -> None:
    inputs = llava.inputs(TEXT_ONLY)
    assert not inputs["attention_mask"].all()
    generate(llava.model, {"input_ids": inputs["input_ids"]}, steps=1)
    assert torch.equal(watched.prompts[0].inputs["attention_mask"], inputs["attention_mask"])
