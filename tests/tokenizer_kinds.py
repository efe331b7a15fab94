"""A small trained tokenizer of every kind that transformers has, each with the tokens of a LLaVA."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROWS = (
    "USER: What is in this picture? ASSISTANT: The picture shows a red square on a black ground.",
    "How do I bake a cake for the neighbour? Mix flour, sugar and butter.",
    "A chat between a curious human and an artificial intelligence assistant. Be brief. Hello?",
    "[INST] Line one, line two, ## joined. [/INST] two spaces in front, behind; don't! USER: two ASSISTANT: L",
    "user\nDescribe the image in detail.\n\nWhy? No: it's 42 (and a half).\n",
) * 8
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def _finished(tokenizer: Tokenizer, image: AddedToken | None = None, begin: bool = True, **options: Any) -> Any:
    if begin:
        start = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    wrapped: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMED, **options)
    if image is not None:
        wrapped.add_tokens([image], special_tokens=bool(image.special))
    return wrapped


@cache
def _llama_model() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = [*SPECIAL, *(f"<0x{value:02X}>" for value in range(256))]
    tokenizer.train_from_iterator(
        ROWS, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    return tokenizer.to_str()


def _llama(without_image: bool = False) -> Tokenizer:
    content = json.loads(_llama_model())
    # bytes are no added tokens in a published tokenizer
    kept = SPECIAL[:-1] if without_image else SPECIAL
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in kept]
    if without_image:
        del content["model"]["vocab"]["<image>"]
        content["model"]["vocab"]["<|unused|>"] = SPECIAL.index("<image>")
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def prepend(image: AddedToken | None = None) -> Any:
    """What conversions of Llama-2 and LLaVA-1.5 hold: a normalizer that puts a mark in front of every text."""
    return _finished(_llama(image is not None), image)


def metaspace(scheme: str, split: bool = False) -> Any:
    """The same as a pre-tokenizer."""
    tokenizer = _llama()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)
    return _finished(tokenizer)


def llama_class(**options: Any) -> Any:
    """The class of transformers itself."""
    content = json.loads(_llama_model())["model"]
    merges = [tuple(pair) for pair in content["merges"]]
    made: Any = transformers.LlamaTokenizer(vocab=content["vocab"], merges=merges, pad_token="<pad>", **options)
    made.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    return made


def byte_level(prefix: bool, begin: bool = True, image: AddedToken | None = None) -> Any:
    """GPT-2, Llama-3 and Qwen (no prefix), or RoBERTa (prefix)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL if image is None else SPECIAL[:-1]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ROWS, trainer)
    return _finished(tokenizer, image, begin)


def word_piece(lower: bool, image: AddedToken | None = None) -> Any:
    """BERT: white space leaves no trace."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = list(SPECIAL if image is None else SPECIAL[:-1])
    tokenizer.train_from_iterator(
        ROWS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    return _finished(tokenizer, image)


def unigram(collapse: bool) -> Any:
    """T5, ALBERT and XLM-R: sentencepiece's unigram; some make one space of many."""
    tokenizer = Tokenizer(models.Unigram())
    steps: list[Any] = [normalizers.NFKC()]
    if collapse:
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(ROWS, trainer)
    return _finished(tokenizer)


def undecoded() -> Any:
    """A tokenizer without a decoder, which shows its tokens with spaces between them."""
    made = prepend()
    made.backend_tokenizer.decoder = None
    return made


def _image(**options: bool) -> AddedToken:
    return AddedToken("<image>", **{"special": True, "normalized": False, **options})


KINDS: dict[str, Callable[[], Any]] = {
    "prepend and replace": prepend,
    "prepend, normalized image": lambda: prepend(_image(normalized=True)),
    "prepend, image strips left": lambda: prepend(_image(lstrip=True)),
    "prepend, image strips right": lambda: prepend(_image(rstrip=True)),
    "prepend, image strips both": lambda: prepend(_image(lstrip=True, rstrip=True)),
    "prepend, single word": lambda: prepend(_image(single_word=True)),
    "metaspace always": lambda: metaspace("always"),
    "metaspace always, split": lambda: metaspace("always", split=True),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "LlamaTokenizer": llama_class,
    "LlamaTokenizer, legacy": lambda: llama_class(legacy=True),
    "LlamaTokenizer without prefix": lambda: llama_class(add_prefix_space=False),
    "byte level": lambda: byte_level(prefix=False),
    "byte level, begins with nothing": lambda: byte_level(prefix=False, begin=False),
    "byte level with prefix": lambda: byte_level(prefix=True),
    "byte level, image strips both": lambda: byte_level(False, image=_image(lstrip=True, rstrip=True)),
    "byte level with prefix, image strips both": lambda: byte_level(True, image=_image(lstrip=True, rstrip=True)),
    "word piece": lambda: word_piece(lower=False),
    "word piece, lower case": lambda: word_piece(lower=True),
    "word piece, image strips both": lambda: word_piece(True, _image(lstrip=True, rstrip=True)),
    "unigram": lambda: unigram(collapse=False),
    "unigram, one space": lambda: unigram(collapse=True),
    "no decoder": undecoded,
}
