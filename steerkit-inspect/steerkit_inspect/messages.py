"""Inspect's messages and options from and to those of steerkit; what has no counterpart is refused by name."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Literal

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentText,
    GenerateConfig,
)

from steerkit import Sample
from steerkit._text import quoted
from steerkit.errors import OptionError, SampleError
from steerkit.models import open_image

_ROLES: dict[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}

INSPECTS_OWN = frozenset(
    "max_retries timeout attempt_timeout stream_idle_timeout max_connections adaptive_connections system_message "
    "max_tool_output cache cache_prompt internal_tools parallel_tool_calls reasoning_history fail_on_refusal".split()
)
"""Options that Inspect acts on itself, or that change no answer of a model without tools."""


def sample_of(messages: Sequence[ChatMessage]) -> Sample:
    """A chat as a sample, with its images in their places.

    Raises:
        SampleError: A turn is a tool's, or holds something else than text and images, or the name of an image that
            this process does not have.
    """
    return Sample([{"role": _role(each), "content": _parts(each)} for each in messages])  # type: ignore[arg-type]


def _role(message: ChatMessage) -> str:
    if message.role not in _ROLES or getattr(message, "tool_calls", None):
        raise SampleError("a turn calls a tool, or is one's", expected="turns of " + ", ".join(_ROLES))
    return message.role


def _parts(message: ChatMessage) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    names = (message.metadata or {}).get(NAMES, {})
    parts = []
    for place, part in enumerate(message.content):
        if (name := names.get(str(place))) is not None:
            if name not in _KEPT:
                raise SampleError(f"an image {quoted(name)} is named", expected="one of a task of this process")
            parts.append({"type": "image", "image": _KEPT[name]})
        elif isinstance(part, ContentText):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ContentImage):
            parts.append({"type": "image", "image": part.image})
        else:
            raise SampleError(f"a turn holds content of the type {part.type!r}", expected="text and images")
    return parts


Shown = Literal["data", "name", "note"]

NAMES, NOTE = "steerkit-images", "[an image, not logged]"
"""Where a turn's metadata hold the names of its images by their place, and what stands in that place: Inspect passes on
no image that is not there in full, and logs it."""

_KEPT: dict[str, Any] = {}


def messages_of(sample: Sample, images: Shown = "data") -> list[ChatMessage]:
    """A sample as a chat.

    Args:
        sample: The sample.
        images: What stands in the place of an image: a `data:` URI of a PNG, which Inspect logs unless it is told not
            to; or a note, with a name by which models of this process find it, or without one.

    Raises:
        SampleError: It has options of the chat template, for which messages have no place.
    """
    if sample.chat_template_kwargs:
        raise SampleError("a sample has chat_template_kwargs", expected="none: Inspect's messages can't hold them")
    left = iter(sample.images)
    found = []
    for turn in sample.messages(len(sample.images)):
        content: list[Content] = []
        names: dict[str, str] = {}
        for place, part in enumerate(turn["content"]):
            if part["type"] == "text":
                content.append(ContentText(text=part["text"]))
                continue
            image = next(left)
            content.append(_image(image) if images == "data" else ContentText(text=NOTE))
            if images == "name":
                names[str(place)] = name = Sample("image", (image,)).digest()
                _KEPT[name] = image
        found.append(_ROLES[turn["role"]](content=content, metadata={NAMES: names} if names else None))
    return found


def _image(image: Any) -> ContentImage:
    file = io.BytesIO()
    open_image(image).save(file, format="PNG")
    return ContentImage(image="data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


def options_of(config: GenerateConfig, batch_size: int) -> dict[str, Any]:
    """Inspect's options as those of transformers' `generate`, and `seed`; greedy unless sampling is asked for.

    Raises:
        OptionError: An option has no counterpart.
    """
    given = config.model_dump(exclude_none=True, exclude=set(INSPECTS_OWN))
    options: dict[str, Any] = {"max_new_tokens": given.pop("max_tokens")} if "max_tokens" in given else {}
    if stops := given.pop("stop_seqs", None):
        options["stop_strings"] = tuple(stops)
    sampling = {name: given.pop(name) for name in ("temperature", "top_p", "top_k") if name in given}
    options["do_sample"] = bool(sampling) and sampling.get("temperature") != 0
    seed = given.pop("seed", None)
    if options["do_sample"]:
        options |= sampling
        if seed is not None:
            if batch_size > 1:
                raise OptionError(
                    "a seed is given, and answers that share a batch depend on which ones do",
                    expected="one answer at a time",
                    fix="-M batch_size=1, or no seed",
                )
            options["seed"] = seed
    if given.pop("num_choices", 1) != 1:
        given["num_choices"] = config.num_choices
    given = {name: value for name, value in given.items() if value is not False}
    if given:
        raise OptionError(
            f"the provider steerkit does not have: {', '.join(sorted(given))}",
            expected="max_tokens, temperature, top_p, top_k, stop_seqs or seed",
            fix="leave it out",
        )
    return options
