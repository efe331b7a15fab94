"""Real processors of every type, with a small tokenizer built here that has the tokens each of them asks for."""

from __future__ import annotations

import inspect
import re
import string
from functools import cache
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.auto import feature_extraction_auto, image_processing_auto, processing_auto  # noqa: F401
from transformers.models.auto.auto_mappings import (
    FEATURE_EXTRACTOR_MAPPING_NAMES,
    IMAGE_PROCESSOR_MAPPING_NAMES,
    PROCESSOR_MAPPING_NAMES,
    VIDEO_PROCESSOR_MAPPING_NAMES,
)
from transformers.utils import is_torchvision_available

from breadth.processor_options import IMAGES, KINDS, NAMED, OPTIONS, SIBLINGS, SOUNDS, TOKENIZERS, VIDEOS

_ROWS = (
    "USER: What is this? ASSISTANT: a red square on a black ground. user system assistant picture",
    "How do I bake a cake for the neighbour, and what do I say when I bring it over? Be brief. Are you there? Yes.",
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}@IMAGE@{% elif c['type'] == 'video' %}@VIDEO@{% elif c['type'] == 'audio' %}@AUDIO@"
    "{% elif c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with the type's own placeholder. It begins nothing that a tokenizer would begin again."""


class Waived:
    """Stands where a part of a processor would need what is not installed."""

    def __init__(self, *names: str) -> None:
        self.model_input_names: list[str] = list(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@cache
def _trained(specials: tuple[str, ...], beginning: bool) -> str:
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + 300,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_ROWS * 4, trainer)
    if beginning:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    return bpe.to_str()


def tokenizer(names: dict[str, str], texts: list[str], beginning: bool = True) -> Any:
    """A byte-level tokenizer that has these tokens, under the names that a processor reads them by."""
    known = ("<pad>", "<s>", "</s>", "<unk>")
    more = [each for each in dict.fromkeys((*names.values(), *texts)) if each not in known]
    specials = (*known, "<|im_start|>", "<|im_end|>", *more)
    made = Tokenizer.from_str(_trained(specials, beginning))
    options: dict[str, Any] = {"extra_special_tokens": dict(names)} if names else {}
    wrapped: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=8192,
        **options,
    )
    return wrapped


def unigram() -> Any:
    """The tokenizer of UDOP, whose words have boxes."""
    words = sorted({word for row in _ROWS for word in row.split()})
    pieces = [("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [("\u2581" + word, -3.0) for word in words] + [(letter, -6.0) for letter in string.printable[:94]]
    return transformers.UdopTokenizer(vocab=pieces)


def reader() -> Any:
    """The tokenizer that a Q-Former reads the question with."""
    return tokenizer({}, ["[CLS]", "[SEP]"])


def kind_of(name: str) -> Any:
    """The class of a type's processor."""
    return getattr(transformers, KINDS.get(name) or PROCESSOR_MAPPING_NAMES[name])


def processor(name: str) -> Any:
    """A processor of a type.

    Raises:
        ImportError: It needs what is not installed.
    """
    kind = kind_of(name)
    options = dict(OPTIONS.get(name, {}))
    parts: dict[str, Any] = {}
    for part in kind.get_attributes():
        if part == "tokenizer":
            parts[part] = _tokenizer_for(name, kind)
        elif part == "qformer_tokenizer":
            parts[part] = reader()
        elif part == "image_processor":
            parts[part] = _images(name)
        elif part == "video_processor":
            parts[part] = _videos(name)
        elif part == "feature_extractor":
            parts[part] = _sounds(name)
        else:
            parts[part] = Waived()
    if any(isinstance(part, Waived) for part in parts.values()):
        kind = _lenient(kind)
    made: Any = kind(**parts, **options)
    return made


def _lenient(kind: Any) -> Any:
    def check(self: Any, name: str, argument: Any) -> Any:
        return None if isinstance(argument, Waived) else kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__module__": kind.__module__})


def tokens_of(name: str, kind: Any) -> tuple[dict[str, str], list[str]]:
    """The tokens that a processor reads from its tokenizer by name, and those written out in its code."""
    source = "".join(
        inspect.getsource(each) for each in kind.__mro__ if each.__module__.startswith("transformers.models")
    )
    names = {
        each.removesuffix("_id")
        for each in re.findall(r"tokenizer,? ?[\"'.](\w+_token(?:_id)?)\b", source)
        if not each.startswith(("pad_", "bos_", "eos_", "unk_", "add_"))
    }
    texts = re.findall(r"[\"'](<[^<>\"'{}\s]+>|\[[A-Z_]{3,}\]|\|[A-Z]+\||<\|[^<>\"'{}]+\|>)[\"']", source)
    given = {each: f"<{each.removesuffix('_token')}>" for each in sorted(names)}
    given.update(NAMED.get(name, {}))
    return given, list(dict.fromkeys(texts))


def _tokenizer_for(name: str, kind: Any) -> Any:
    if name == "udop":
        return unigram()
    names, texts = tokens_of(name, kind)
    special = TOKENIZERS.get(name, {})
    if special.get("plain"):  # the processor adds its tokens itself
        names = {}
    texts += ["<|vision_start|>", "<|vision_end|>", "<|begin_of_image|>", "<|end_of_image|>"]
    texts += list(special.get("texts", ()))
    made = tokenizer(names, texts, special.get("beginning", True))
    for key, value in special.get("attributes", {}).items():
        setattr(made, key, value)
    return made


def _entry(mapping: Any, name: str) -> Any:
    found = mapping.get(name) or mapping.get(SIBLINGS.get(name, ""))
    if isinstance(found, dict):
        order = ("torchvision", "pil") if is_torchvision_available() else ("pil", "torchvision")
        found = next(found[each] for each in order if found.get(each))
    return found


def _images(name: str) -> Any:
    found = _entry(IMAGE_PROCESSOR_MAPPING_NAMES, name)
    if found is None:
        from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as ALL

        found = _entry(ALL, name)
    options = IMAGES.get(name, {})
    return getattr(transformers, found)(**options)


def _videos(name: str) -> Any:
    if not is_torchvision_available():
        return Waived("pixel_values_videos")
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES as ALL

    found = _entry(VIDEO_PROCESSOR_MAPPING_NAMES, name) or _entry(ALL, name)
    if found is None:
        return Waived("pixel_values_videos")
    return getattr(transformers, found)(**VIDEOS.get(name, IMAGES.get(name, {})))


def _sounds(name: str) -> Any:
    known = FEATURE_EXTRACTOR_MAPPING_NAMES
    found, options = SOUNDS.get(name, (known.get(name) or known.get(SIBLINGS.get(name, "")), {}))
    if found is None:
        return Waived("input_features")
    try:
        return getattr(transformers, found)(**options)
    except ImportError:
        return Waived("input_features")
