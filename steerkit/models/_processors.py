"""Loading a processor: what it needs is named before anything else is read, and its video part is waived."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from steerkit._text import one_line
from steerkit.errors import ProcessorError, SteerKitError
from steerkit.models._family import Family


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; that of a language model is its processor."""
    return getattr(processor, "tokenizer", processor)


class NoVideo:
    """Stands where a processor keeps its video part, which needs torchvision."""

    model_input_names: tuple[str, ...] = ()
    _auto_class = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse a video.

        Raises:
            ProcessorError: Always.
        """
        raise ProcessorError(
            "a video is given, and torchvision is not installed",
            expected="images",
            fix="pip install torchvision, of the release that belongs to the torch that is installed",
        )

    def __getattr__(self, name: str) -> None:
        """No setting: processors read some of their parts' own."""
        if name.startswith("__"):
            raise AttributeError(name)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is saved."""


@cache
def waiving_video(kind: type[Any]) -> type[Any]:
    """The class of a processor that takes a placeholder where its video part belongs."""

    def arguments(cls: Any, *args: Any, **kwargs: Any) -> list[Any]:
        names = kind.get_attributes()
        seen = classmethod(lambda _: [name for name in names if "video" not in name])
        hidden = type(kind.__name__, (kind,), {"get_attributes": seen, "__module__": kind.__module__})
        found = iter(hidden._get_arguments_from_pretrained(*args, **kwargs))
        return [NoVideo() if "video" in name else next(found) for name in names]

    def check(self: Any, name: str, argument: Any) -> Any:
        return NoVideo if isinstance(argument, NoVideo) else kind.check_argument_for_proper_class(self, name, argument)

    def document(self: Any) -> dict[str, Any]:
        return {name: value for name, value in kind.to_dict(self).items() if not isinstance(value, NoVideo)}

    members = {
        "_get_arguments_from_pretrained": classmethod(arguments),
        "get_attributes": classmethod(lambda _: kind.get_attributes()),
        "check_argument_for_proper_class": check,
        "to_dict": document,
        # no module holds this class: workers of data loaders are sent the one that it is of
        "__reduce__": lambda self: (_blank, (kind,), self.__dict__),
        "__module__": kind.__module__,
    }
    return type(kind.__name__, (kind,), members)


def _blank(kind: type[Any]) -> Any:
    made: Any = waiving_video(kind)
    return made.__new__(made)


@contextmanager
def loading(what: str, source: str) -> Iterator[None]:
    """Name the repository or folder, and what was looked for in it, in the errors of transformers inside.

    Raises:
        ProcessorError: Nothing of the kind is there, or not all of it.
    """
    try:
        yield
    except ImportError as error:
        raise ProcessorError(
            f"the {what} of {source!r} needs what is not installed: {one_line(error).strip()[:200]}",
            expected="the packages that transformers names",
        ) from error
    except (SteerKitError, MemoryError):
        raise
    except Exception as error:  # a list where a number is meant: any type at all, of several libraries
        raise ProcessorError(
            f"the {what} of {source!r} can't be loaded ({one_line(error).strip()[:500]})",
            expected=f"a repository or folder with the files of a {what}",
            fix=f"check the name, or save one there with {what}.save_pretrained(folder)",
        ) from error


def load_processor(source: str, family: Family, **options: Any) -> Any:
    """The processor of a repository or folder, or the tokenizer of a model without images.

    Args:
        source: Repository id or folder.
        family: What is declared of the model's family.
        **options: Keyword arguments of `from_pretrained`.

    Raises:
        ProcessorError: There is none, or what is there is not a whole processor.
    """
    import transformers
    from transformers.utils.import_utils import is_torchvision_available

    if not family.takes_images:
        with loading("tokenizer", source):
            return transformers.AutoTokenizer.from_pretrained(source, **options)
    named = family.processor_class
    kind: Any = getattr(transformers, named) if named else transformers.AutoProcessor
    without = not is_torchvision_available()
    if without and family.frames is not None:
        raise ProcessorError(
            f"the model of {source!r} is shown images as videos, and torchvision is not installed",
            fix="pip install torchvision, of the release that belongs to the torch that is installed",
        )
    with loading("processor", source):
        if without:
            found = kind if named else _named(source, options)
            if found is not None and "video_processor" in found.get_attributes():
                kind = waiving_video(found)
        processor: Any = kind.from_pretrained(source, **options)
    # A folder without a config of its own yields whatever part is found first.
    if not isinstance(processor, transformers.ProcessorMixin):
        raise ProcessorError(
            f"{source!r} holds a {type(processor).__name__} only",
            expected="a processor: tokenizer, image processor and chat template",
            fix="add the model's config.json and preprocessor_config.json, or use processor.save_pretrained(folder)",
        )
    for name in family.needs:
        if getattr(processor, name, None) is None:
            raise ProcessorError(
                f"the processor of {source!r} does not know its {name}",
                expected=", ".join(family.needs),
                fix="use a newer revision of the repository, or add them to its processor_config.json",
            )
    return processor


def _named(source: str, options: Mapping[str, Any]) -> Any:
    """The class of the processor that a repository names, or else that of its model type; None if there is neither."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    images = transformers.image_processing_base.ImageProcessingMixin
    for settings in (transformers.ProcessorMixin.get_processor_dict, images.get_image_processor_dict):
        with suppress(OSError):  # no such file
            if kind := processor_class_from_name(settings(source, **options)[0].get("processor_class") or ""):
                return kind
    with suppress(ValueError):  # a folder of parts, which AutoProcessor loads one of
        return PROCESSOR_MAPPING.get(type(transformers.AutoConfig.from_pretrained(source, **options)), None)


