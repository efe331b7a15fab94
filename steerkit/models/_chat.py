"""Chats as other libraries write them, read into turns and the images and videos that stand in them.

Read are the messages of transformers, of OpenAI's API and of TRL; a part of another kind is refused, never left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

from steerkit._text import quoted
from steerkit.errors import SampleError


class Place(Enum):
    """Where in a turn an image or a video stands."""

    IMAGE = "image"
    VIDEO = "video"

    def __repr__(self) -> str:
        return self.name


IMAGE: Final = Place.IMAGE
"""Stands in a turn for the next of the sample's images. With no images the prompt is that without its images."""

VIDEO: Final = Place.VIDEO
"""The same of its videos."""

Part: TypeAlias = str | Place

Turn: TypeAlias = tuple[str, str | tuple[Part, ...]]
"""One turn of a chat: `(role, content)`, the role `system`, `user` or `assistant`, the content a text, or texts,
`IMAGE`s and `VIDEO`s in the order in which they stand."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""OpenAI's `developer` is what its newer models call the system; chat templates know the older name."""

_TOOL_ROLES = ("tool", "function", "ipython", "observation", "function_call", "tool_call")
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = {"image": ("image", "url", "path", "base64"), "image_url": ("image_url",), "input_image": ("image_url",)}
_SOURCES = {**_IMAGES, "video": ("video", "url", "path")}
_BESIDE: Final = object()
"""The image of a part that says only that one stands there."""


class _Nth(int):
    """The image or video of a part that says which of those beside the chat it is."""


def read_chat(
    turns: Any, images: Iterable[Any], videos: Iterable[Any] = ()
) -> tuple[tuple[Turn, ...], tuple[Any, ...], tuple[Any, ...]]:
    """The turns of a chat, all its images and all its videos, in the order in which they stand.

    Args:
        turns: Pairs `(role, content)`, or mappings with `role` and `content`; a content is a text or a list of parts.
        images: Images that stand outside of the chat: one for each part `{"type": "image"}` without an image of its
            own; where there is no such part, all of them go in front of the first user turn.
        videos: The same of videos.

    Raises:
        SampleError: It is not a chat, holds what a prompt can't hold, or has another number of places than images.
    """
    if isinstance(turns, (str, bytes, Mapping)) or not isinstance(turns, Sequence):
        raise SampleError(f"the text of a sample is {quoted(turns)}", expected="a string or a list of turns")
    waiting = {IMAGE: list(images), VIDEO: list(videos)}
    beside = {kind: len(each) for kind, each in waiting.items()}
    found: dict[Place, list[Any]] = {kind: [] for kind in Place}
    places: Counter[Place] = Counter()
    kept: list[Turn] = []
    for turn in turns:
        role, content = _role_and_content(turn)
        parts: list[Part] = []
        for part, source in [(checked_text(content), None)] if isinstance(content, str) else _parts(content):
            parts.append(part)
            if not isinstance(part, Place):
                continue
            places[part] += 1
            if isinstance(source, _Nth):
                if source != (number := beside[part] - len(waiting[part])):
                    raise SampleError(
                        f"the {part.value} with the index {source} is number {number} of its chat",
                        expected=f"indices that count the {part.value}s beside the chat, from 0, in the order of their "
                        "parts",
                    )
                source = _BESIDE
            if source is not None and source is not _BESIDE:
                found[part].append(source)
            elif waiting[part]:
                found[part].append(waiting[part].pop(0))
            elif source is _BESIDE:
                raise _uneven(part, places[part], beside[part])
        kept.append((role, parts[0] if len(parts) == 1 and isinstance(parts[0], str) else tuple(parts)))
    for kind in Place:
        if (waiting[kind] and found[kind]) or (found[kind] and len(found[kind]) != places[kind]):
            raise _uneven(kind, places[kind], beside[kind])
    if waiting[VIDEO]:
        _show_first(kept, len(waiting[VIDEO]))
    if waiting[IMAGE]:
        _show_alone(kept, len(waiting[IMAGE]))
    _check_order(kept)
    return _plainest(kept), tuple(found[IMAGE] or waiting[IMAGE]), tuple(found[VIDEO] or waiting[VIDEO])


def _uneven(kind: Place, places: int, beside: int) -> SampleError:
    them = f"{kind.value}s"
    return SampleError(
        f"a chat has at least {places} places for {them}, and {beside} {them} are given beside it",
        expected=f"one {kind.value} for each place that has none of its own; or no places, and all {them} go in front "
        "of the first user turn",
        fix=f"put the {them} into their parts, or pass as many as there are places, in their order, as {them}=[...]",
    )


def _role_and_content(turn: Any) -> tuple[str, Any]:
    if isinstance(turn, Mapping):
        # clients of OpenAI's API write out what a message does not have, as None and as []
        nothing = [key for key, value in turn.items() if value is None or (isinstance(value, list) and not value)]
        named = {key: value for key, value in turn.items() if key == "content" or key not in nothing}
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
    """Each part of a content, with its image or video; None where it is a text, or a place of a sample."""
    if not content:
        raise SampleError("the content of a turn is an empty list", expected="a text, or a list of parts")
    for part in content:
        if isinstance(part, str):
            yield checked_text(part), None
        elif isinstance(part, Place):
            yield part, None
        else:
            yield _part(part)


def _part(part: Any) -> tuple[Part, Any]:
    named = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = named.pop("type", None)
    if isinstance(kind, str) and kind in _TEXTS:
        text = named.pop("text", None)
        if isinstance(text, str) and not named:
            return checked_text(text), None
    elif isinstance(kind, str) and kind in _SOURCES:
        named.pop("detail", None)  # how large OpenAI's service shows an image; a local processor has its own sizes
        sources = [named.pop(key) for key in _SOURCES[kind] if key in named]
        place = VIDEO if kind == "video" else IMAGE
        if kind in ("image", "video") and not sources and [*named] == ["index"] and type(named["index"]) is int:
            return place, _Nth(named["index"])  # as in data sets of TRL: which of those beside the chat
        if not named and (len(sources) == 1 or (kind in ("image", "video") and not sources)):
            return place, _source(kind, part, sources[0]) if sources else _BESIDE
    elif isinstance(kind, str):
        raise SampleError(
            f"a part of a turn has the type {quoted(kind, 40)}",
            expected="text, image, image_url or video: other kinds of parts can't be put into a prompt",
        )
    raise SampleError(
        f"a part of a turn is {quoted(part)}",
        expected="{'type': 'text', 'text': ...}, {'type': 'image'} with one of image, url, path and base64 or with "
        "none, {'type': 'image_url', 'image_url': {'url': ...}}, or {'type': 'video'} with one of video, url and path",
    )


def _source(kind: str, part: Mapping[str, Any], source: Any) -> Any:
    """The image of a part, as `open_image` takes it, or its video."""
    if kind == "video":
        return source
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


def places(turns: Sequence[Turn], kind: Place = IMAGE) -> int:
    """How many `IMAGE`s, or `VIDEO`s, stand in a chat."""
    return sum(0 if isinstance(content, str) else content.count(kind) for _, content in turns)


def _show_first(turns: list[Turn], videos: int) -> None:
    """Videos in front of the first user turn are given places there."""
    first = next((index for index, (role, _) in enumerate(turns) if role == "user"), None)
    if first is not None:
        content = turns[first][1]
        parts = (
            (content,) if isinstance(content, str) and content.strip() else () if isinstance(content, str) else content
        )
        turns[first] = ("user", (*(VIDEO,) * videos, *parts))


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
