"""Small trained byte-level BPE tokenizers, with special tokens and chat templates as the real models publish them.

The templates are shortened: no videos, no tools.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_ROWS = (
    "USER: What is in this picture? ASSISTANT: The picture shows a red square on a black ground.",
    "user\nHow do I bake a cake for the neighbour?<|im_end|>\nassistant\nMix flour, sugar and butter.",
    "system\nYou are a helpful assistant. Answer briefly.",
    "A chat between a curious human and an artificial intelligence assistant. Describe the image in detail.",
)

_RENDER_PARTS = (
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
)
# llava-hf/llava-1.5-7b-hf and llava-v1.6-vicuna-7b-hf
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    + _RENDER_PARTS
    + "{{ content['text'] + ' '}}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# llava-hf/llava-v1.6-mistral-7b-hf
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
    + _RENDER_PARTS
    + "{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}"
    "{% endfor %}"
)
# llava-hf/vip-llava-7b-hf
VIP = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}{% else %}"
    "{% if message['role'] == 'user' %}{{ '###Human: '}}"
    "{% else %}{{ '###' + message['role'].title() + ': '}}{% endif %}"
    + _RENDER_PARTS
    + "{{ content['text'] }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '###Assistant:' }}{% endif %}"
)
# llava-hf/llava-onevision-qwen2-0.5b-ov-hf: here the line break belongs to the text
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN_BODY = (
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen/Qwen2-VL-2B-Instruct and Qwen2.5-VL, which add a system turn of their own
QWEN2 = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + _QWEN_BODY
)
# Qwen/Qwen3-VL-8B-Instruct and later, which add none
QWEN3 = "{% for message in messages %}" + _QWEN_BODY

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@cache
def _trained(specials: tuple[str, ...], size: int) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_ROWS * 4, trainer)
    return bpe.to_str()


def _wrapped(specials: tuple[str, ...], template: str | None, size: int, **options: Any) -> PreTrainedTokenizerFast:
    bpe = Tokenizer.from_str(_trained(specials, size))
    if template is not None:
        named = [(token, bpe.token_to_id(token)) for token in specials if token in template]
        bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=4096, **options)


def llama() -> PreTrainedTokenizerFast:
    """Like Llama's: every text begins with `<s>`; `<image>` is a token."""
    return _wrapped(
        ("<pad>", "<s>", "</s>", "<image>"), "<s> $A", 400, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def qwen(*extra: str) -> PreTrainedTokenizerFast:
    """Like Qwen's: ChatML tokens, nothing added in front."""
    return _wrapped(
        (*QWEN_SPECIALS, *extra),
        None,
        410,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[*QWEN_SPECIALS[1:], *extra],
    )


def t5() -> PreTrainedTokenizerFast:
    """Like T5's: every text ends with `</s>`."""
    return _wrapped(("<pad>", "</s>", "<unk>"), "$A </s>", 390, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def bert() -> PreTrainedTokenizerFast:
    """Like the one that the Q-Former reads the question with: `[CLS]` and `[SEP]`, a vocabulary of its own."""
    return _wrapped(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
        "[CLS] $A [SEP]",
        330,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
