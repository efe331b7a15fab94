"""Loading, wrapping, inputs, answers and captures of a vision-language model."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hub_support import cache, hub
from loopback_hub import LoopbackHub
from reference import TEXT_ONLY, WITH_IMAGE, captured, noisy, picture, white

import steerkit as sk
from steerkit.errors import (
    LayerRangeError,
    MissingImageError,
    OptionError,
    ProcessorError,
    SampleError,
    UnsupportedModelError,
)

__all__ = ["cache", "hub"]  # fixtures

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
MIXED = [TEXT_ONLY[0], WITH_IMAGE[1], TEXT_ONLY[2], WITH_IMAGE[0], WITH_IMAGE[2]]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_views_of_samples(vlm: sk.VLM) -> None:
    inputs = vlm.inputs
    own = inputs(WITH_IMAGE)
    assert equal(inputs(WITH_IMAGE, "original"), own)
    assert equal(inputs(WITH_IMAGE, lambda sample: sample.images), own)
    assert equal(inputs(WITH_IMAGE, False), inputs(TEXT_ONLY))
    assert equal(inputs(WITH_IMAGE, "text"), inputs(TEXT_ONLY))
    assert equal(inputs(WITH_IMAGE, "blank"), inputs([white(sample) for sample in WITH_IMAGE]))
    assert equal(inputs(WITH_IMAGE, "noise", seed=9), inputs([noisy(sample, 9) for sample in WITH_IMAGE]))
    shapes = {name: inputs(WITH_IMAGE, name)["pixel_values"] for name in ("original", "blank", "noise")}
    assert len({values.shape for values in shapes.values()}) == 1
    assert not torch.equal(shapes["blank"], shapes["noise"])
    assert not torch.equal(inputs(WITH_IMAGE, "noise", seed=8)["pixel_values"], shapes["noise"])


def test_a_caption_goes_in_front_of_the_first_user_turn(llava: sk.VLM) -> None:
    chat = (("system", "Be brief."), ("user", "What?"), ("assistant", "No."), ("user", "Why?"))
    captioned = sk.Sample(chat, images=(picture(0),), caption="A cat.")
    expected = sk.Sample(tuple((role, f"A cat.\n{text}" if text == "What?" else text) for role, text in chat))
    assert equal(llava.inputs([captioned], "caption"), llava.inputs([expected]))
    with pytest.raises(SampleError, match="no caption"):
        llava.inputs(WITH_IMAGE, "caption")


def test_inputs_refuse(llava: sk.VLM, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="no samples"):
        llava.inputs([])
    with pytest.raises(MissingImageError, match="sample 0 of the batch has no image"):
        llava.inputs(MIXED)
    with pytest.raises(MissingImageError, match="can't be read"):
        llava.inputs([sk.Sample("What?", images=(tmp_path / "none.png",))])
    with pytest.raises(MissingImageError, match="gave 2 images for a sample with 1"):
        llava.inputs(WITH_IMAGE, lambda sample: [picture(0), picture(1)])
    with pytest.raises(OptionError, match="images is 'white'"):
        llava.inputs(WITH_IMAGE, "white")
    with pytest.raises(ProcessorError, match="building inputs needs the model's processor"):
        sk.wrap(llava.model).inputs(WITH_IMAGE)


def test_a_bad_sample_is_named(llava: sk.VLM, tmp_path: Path) -> None:
    with pytest.raises(MissingImageError, match=r"sample 1 \('Why\?'\): the image .* can't be read"):
        llava.inputs([WITH_IMAGE[0], sk.Sample("Why?", images=(tmp_path / "none.png",))])
    with pytest.raises(SampleError, match="sample 1 .*contains '<image>'"):
        llava.inputs([TEXT_ONLY[0], sk.Sample("<image>?")])


@pytest.mark.parametrize("given", [["a"], WITH_IMAGE[0], "a", (sample for sample in WITH_IMAGE), None])
def test_samples_of_another_type_are_refused(llava: sk.VLM, given: Any) -> None:
    for use in (llava.inputs, llava.generate, llava.capture):
        with pytest.raises(SampleError, match="sample") as caught:
            use(given)
        assert caught.value.expected
        assert caught.value.fix


# name: a sample that no batch can hold, the error and words of it
BAD: dict[str, tuple[sk.Sample, type[sk.SteerKitError], str]] = {
    "no such image": (sk.Sample("Why?", ("nowhere.png",)), MissingImageError, "'nowhere.png' can't be read"),
    "no image": (sk.Sample("Why?", (Path(__file__),)), MissingImageError, "can't be read"),
    "the image token": (sk.Sample("<image>?"), SampleError, "contains '<image>'"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_bad_sample_is_found_before_the_model_runs(llava: sk.VLM, kind: str, batch_size: int) -> None:
    bad, error, words = BAD[kind]
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
        for module in llava.model.modules()
    ]
    try:
        for samples in ([*WITH_IMAGE, bad], [*TEXT_ONLY, bad], [*MIXED, bad]):
            where = "" if batch_size == 8 else f"sample {len(samples) - 1} "
            with pytest.raises(error, match=f"{where}.*{words}"):
                llava.generate(samples, batch_size=batch_size, **OPTIONS)
            for engine in ("hooks", "nnsight"):
                with pytest.raises(error, match=words):
                    llava.capture(samples, batch_size=batch_size, engine=engine)
        assert calls == []
        llava.generate(TEXT_ONLY[:1], **OPTIONS)
        assert calls
    finally:
        for handle in handles:
            handle.remove()


def test_images_that_are_not_shown_need_not_exist(llava: sk.VLM) -> None:
    samples = [sk.Sample("Why?", ("nowhere.png",)), sk.Sample("How?", ("nowhere.png",))]
    assert len(llava.generate(samples, images=False, batch_size=1, **OPTIONS)) == 2


# -- answers -----------------------------------------------------------------------------------------------------------


def test_answers_in_order_whatever_the_batches(llava: sk.VLM) -> None:
    alone = [llava.generate([sample], **OPTIONS)[0] for sample in MIXED]
    assert len(set(alone)) == 5
    for batch_size in (1, 2, 8):
        steps: list[tuple[int, int]] = []
        found = llava.generate(MIXED, batch_size=batch_size, progress=lambda *at: steps.append(at), **OPTIONS)  # noqa: B023
        assert found == alone
        assert steps[-1] == (5, 5)
        assert [done for done, _ in steps] == {1: [1, 2, 3, 4, 5], 2: [2, 3, 5], 8: [3, 5]}[batch_size]
    assert llava.generate(MIXED, images=False, **OPTIONS) == llava.generate(
        [sk.Sample(sample.text) for sample in MIXED], **OPTIONS
    )


def test_answers_hold_neither_prompt_nor_special_tokens(vlm: sk.VLM) -> None:
    for samples in (TEXT_ONLY, WITH_IMAGE):
        for text, sample in zip(vlm.generate(samples, max_new_tokens=3), samples, strict=True):
            assert str(sample.text) not in text
            assert not any(token in text for token in vlm.processor.tokenizer.all_special_tokens)


def test_nothing_to_answer(llava: sk.VLM) -> None:
    assert llava.generate([], **OPTIONS) == []


def test_answers_refuse(llava: sk.VLM) -> None:
    with pytest.raises(OptionError, match="batch_size is 0"):
        llava.generate(MIXED, batch_size=0)
    with pytest.raises(OptionError, match="num_return_sequences"):
        llava.generate(MIXED, num_return_sequences=2)
    with pytest.raises(OptionError, match="return_dict_in_generate"):
        llava.generate(MIXED, return_dict_in_generate=True)
    with pytest.raises(ProcessorError, match="generate needs"):
        sk.wrap(llava.model).generate(MIXED)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_an_image_leaves_nothing_for_the_next_text(name: str) -> None:
    """Qwen-VL keeps the position offset of the last image, and the library applies it to the next text."""
    model, processor = tiny.build(name)
    fresh = sk.wrap(*tiny.build(name))
    used = sk.wrap(model, processor)
    used.generate(WITH_IMAGE[:1], **OPTIONS)
    assert model.model.rope_deltas is not None
    one, other = (vlm.capture(TEXT_ONLY[:1], engine="hooks") for vlm in (used, fresh))
    assert all(torch.equal(one[layer], other[layer]) for layer in one)
    used.generate(WITH_IMAGE[:1], **OPTIONS)
    assert used.generate(TEXT_ONLY[:1], **OPTIONS) == fresh.generate(TEXT_ONLY[:1], **OPTIONS)


# -- captures ----------------------------------------------------------------------------------------------------------


def test_captures_in_order_the_layers_that_are_wanted(llava: sk.VLM) -> None:
    expected = [captured(llava.model, "llava", llava.inputs([sample])) for sample in MIXED]
    for batch_size in (1, 2, 8):
        found = llava.capture(MIXED, layers=[3, 1, 1], engine="hooks", batch_size=batch_size)
        assert list(found) == [1, 3]
        for layer, rows in found.items():
            assert rows.shape == (5, 48)
            assert all((row - want[layer]).abs().max() < 1e-4 for row, want in zip(rows, expected, strict=True))
    assert (expected[0][3] - expected[1][3]).abs().max() > 0.1


def test_captures_end_at_the_last_layer_that_is_wanted(llava: sk.VLM) -> None:
    seen: list[int] = []
    blocks = llava.model.get_submodule("model.language_model.layers")
    handles = [block.register_forward_hook(lambda *_, at=at: seen.append(at)) for at, block in enumerate(blocks)]
    llava.capture(TEXT_ONLY, layers=[1], engine="hooks")
    for handle in handles:
        handle.remove()
    assert seen[:1] == [0]
    assert max(seen) <= 1


def test_captures_refuse(llava: sk.VLM) -> None:
    with pytest.raises(LayerRangeError, match="layer 4 is outside the model"):
        llava.capture(MIXED, layers=[4])
    with pytest.raises(LayerRangeError, match="layer -1 is outside"):
        llava.capture(MIXED, layers=[-1])
    with pytest.raises(LayerRangeError, match="no layer"):
        llava.capture(MIXED, layers=[])
    with pytest.raises(OptionError, match="engine is 'torch'"):
        llava.capture(MIXED, engine="torch")  # type: ignore[arg-type]
    with pytest.raises(SampleError, match="no samples"):
        llava.capture([], engine="hooks")


# -- wrapping and loading ----------------------------------------------------------------------------------------------


def test_wrapping_refuses(llava: sk.VLM) -> None:
    with pytest.raises(OptionError, match="wrapped again"):
        sk.wrap(llava)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="Linear is not a Hugging Face model"):
        sk.wrap(torch.nn.Linear(2, 2))
    with pytest.raises(OptionError, match="str is not") as caught:
        sk.wrap("llava")  # type: ignore[arg-type]
    assert "from_pretrained" in str(caught.value.fix)
    with pytest.raises(UnsupportedModelError, match="no adapter serves model type 'instructblip_qformer'"):
        sk.wrap(copy.deepcopy(tiny.build("instructblip-llama")[0].qformer))


class Holder(torch.nn.Module):
    """A module that holds a model and passes for it."""

    def __init__(self, inner: Any, model_type: str | None) -> None:
        super().__init__()
        self.base_model = inner
        self.config = copy.deepcopy(inner.config)
        self.config.model_type = model_type or inner.config.model_type


@pytest.mark.parametrize("model_type", [None, "unheard_of"])
def test_of_a_module_that_holds_the_model_the_model_is_asked_for(llava: sk.VLM, model_type: str | None) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        sk.wrap(Holder(llava.model, model_type))
    assert "pass the Hugging Face model inside" in str(caught.value.fix)


def test_a_vocabulary_is_not_read_to_wrap_a_model(vlm: sk.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one takes a second; the record holds the digest of what stood there when the model was wrapped."""
    tokenizer, template = vlm.processor.tokenizer, getattr(vlm.processor, "chat_template", None)
    vocabulary, reads = tokenizer.get_vocab(), []
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: reads.append(self) or vocabulary)
    wrapped = sk.wrap(vlm.model, vlm.processor)
    assert repr(wrapped) == repr(vlm)
    assert not reads
    monkeypatch.setattr(vlm.processor, "chat_template", "{{ messages }}")
    written = json.dumps({"vocabulary": vocabulary, "template": template}, sort_keys=True)
    assert wrapped.record.tokenizer_sha256 == hashlib.sha256(written.encode()).hexdigest()
    assert wrapped.record is wrapped.record
    assert len(reads) == 1


