"""The mean over the tokens of an answer that a prompt begins: against plain hooks, one unpadded prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from reference import module_at, picture
from tiny import decoder
from tokenizers import normalizers

import steerkit as sk
from steerkit.errors import OptionError, SampleError
from steerkit.methods import CAA, CAST, RepE
from steerkit.vlm import VLM

BEGUN = (
    ("How do I bake a cake?", "Sure, here is how: take"),
    ("What is this? Tell me all of it, and take your time.", "No"),
    ("Why?", "I'm sorry, but I can't help with that, because it would harm people who did nothing."),
    ("Sure, here is how: take what?", "Sure, here is how: take"),
)
SAMPLES = [
    sk.Sample(
        (("system", "Be brief."), ("user", question), ("assistant", answer)),
        images=(picture(index, 32, 48 if index else 32),),
        label="no" if index % 2 else "yes",
    )
    for index, (question, answer) in enumerate(BEGUN)
]
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "decoder")
ENGINES = ("hooks", "nnsight")


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>: {{ m.content }} / {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>: {% endif %}"
)


def model_of(family: str) -> sk.VLM:
    if family != "decoder":
        return sk.wrap(*tiny.build(family))
    model, tokenizer = decoder.build("llama")
    tokenizer.chat_template = CHAT
    return sk.wrap(model, tokenizer)


def told_apart(vlm: sk.VLM, family: str, sample: sk.Sample, layer: int) -> tuple[np.ndarray, int]:
    """`[tokens, hidden]` in float64, and how many tokens at the end spell the answer."""
    inputs = vlm.inputs([sample], images=family != "decoder")
    kept: list[np.ndarray] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[0].double().numpy())

    handle = module_at(vlm.model, family, layer).register_forward_hook(keep)
    with torch.no_grad():
        vlm.model(**inputs)
    handle.remove()
    ids, answer = inputs["input_ids"][0], sample.turns[-1][1]
    tokenizer = getattr(vlm.processor, "tokenizer", vlm.processor)
    spelled = [n for n in range(1, len(ids)) if tokenizer.decode(ids[-n:]).strip() == answer]
    return kept[0], max(spelled, key=lambda n: tokenizer.decode(ids[-n:])[:1].isalpha())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_mean_over_the_tokens_that_spell_the_answer(family: str, side: Any, engine: Any) -> None:
    vlm = model_of(family)
    vlm = VLM(vlm.model, vlm.processor, replace(vlm.family, padding=side))
    samples = [replace(each, images=()) for each in SAMPLES] if family == "decoder" else SAMPLES
    found = vlm.capture(samples, pool="answer", layers=(0, 1), engine=engine, batch_size=3)
    for layer in (0, 1):
        for row, sample in enumerate(samples):
            h, count = told_apart(vlm, family, sample, layer)
            got = found[layer][row].double().numpy()
            assert np.abs(got - h[-count:].mean(0)).max() < 1e-4
            wrong = [h[-count - 1 :].mean(0), h.mean(0), *([h[-1], h[1 - count :].mean(0)] if count > 1 else [])]
            assert all(np.abs(got - other).max() > 1e-3 for other in wrong)


@pytest.mark.parametrize("images", [False, "blank"])
def test_a_view_is_read_alike(llava: sk.VLM, images: Any) -> None:
    found = llava.capture(SAMPLES, pool="answer", layers=(2,), images=images, engine="hooks")[2]
    for row, sample in enumerate(SAMPLES):
        inputs = llava.inputs([sample], images=images)
        kept: list[Any] = []
        handle = module_at(llava.model, "llava", 2).register_forward_hook(
            lambda *given, kept=kept: kept.append(given[2])
        )
        with torch.no_grad():
            llava.model(**inputs)
        handle.remove()
        count = told_apart(llava, "llava", SAMPLES[row], 2)[1]
        h = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        assert torch.allclose(found[row], h[0, -count:].mean(0), atol=1e-5)


def test_what_begins_no_answer_is_refused_by_its_number(llava: sk.VLM) -> None:
    asked = sk.Sample("Why?", images=SAMPLES[0].images)
    with pytest.raises(SampleError, match=r"sample 1 \('Why\?'\).*begin") as caught:
        llava.capture([SAMPLES[0], asked], pool="answer")
    assert "assistant" in str(caught.value)
    with pytest.raises(OptionError, match="vision tower"):
        llava.capture(SAMPLES, pool="answer", tower="vision")
    with pytest.raises(SampleError, match="sample 2"):
        CAA(positive="yes", negative="no", pool="answer").fit(llava, [*SAMPLES[:2], replace(asked, label="yes")])


def test_a_beginning_without_tokens_is_refused_and_has_no_mean() -> None:
    vlm = model_of("decoder")
    vlm.processor.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    samples = [sk.Sample((("user", "Why?"), ("assistant", begun))) for begun in ("No", "\u200b")]
    assert torch.isfinite(vlm.capture(samples[:1], pool="answer", layers=(0,))[0]).all()
    with pytest.raises(SampleError, match="sample 1 .*leaves nothing of the beginning"):
        vlm.capture(samples, pool="answer", layers=(0,))


@pytest.mark.parametrize("name", ["instructblip-llama", "instructblip-t5"])
def test_prompts_that_are_no_chats_are_refused(vlm_of: Callable[[str], sk.VLM], name: str) -> None:
    samples = [replace(each, text=each.text[1:]) for each in SAMPLES]
    with pytest.raises(SampleError, match="don't end with the beginning of the answer"):
        vlm_of(name).capture(samples, pool="answer", batch_size=1)


@pytest.mark.parametrize("method", [CAA, RepE])
@pytest.mark.parametrize("engine", ENGINES)
def test_methods_read_what_they_are_told(llava: sk.VLM, method: Any, engine: Any) -> None:
    read = method(positive="yes", negative="no", pool="answer", layers=(2,))
    vector = read.fit(llava, SAMPLES, engine=engine, batch_size=3)
    means = [h[-n:].mean(0) for h, n in (told_apart(llava, "llava", sample, 2) for sample in SAMPLES)]
    shift = (means[0] + means[2] - means[1] - means[3]) / 2
    found = vector.directions[2].double().numpy()
    if method is CAA:
        assert np.abs(found - shift).max() < 1e-4
    rows = np.stack([means[i] - means[j] for i in (0, 2) for j in (1, 3)])
    leading = np.linalg.svd(rows)[2][0]
    if method is RepE:
        assert np.abs(found - leading * (leading @ shift)).max() < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_cast_takes_its_behaviour_from_beginnings_as_in_the_paper(
    llava: sk.VLM, anchors: list[sk.Sample], engine: Any
) -> None:
    given = [*anchors, *SAMPLES]
    pools: tuple[tuple[Any, str], ...] = ((None, "answer"), ("answer", "answer"), ("last", "last"), ("mean", "mean"))
    for pool, over in pools:
        method = CAST(towards="yes", away="no", layers=(2,), behaviour_pool=pool, scale="unit")
        found = method.fit(llava, given, engine=engine, batch_size=4).tensors[sk.Key(2)].double().numpy()
        read = []
        for sample in SAMPLES:
            h, count = told_apart(llava, "llava", sample, 2)
            read.append(h[-{"answer": count, "last": 1, "mean": len(h)}[over] :].mean(0))
        rows = np.stack([read[i] - read[j] for i in (0, 2) for j in (1, 3)])
        leading = np.linalg.svd(rows)[2][0]
        assert np.abs(found - leading * np.sign(leading @ rows.mean(0))).max() < 1e-3, pool
    with pytest.raises(SampleError, match="begin"):
        CAST(towards="yes", away="no").fit(llava, [*anchors, *SAMPLES[:3], sk.Sample("Why?", label="no")])
