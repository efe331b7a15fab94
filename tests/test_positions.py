"""Exact token positions, written by hand: as pure functions, and as a model is really steered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import directions, generate, picture, places, touched, vector

import steerkit as sk
from steerkit.errors import EngineError, OptionError
from steerkit.interventions import Phase, Selector, TokenRole, Tokens, last_positions, prompt_mask, select

P, S, T, I = TokenRole.PAD, TokenRole.SYSTEM, TokenRole.TEXT, TokenRole.IMAGE  # noqa: E741

# Left padded; right padded, with two images; no image, full length.
ROLES = torch.tensor(
    [
        [P, P, S, S, T, I, I, T, T],
        [S, T, I, T, I, I, T, P, P],
        [S, S, T, T, T, T, T, T, T],
    ]
)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("last", [[8], [6], [8]]),
        ("all", [[2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7, 8]]),
        ("image", [[5, 6], [2, 4, 5], []]),
        ("text", [[4, 7, 8], [1, 3, 6], [2, 3, 4, 5, 6, 7, 8]]),
        ("system", [[2, 3], [0], [0, 1]]),
        ("after_image", [[7, 8], [6], []]),
        ("generated", [[], [], []]),
    ],
)
def test_selects_in_a_prompt(tokens: Tokens, expected: list[list[int]]) -> None:
    assert places(prompt_mask(tokens, ROLES)) == expected


@pytest.mark.parametrize(
    ("tokens", "phase", "expected"),
    [
        ("last", "both", [8, 9, 10, 11]),
        ("last", "prompt", [8]),
        ("last", "generation", [9, 10, 11]),
        ("all", "both", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("all", "prompt", [2, 3, 4, 5, 6, 7, 8]),
        ("all", "generation", [9, 10, 11]),
        ("generated", "both", [9, 10, 11]),
        ("generated", "generation", [9, 10, 11]),
        ("image", "both", [5, 6]),
        ("text", "prompt", [4, 7, 8]),
        ("after_image", "both", [7, 8]),
        ("system", "both", [2, 3]),
    ],
)
@pytest.mark.parametrize("chunks", [(12,), (9, 1, 1, 1), (4, 4, 2, 2), (8, 4), (3,) * 4, (1,) * 12])
def test_selects_the_same_tokens_however_a_sequence_is_read(
    tokens: Tokens, phase: Phase, expected: list[int], chunks: tuple[int, ...]
) -> None:
    found, start = [], 0
    for length in chunks:
        found.append(select(Selector(tokens, phase), ROLES[:1], start, length))
        start += length
    assert places(torch.cat(found, dim=1)) == [expected]


def test_a_row_of_padding_has_no_last_token() -> None:
    assert last_positions(ROLES).tolist() == [8, 6, 8]
    with pytest.raises(OptionError, match="padding only"):
        last_positions(torch.full((1, 3), int(P)))


# -- on models ---------------------------------------------------------------------------------------------------------


def chat(system: str, text: str, *images: Any) -> sk.Sample:
    return sk.Sample((("system", system), ("user", text)), images=images)


@pytest.fixture(scope="module")
def qwen_batch(qwen: sk.VLM) -> dict[str, torch.Tensor]:
    """Two prompts of 44 positions, as the ids show:

    row 0: 0 <|im_start|>, 1-4 system and line break, 5-11 "Answer briefly.", 12-13 <|im_end|> and line break,
           14-16 <|im_start|>user and line break, 17 <|vision_start|>, 18-33 a 32 x 32 image, 34 <|vision_end|>,
           35-38 "What is this?", 39-40 <|im_end|> and line break, 41-43 <|im_start|>assistant and line break.
    row 1: 0 padding, 1-13 system turn, 14-16 as above, 17 <|vision_start|>, 18-23 a 16 x 24 image, 24 <|vision_end|>,
           25 <|vision_start|>, 26-33 a 32 x 16 image, 34 <|vision_end|>, 35-38 "Why?", 39-43 as above.
    """
    inputs = qwen.inputs(
        [
            chat("Answer briefly.", "What is this?", picture(0)),
            chat("Be brief.", "Why?", picture(1, 16, 24), picture(2, 32, 16)),
        ]
    )
    assert inputs["input_ids"].shape == (2, 44)
    return inputs


def span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def seen(vlm: sk.VLM, family: str, intervention: sk.Intervention, call: Callable[[], Any]) -> list[list[list[int]]]:
    steering = vector(vlm, directions(vlm), intervention)
    vlm.fingerprint()  # kept from here on, so that its passes are not among those that are recorded
    return [places(mask) for mask in touched(vlm.model, family, 0, lambda: sk.steer(vlm, steering, policy="off"), call)]


@pytest.mark.parametrize(
    ("tokens", "first", "second"),
    [
        ("last", [43], [43]),
        ("all", span(0, 43), span(1, 43)),
        ("system", span(0, 13), span(1, 13)),
        ("image", span(18, 33), span(18, 23) + span(26, 33)),
        ("text", span(14, 17) + span(34, 43), [*span(14, 17), 24, 25, *span(34, 43)]),
        ("after_image", span(34, 43), span(34, 43)),
    ],
)
def test_qwen_chat_with_a_system_turn_and_images_of_any_size(
    qwen: sk.VLM, qwen_batch: dict[str, torch.Tensor], tokens: Tokens, first: list[int], second: list[int]
) -> None:
    intervention = sk.Intervention(tokens=tokens, phase="prompt")
    found = seen(qwen, "qwen2_vl", intervention, lambda: generate(qwen.model, qwen_batch, steps=3))
    assert found == [[first, second], [[], []], [[], []]]


def test_llava_with_one_and_two_images(llava: sk.VLM) -> None:
    """62 positions. Row 0: 31-34 `<s>USER: `, 35-50 the image, 51-61 the rest. Row 1: 0-3, 4-19, 20, 21-36, 37-61."""
    inputs = llava.inputs(
        [
            sk.Sample("What is this?", images=(picture(0),)),
            sk.Sample("Describe the image in detail please.", images=(picture(0), picture(1))),
        ]
    )
    expected = {
        "image": [span(35, 50), span(4, 19) + span(21, 36)],
        "after_image": [span(51, 61), span(37, 61)],
        "all": [span(31, 61), span(0, 61)],
        "system": [span(31, 31), span(0, 0)],
        "text": [span(32, 34) + span(51, 61), [*span(1, 3), 20, *span(37, 61)]],
        "last": [[61], [61]],
    }
    for tokens, rows in expected.items():
        intervention = sk.Intervention(tokens=tokens, phase="prompt")
        assert seen(llava, "llava", intervention, lambda: generate(llava.model, inputs, steps=1)) == [rows], tokens


def test_tiles_are_image_tokens(vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm = vlm_of("llava_next")  # 73 positions: 0-7 `<s>[INST] `, 8-59 the image in two tiles and as a whole, 60-72 text
    inputs = vlm.inputs([sk.Sample("What is this?", images=(picture(0, 32, 64),))])
    intervention = sk.Intervention(tokens="image", phase="prompt")
    assert seen(vlm, "llava_next", intervention, lambda: generate(vlm.model, inputs, steps=1)) == [[span(8, 59)]]
    intervention = sk.Intervention(tokens="after_image", phase="prompt")
    assert seen(vlm, "llava_next", intervention, lambda: generate(vlm.model, inputs, steps=1)) == [[span(60, 72)]]


def test_instructblip_has_its_queries_in_front(vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm = vlm_of("instructblip-llama")  # 11 positions: 0-5 the queries, 6 <s>, 7-10 "What is this?"
    vlm.fingerprint()  # kept from here on, so that its passes are not among those that are recorded
    inputs = vlm.inputs([sk.Sample("What is this?", images=(picture(0),))])
    for tokens, expected in {
        "image": span(0, 5),
        "text": span(6, 10),
        "system": [],
        "after_image": span(6, 10),
    }.items():
        interventions = (sk.Intervention(tokens=tokens, phase="prompt"), sk.Intervention(layers=(2,)))
        steering = vector(vlm, directions(vlm), *interventions)
        found = touched(
            vlm.model,
            "instructblip-llama",
            0,
            lambda: sk.steer(vlm, steering, policy="off"),  # noqa: B023
            lambda: generate(vlm.model, inputs, steps=1),
        )
        assert [places(mask) for mask in found] == [[expected]]


@pytest.mark.parametrize(
    ("tokens", "phase", "prompt", "answer"),
    [
        ("last", "both", [[43], [43]], [0]),
        ("last", "generation", [[], []], [0]),
        ("generated", "both", [[], []], [0]),
        ("all", "generation", [[], []], [0]),
        ("all", "both", [span(0, 43), span(1, 43)], [0]),
        ("image", "both", [span(18, 33), span(18, 23) + span(26, 33)], []),
    ],
)
def test_every_step_with_a_kv_cache(
    qwen: sk.VLM,
    qwen_batch: dict[str, torch.Tensor],
    tokens: Tokens,
    phase: Phase,
    prompt: list[list[int]],
    answer: list[int],
) -> None:
    intervention = sk.Intervention(tokens=tokens, phase=phase)
    found = seen(qwen, "qwen2_vl", intervention, lambda: generate(qwen.model, qwen_batch, steps=3))
    assert found == [prompt, [answer, answer], [answer, answer]]


def test_every_step_without_a_kv_cache(qwen: sk.VLM, qwen_batch: dict[str, torch.Tensor]) -> None:
    def call() -> None:
        generate(qwen.model, qwen_batch, steps=3, use_cache=False)

    assert seen(qwen, "qwen2_vl", sk.Intervention(), call) == [
        [[43], [43]],
        [[43, 44], [43, 44]],
        [[43, 44, 45], [43, 44, 45]],
    ]
    assert seen(qwen, "qwen2_vl", sk.Intervention(phase="prompt"), call) == [[[43], [43]]] * 3
    assert seen(qwen, "qwen2_vl", sk.Intervention(tokens="generated"), call) == [
        [[], []],
        [[44], [44]],
        [[44, 45], [44, 45]],
    ]


def test_beams_repeat_each_row(qwen: sk.VLM, qwen_batch: dict[str, torch.Tensor]) -> None:
    intervention = sk.Intervention(tokens="image", phase="prompt")
    found = seen(qwen, "qwen2_vl", intervention, lambda: generate(qwen.model, qwen_batch, steps=2, num_beams=2))
    rows = [span(18, 33), span(18, 23) + span(26, 33)]
    assert found[0] == [rows[0], rows[0], rows[1], rows[1]]
    assert found[1:] == [[[], [], [], []]]


def test_chunked_prefill(qwen: sk.VLM) -> None:
    inputs = qwen.inputs([chat("Answer briefly.", "What is this?")])  # 26 positions, 14 of them the system's
    assert inputs["input_ids"].shape == (1, 26)

    def call() -> None:
        generate(qwen.model, inputs, steps=2, prefill_chunk_size=10)

    assert seen(qwen, "qwen2_vl", sk.Intervention(), call) == [[[]], [[]], [[5]], [[0]]]
    assert seen(qwen, "qwen2_vl", sk.Intervention(tokens="system"), call) == [[span(0, 9)], [span(0, 3)], [[]], [[]]]
    assert seen(qwen, "qwen2_vl", sk.Intervention(tokens="text", phase="prompt"), call) == [
        [[]],
        [span(4, 9)],
        [span(0, 5)],
        [[]],
    ]


def test_right_padding_is_read_row_by_row(qwen: sk.VLM) -> None:
    ids = torch.tensor([[70, 71, 72, 73, 74], [80, 81, 82, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def call() -> None:
        with torch.no_grad():
            qwen.model(input_ids=ids, attention_mask=mask)

    assert seen(qwen, "qwen2_vl", sk.Intervention(), call) == [[[4], [2]]]
    assert seen(qwen, "qwen2_vl", sk.Intervention(tokens="all"), call) == [[[0, 1, 2, 3, 4], [0, 1, 2]]]


def test_the_system_turn_needs_a_tokenizer(qwen: sk.VLM, qwen_batch: dict[str, torch.Tensor]) -> None:
    steering = vector(qwen, directions(qwen), sk.Intervention(tokens="system"))
    with pytest.raises(EngineError, match="needs the tokenizer"), sk.steer(qwen.model, steering):
        generate(qwen.model, qwen_batch, steps=1)


def test_an_encoder_decoder_has_no_prompt_tokens_to_tell_apart(vlm_of: Callable[[str], sk.VLM]) -> None:
    vlm = vlm_of("instructblip-t5")
    with pytest.raises(EngineError, match="encoder-decoder"):
        sk.steer(vlm, vector(vlm, directions(vlm), sk.Intervention(tokens="image")))
