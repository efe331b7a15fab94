"""Capturing and steering equal plain PyTorch hooks, bit for bit, in every family and every way of generating."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import (
    TEXT_ONLY,
    WITH_IMAGE,
    Edit,
    adds,
    captured,
    directions,
    distance,
    edited,
    generate,
    no_images,
    noisy,
    only,
    prompt_length,
    since,
    vector,
    white,
)

import steerkit as sk
from steerkit.models import Images

CLEARLY = 1e-2
"""What counts as a visible change of a logit; logits of the tiny models are about 1 to 5."""

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled_sequences": {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2},
    "no_cache": {"use_cache": False},
}


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        (False, TEXT_ONLY),
        (True, WITH_IMAGE),
        ("blank", [white(sample) for sample in WITH_IMAGE]),
        ("noise", [noisy(sample, 3) for sample in WITH_IMAGE]),
    ],
    ids=["text", "image", "blank", "noise"],
)
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_captures_what_plain_hooks_see(
    family: str, vlm: sk.VLM, images: Images, shown: list[sk.Sample], site: Any
) -> None:
    found = vlm.capture(WITH_IMAGE, images=images, engine="hooks", site=site, seed=3)
    inputs = vlm.inputs(shown)
    expected = captured(vlm.model, family, inputs, site)
    assert list(found) == list(range(len(expected)))
    for layer, want in enumerate(expected):
        assert torch.equal(found[layer], want)
    if family != "instructblip-t5":  # whose decoder has a single prompt token
        before = captured(vlm.model, family, inputs, site, position=-2)
        assert all((a - b).abs().max() > CLEARLY for a, b in zip(expected, before, strict=True))


@pytest.mark.parametrize(("way", "size"), [("greedy", 1), *((way, 3) for way in WAYS)])
@pytest.mark.parametrize("phase", ["prompt", "both"])
@pytest.mark.parametrize("samples", [TEXT_ONLY, WITH_IMAGE], ids=["text", "image"])
def test_steers_raw_generate_as_plain_hooks_do(
    family: str, vlm: sk.VLM, way: str, phase: Any, samples: tuple[sk.Sample, ...], size: int
) -> None:
    options = WAYS[way]
    inputs = vlm.inputs(samples[:size])
    last = prompt_length(family, inputs) - 1
    place = only if phase == "prompt" else since
    tensors = directions(vlm)
    cached = way != "no_cache"

    with sk.steer(vlm.model, vector(vlm, tensors, sk.Intervention(phase=phase)), strength=0.75):
        found = generate(vlm.model, inputs, **options)
    with edited(vlm.model, family, adds(tensors, place(last), 0.75), cached=cached):
        expected = generate(vlm.model, inputs, **options)
    assert distance(found, expected) == 0.0

    plain = generate(vlm.model, inputs, **options)
    neighbour = last + 1 if family == "instructblip-t5" else last - 1
    with edited(vlm.model, family, adds(tensors, place(neighbour), 0.75), cached=cached):
        beside = generate(vlm.model, inputs, **options)
    assert distance(found, plain) > CLEARLY
    assert distance(found, beside) > CLEARLY


def test_vlm_generate_answers_as_plain_hooks_do(family: str, vlm: sk.VLM) -> None:
    tensors = directions(vlm)
    samples = [TEXT_ONLY[0], WITH_IMAGE[1], TEXT_ONLY[2], WITH_IMAGE[0]]
    with sk.steer(vlm, vector(vlm, tensors)):
        found = vlm.generate(samples, max_new_tokens=6, min_new_tokens=6, **no_images(vlm.model))

    expected: dict[int, str] = {}
    for batch in ([1, 3], [0, 2]):
        inputs = vlm.inputs([samples[index] for index in batch])
        length = prompt_length(family, inputs)
        with edited(vlm.model, family, adds(tensors, since(length - 1))):
            ids = generate(vlm.model, inputs, steps=6).sequences[:, length:]
        texts = vlm.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        expected.update(zip(batch, [text.strip() for text in texts], strict=True))
    assert found == [expected[index] for index in range(4)]
    assert found != vlm.generate(samples, max_new_tokens=6, min_new_tokens=6, **no_images(vlm.model))


def contrast(
    vlm: sk.VLM, family: str, samples: tuple[sk.Sample, ...], counterpart: str, form: str
) -> list[torch.Tensor]:
    """`[batch, hidden]` by layer, through the processor from the samples."""
    shown = {
        "blank": [white(sample) for sample in samples],
        "noise": [noisy(sample, 4) for sample in samples],
        "original": list(samples),
    }[counterpart]
    text = captured(vlm.model, family, vlm.inputs([sk.Sample(sample.text) for sample in samples]))
    image = captured(vlm.model, family, vlm.inputs(shown))
    shift = [a - b for a, b in zip(text, image, strict=True)]
    if form == "literal":
        return shift
    return [shift[0], *(above - below for below, above in pairwise(shift))]


def contrast_edits(contrasts: list[torch.Tensor], position: int, each: int = 1) -> list[Edit]:
    return [
        Edit(layer, only(position), lambda h, rows, c=rows_of: h + c[rows // each])
        for layer, rows_of in enumerate(contrasts)
    ]


@pytest.mark.parametrize("counterpart", ["blank", "noise", "original"])
@pytest.mark.parametrize("form", ["increments", "literal"])
def test_measures_each_prompt_as_its_own_contrast(family: str, vlm: sk.VLM, counterpart: str, form: str) -> None:
    method = sk.CMRM(level="sample", counterpart=counterpart, form=form, seed=4)
    inputs = vlm.inputs(WITH_IMAGE)
    last = prompt_length(family, inputs) - 1
    contrasts = contrast(vlm, family, WITH_IMAGE, counterpart, form)

    with sk.steer(vlm, method.fit(vlm)) as receipt:
        found = generate(vlm.model, inputs)
        answers = vlm.generate(WITH_IMAGE, max_new_tokens=5, min_new_tokens=5, **no_images(vlm.model))
    with edited(vlm.model, family, contrast_edits(contrasts, last)):
        expected = generate(vlm.model, inputs)
    assert distance(found, expected) == 0.0
    assert receipt.prompt_tokens == 6
    assert receipt.generated_tokens == 0
    decoded = vlm.processor.tokenizer.batch_decode(expected.sequences[:, last + 1 :], skip_special_tokens=True)
    assert answers == [text.strip() for text in decoded]

    plain = generate(vlm.model, inputs)
    assert distance(found, plain) > CLEARLY
    mixed = [rows[[1, 2, 0]] for rows in contrasts]
    with edited(vlm.model, family, contrast_edits(mixed, last)):
        assert distance(found, generate(vlm.model, inputs)) > CLEARLY


@pytest.mark.parametrize("way", ["beams", "sampled_sequences"])
def test_contrasts_follow_their_prompts_through_beams_and_sequences(family: str, vlm: sk.VLM, way: str) -> None:
    inputs = vlm.inputs(WITH_IMAGE)
    contrasts = contrast(vlm, family, WITH_IMAGE, "blank", "increments")
    each = 3 if way == "beams" else 2
    with sk.steer(vlm, sk.CMRM(level="sample", counterpart="blank").fit(vlm)):
        found = generate(vlm.model, inputs, **WAYS[way])
    with edited(vlm.model, family, contrast_edits(contrasts, prompt_length(family, inputs) - 1, each)):
        expected = generate(vlm.model, inputs, **WAYS[way])
    assert distance(found, expected) == 0.0
    assert distance(found, generate(vlm.model, inputs, **WAYS[way])) > CLEARLY


def test_a_raw_forward_pass_measures_its_prompt_too(family: str, vlm: sk.VLM) -> None:
    inputs = vlm.inputs(WITH_IMAGE)
    contrasts = contrast(vlm, family, WITH_IMAGE, "blank", "increments")
    more = {"decoder_input_ids": torch.zeros(3, 1, dtype=torch.long)} if family == "instructblip-t5" else {}
    with torch.no_grad():
        with sk.steer(vlm, sk.CMRM(level="sample", counterpart="blank").fit(vlm)):
            found = vlm.model(**inputs, **more).logits
        with edited(vlm.model, family, contrast_edits(contrasts, prompt_length(family, inputs) - 1)):
            expected = vlm.model(**inputs, **more).logits
        plain = vlm.model(**inputs, **more).logits
    assert torch.equal(found, expected)
    assert (found - plain).abs().max() > CLEARLY
