"""The checks of all types: what proves them, and types of every kind that the test environment can build.

All of them: `python -m breadth.report --check` in tests/, a step of CI.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import steerkit as sk
from breadth import checks, configs, levels, pairs, prompts, text_models
from steerkit.errors import EngineError, SteerKitError, UnsupportedModelError
from steerkit.interventions import Intervention
from steerkit.models import Architecture, Family, Sample, family_for
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector
from steerkit.vlm._self_check import check_itself

BROKEN_ON = ("qwen2_vl", "llava", "gemma3")
KINDS = (
    "gemma3",  # token types
    "granite_docling",  # another place of the blocks
    "mllama",  # cross-attention blocks, no position of the image
    "inkling2_loop",  # blocks that run several times
    "emu3",  # discrete codes
    "blip-2",  # Q-Former, a bare prompt, a text module
    "qwen4_exp",  # several residual streams
    "mistral_large4",  # positions that count padding
    "idefics",  # modules between the blocks
    "shieldgemma2",  # a processor that writes the chat itself
    "udop",  # a box for every word
    "vision-encoder-decoder",  # an encoder of images alone
)

LANGUAGE = (
    "gpt2",
    "bart",  # padding counts
    "roberta",  # positions of its own
    "mamba",  # no attention
    "deepseek_v4",  # several residual streams
    "openai-gpt",  # blocks that return lists
    "modernbert-decoder",  # a head that is called the decoder
)


@pytest.fixture(scope="module")
def cases() -> dict[str, checks.Case]:
    return {}


def _case(cases: dict[str, checks.Case], name: str) -> checks.Case:
    if name not in cases:
        cases[name] = checks.Case(name)
    return cases[name]


class _Shifted(Architecture):
    """One block too far."""

    def site(self, layer: int, site: Any, tower: Any = "language") -> str:
        return Architecture.site(self, (layer + 1) % self.layer_count, site, tower)


@contextlib.contextmanager
def _wrong_layer(case: checks.Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    own = case.vlm.architecture
    shifted = _Shifted(**{field.name: getattr(own, field.name) for field in fields(own)})
    monkeypatch.setattr(case.vlm, "architecture", shifted)
    yield


@contextlib.contextmanager
def _wrong_token(case: checks.Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    _encoding(case, monkeypatch, _masking_the_last)
    yield


@contextlib.contextmanager
def _padding_that_counts(case: checks.Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    _encoding(case, monkeypatch, lambda inputs: {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])})
    yield


@contextlib.contextmanager
def _nothing(case: checks.Case, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(checks.sk, "steer", lambda *args, **options: contextlib.nullcontext())
    yield


def _masking_the_last(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = inputs["attention_mask"].clone()
    mask[:, -1] = 0
    return {**inputs, "attention_mask": mask}


def _encoding(case: checks.Case, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    original: Any = case.vlm.format.encode  # type: ignore[union-attr]
    monkeypatch.setattr(case.vlm.format, "encode", lambda *given: change(original(*given)))


BREAKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "wrong layer": (_wrong_layer, ("capture", "steering", "padding", "text", "mixed", "generation")),
    "wrong token": (_wrong_token, ("capture", "steering", "padding", "text", "mixed", "generation")),
    "padding that counts": (_padding_that_counts, ("padding", "text")),
    "nothing": (_nothing, ("steering", "padding", "image tokens", "text", "mixed", "generation", "vision")),
}


@pytest.mark.parametrize("name", BROKEN_ON)
@pytest.mark.parametrize("how", BREAKS)
def test_what_is_broken_fails(
    cases: dict[str, checks.Case], name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _case(cases, name)
    broken, found = BREAKS[how]
    for key in found:
        checks.CHECKS[key](case)
    with broken(case, monkeypatch):
        for key in found:
            with pytest.raises((checks.CheckError, SteerKitError)):
                checks.CHECKS[key](case)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_as_the_table_says(name: str) -> None:
    assert levels.recorded()["types"][name]["level"] == ("images" if name in prompts.DECODERS else "images and text")
    assert levels.compared(name) is None


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_is_as_the_table_says(name: str) -> None:
    assert levels.recorded()["text"][name]["level"] == "text"
    assert levels.compared(name) is None


def test_a_language_model_that_counts_padding_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of language models, and that at loading, on one whose record does not say so."""
    model, plain = text_models.model("bart"), Family(types=("bart",), auto_class="AutoModelForCausalLM")
    monkeypatch.setattr("steerkit.vlm._prompted.family_for", lambda _: plain)
    assert text_models.outcome("bart").startswith("fails: prompt 0 of a batch")
    monkeypatch.setattr("steerkit.vlm._load.tested", dict)
    with pytest.raises(UnsupportedModelError, match="padding changes the state behind block 0"):
        sk.wrap(model, text_models.tokenizer())


