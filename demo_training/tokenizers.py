"""Byte-level BPE tokenizers for the demo models, with the chat template of each family.

The vocabulary is learnt from the toy world, where every word becomes one token, and falls back on bytes for anything
else, so any text can be encoded.
"""

from __future__ import annotations

import random
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo_training import curriculum
from steerkit.testing.tiny.text import QWEN_SPECIALS

SYSTEM_TURN = "You are a helpful assistant."

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}{{ '\n' }}"
    "{% elif message['role'] == 'assistant' %}ASSISTANT: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}</s>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + SYSTEM_TURN + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA_SPECIALS = ("<pad>", "<s>", "</s>", "<image>")
_VOCABULARY_LIMIT = 1200


@lru_cache(maxsize=1)
def _corpus() -> tuple[str, ...]:
    rng = random.Random(0)
    lines: list[str] = []
    for _ in range(1500):
        for kind in curriculum.KINDS:
            question, answer = curriculum.KINDS[kind](rng)
            lines += [
                f"USER: {question}\nASSISTANT: {answer}",
                f"user\n{question}",
                f"assistant\n{answer}",
                f" {answer}",
            ]
    lines += [f"system\n{SYSTEM_TURN}"] * 100
    return tuple(lines)


def _train(specials: tuple[str, ...]) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_LIMIT,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return bpe


def llama_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer with Llama's special tokens, which begins every text with `<s>`.

    Args:
        chat_template: The family's template. Without one the tokenizer does not name its image token either, because
            InstructBLIP's processor adds that itself.
    """
    bpe = _train(LLAMA_SPECIALS)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=256,
        **({"extra_special_tokens": {"image_token": "<image>"}} if chat_template else {}),
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens and the ChatML layout of Qwen2.5-VL."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train(QWEN_SPECIALS),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=256,
        additional_special_tokens=list(QWEN_SPECIALS[1:]),
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer
