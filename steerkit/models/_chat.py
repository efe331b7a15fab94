"""Chats as other libraries write them, read into turns and the images that stand in them.

Read are the messages of transformers, of OpenAI's API and of TRL; a part of another kind is refused, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

from steerkit._text import quoted
from steerkit.errors import SampleError


class Place(Enum):
    """Where in a turn an image stands."""

    IMAGE = "image"

    def __repr__(self) -> str:
        return self.name


IMAGE: Final = Place.IMAGE
"""Stands in a turn for the next of the sample's images. With no images the prompt is that without its images."""

Part: TypeAlias = str | Place

Turn: TypeAlias = tuple[str, str | tuple[Part, ...]]
"""One turn of a chat: `(role, content)`, the role `system`, `user` or `assistant`, the content a text, or texts and
`IMAGE`s in the order in which they stand."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""OpenAI's `developer` is what its newer models call the system; chat templates know the older name."""

_TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call", "tool_call")
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = {"image": ("image", "url", "path", "base64"), "image_url": ("image_url",), "input_image": ("image_url",)}
_BESIDE: Final = object()
"""The image of a part that says only that one stands there."""


def read_chat(turns: Any, images: Iterable[Any]) -> tuple[tuple[Turn, ...], tuple[Any, ...]]:
    """The turns of a chat and all its images, in the order in which they stand.

    Args:
        turns: Pairs `(role, content)`, or mappings with `role` and `content`; a content is a text or a list of parts.
        images: Images that stand outside of the chat: one for each part `{"type": "image"}` without an image of its
            own; where there is no such part, all of them go in front of the first user turn.

    Raises:
        SampleError: It is not a chat, holds what a prompt can't hold, or has another number of places than images.
    """
    if isinstance(turns, (str, bytes, Mapping)) or not isinstance(turns, Sequence):
        raise SampleError(f"the text of a sample is {quoted(turns)}", expected="a string or a list of turns")
    beside = list(images)
    waiting, found, places = list(beside), [], 0
    kept: list[Turn] = []
    for turn in turns:
        role, content = _role_and_content(turn)
        parts: list[Part] = []
        for part, image in [(checked_text(content), None)] if isinstance(content, str) else _parts(content):
            parts.append(part)
            if part is not IMAGE:
                continue
            places += 1
            if image is not None and image is not _BESIDE:
                found.append(image)
            elif waiting:
                found.append(waiting.pop(0))
            elif image is _BESIDE:
                raise _uneven(places, len(beside))
        kept.append((role, parts[0] if len(parts) == 1 and isinstance(parts[0], str) else tuple(parts)))
    if (waiting and found) or (found and len(found) != places):
        raise _uneven(places, len(beside))
    if waiting:
        _show_alone(kept, len(waiting))
    _check_order(kept)
    return _plainest(kept), tuple(found or waiting)


def _uneven(places: int, beside: int) -> SampleError:
    return SampleError(
        f"a chat has at least {places} places for images, and {beside} images are given beside it",
        expected="one image for each place that has none of its own; or no places, and all images go in front of the "
        "first user turn",
        fix="put the images into their parts, or pass as many as there are places, in their order, as images=[...]",
    )


def _role_and_content(turn: Any) -> tuple[str, Any]:
    if isinstance(turn, Mapping):
        named = {key: value for key, value in turn.items() if value is not None}
        role, content = named.pop("role", None), named.pop("content", None)
        calls = named.pop("tool_calls", ())
        if (isinstance(role, str) and role in _TOOL_ROLES) or not isinstance(calls, (list, tuple)) or calls:
            raise _tools(turn)
        if named:
            raise SampleError(
                f"a message has {', '.join(map(repr, named))} beside its role and content",
                expected="role and content: nothing else of a message is put into the prompt",
                fix="remove it, or write it into the content",
            )
    elif isinstance(turn, (tuple, list)) and len(turn) == 2:
        role, content = turn
    else:
        role, content = None, None
    if isinstance(role, str) and role in _TOOL_ROLES:
        raise _tools(turn)
    listed = isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray))
    if not isinstance(role, str) or role not in _ROLES or not listed:
        raise SampleError(
            f"a turn is {quoted(turn)}",
            expected="(role, content), or a mapping of the two: the role system, developer, user or assistant, the "
            "content a text or a list of parts",
        )
    return _ROLES[role], content


def _tools(turn: Any) -> SampleError:
    return SampleError(
        f"a turn is {quoted(turn)}, which calls a tool or answers for one",
        expected="turns of system, developer, user and assistant",
        fix="write what the tool said into a user turn, or leave the chat out",
    )


