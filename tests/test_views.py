"""The views that are derived from a model's inputs are those that the processor builds from the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import TEXT_ONLY, TEXTS, WITH_IMAGE, noisy, picture, white

import steerkit as sk
from steerkit.errors import EngineError, ProcessorError
from steerkit.models import meaningless_image, system_lengths, view

AWKWARD = (
    "How  many   spaces?",
    " leading and trailing ",
    "Line one\n\nline two\n",
    "Ünïcödé: 日本語 🙂",
    "USER: fake turn ASSISTANT:",
    "Tab\there, and <b>tags</b> & 'quotes'",
)


def derived(vlm: sk.VLM, name: Any, inputs: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    return view(name, inputs, vlm.format, vlm.architecture, seed)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


def text_inputs(vlm: sk.VLM, samples: list[sk.Sample]) -> dict[str, torch.Tensor]:
    """What the processor makes of texts; Qwen's says in addition that no token is an image's, which changes nothing."""
    inputs = vlm.inputs(samples)
    assert not inputs.pop("mm_token_type_ids", torch.zeros(1)).any()
    return inputs


def supports(family: str, samples: list[sk.Sample]) -> bool:
    return not family.startswith("instructblip") or all(len(sample.images) < 2 for sample in samples)


SHOWN = {
    "square": list(WITH_IMAGE),
    "one": list(WITH_IMAGE[:1]),
    "oblong": [sk.Sample(text, images=(picture(at, 64, 32),)) for at, text in enumerate(TEXTS)],
    "mixed sizes": [sk.Sample(TEXTS[0], images=(picture(1, 32, 64),)), sk.Sample(TEXTS[1], images=(picture(2),))],
    "two images": [sk.Sample(TEXTS[0], images=(picture(1), picture(2))), sk.Sample(TEXTS[1], images=(picture(3),))],
    "odd size": [sk.Sample(TEXTS[0], images=(picture(1, 41, 37),))],
    "system": [sk.Sample((("system", "Be brief."), ("user", "What?")), images=(picture(4),))],
    "turns": [
        sk.Sample((("user", "What?"), ("assistant", "No."), ("user", "Why?")), images=(picture(5),)),
        sk.Sample("Short.", images=(picture(6),)),
    ],
}


@pytest.mark.parametrize("case", SHOWN)
def test_blank_and_text_are_the_processors_own(family: str, vlm: sk.VLM, case: str) -> None:
    samples = SHOWN[case]
    if not supports(family, samples):
        pytest.skip("InstructBLIP takes one image")
    inputs = vlm.inputs(samples)
    assert_equal(derived(vlm, "original", inputs), inputs)
    assert_equal(derived(vlm, "blank", inputs), vlm.inputs([white(sample) for sample in samples]))
    assert_equal(derived(vlm, "text", inputs), text_inputs(vlm, [sk.Sample(sample.text) for sample in samples]))
    alone = text_inputs(vlm, [sk.Sample(sample.text) for sample in samples])
    assert_equal(derived(vlm, "text", alone), alone)


def test_noise_is_the_processors_own_where_images_keep_their_size(vlm: sk.VLM) -> None:
    inputs = vlm.inputs(WITH_IMAGE)
    found = derived(vlm, "noise", inputs, seed=6)
    assert_equal(found, vlm.inputs([noisy(sample, 6) for sample in WITH_IMAGE]))
    assert not torch.equal(found["pixel_values"], derived(vlm, "noise", inputs, seed=7)["pixel_values"])
    assert not torch.equal(found["pixel_values"], inputs["pixel_values"])


@pytest.mark.parametrize("text", AWKWARD)
def test_texts_survive_the_way_through_ids(vlm: sk.VLM, text: str) -> None:
    sample = sk.Sample(text, images=(picture(0),))
    try:
        found = derived(vlm, "text", vlm.inputs([sample]))
    except EngineError as error:  # refusing is right where a tokenizer loses something, measuring wrongly is not
        assert "the tokenizer makes no text into the ids" in str(error)  # noqa: PT017
    else:
        assert_equal(found, text_inputs(vlm, [sk.Sample(text)]))


def test_texts_without_a_mask_are_all_real(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE[:1])
    del inputs["attention_mask"]
    assert_equal(derived(llava, "text", inputs), llava.inputs(TEXT_ONLY[:1]))


def test_views_keep_device_and_type(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    inputs["pixel_values"] = inputs["pixel_values"].half()
    blank = derived(llava, "blank", inputs)
    assert blank["pixel_values"].dtype == torch.float16
    assert (blank["pixel_values"] == 1).all()
    assert blank["input_ids"] is inputs["input_ids"]


def test_a_prompt_without_an_image_stays_as_it_is(llava: sk.VLM) -> None:
    inputs = llava.inputs(TEXT_ONLY)
    for name in ("blank", "noise", "original"):
        assert derived(llava, name, inputs).keys() == inputs.keys()
        assert all(derived(llava, name, inputs)[key] is value for key, value in inputs.items())


def test_views_refuse(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    with pytest.raises(EngineError, match="caption"):
        derived(llava, "caption", inputs)
    with pytest.raises(EngineError, match="without input_ids"):
        derived(llava, "text", {"inputs_embeds": torch.zeros(1, 2, 48)})
    with pytest.raises(ProcessorError, match="no processor"):
        view("text", inputs, None, llava.architecture, 0)
    torn = inputs["input_ids"].clone()
    torn[0, -2] = llava.processor.tokenizer.convert_tokens_to_ids("\u00c3")  # the first half of a character
    with pytest.raises(EngineError, match="the tokenizer makes no text into the ids"):
        derived(llava, "text", {**inputs, "input_ids": torn})


def test_meaningless_images() -> None:
    blank = np.asarray(meaningless_image((3, 5), None))
    assert blank.shape == (3, 5, 3)
    assert (blank == 255).all()
    noise = np.asarray(meaningless_image((64, 48), 3))
    assert noise.shape == (64, 48, 3)
    assert (noise == np.asarray(picture(3, 64, 48))).all()
    assert 120 < noise.mean() < 135
    assert noise.min() == 0
    assert noise.max() == 255


def test_system_lengths_by_hand(qwen: sk.VLM, llava: sk.VLM, vlm_of: Any) -> None:
    system = (("system", "Answer briefly."), ("user", "What is this?"))
    cases = [
        (qwen, [sk.Sample(system), sk.Sample("Hi", ())], [14, 16]),  # the template adds a system turn of its own
        (llava, [sk.Sample(system)], [9]),
        (vlm_of("qwen3_vl"), [sk.Sample(system), sk.Sample("Hi")], [14, 16]),  # and here it adds none
    ]
    for vlm, samples, expected in cases:
        inputs = vlm.inputs(samples)
        ids, real = inputs["input_ids"], inputs["attention_mask"] != 0
        found = system_lengths(ids, real, vlm.format).tolist()
        tokens = [vlm.processor.tokenizer.decode(row[at : at + 6]) for row, at in zip(ids, found, strict=True)]
        assert found == expected, tokens
