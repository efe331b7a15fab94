"""Samples and anchor sets: a text, its images, optionally a caption and a label.

Images stay what the caller gave (a path, the bytes of a file, a PIL image or an array) until a batch needs their
pixels, so an anchor set may be much larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from steerkit._text import quoted
from steerkit.errors import SampleError
from steerkit.models._chat import VIDEO, Place, Turn, checked_text, places, read_chat
from steerkit.models._images import ImageLike, check_image, image_name, open_image
from steerkit.models._videos import check_video, video_digest, video_name

_NOT_OPTIONS = frozenset(
    "conversation messages add_generation_prompt continue_final_message return_assistant_tokens_mask tokenize "
    "return_tensors return_dict padding truncation max_length tokenizer_kwargs processor_kwargs "
    "load_audio_from_video sanitize_control_tokens".split()
)
"""What `apply_chat_template` takes and steerkit decides."""


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """One prompt: its text, its images, and what is known about it.

    A chat is a list of `(role, content)`, or of messages as transformers and OpenAI's API take them. Images may stand
    in their parts, and are then found in `images` in that order. It ends with the user's turn, or with the beginning of
    the assistant's, which the answer goes on (`continue_final_message` of transformers).

    Attributes:
        text: The user's message, or a chat. A content of several parts is kept as a tuple of texts and `IMAGE`, which
            stands for the next of the images.
        images: Whatever `steerkit.models.open_image` takes: paths, `data:` URIs, PIL images, `[height, width, 3]` uint8
            arrays ... Images without a place of their own go in front of the text of the first user turn.
        videos: Whatever the model's processor takes for a video: the path of a file, `[frames, height, width, 3]` uint8
            arrays, or lists of the paths of frames. They have places, as images may have.
        caption: A description of the images, for methods whose reference is text with a caption.
        label: The group that a contrastive method puts this sample in, such as `harmful` or `harmless`.
        chat_template_kwargs: Options of the model's chat template, such as `{"enable_thinking": False}`.
    """

    text: str | tuple[Turn, ...]
    images: tuple[ImageLike, ...] = field(default=())
    caption: str | None = None
    label: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    videos: tuple[Any, ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        chat = (("user", self.text),) if isinstance(self.text, str) else self.text
        turns, images, videos = read_chat(chat, as_images(self.images), as_images(self.videos))
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "videos", videos)
        alone = len(turns) == 1 and isinstance(turns[0][1], str)
        object.__setattr__(self, "text", turns[0][1] if alone else turns)
        for name in ("caption", "label"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise SampleError(f"{name} is {quoted(value)}", expected="a string or None")
            if value is not None:
                checked_text(value)
        object.__setattr__(self, "chat_template_kwargs", _checked_options(self.chat_template_kwargs))

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The roles and texts of the chat, without its images; a plain text is one user turn."""
        if isinstance(self.text, str):
            return (("user", self.text),)
        return tuple(
            (
                role,
                content if isinstance(content, str) else "\n".join(part for part in content if isinstance(part, str)),
            )
            for role, content in self.text
        )

    @property
    def continues(self) -> bool:
        """Whether the chat ends in the assistant's turn, which the answer goes on."""
        return not isinstance(self.text, str) and self.text[-1][0] == "assistant"

    @property
    def places(self) -> int:
        """How many images stand in places of their own; 0 where they go in front of the first user turn's text."""
        return 0 if isinstance(self.text, str) else places(self.text)

    @property
    def video_places(self) -> int:
        """How many places for videos there are: as many as videos, unless they were taken out of it."""
        return 0 if isinstance(self.text, str) else places(self.text, VIDEO)

    def messages(self, images: int) -> list[dict[str, Any]]:
        """The chat as chat templates take it: the content of a message is a list of parts.

        Args:
            images: How many images go in front of the first user turn's text; where images have places of their own,
                as many as there are places.

        Raises:
            SampleError: There are places for another number of images.
        """
        if self.places and images != self.places:
            raise SampleError(
                f"a chat has places for {self.places} images and is shown with {images}", expected="one for each place"
            )
        front = 0 if self.places else images
        shown: list[dict[str, Any]] = []
        for role, content in self.turns if isinstance(self.text, str) else self.text:
            parts: list[dict[str, str]] = [
                {"type": part.value} if isinstance(part, Place) else {"type": "text", "text": part}
                for part in ((content,) if isinstance(content, str) else content)
            ]
            if role == "user" and front:
                parts = [{"type": "image"} for _ in range(front)] + parts
                front = 0
            shown.append({"role": role, "content": parts})
        return shown

    def plain_turns(self, family: str) -> list[tuple[str, str]]:
        """The roles and texts of the chat, for a model whose chats have one text in a turn and no images in them.

        Args:
            family: What messages call the model.

        Raises:
            SampleError: A turn has several parts, which are one text in no way that all models share.
        """
        alone = len(self.turns) == 1 and not self.turns[0][1]  # images without a text are one turn
        if (
            not isinstance(self.text, str)
            and any(not isinstance(content, str) for _, content in self.text)
            and not alone
        ):
            raise SampleError(
                f"a turn has several parts, and {family} takes one text for each turn",
                expected="images, where there are any, in front of the first user turn's text",
                fix="write the texts of a turn as one, and pass the images as images=[...]",
            )
        return list(self.turns)

    def with_template_options(self, options: Mapping[str, Any]) -> Sample:
        """The sample with these options of the chat template, unless it says otherwise itself."""
        return replace(self, chat_template_kwargs={**_checked_options(options), **self.chat_template_kwargs})

    def template_options(self, template: object) -> dict[str, Any]:
        """`chat_template_kwargs`, once the chat template is known to read them.

        Args:
            template: The model's chat template, or several by name; None where it has none.

        Raises:
            SampleError: The template does not read an option, which would change nothing.
        """
        options = dict(self.chat_template_kwargs)
        template = options.get("chat_template", template)
        for name in options:
            if name != "chat_template" and not re.search(rf"\b{re.escape(name)}\b", str(template or "")):
                raise SampleError(
                    f"the chat template of this model does not read the option {name!r}"
                    if template
                    else f"the option {name!r} is for a chat template, and this model has none",
                    expected="options that the template reads",
                    fix="check the spelling, or leave it out of chat_template_kwargs",
                )
        return options

    def __repr__(self) -> str:
        """Its fields, with images by name: no pixel and no base64 is printed."""
        parts = [repr(self.text)]
        if self.images:
            parts.append(f"images=[{', '.join(f'<{image_name(image)}>' for image in self.images)}]")
        if self.videos:
            parts.append(f"videos=[{', '.join(f'<{video_name(video)}>' for video in self.videos)}]")
        named = {name: getattr(self, name) for name in ("caption", "label", "chat_template_kwargs")}
        return f"Sample({', '.join([*parts, *(f'{name}={value!r}' for name, value in named.items() if value)])})"

    def loaded(self) -> Sample:
        """The same sample with every image opened as an RGB PIL image.

        Raises:
            MissingImageError: An image can't be read.
        """
        return replace(self, images=tuple(open_image(image) for image in self.images))

    def check_images(self) -> None:
        """Check that every image can be opened, from the first bytes of its file, and that videos are there.

        Raises:
            MissingImageError: A file is missing or is not an image, or an array has another shape or type.
        """
        for image in self.images:
            check_image(image)
        for video in self.videos:
            check_video(video)

    def digest(self) -> str:
        """sha256 over text, pixels, caption and label; equal for a path and for the image it points to."""
        state = hashlib.sha256()
        turns = self.turns if isinstance(self.text, str) else self.text
        head: dict[str, Any] = {"turns": turns, "caption": self.caption, "label": self.label}
        if self.chat_template_kwargs:
            head["chat_template_kwargs"] = self.chat_template_kwargs
        state.update(json.dumps(head, sort_keys=True, ensure_ascii=False, default=_part_in_digest).encode())
        for image in map(open_image, self.images):
            state.update(f"{image.size[0]}x{image.size[1]}:".encode())
            state.update(image.tobytes())
        for video in self.videos:
            state.update(video_digest(video))
        return state.hexdigest()