@pytest.mark.parametrize("name", ["vision-encoder-decoder", "pix2struct"])
def test_a_decoder_answers_behind_its_prompt(name: str) -> None:
    case = checks.Case(name)
    sample, inputs = case.sample(checks.SHORT, 0), case.shown(checks.SHORT, 0)
    whole = case.plain.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    told = inputs["decoder_input_ids"].shape[1]
    answer = case.plain.processor.tokenizer.decode(whole[0, told:], skip_special_tokens=True).strip()
    assert told > 5
    assert case.vlm.generate([sample], max_new_tokens=4, min_new_tokens=4, do_sample=False) == [answer]
    ids = torch.tensor([case.plain.processor.tokenizer("a cake", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        read = {**inputs, "decoder_input_ids": torch.cat([inputs["decoder_input_ids"], ids], dim=1)}
        chances = case.plain.model(**read).logits[0, told - 1 : -1].log_softmax(-1)
    expected = chances.gather(1, ids[0][:, None]).sum()
    assert float(case.vlm.log_likelihood([sample], ["a cake"])[0].sum()) >= float(expected) - 1e-3
    alone = case.vlm.inputs([Sample("", (case.images[0],))])["decoder_input_ids"]
    assert alone.tolist() == [[prompts.START]]


def test_what_is_refused_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    rows = levels.recorded()["types"] | levels.recorded()["text"]
    refused = [name for name in rows if rows[name]["level"] == "refused"]
    assert len(refused) == 8
    for name in refused:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        with pytest.raises(UnsupportedModelError, match=f"{name!r} can't be steered: its? "):
            sk.load(str(tmp_path))


def test_every_type_is_in_the_table_or_untested() -> None:
    document = levels.recorded()
    del document["types"]["qwen2_vl"]
    page = levels.page(document)
    assert "| `qwen2_vl` | untested |" in page
    assert all(f"| `{name}` | " in page for name in pairs.NAMES)


def test_the_page_is_what_the_levels_say() -> None:
    assert levels.DOCUMENT.read_text() == levels.page(levels.recorded())


def test_a_row_says_what_came_of_the_checks() -> None:
    good = dict.fromkeys(("built", *checks.CHECKS), "ok")
    assert levels.row_of(good).level == "images and text"
    assert levels.row_of({**good, "text": "refused: alone"}).level == "images"
    assert levels.row_of({**good, "padding": "fails: 1 apart"}).level == "fails"
    assert levels.row_of({**good, "capture": "refused: why"}).level == "fails"
    assert levels.row_of({"built": "refused: it says no"}) == levels.Row("refused", reason="it says no")
    assert asdict(levels.row_of({**good, "vision": "refused: none"}))["cannot"] == ["vision"]


STREAMS = ("qwen4_exp", "glm5_next", "hy_v4_vl")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the processors of transformers
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_streams_that_are_not_declared_are_refused(name: str, engine: Any) -> None:
    """Never the state of one stream, or of one token, for that of all."""
    model, processor = pairs.pair(name)
    vlm = sk.VLM(model, processor, Family(types=(name,)))
    assert family_for(name).state != vlm.family.state == "plain"
    samples = [Sample(checks.SHORT), Sample(checks.LONG)]
    with pytest.raises(EngineError, match="declare `state`"):
        vlm.capture(samples, engine=engine)
    record = PackMetadata(method=MethodRecord(name="check"), interventions=(Intervention(),), model=vlm.record)
    vector = SteeringVector({Key(0): torch.ones(vlm.architecture.hidden_size)}, record)
    with pytest.raises(EngineError, match="declare `state`"), sk.steer(vlm, vector, policy="off", engine=engine):
        vlm.generate(samples, max_new_tokens=1)
    with pytest.raises(UnsupportedModelError, match="declare state in a Family"):
        check_itself(vlm)


@pytest.mark.parametrize("name", ["rwkv", "xlstm"])
def test_a_state_outside_of_a_cache_is_refused(name: str) -> None:
    config = configs.tiny(name)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="keeps its state outside of a cache"):
        sk.VLM(model, None, Family(types=(name,), auto_class="AutoModelForCausalLM"))


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "minimax"])
def test_a_state_in_a_cache_is_not(name: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(configs.tiny(name))
    assert sk.wrap(model).architecture.layer_count == model.config.num_hidden_layers


def test_a_prompt_that_loses_more_than_its_image_is_found_out() -> None:
    """A regular expression that takes the user's words along with the image."""
    model, processor = pairs.pair("llava")
    check_itself(sk.VLM(model, processor))
    greedy = Family(types=("llava",), image=r"(?:{image})+[^<]*")
    with pytest.raises(UnsupportedModelError, match="in more than the image.*declare image, frame or template"):
        check_itself(sk.VLM(model, processor, greedy))
