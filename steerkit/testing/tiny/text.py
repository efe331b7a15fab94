"""Small trained byte-level BPE tokenizers, with special tokens as the real models publish them."""

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


def t5(*extra: str) -> PreTrainedTokenizerFast:
    """Like T5's: every text ends with `</s>`. More special tokens are behind the vocabulary."""
    made = _wrapped(("<pad>", "</s>", "<unk>"), "$A </s>", 390, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.add_tokens(list(extra), special_tokens=True)
    return made


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