def _parts(content: Sequence[Any]) -> Iterator[tuple[Part, Any]]:
    """Each part of a content, with its image; None where it is a text, or the `IMAGE` of a sample."""
    if not content:
        raise SampleError("the content of a turn is an empty list", expected="a text, or a list of parts")
    for part in content:
        if isinstance(part, str):
            yield checked_text(part), None
        elif part is IMAGE:
            yield IMAGE, None
        else:
            yield _part(part)


def _part(part: Any) -> tuple[Part, Any]:
    named = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = named.pop("type", None)
    if isinstance(kind, str) and kind in _TEXTS:
        text = named.pop("text", None)
        if isinstance(text, str) and not named:
            return checked_text(text), None
    elif isinstance(kind, str) and kind in _IMAGES:
        named.pop("detail", None)  # how large OpenAI's service shows an image; a local processor has its own sizes
        sources = [named.pop(key) for key in _IMAGES[kind] if key in named]
        if not named and (len(sources) == 1 or (kind == "image" and not sources)):
            return IMAGE, _source(kind, part, sources[0]) if sources else _BESIDE
    elif isinstance(kind, str):
        raise SampleError(
            f"a part of a turn has the type {quoted(kind, 40)}",
            expected="text, image or image_url: other kinds of parts can't be put into a prompt",
        )
    raise SampleError(
        f"a part of a turn is {quoted(part)}",
        expected="{'type': 'text', 'text': ...}, {'type': 'image'} with one of image, url, path and base64 or with "
        "none, or {'type': 'image_url', 'image_url': {'url': ...}}",
    )


def _source(kind: str, part: Mapping[str, Any], source: Any) -> Any:
    """The image of a part, as `open_image` takes it."""
    if kind != "image":
        source = source.get("url") if isinstance(source, Mapping) else source
        if not isinstance(source, str):
            raise SampleError(f"a part of a turn is {quoted(part)}", expected="an image_url with a url")
    elif part.get("base64") is not None:
        if not isinstance(source, str):
            raise SampleError(f"a part of a turn is {quoted(part)}", expected="base64 as a string")
        return source if source.startswith("data:") else f"data:image/*;base64,{source}"
    return source


def checked_text(text: str) -> str:
    """A text without half a character of two.

    Raises:
        SampleError: It has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(
            f"the text {quoted(text)} holds half a character ({error.reason})", expected="Unicode"
        ) from error
    return str(text)


def places(turns: Sequence[Turn]) -> int:
    """How many `IMAGE`s stand in a chat."""
    return sum(0 if isinstance(content, str) else content.count(IMAGE) for _, content in turns)


def _show_alone(turns: list[Turn], images: int) -> None:
    """Images in front of an empty text are the whole turn: chat templates put something beside an empty text."""
    first = next((index for index, (role, _) in enumerate(turns) if role == "user"), None)
    if first is not None and isinstance(text := turns[first][1], str) and not text.strip():
        turns[first] = ("user", (IMAGE,) * images)


def _check_order(turns: Sequence[Turn]) -> None:
    for role, content in turns:
        if role == "user" and (not content.strip() if isinstance(content, str) else _is_empty(content)):
            raise SampleError("the text of a sample is empty", expected="a non-empty string or a list of turns")
    if not turns or turns[-1][0] == "system" or all(role != "user" for role, _ in turns):
        raise SampleError(
            "a chat does not end with the user's turn, or with one of the assistant that the answer goes on",
            expected="turns that end with ('user', text), or after that with ('assistant', beginning of the answer)",
        )
    role, content = turns[-1]
    if role == "assistant" and _is_empty((content,) if isinstance(content, str) else content, text_only=True):
        raise SampleError(
            "a chat ends with an empty turn of the assistant",
            expected="the beginning of the answer, or no such turn",
            fix="leave the turn out: the chat template opens it",
        )


def _is_empty(parts: Sequence[Part], *, text_only: bool = False) -> bool:
    return not any(part.strip() if isinstance(part, str) else not text_only for part in parts)


def _plainest(turns: list[Turn]) -> tuple[Turn, ...]:
    """One way to write each chat: images that stand in front of the first user's text need no places."""
    first = next(index for index, (role, _) in enumerate(turns) if role == "user")
    if [index for index, (_, content) in enumerate(turns) if places([("", content)])] == [first]:
        *before, last = turns[first][1]
        if isinstance(last, str) and all(part is IMAGE for part in before):
            turns[first] = ("user", last)
    return tuple(turns)
