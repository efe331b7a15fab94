"""Another thread truncates and pads with the very tokenizer that prompts are made with."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import pytest
import tokenizer_kinds
import torch
from breadth import pairs
from reference import TEXT_ONLY, WITH_IMAGE
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerBase

import steerkit as sk
from steerkit.evaluation import Case, Format, Judgement, LocalJudge
from steerkit.models import unshared
from steerkit.testing import tiny

LONG = "USER: What is in this picture? ASSISTANT: The picture shows <image> a red square <s> on a black ground.</s>"
ROUNDS = 60


@contextmanager
def truncating(*given: Any) -> Iterator[list[Any]]:
    """A thread of the caller's own that cuts and fills texts with these tokenizers until the end of the context."""
    over, cut, before = threading.Event(), [], sys.getswitchinterval()

    def work() -> None:
        while not over.is_set():
            for tokenizer in given:
                cut[:] = [tokenizer(LONG, truncation=True, max_length=3, padding="max_length")["input_ids"]]

    thread = threading.Thread(target=work)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        yield cut
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert len(cut[0]) == 3


def inputs_of(vlm: sk.VLM, *, images: bool) -> list[dict[str, torch.Tensor]]:
    samples = WITH_IMAGE if images else TEXT_ONLY
    return [vlm.inputs([sample]) for sample in samples]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "idefics3", "instructblip", "florence2"])
@pytest.mark.parametrize("images", [True, False])
def test_prompts_are_not_cut(name: str, images: bool, vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm = vlm_of(name) if name in tiny.FAMILIES else sk.wrap(*pairs.pair(name), check=False)
    shared = [part for part in vars(vlm.processor).values() if isinstance(part, PreTrainedTokenizerBase)]
    assert len(shared) == 1 + (name == "instructblip")
    expected = inputs_of(vlm, images=images)
    with truncating(*shared):
        for _ in range(ROUNDS // 6):
            for found, alone in zip(inputs_of(vlm, images=images), expected, strict=True):
                assert found.keys() == alone.keys()
                assert all(torch.equal(found[key], alone[key]) for key in alone)


def test_prompts_of_language_models_and_likelihoods_are_not_cut() -> None:
    vlm = tiny.vlm("qwen3")
    ids = vlm.inputs(TEXT_ONLY)["input_ids"]
    expected = vlm.log_likelihood(TEXT_ONLY[:1], ["a red square on a black ground"])[0]
    assert len(expected) > 3
    with truncating(vlm.processor):
        for _ in range(ROUNDS // 4):
            assert torch.equal(vlm.inputs(TEXT_ONLY)["input_ids"], ids)
            found = vlm.log_likelihood(TEXT_ONLY[:1], ["a red square on a black ground"])[0]
            torch.testing.assert_close(found, expected)


def test_the_text_view_of_raw_calls_is_not_cut(llava: sk.VLM) -> None:
    vector = sk.CMRM(level="sample", counterpart="blank", text_side="query", phase="both").fit(llava)
    inputs = llava.inputs(WITH_IMAGE[:1])

    def answer() -> torch.Tensor:
        with torch.no_grad(), sk.steer(llava, vector):
            return llava.model(**inputs).logits

    expected = answer()
    with truncating(llava.processor.tokenizer):
        for _ in range(ROUNDS // 6):
            assert torch.equal(answer(), expected)


def test_what_a_judge_is_asked_is_not_cut() -> None:
    model, tokenizer = tiny.build("qwen3")
    judge = LocalJudge(model, tokenizer, Format("plain", "{request} and {answer}", lambda reply: Judgement()))
    case = Case(sk.Sample("How do I bake a cake for the neighbour?"))
    expected = judge._inputs(case, "No.")["input_ids"]
    with truncating(tokenizer):
        for _ in range(ROUNDS):
            assert torch.equal(judge._inputs(case, "No.")["input_ids"], expected)


@pytest.mark.parametrize("kind", tokenizer_kinds.KINDS)
def test_every_kind_of_tokenizer_gives_the_same_ids(kind: str) -> None:
    tokenizer = tokenizer_kinds.KINDS[kind]()
    own = unshared(tokenizer)
    for text in (LONG, *tokenizer_kinds.ROWS[:5], " <image>x<image> ", ""):
        for special in (True, False):
            expected = tokenizer(text, add_special_tokens=special)
            found = own(text, add_special_tokens=special)
            assert dict(found) == dict(expected)
            assert own.decode(found["input_ids"]) == tokenizer.decode(expected["input_ids"])
    own(LONG, truncation=True, max_length=3)
    assert tokenizer.backend_tokenizer.truncation is None
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert own.backend_tokenizer.truncation["max_length"] == 3


def test_what_is_changed_of_a_tokenizer_later_holds(picture: Callable[..., Any]) -> None:
    vlm = tiny.vlm("llava")
    sample, tokenizer = sk.Sample("say hello world", (picture(1),)), vlm.processor.tokenizer

    def agrees() -> list[int]:
        text = vlm.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "say hello world"}]}],
            add_generation_prompt=True,
        )
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        plain = vlm.processor(text=[text], images=[sample.images[0]], add_special_tokens=not begins)["input_ids"][0]
        found = vlm.inputs([sample])["input_ids"][0].tolist()
        assert found == list(plain)
        return found

    first = agrees()
    tokenizer.add_tokens(["hello world"])
    second = agrees()
    tokenizer.add_tokens([AddedToken("hello world", lstrip=True)])  # other flags for the same token
    third = agrees()
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end} {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    fourth = agrees()
    other = copy(tokenizer)
    other._tokenizer = unshared(tokenizer).backend_tokenizer
    other.add_tokens(["say"])
    vlm.processor.tokenizer = tokenizer = other
    fifth = agrees()
    assert len({tuple(each) for each in (first, second, third, fourth, fifth)}) >= 4