def with_padding(processor: Any) -> Any:
    """A copy with a token to pad with, for a processor that pads by itself. The mask says where it is."""
    copied = copy(processor)
    copied.tokenizer = deepcopy(processor.tokenizer)
    copied.tokenizer.pad_token = copied.tokenizer.eos_token or copied.tokenizer.unk_token
    return copied


def unshared(processor: Any) -> Any:
    """The same processor or tokenizer, to encode with, whose truncation and padding no other thread sets.

    A fast tokenizer keeps both in its backend, for all threads. The copy shares the vocabulary and everything else, and
    is as the original is now: make a new one for each batch, which costs microseconds. What is not of transformers, or
    has no such backend, is returned as it is.
    """
    import tokenizers
    import transformers

    if not isinstance(processor, (transformers.ProcessorMixin, transformers.PreTrainedTokenizerBase)):
        return processor
    own = copy(processor)
    held = vars(own)
    for name, part in tuple(held.items()):
        if isinstance(part, tokenizers.Tokenizer):
            held[name] = _backend(processor, part)
        elif isinstance(part, transformers.PreTrainedTokenizerBase):  # InstructBLIP's has two
            held[name] = unshared(part)
    return own


_backends = threading.local()
"""For each tokenizer what its backend was, and this thread's copy of it."""


def _backend(tokenizer: Any, backend: Any) -> Any:
    """This thread's copy of a tokenizer's backend, without truncation and padding."""
    kept: WeakKeyDictionary[Any, Any] = vars(_backends).setdefault("kept", WeakKeyDictionary())
    known, made = kept.get(tokenizer, (None, None))
    was = backend, (added := backend.get_added_tokens_decoder()), _normalizing(backend)
    if known != was:  # thousands of added tokens take a tenth of a second
        made = type(backend)(backend.model)  # does not copy the model
        made.normalizer = backend.normalizer
        made.add_tokens([added[number] for number in sorted(added)])
        if made.get_added_tokens_decoder() != added:  # their numbers follow from their order wherever this was tried
            made = deepcopy(backend)
        kept[tokenizer] = was, made
    for name in ("pre_tokenizer", "post_processor", "decoder", "encode_special_tokens"):
        setattr(made, name, getattr(backend, name))
    made.no_truncation()
    made.no_padding()
    return made


def _normalizing(backend: Any) -> object:
    """What tells a backend's normalizer from another; from itself as well, where it is of the caller's own code."""
    try:
        return None if backend.normalizer is None else backend.normalizer.__getstate__()
    except Exception:
        return object()