def test_a_record_tells_models_apart(llava: sk.VLM, vlm_of: Any) -> None:
    record = llava.record
    assert (record.architecture, record.model_type) == ("LlavaForConditionalGeneration", "llava")
    assert (record.layer_count, record.hidden_size) == (4, 48)
    assert record == sk.wrap(*tiny.build("llava")).record
    assert record.config_sha256 != vlm_of("vipllava").record.config_sha256
    assert repr(llava) == "VLM(LlavaForConditionalGeneration, 4 layers of 48)"


@pytest.fixture(scope="module")
def saved(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(family, tmp_path_factory.mktemp("saved") / family)


def test_loads_what_a_repository_holds(family: str, vlm: sk.VLM, saved: Path) -> None:
    loaded = sk.load(str(saved), dtype="float32")
    assert not loaded.model.training
    assert loaded.dtype == torch.float32
    assert loaded.record.architecture == vlm.record.architecture
    assert loaded.record.tokenizer_sha256 == vlm.record.tokenizer_sha256
    assert equal(loaded.inputs(WITH_IMAGE), vlm.inputs(WITH_IMAGE))
    assert loaded.generate(WITH_IMAGE, **OPTIONS) == vlm.generate(WITH_IMAGE, **OPTIONS)


def test_loads_in_another_type(saved: Path) -> None:
    loaded = sk.load(str(saved), dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert loaded.inputs(WITH_IMAGE)["pixel_values"].dtype == torch.bfloat16
    assert loaded.capture(WITH_IMAGE, engine="hooks")[0].dtype == torch.bfloat16


def test_weights_that_are_torn_or_missing_are_an_error_of_ours(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "torn"))
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="torn' can't be loaded"):
            sk.load(str(folder))
        weights.unlink(missing_ok=True)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]"])
