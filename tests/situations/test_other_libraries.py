"""What another library raises names the sample that it is about, and loses nothing that was finished."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tiny
import torch
from PIL import Image
from reference import TEXTS, picture
from transformers import GenerationConfig

import steerkit as sk
from steerkit.errors import MissingImageError, ModelError, OptionError, ProcessorError, SampleError

SHORT: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
BRIEF = sk.Sample([("system", "Be brief."), ("user", "Hello?")])
RUNS: dict[str, Callable[[sk.VLM, list[sk.Sample]], Any]] = {
    "generate": lambda vlm, samples: vlm.generate(samples, batch_size=2, **SHORT),
    "capture": lambda vlm, samples: vlm.capture(samples, batch_size=2, engine="hooks"),
    "log_likelihood": lambda vlm, samples: vlm.log_likelihood(samples, ["a"] * len(samples), batch_size=2),
    "next token": lambda vlm, samples: vlm.next_token_log_probabilities(samples, batch_size=2),
    "fit": lambda vlm, samples: sk.methods.RefusalDirection(
        harmful="a", harmless="b", images=any(sample.images for sample in samples)
    ).fit(vlm, [labelled(sample, "ab"[at % 2]) for at, sample in enumerate(samples)], batch_size=2),
}


def labelled(sample: sk.Sample, label: str) -> sk.Sample:
    return sk.Sample(sample.text, sample.images, label=label)


def passes_of(model: Any) -> list[int]:
    """Grows with every forward pass of the decoder."""
    found: list[int] = []
    decoder = model.get_submodule("model.language_model" if hasattr(model.model, "language_model") else "model")
    decoder.register_forward_pre_hook(lambda *given: found.append(1), with_kwargs=False)
    return found


def files(folder: Path, count: int, bad: int, make: Callable[[Path], None]) -> list[sk.Sample]:
    """Samples with image files, of which one is bad."""
    found = []
    for at in range(count):
        path = folder / f"{at}.jpg"
        make(path) if at == bad else picture(at).save(path)
        found.append(sk.Sample(f"What is {at}?", (path,)))
    return found


def truncated(path: Path) -> None:
    whole = io.BytesIO()
    picture(9, 200, 200).save(whole, "JPEG")
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def too_long(path: Path) -> None:
    """Qwen-VL takes no image that is 200 times as long as it is wide."""
    Image.new("RGB", (1200, 4)).save(path)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("family", "make", "error", "words"),
    [
        ("llava", truncated, MissingImageError, "truncated"),
        ("qwen2_5_vl", truncated, MissingImageError, "truncated"),
        ("qwen2_5_vl", too_long, SampleError, "aspect ratio"),
    ],
)
def test_an_image_that_can_not_be_prepared_is_found_before_the_model_runs(
    tmp_path: Path, family: str, make: Any, error: type[Exception], words: str, run: str
) -> None:
    vlm = sk.wrap(*tiny.build(family))
    samples = files(tmp_path, 7, 5, make)
    passes = passes_of(vlm.model)
    with pytest.raises(error, match=rf"sample 5 \(.*{words}") as caught:
        RUNS[run](vlm, samples)
    assert "5.jpg" in str(caught.value)
    assert not passes


@pytest.mark.parametrize("run", RUNS)
def test_a_chat_that_the_template_refuses_is_named(run: str) -> None:
    samples = [sk.Sample(text) for text in (*TEXTS, TEXTS[0])] + [BRIEF, sk.Sample("Hello?")]
    llava, qwen3 = sk.wrap(*tiny.build("llava")), sk.wrap(*tiny.build("qwen3"))
    for vlm in (llava, qwen3):
        vlm.processor.chat_template = REFUSES + vlm.processor.chat_template
        passes = passes_of(vlm.model)
        with pytest.raises(SampleError, match=r"sample 4 \('Hello\?'\).*TemplateError: no system turns here") as caught:
            RUNS[run](vlm, samples)
        assert isinstance(caught.value.__cause__, jinja2.TemplateError)
        assert not passes


@pytest.mark.parametrize("template", ["{{ messages[0]['role'] | nosuchfilter }}", "{% if %}", "{{ messages[7].x.y }}"])
def test_a_template_with_an_error_in_it_is_no_raw_error(template: str) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    vlm.processor.chat_template = template
    with pytest.raises(SampleError, match=r"sample 0 \('Hello\?'\)"):
        vlm.generate([sk.Sample("Hello?", (picture(0),))], **SHORT)


WRITES = (
    "{%% for m in messages %%}{%% for c in m.content %%}{%% if c.type == 'image' %%}<image>\n{%% else %%}%s"
    "{%% endif %%}{%% endfor %%}{%% endfor %%}"
)


def test_a_template_that_leaves_the_text_out_is_refused_and_one_that_changes_it_is_not() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    passes = passes_of(vlm.model)
    for left_out in ("", "Say something."):
        vlm.processor.chat_template = WRITES % left_out
        with pytest.raises(ProcessorError, match="leaves out the text"):
            vlm.generate([sk.Sample("Hello?", (picture(0),))], **SHORT)
    assert not passes
    vlm.processor.chat_template = WRITES % "{{ c.text | upper }}"
    inputs = vlm.inputs([sk.Sample("Hello?", (picture(0),))])
    assert "HELLO?" in vlm.processor.tokenizer.decode(inputs["input_ids"][0])


class Broken(RuntimeError):
    pass


def failing_at(model: Any, batch: int) -> None:
    """Let the model fail in the prefill of a batch, as when memory is short."""
    prefills: list[int] = []

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["inputs_embeds"].shape[1] > 1:
            prefills.append(1)
            if len(prefills) == batch + 1:
                raise Broken("out of memory")

    model.model.language_model.register_forward_pre_hook(fail, with_kwargs=True)


def test_finished_answers_survive_a_failure_of_the_model() -> None:
    samples = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(7)]
    vlm = sk.wrap(*tiny.build("llava"))
    expected = vlm.generate(samples, batch_size=1, **SHORT)
    failing_at(vlm.model, 2)
    with pytest.raises(ModelError, match=r"samples 4 to 5 of 7: Broken: out of memory") as caught:
        vlm.generate(samples, batch_size=2, **SHORT)
    assert isinstance(caught.value.__cause__, Broken)
    assert caught.value.finished == dict(enumerate(expected[:4]))
    assert pickle.loads(pickle.dumps(caught.value)).finished == caught.value.finished
    left = [number for number in range(7) if number not in caught.value.finished]
    assert vlm.generate([samples[number] for number in left], batch_size=2, **SHORT) == expected[4:]


@pytest.mark.parametrize("made", [5, None, torch.full((2, 999), -7), torch.ones(1, 30, dtype=torch.long)])
def test_what_is_no_answers_is_a_failure_that_keeps_the_finished_ones(made: Any) -> None:
    samples = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(4)]
    vlm = sk.wrap(*tiny.build("llava"))
    (token,) = vlm.processor.tokenizer("cake", add_special_tokens=False)["input_ids"][:1]
    calls: list[int] = []

    def generate(model: Any, ids: torch.Tensor, **given: Any) -> Any:
        calls.append(1)
        return made if len(calls) == 2 else torch.nn.functional.pad(ids, (0, 1), value=token)

    with pytest.raises(ModelError, match="samples 2 to 3 of 4") as caught:
        vlm.generate(samples, batch_size=2, custom_generate=generate, **SHORT)
    assert caught.value.finished == dict.fromkeys((0, 1), vlm.processor.tokenizer.decode([token]).strip())


def test_an_interrupt_and_a_callback_keep_the_answers_too() -> None:
    samples = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(3)]
    vlm = sk.wrap(*tiny.build("llava"))
    expected = vlm.generate(samples, **SHORT)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        vlm.generate(samples, batch_size=1, progress=stop, **SHORT)
    assert vars(caught.value)["finished"] == {0: expected[0]}


def test_answers_come_as_they_are_finished() -> None:
    samples = [sk.Sample("Hello?"), *(sk.Sample(f"What is {at}?", (picture(at),)) for at in range(4))]
    vlm = sk.wrap(*tiny.build("llava"))
    expected = vlm.generate(samples, batch_size=2, **SHORT)
    passes = passes_of(vlm.model)
    coming = vlm.answers(samples, batch_size=2, **SHORT)
    assert not passes
    assert [next(coming)[:2], next(coming)[:2]] == [(1, expected[1]), (2, expected[2])]
    of_one_batch = len(passes)
    assert of_one_batch == SHORT["max_new_tokens"]
    assert {made.number: made.text for made in coming} == {0: expected[0], 3: expected[3], 4: expected[4]}
    assert len(passes) == 3 * of_one_batch


def test_an_anchor_that_the_model_fails_on_is_numbered_in_the_whole_set() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    anchors = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(6)]
    vlm.fingerprint()
    failing_at(vlm.model, 5)
    with pytest.raises(ModelError, match="samples 4 to 5"):
        sk.CMRM().fit(vlm, anchors, batch_size=2, engine="hooks")


# -- settings that come by a generation config -------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "num_return_sequences": {"num_return_sequences": 2, "num_beams": 2},
    "return_dict_in_generate": {"return_dict_in_generate": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("way", ["an option", "a config", "the model's own"])
def test_settings_are_read_after_they_are_merged(setting: str, way: str) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    given: dict[str, Any] = {**SHORT, **SETTINGS[setting]}
    if way == "a config":
        given = {"generation_config": GenerationConfig(**given)}
    elif way == "the model's own":
        for name, value in given.items():
            setattr(vlm.model.generation_config, name, value)
        given = {}
    passes = passes_of(vlm.model)
    for call in (vlm.generate, vlm.answers):
        with pytest.raises(OptionError, match=setting):
            call([sk.Sample("Hello?")], **given)
    assert not passes


def test_an_option_overrides_a_setting_of_the_models_own() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    expected = vlm.generate([sk.Sample("Hello?")], **SHORT)
    own: Any = vlm.model.generation_config
    own.num_return_sequences, own.num_beams, own.return_dict_in_generate = 2, 2, True
    over = {"num_return_sequences": 1, "num_beams": 1, "return_dict_in_generate": False}
    assert vlm.generate([sk.Sample("Hello?")], **SHORT, **over) == expected


@pytest.mark.parametrize("way", ["an option", "a config", "the model's own"])
def test_a_max_length_that_a_prompt_fills_is_found_before_the_model_runs(way: str) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    samples = [sk.Sample("Hello?"), sk.Sample("Hello?"), sk.Sample("What is this? " * 20)]
    width = vlm.inputs(samples)["input_ids"].shape[1]
    given: dict[str, Any] = {"max_length": width}
    if way == "a config":
        given = {"generation_config": GenerationConfig(max_length=width)}
    elif way == "the model's own":
        vlm.model.generation_config.max_length, given = width, {}  # type: ignore[union-attr]
    passes = passes_of(vlm.model)
    with pytest.raises(SampleError, match=rf"sample 2 has {width} tokens, and max_length is {width}"):
        vlm.generate(samples, batch_size=1, **given)
    assert not passes
    assert len(vlm.generate(samples[:2], batch_size=1, **given)) == 2


def test_options_that_do_not_go_together_are_refused_before_the_model_runs() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    with pytest.raises(OptionError, match="generate does not take these options"):
        vlm.generate([sk.Sample("Hello?")], max_new_tokens=2, num_return_sequences=2, do_sample=False, num_beams=1)
    with pytest.raises(OptionError, match="max_new_token'"):
        vlm.generate([sk.Sample("Hello?")], max_new_token=2)


# -- processors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "instructblip-llama"])
@pytest.mark.parametrize(
    ("part", "words"),
    [
        (lambda processor: processor.tokenizer, "which has no image processor"),
        (lambda processor: processor.image_processor, "which has no tokenizer"),
        (lambda processor: "llava-hf/llava-1.5-7b-hf", "is a str, which has no tokenizer"),
    ],
)
def test_what_is_no_processor_is_refused_at_once(family: str, part: Any, words: str) -> None:
    model, processor = tiny.build(family)
    with pytest.raises(ProcessorError, match=words) as caught:
        sk.wrap(model, part(processor))
    assert "AutoProcessor" in str(caught.value.fix)


def test_the_processor_of_another_model_is_refused_at_once() -> None:
    (llava, of_llava), (qwen3, _), (qwen, of_qwen) = map(tiny.build, ("llava", "qwen3", "qwen2_5_vl"))
    with pytest.raises(ProcessorError, match=r"image token of this .* is '<\|image_pad\|>' with the id"):
        sk.wrap(llava, of_qwen)
    with pytest.raises(ProcessorError, match="'<image>' with the id"):
        sk.wrap(qwen, of_llava)
    with pytest.raises(ProcessorError, match="the model takes no images"):
        sk.wrap(qwen3, of_llava)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_tokenizer_without_a_pad_token_does(family: str) -> None:
    samples = [sk.Sample(text, (picture(at),)) for at, text in enumerate(TEXTS[:2])]
    vlm, padless = sk.wrap(*tiny.build(family)), sk.wrap(*tiny.build(family))
    tokenizer = getattr(padless.processor, "tokenizer", padless.processor)
    tokenizer.pad_token = None
    if not vlm.architecture.image_token_ids:
        samples = [sk.Sample(sample.text) for sample in samples]
    own, found = vlm.inputs(samples), padless.inputs(samples)
    assert own.keys() == found.keys()
    real = own["attention_mask"] != 0
    for key, value in own.items():
        # what stands where the mask is 0 is read by nobody
        same = (found[key] == value) | ~real if key == "input_ids" else found[key] == value
        assert bool(same.all()), key
    for call in (padless, vlm):
        torch.manual_seed(0)
        assert call.generate(samples, **SHORT) == vlm.generate(samples, batch_size=1, **SHORT)


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 40), (40, 3), (40, 1), (3, 3), (4, 1200)])
def test_an_image_of_an_odd_size_is_read_right_or_named(family: str, size: tuple[int, int]) -> None:
    """Three pixels high, it has the shape of three channels."""
    vlm = sk.wrap(*tiny.build(family))
    odd, passes = picture(2, *size), passes_of(vlm.model)
    try:
        found = vlm.inputs([sk.Sample("What?", (picture(1),)), sk.Sample("And?", (odd,))])
    except SampleError as error:
        assert "sample 1 ('And?')" in str(error)  # noqa: PT017
        with pytest.raises(SampleError, match="sample 1"):
            vlm.generate([sk.Sample("What?", (picture(1),)), sk.Sample("And?", (odd,))], batch_size=1, **SHORT)
        assert not passes
        return
    channels_last = vlm.processor.image_processor(images=[odd], input_data_format="channels_last", return_tensors="pt")
    own = channels_last["pixel_values"]
    assert torch.equal(found["pixel_values"][-own.shape[0] :].flatten()[-own.numel() :], own.flatten())


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no beams": ({"num_beams": 0}, "num_beams is 0"),
    "no beams, by a config": ({"generation_config": GenerationConfig(num_beams=0)}, "num_beams is 0"),
    "a temperature of 0": ({"do_sample": True, "temperature": 0.0}, "samples 0 to 1: ValueError: `temperature`"),
    "a penalty of 0": ({"repetition_penalty": 0.0}, "samples 0 to 1: ValueError: `penalty`"),
    "words that are no tokens": ({"bad_words_ids": [[10**6]]}, "samples 0 to 1: ValueError: The model vocabulary size"),
    "a token beyond the end": ({"forced_eos_token_id": 10**6}, "samples 0 to 1: IndexError"),
    "something else for a list": ({"logits_processor": 5}, "samples 0 to 1: TypeError"),
    "a loop that is nowhere": ({"custom_generate": str(Path(__file__).parent)}, "samples 0 to 1: OSError"),
    "the name of an assistant": ({"assistant_model": "x"}, "samples 0 to 1: AttributeError"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("which", OPTIONS)
def test_options_that_generate_fails_by_are_told_from_a_model_that_fails(llava: sk.VLM, which: str) -> None:
    options, words = OPTIONS[which]
    samples = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(3)]
    with pytest.raises(OptionError, match=words) as caught:
        llava.generate(samples, batch_size=2, **{"max_new_tokens": 2, **options})
    assert caught.value.finished == {}


def test_options_that_fail_later_keep_what_is_finished(llava: sk.VLM) -> None:
    """What a function of the caller's refuses, it may refuse for any batch."""
    samples = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(3)]
    expected = llava.generate(samples, batch_size=1, **SHORT)
    called: list[int] = []

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        called.append(1)
        if len(called) > 3:
            raise KeyError("none")
        return list(range(llava.model.config.text_config.vocab_size))

    with pytest.raises(OptionError, match=r"outside of the model, on sample 1: KeyError") as caught:
        llava.generate(samples, batch_size=1, prefix_allowed_tokens_fn=allowed, **SHORT)
    assert caught.value.finished == {0: expected[0]}


@pytest.mark.parametrize("by_config", [False, True])
def test_answers_stop_at_words_without_a_tokenizer_of_the_callers(llava: sk.VLM, by_config: bool) -> None:
    sample = sk.Sample("Hello?", (picture(0),))
    tokenizer = llava.processor.tokenizer
    inputs = llava.inputs([sample])
    given: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 1, "do_sample": False}
    ids: Any = llava.model.generate(**inputs, **given)  # type: ignore[operator]
    second = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] + 1]).strip()
    right: Any = llava.model.generate(**inputs, **given, stop_strings=[second], tokenizer=tokenizer)  # type: ignore[operator]
    assert right.shape[1] < ids.shape[1]
    options = {"generation_config": GenerationConfig(**given, stop_strings=[second])} if by_config else given
    found = llava.generate([sample], **options, **({} if by_config else {"stop_strings": [second]}))
    assert found == [tokenizer.decode(right[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()]
