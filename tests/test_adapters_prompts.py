"""Prompts as text: exactly what each published template gives, with and without images."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny

from steerkit.errors import ProcessorError, SampleError
from steerkit.models import PromptFormat, Sample
from steerkit.vlm import VLM

PLAIN = Sample("What is this?")
CHAT = Sample((("system", "Be brief."), ("user", "Bake a cake."), ("assistant", "No."), ("user", "Why?")))

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_OPEN = "<|im_start|>user\n"
QWEN_CLOSE = "What is this?<|im_end|>\n<|im_start|>assistant\n"
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN_CHAT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + QWEN_IMAGE + "Bake a cake.<|im_end|>\n"
    "<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
)
# name: the plain sample with no image, with one and with two (None: one at most); the chat with one
GOLDEN: dict[str, tuple[str, str, str | None, str]] = {
    "llava": (
        "USER: What is this? ASSISTANT:",
        "USER: <image>\nWhat is this? ASSISTANT:",
        "USER: <image>\n<image>\nWhat is this? ASSISTANT:",
        "Be brief. USER: <image>\nBake a cake. ASSISTANT: No. USER: Why? ASSISTANT:",
    ),
    "llava_next": (
        "[INST] What is this? [/INST]",
        "[INST] <image>\nWhat is this? [/INST]",
        "[INST] <image>\n<image>\nWhat is this? [/INST]",
        "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>\nBake a cake. [/INST] No.</s> [INST] Why? [/INST]",
    ),
    "llava_onevision": (
        "<|im_start|>user \nWhat is this?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image>\nWhat is this?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user <image><image>\nWhat is this?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system \nBe brief.<|im_end|><|im_start|>user <image>\nBake a cake.<|im_end|>"
        "<|im_start|>assistant \nNo.<|im_end|><|im_start|>user \nWhy?<|im_end|><|im_start|>assistant\n",
    ),
    "vipllava": (
        "###Human: What is this?###Assistant:",
        "###Human: <image>\nWhat is this?###Assistant:",
        "###Human: <image>\n<image>\nWhat is this?###Assistant:",
        "Be brief.###Human: <image>\nBake a cake.###Assistant: No.###Human: Why?###Assistant:",
    ),
    **{
        name: (
            QWEN_SYSTEM + QWEN_OPEN + QWEN_CLOSE,
            QWEN_SYSTEM + QWEN_OPEN + QWEN_IMAGE + QWEN_CLOSE,
            QWEN_SYSTEM + QWEN_OPEN + QWEN_IMAGE * 2 + QWEN_CLOSE,
            QWEN_CHAT,
        )
        for name in ("qwen2_vl", "qwen2_5_vl")
    },
    **{
        name: (
            QWEN_OPEN + QWEN_CLOSE,
            QWEN_OPEN + QWEN_IMAGE + QWEN_CLOSE,
            QWEN_OPEN + QWEN_IMAGE * 2 + QWEN_CLOSE,
            QWEN_CHAT,
        )
        for name in ("qwen3_vl", "qwen3_5")
    },
    **{
        name: ("What is this?", "What is this?", None, "Be brief.\nBake a cake.\nNo.\nWhy?")
        for name in ("instructblip-llama", "instructblip-t5")
    },
}


def family(name: str) -> tuple[Any, PromptFormat]:
    model, processor = tiny.build(name)
    made = VLM(model, processor).format
    assert made is not None
    return processor, made


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_prompts_are_those_of_the_template(name: str) -> None:
    _, format = family(name)
    none, one, two, chat = GOLDEN[name]
    counts = (0, 1) if two is None else (0, 1, 2)
    shown = [format.render(PLAIN, count) for count in counts]
    assert shown == [none, one, two][: len(counts)]
    assert format.render(CHAT, 1) == chat
    if two is None:
        with pytest.raises(SampleError, match="2 images"):
            format.render(PLAIN, 2)
    placeholder = format.placeholder
    for sample in (PLAIN, CHAT):
        bare = format.render(sample, 0)
        assert re.search(placeholder, bare) is None
        for count in counts[1:]:
            assert re.sub(placeholder, "", format.render(sample, count)) == bare


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_user_marker_opens_the_users_turn(name: str) -> None:
    _, format = family(name)
    marker = format.user_marker
    prompt = format.render(CHAT, 1)
    if marker is not None:
        before, _, after = prompt.partition(marker)
        assert "Be brief." in before
        assert "Bake a cake." in after


def test_llava_without_a_template_uses_the_published_prompt() -> None:
    processor, format = family("llava")
    processor.chat_template = None
    # A template of the language model, which knows no images, must not be taken for the model's.
    processor.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert format.render(PLAIN, 1) == "USER: <image>\nWhat is this?\nASSISTANT:"
    assert format.render(PLAIN, 0) == "USER: What is this?\nASSISTANT:"
    chat = "Be brief. USER: <image>\nBake a cake.\nASSISTANT: No.</s>USER: Why?\nASSISTANT:"
    assert format.render(CHAT, 1) == chat


def test_line_break_of_the_llama3_template_goes_with_the_image() -> None:
    processor, format = family("llava_next")
    processor.chat_template = (
        "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'}}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ '\n' + content['text'] + '<|eot_id|>' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    begin, end = "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert format.render(PLAIN, 2) == f"{begin}<image><image>\nWhat is this?<|eot_id|>{end}"
    assert format.render(PLAIN, 0) == f"{begin}What is this?<|eot_id|>{end}"


def test_no_template_is_an_error() -> None:
    processor, format = family("qwen2_vl")
    processor.chat_template = None
    processor.tokenizer.chat_template = None
    with pytest.raises(ProcessorError, match="has no chat template"):
        format.render(PLAIN, 0)


def test_a_template_that_ignores_images_is_an_error() -> None:
    processor, format = family("qwen3_vl")
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(ProcessorError, match=r"writes '<\|image_pad\|>' 0 times"):
        format.render(PLAIN, 1)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_image_tokens_in_the_text_are_refused(name: str) -> None:
    vlm = VLM(*tiny.build(name))
    assert vlm.format is not None
    visual = vlm.processor.tokenizer.convert_ids_to_tokens(sorted(vlm.architecture.image_token_ids))
    for token in {str(vlm.processor.image_token), *visual}:
        with pytest.raises(SampleError, match="placeholders are put there by the adapter"):
            vlm.format.render(Sample(f"What is {token}?"), 1)


def test_begin_token_of_the_template_is_not_doubled() -> None:
    processor, format = family("llava")
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    text = format.render(PLAIN, 0)
    assert text.startswith("<s>USER:")
    row = format.encode([text], [[]])["input_ids"][0].tolist()
    assert row.count(processor.tokenizer.bos_token_id) == 1