def test_refuses_to_load_what_is_no_model(content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        if content:
            (folder / "config.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match="has no model config that can be read") as refused:
        sk.load(str(folder))
    assert refused.value.__cause__ is not None
    assert refused.value.fix


@pytest.mark.parametrize("kind", ["qwen", "unheard_of", "vit"])
def test_refuses_to_load_before_any_weight_is_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UnsupportedModelError, match=f"no adapter serves model type '{kind}'") as refused:
        sk.load(str(tmp_path))
    assert ("first-generation Qwen-VL" in str(refused.value)) == (kind == "qwen")


def test_a_model_from_the_hub_is_of_one_commit_and_says_which(tmp_path: Path, hub: LoopbackHub) -> None:
    folder = tiny.save("qwen2_vl", tmp_path / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = hub.publish("owner/tiny", files)
    second = hub.publish("owner/tiny", {"README.md": b"more"})
    # in a process of its own: the client reads its settings once
    code = (
        "import sys, steerkit as sk\n"
        "for revision in ({}, {'revision': sys.argv[1]}):\n"
        "    record = sk.load('owner/tiny', **revision).record\n"
        "    print(record.id, record.revision)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code, first]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["owner/tiny", second, "owner/tiny", first], done.stderr
    weights = [request.path for request in hub.asked("GET", "model.safetensors")]
    assert all(f"/resolve/{commit}/" in path for commit, path in zip((second, first), weights, strict=False)), weights


@pytest.mark.parametrize("option", [{"site": "resid"}, {"tower": "visual"}, {"pool": "max"}, {"engine": "torch"}])
def test_unknown_options_of_capture_are_refused(llava: sk.VLM, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(OptionError, match=name):
        llava.capture(WITH_IMAGE, **option)
