"""Samples from files, from lists and from the rows of data sets, in the formats that data sets of chats have."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from steerkit._internal.files import user_path
from steerkit._internal.json import json_value
from steerkit._internal.validation import PATH, expect
from steerkit.errors import MissingImageError, OptionError, SampleError
from steerkit.models._download import download_image
from steerkit.models._images import ImageLike, resolved, web_address
from steerkit.models._sample_files import is_separated, rows, sample_files, unit_of
from steerkit.models._samples import Sample, as_images
from steerkit.models._videos import video_in

OnError: TypeAlias = "Literal['raise', 'skip'] | Callable[[int, SampleError], object]"

Download: TypeAlias = bool | Callable[[str], bytes]

_PROMPTS = ("text", "prompt", "messages", "conversations")
_FIELDS = (*_PROMPTS, "image", "images", "caption", "label", "chat_template_kwargs", "id")
_SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}
_MARK = "<image>"
_TABLES = {"iterrows": "table.to_dict('records')", "iter_rows": "table.to_dicts()", "to_pylist": "table.to_pylist()"}
"""How the tables of pandas, polars and Arrow give their rows, by a method that tells them from lists."""


def read_samples(
    source: str | Path | Iterable[Sample | Mapping[str, Any] | str],
    *,
    on_error: OnError = "raise",
    columns: Mapping[str, str | None] | None = None,
    image_root: str | Path | None = None,
    download: Download = False,
    check_images: bool = True,
) -> list[Sample]:
    """Read samples from a file, or from a list such as a data set of `datasets`.

    Each row has one prompt, in the field of its format:

    - `text` or `prompt`: a text, or a chat as `Sample` takes it, whose last turn may be the assistant's, to be gone on
      with (as in TRL);
    - `messages`: such a chat that ends with the user's turn;
    - `conversations`: a whole conversation as in the files of LLaVA and ShareGPT (`from` and `value`). An answer at its
      end is what was to be learnt, and no part of the prompt.

    Beside it may stand `image` or `file_name` (one), or `images` (a list; in CSV a JSON list), `caption`, `label`,
    `chat_template_kwargs`, and `id`, which is not read. Images stand in the parts of messages, or where texts say
    `<image>` as often as there are images (a line break behind it belongs to it, as in LLaVA); otherwise they go in
    front of the text of the first user turn.

    Args:
        source: `*.jsonl` (one object a line), `*.json` (that, or an array of objects), `*.csv` and `*.tsv` (with a
            header), `*.parquet` (if pyarrow is installed), `*.tar` (as webdataset writes it), a folder of such files,
            or an iterable of samples, mappings or texts.
        on_error: What becomes of a bad row: `raise` (default), `skip` (with a warning that names the row), or a
            function of the number and the error, after which reading goes on. The number is that of the line on which
            the row begins, as an editor counts them; in lists and Parquet files that of the row, from 1.
        columns: New names for source fields, as `{"question": "text", "source": None}`; None drops the field.
        image_root: Folder of relative image paths. Default: the folder of the file.
        download: Whether images at `http://` and `https://` addresses are downloaded (by `download_image`, once, kept
            as they are sent), or a function that returns the bytes of an address.
        check_images: Whether every image is found and known to be one before anything is returned. A worker of many
            leaves it out: a fit checks those that it measures.

    Returns:
        The samples in order. No image is decoded; those inside a Parquet or tar file are left there until a batch needs
        them.

    Raises:
        SampleError: A bad row under `on_error="raise"`, an unknown kind of file, or no such file.
        OptionError: `on_error` is none of these, or another argument is of another type.
    """
    if on_error not in ("raise", "skip") and not callable(on_error):
        raise OptionError(f"on_error is {on_error!r}", expected="'raise', 'skip' or a function of number and error")
    expect(Mapping | None, "{'source field': 'text'}", columns=columns)
    expect(PATH | None, "a folder", image_root=image_root)
    if not isinstance(download, bool) and not callable(download):
        raise OptionError(f"download is {download!r:.80}", expected="True, False or a function of an address")
    fetch = download if callable(download) else (download_image if download else None)
    root = user_path(image_root) if image_root is not None else None
    samples: list[Sample] = []
    for name, number, row, folder, of_texts in _rows(source):
        try:
            if isinstance(row, Sample):
                samples.append(row)
                continue
            sample = _sample(row, columns or {}, of_texts=of_texts)
            images = tuple(_found(image, root or folder, fetch) for image in sample.images)
            videos = tuple(video_in(video, root or folder) for video in sample.videos)
            found = replace(sample, images=images, videos=videos)
            if check_images:
                found.check_images()
            samples.append(found)
        except (SampleError, MissingImageError) as error:
            problem = SampleError(
                f"{name} {number}: {error.problem}",
                expected=error.expected,
                fix=error.fix or "mend the row, or pass on_error='skip'",
            )
            if on_error == "raise":
                raise problem from error
            if on_error == "skip":
                warnings.warn(str(problem), stacklevel=2)
            else:
                on_error(number, problem)
    return samples


def _rows(source: Any) -> Iterator[tuple[str, int, Any, Path | None, bool]]:
    """The rows, each with what its number counts, the folder of relative paths, and whether all cells are texts."""
    if not isinstance(source, (str, Path)):
        yield from (("the list, row", number, row, None, False) for number, row in enumerate(_listed(source), start=1))
        return
    for path in sample_files(user_path(source)):
        for number, row in rows(path):
            yield f"{path}, {unit_of(path)}", number, row, path.parent, is_separated(path)


def _listed(source: Any) -> Iterator[Any]:
    """The elements of a list of rows; a table iterates over the names of its columns, which are not rows."""
    table = next((name for name in _TABLES if hasattr(source, name)), None)
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable) or table:
        raise SampleError(
            f"the samples are {source!r:.60} of type {type(source).__name__}",
            expected="a file or a list",
            fix=f"pass its rows: {_TABLES[table]}" if table else "put it in a list",
        )
    return iter(source)


def _sample(
    row: Any,
    columns: Mapping[str, str | None],
    *,
    of_texts: bool,
) -> Sample:
    if isinstance(row, SampleError):
        raise row
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise SampleError(f"a row is a {type(row).__name__}", expected="an object with a text")
    fields = _fields(row, columns, of_texts=of_texts)
    if of_texts:
        fields = {name: _parsed(name, value) for name, value in fields.items()}
    if "image" in fields and "images" in fields:
        raise SampleError("both 'image' and 'images' are given", expected="one of the two")
    images = as_images(fields.get("images", fields.get("image", ())))
    return Sample(
        tuple(_marked(_prompt(fields), len(images))),
        images,
        caption=fields.get("caption"),
        label=_label(fields.get("label")),
        chat_template_kwargs=fields.get("chat_template_kwargs", {}),
    )


def _label(value: Any) -> str | None:
    """A label as text: numbers and truth values are written as JSON writes them."""
    import numpy as np

    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, (bool, int, float)) or value != value:
        raise SampleError(f"label is {value!r:.80}", expected="a string, a number or a truth value")
    return json.dumps(value)


def _fields(row: Mapping[str, Any], columns: Mapping[str, str | None], *, of_texts: bool) -> dict[str, Any]:
    """The fields of a row that hold something, by the names that they have here."""
    fields: dict[str, Any] = {}
    for key, value in row.items():
        target = columns.get(key, "image" if key == "file_name" else key)
        if target is None:
            continue
        if target not in _FIELDS:
            close = difflib.get_close_matches(str(target).strip().lower(), _FIELDS, n=1, cutoff=0.72)
            text = () if any(columns.get(name, name) in _PROMPTS for name in row) else ("text",)
            rename = [f"rename it with columns={{{key!r}: {better!r}}} or " for better in (*close, *text)]
            raise SampleError(
                f"unknown field {key!r}" + (f", which columns renames to {target!r}" if target != key else ""),
                expected="one of " + ", ".join(_FIELDS),
                fix=f"{''.join(rename[:1])}drop it with columns={{{key!r}: None}}",
            )
        if value is None or (of_texts and value == ""):
            continue
        if target in fields:
            raise SampleError(
                f"two fields are {target!r}", expected="one", fix="drop the other with columns={...: None}"
            )
        fields[target] = value
    return fields


def _parsed(name: str, cell: str) -> Any:
    """What a cell of a table of texts holds: lists and mappings are written as JSON."""
    chat = name in _PROMPTS[2:] or (name in _PROMPTS and re.match(r'\s*\[\s*\{\s*"', cell) is not None)
    if name not in ("images", "chat_template_kwargs") and not chat:
        return cell
    return json_value(cell, repr(name), error=SampleError, fix=f"write the {name} as JSON")


def _prompt(fields: Mapping[str, Any]) -> list[Any]:
    """The prompt of a row as messages."""
    named = [name for name in _PROMPTS if name in fields]
    if len(named) > 1:
        raise SampleError(
            f"both {named[0]!r} and {named[1]!r} are given",
            expected="one prompt in a row",
            fix=f"drop one: columns={{{named[1]!r}: None}}",
        )
    if not named:
        raise SampleError(
            "the field 'text' is missing",
            expected="a text in every row, or a chat as 'prompt', 'messages' or 'conversations'",
            fix="if it has another name, columns={'its name': 'text'}",
        )
    name, value = named[0], fields[named[0]]
    plain = isinstance(value, str) and name in ("text", "prompt")
    if not plain and (isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence)):
        raise SampleError(f"{name!r} is {value!r:.80}", expected="a text or a list of messages")
    turns = [{"role": "user", "content": value}] if plain else [_message(turn) for turn in value]
    last = turns[-1] if turns else None
    role = last.get("role") if isinstance(last, Mapping) else None
    if not isinstance(role, str) or role != "assistant":
        return turns
    if name == "conversations":
        return turns[:-1]
    if name == "messages" or "from" in value[-1]:
        raise SampleError(
            "the chat ends with the assistant's turn, which may be an answer or the beginning of one",
            expected="a chat that ends with the user's turn",
            fix="name its field 'conversations' by columns={...} to leave the answer out of the prompt; or, with role "
            "and content in every turn, 'prompt', and the model goes on with it",
        )
    return turns


def _message(turn: Any) -> Any:
    """A turn as a message: of a pair, or of `from` and `value`, which ShareGPT and LLaVA write."""
    if isinstance(turn, (tuple, list)) and len(turn) == 2:
        return {"role": turn[0], "content": turn[1]}
    if not isinstance(turn, Mapping) or "from" not in turn or "role" in turn:
        return turn
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    speaker = turn["from"]
    return {**rest, "role": _SPEAKERS.get(str(speaker), speaker), "content": turn.get("value")}


def _marked(turns: list[Any], images: int) -> list[Any]:
    """A chat whose texts say `<image>`, with images in those places; LLaVA's files mark them so."""
    texts = [turn["content"] for turn in turns if isinstance(turn, Mapping) and isinstance(turn.get("content"), str)]
    count = sum(text.count(_MARK) for text in texts)
    if not count or not images:
        return turns
    if count != images:
        raise SampleError(
            f"the text says {_MARK} {count} times, and the row has {images} images",
            expected="as many of one as of the other",
        )
    return [
        {**turn, "content": _places(turn["content"])}
        if isinstance(turn, Mapping) and isinstance(turn.get("content"), str)
        else turn
        for turn in turns
    ]


def _places(text: str) -> str | list[dict[str, str]]:
    pieces = re.split(rf"{_MARK}\n?", text)
    if len(pieces) == 1:
        return text
    # LLaVA puts a mark at either end in front of the text, and strips the text
    pieces[0], pieces[-1] = pieces[0].lstrip(), pieces[-1].rstrip()
    if not pieces[0]:
        pieces[1] = pieces[1].lstrip() if len(pieces) == 2 else pieces[1]
    if not pieces[-1]:
        pieces[-2] = pieces[-2].rstrip()
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(pieces):
        parts += [{"type": "image"}] * bool(index) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


def _found(image: Any, root: Path | None, fetch: Callable[[str], bytes] | None) -> ImageLike:
    """An image of a row: with its folder, or downloaded."""
    address = web_address(image)
    return fetch(address) if address is not None and fetch is not None else resolved(image, root)