@runtime_checkable
class _Indexed(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def as_samples(given: Any) -> Sequence[Sample]:
    """The samples as they were given, once it is known that they are some.

    Lists and tuples are looked through; of another sequence, whose elements may be costly, only the first is looked at.

    Raises:
        SampleError: It is not a sequence, or an element is not a sample.
    """
    if isinstance(given, Sample):
        raise SampleError("the samples are one Sample", expected="a list of samples", fix="put it in a list: [sample]")
    if isinstance(given, (str, bytes, Mapping)):
        raise SampleError(
            f"the samples are {quoted(given, 60)}",
            expected="a list of steerkit.Sample",
            fix="[sk.Sample(text, images=[...])], or sk.read_samples for a file",
        )
    if not isinstance(given, _Indexed):
        once = isinstance(given, Iterable)
        raise SampleError(
            f"the samples are a {type(given).__name__}",
            expected="a list, or another sequence with a length",
            fix="list(samples), since they are gone through more than once" if once else "[sk.Sample(text, ...)]",
        )
    looked_at = given if isinstance(given, (list, tuple)) else [given[index] for index in range(min(len(given), 1))]
    for index, sample in enumerate(looked_at):
        if not isinstance(sample, Sample):
            raise SampleError(
                f"sample {index} is {quoted(sample, 60)} of type {type(sample).__name__}",
                expected="a steerkit.Sample",
                fix="sk.Sample(text, images=[...]), or sk.read_samples(list) for texts and mappings",
            )
    return given  # type: ignore[return-value]


def anchor_digest(digests: Iterable[str]) -> str:
    """sha256 of an anchor set from the digests of its samples, in order."""
    state = hashlib.sha256()
    for digest in digests:
        state.update(bytes.fromhex(digest))
    return state.hexdigest()


def as_images(images: Any) -> tuple[Any, ...]:
    """One image or a list of them, as a tuple."""
    if images is None:
        return ()
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes, bytearray, memoryview)):
        return tuple(images)
    return (images,)


def _part_in_digest(part: Place) -> dict[str, str]:
    return {"type": part.value}


def _checked_options(options: Any) -> dict[str, Any]:
    try:
        copy = json.loads(json.dumps(dict(options)))
    except (TypeError, ValueError, RecursionError):
        copy = None
    if not isinstance(options, Mapping) or not isinstance(copy, dict) or copy != dict(options):
        raise SampleError(
            f"chat_template_kwargs is {quoted(options)}", expected="a mapping of names to what JSON can hold"
        )
    if taken := sorted(_NOT_OPTIONS & copy.keys()):
        raise SampleError(
            f"chat_template_kwargs holds {taken[0]!r}",
            expected="options that the chat template itself reads, such as enable_thinking",
            fix="end the chat with the assistant's turn for an answer that goes on in it"
            if taken[0] == "continue_final_message"
            else "leave it out: steerkit sets it",
        )
    return copy
