"""Language models without images: the adapter, against plain hooks on hand-written module paths."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import TEXT_ONLY, WITH_IMAGE, adds, captured, directions, distance, edited, generate, since, vector
from tiny import decoder

import steerkit as sk
from steerkit.errors import ModelMismatchError, ProcessorError, SampleError, UnsupportedModelError

TOPICS = ("a bomb", "a cake", "a knife fight", "a garden", "a theft", "a letter")
ANCHORS = [
    sk.Sample(f"How do I plan {topic}?", label="harmless" if index % 2 else "harmful")
    for index, topic in enumerate(TOPICS)
]


@cache
def model_of(kind: str) -> sk.VLM:
    return sk.wrap(*decoder.build(kind))


def family_of(kind: str) -> str:
    return {"gpt2": "gpt2", "gpt_neox": "gpt_neox"}.get(kind, "decoder")


@pytest.fixture(params=decoder.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_steering_equals_plain_hooks(kind: str, site: str) -> None:
    vlm = model_of(kind)
    inputs = vlm.inputs(TEXT_ONLY)
    tensors = directions(vlm, norm=3.0, site=site)
    before = generate(vlm.model, inputs)
    with sk.steer(vlm.model, vector(vlm, tensors, sk.Intervention(site=site))) as receipt:
        found = generate(vlm.model, inputs)
    with edited(vlm.model, family_of(kind), adds(tensors, since(inputs["input_ids"].shape[1] - 1))):
        expected = generate(vlm.model, inputs)
    assert distance(found, expected) < 2e-5
    assert distance(found, before) > 1e-2
    assert (receipt.layers, receipt.prompt_tokens, receipt.generated_tokens) == ([0, 1, 2], 3, 12)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("llama", "model.layers.1.self_attn.o_proj"),
        ("gpt2", "transformer.h.1.attn.c_proj"),
        ("gpt_neox", "gpt_neox.layers.1.attention.dense"),
    ],
)
def test_heads_are_steered_whatever_their_projection_is_called(kind: str, path: str) -> None:
    vlm = model_of(kind)
    inputs = vlm.inputs(TEXT_ONLY)
    shift = torch.zeros(48)
    shift[12:24] = 3.0  # the second of four heads

    def moved(module: Any, args: Any) -> Any:
        x = args[0].clone()
        x[:, -1] += shift
        return (x,)

    before = generate(vlm.model, inputs)
    handle = vlm.model.get_submodule(path).register_forward_pre_hook(moved)
    expected = generate(vlm.model, inputs)
    handle.remove()
    with sk.steer(vlm.model, vector(vlm, {sk.Key(1, "head_out"): shift}, sk.Intervention(site="head_out"))):
        assert distance(generate(vlm.model, inputs), expected) == 0
    assert distance(before, expected) > 1e-3
    assert (vlm.record.head_count, vlm.record.head_size) == (4, 12)
    fitted = sk.methods.ITI(positive="harmful", negative="harmless", heads=2, held_out=0.4).fit(vlm, ANCHORS)
    assert {key.site for key in fitted.tensors} == {"head_out"}


def test_capture_reads_the_last_token_of_each_prompt(kind: str) -> None:
    vlm = model_of(kind)
    by_hooks, by_trace = (vlm.capture(TEXT_ONLY, engine=engine) for engine in ("hooks", "nnsight"))
    for index, sample in enumerate(TEXT_ONLY):
        ids = torch.tensor([vlm.inputs([sample])["input_ids"][0].tolist()])
        alone = captured(vlm.model, family_of(kind), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        for layer, expected in enumerate(alone):
            assert (by_hooks[layer][index] - expected[0]).abs().max() < 1e-4
            assert torch.equal(by_trace[layer], by_hooks[layer])


def test_the_record_and_the_prompt(kind: str) -> None:
    vlm = model_of(kind)
    assert vlm.record.architecture == type(vlm.model).__name__
    assert vlm.record.architecture.endswith(("ForCausalLM", "LMHeadModel"))
    assert (vlm.record.model_type, vlm.record.layer_count, vlm.record.hidden_size) == (kind, 3, 48)
    assert vlm.record.tokenizer_sha256
    text = "What is this?"
    prompt = vlm.format.render(sk.Sample(text), 0)
    if kind in decoder.CHATS:
        assert prompt.endswith(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    else:
        assert prompt == text
    ids = vlm.inputs([sk.Sample(text)])["input_ids"][0].tolist()
    assert vlm.processor.decode(ids, skip_special_tokens=False).endswith(prompt)
    assert ids.count(vlm.processor.bos_token_id) <= 1


def test_a_template_that_writes_the_first_token_gets_no_second_one() -> None:
    model, tokenizer = decoder.build("llama")
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    vlm = sk.wrap(model, tokenizer)
    chat = sk.Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert vlm.format.render(chat, 0) == "<s>system: Be brief.user: Hi"
    assert vlm.inputs([chat])["input_ids"][0].tolist().count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("method", "name"),
    [(sk.methods.CAA(positive="harmful", negative="harmless"), ""), (sk.methods.RefusalDirection(), "")],
)
def test_methods_that_contrast_texts_fit(method: Any, name: str) -> None:
    vlm = model_of("qwen2")
    fitted = method.fit(vlm, ANCHORS, batch_size=4)
    rows = {sample.label: [] for sample in ANCHORS}
    for sample in ANCHORS:
        ids = vlm.inputs([sample])["input_ids"]
        states = captured(vlm.model, "decoder", {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        rows[sample.label].append(torch.stack([state[0] for state in states]))
    shift = torch.stack(rows["harmful"]).mean(0) - torch.stack(rows["harmless"]).mean(0)
    for key, direction in fitted.tensors.items():
        assert torch.nn.functional.cosine_similarity(direction, shift[key.layer], dim=0) > 0.999
    inputs = vlm.inputs(ANCHORS[:2])
    before = generate(vlm.model, inputs)
    with sk.steer(vlm, fitted):
        assert distance(generate(vlm.model, inputs), before) > 1e-3


def test_a_method_that_measures_images_refuses_the_model() -> None:
    vlm = model_of("llama")
    labels = {"positive": "harmful", "negative": "harmless"}
    for method in (
        sk.CMRM(),
        sk.CMRM(level="sample"),
        sk.methods.ShiftDC(),
        sk.methods.VLMGuard(),
        sk.methods.ASTRA(),
        sk.methods.ASTRA(source="pairs"),
        sk.methods.AdaSteer(),
        sk.methods.VTI(**labels, parts="text"),
    ):
        with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM takes no images"):
            method.fit(vlm, ANCHORS)
    rejected = [sk.Sample(f"{sample.text} No.", label="rejected") for sample in ANCHORS[::2]]
    assert sk.methods.AdaSteer(rejected="rejected").fit(vlm, [*ANCHORS, *rejected]).directions, "needs no image"
    with pytest.raises(SampleError, match="shows 1 images to a language model"):
        vlm.generate(WITH_IMAGE, max_new_tokens=1)
    assert vlm.generate(WITH_IMAGE, images=False, max_new_tokens=3) == vlm.generate(TEXT_ONLY, max_new_tokens=3)


def test_a_chat_without_a_template_is_refused() -> None:
    chat = sk.Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    with pytest.raises(ProcessorError, match="a chat of 2 turns"):
        model_of("llama").inputs([chat])


def test_loads_packs_and_answers(tmp_path: Path) -> None:
    model, tokenizer = decoder.build("qwen3")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vlm = sk.load(str(tmp_path / "model"))
    made = vector(vlm, directions(vlm))
    steering = sk.SteeringVector.load(made.save(tmp_path / "pack.safetensors"))
    options = {"max_new_tokens": 5, "min_new_tokens": 5}
    before = vlm.generate(TEXT_ONLY, **options)
    with sk.steer(vlm, steering):
        steered = vlm.generate(TEXT_ONLY, **options)
    with sk.steer(vlm, steering, engine="nnsight") as receipt:
        assert vlm.generate(TEXT_ONLY, **options) == steered
        inputs = vlm.inputs(TEXT_ONLY)
        with receipt.nnsight.trace(**inputs):
            traced = receipt.nnsight.lm_head.output[:, -1].save()
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), edited(vlm.model, "decoder", adds(directions(vlm), since(length - 1))):
        assert (traced - vlm.model(**inputs).logits[:, -1]).abs().max() < 2e-5
    assert steered != before
    with edited(vlm.model, "decoder", adds(directions(vlm), since(length - 1))):
        assert vlm.generate(TEXT_ONLY, batch_size=3, **options) == steered
    with pytest.raises(ModelMismatchError, match="architecture Qwen3ForCausalLM"):
        sk.steer(model_of("llama").model, steering)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    decoder.build("llama")[0].save_pretrained(tmp_path)
    with pytest.raises(ProcessorError, match="the tokenizer of .* can't be loaded"):
        sk.load(str(tmp_path))
