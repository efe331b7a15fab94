"""Samples and anchor sets: a text, its images, optionally a caption and a label.

Images stay what the caller gave (a path, a PIL image or an array) until a batch needs their pixels, so an anchor set
may be much larger than memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from steerkit._internal.files import read_bounded
from steerkit._internal.json import json_object, json_value
from steerkit._internal.validation import PATH, expect
from steerkit.errors import MissingImageError, OptionError, SampleError
from steerkit.models._chat import IMAGE, Place, Turn, places, read_chat

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray"
else:
    ImageLike: TypeAlias = Any

OnError: TypeAlias = "Literal['raise', 'skip'] | Callable[[int, SampleError], object]"

MAX_SAMPLE_FILE = 2**31
"""Bytes; a larger file of samples is not read. Images are files of their own."""

_FIELDS = ("text", "image", "images", "caption", "label", "chat_template_kwargs")
_NOT_OPTIONS = frozenset(
    {
        *(
            "conversation",
            "messages",
            "add_generation_prompt",
            "continue_final_message",
            "return_assistant_tokens_mask",
        ),
        *("tokenize", "return_tensors", "return_dict", "padding", "truncation", "max_length", "tokenizer_kwargs"),
        *("processor_kwargs", "load_audio_from_video", "sanitize_control_tokens"),
    }
)
"""What `apply_chat_template` takes and steerkit decides."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt: its text, its images, and what is known about it.

    A chat is a list of `(role, content)`, or of messages as transformers and OpenAI's API take them. Images may stand
    in their parts, and are then found in `images` in that order. It ends with the user's turn, or with the beginning of
    the assistant's, which the answer goes on (`continue_final_message` of transformers).

    Attributes:
        text: The user's message, or a chat. A content of several parts is kept as a tuple of texts and `IMAGE`, which
            stands for the next of the images.
        images: Paths, PIL images or `[height, width, 3]` uint8 arrays. Images without a place of their own go in front
            of the text of the first user turn.
        caption: A description of the images, for methods whose reference is text with a caption.
        label: The group that a contrastive method puts this sample in, such as `harmful` or `harmless`.
        chat_template_kwargs: Options of the model's chat template, such as `{"enable_thinking": False}`.
    """

    text: str | tuple[Turn, ...]
    images: tuple[ImageLike, ...] = field(default=())
    caption: str | None = None
    label: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        chat = (("user", self.text),) if isinstance(self.text, str) else self.text
        turns, images = read_chat(chat, _as_tuple(self.images))
        object.__setattr__(self, "images", images)
        alone = len(turns) == 1 and isinstance(turns[0][1], str)
        object.__setattr__(self, "text", turns[0][1] if alone else turns)
        for name in ("caption", "label"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise SampleError(f"{name} is {value!r}", expected="a string or None")
        object.__setattr__(self, "chat_template_kwargs", _checked_options(self.chat_template_kwargs))

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The roles and texts of the chat, without its images; a plain text is one user turn."""
        if isinstance(self.text, str):
            return (("user", self.text),)
        return tuple(
            (role, content if isinstance(content, str) else "\n".join(part for part in content if part is not IMAGE))
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
                {"type": "image"} if part is IMAGE else {"type": "text", "text": part}
                for part in ((content,) if isinstance(content, str) else content)
            ]
            if role == "user" and front:
                parts = [{"type": "image"} for _ in range(front)] + parts
                front = 0
            shown.append({"role": role, "content": parts})
        return shown

    def loaded(self) -> Sample:
        """The same sample with every image opened as an RGB PIL image.

        Raises:
            MissingImageError: An image can't be read.
        """
        return replace(self, images=tuple(open_image(image) for image in self.images))

    def check_images(self) -> None:
        """Check that every image can be opened, from the first bytes of its file: no pixel is read.

        Raises:
            MissingImageError: A file is missing or is not an image, or an array has another shape or type.
        """
        for image in self.images:
            check_image(image)

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
        return state.hexdigest()


def open_image(image: ImageLike) -> Image.Image:
    """Open a path, array or PIL image as an RGB PIL image.

    Raises:
        MissingImageError: The file is missing or is not an image, or the array has another shape or type.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, np.ndarray):
        _check_array(image)
        return Image.fromarray(image)
    _check_image_type(image)
    try:
        if isinstance(image, Image.Image):
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(image, error) from error


def check_image(image: ImageLike) -> None:
    """Check a path, array or PIL image as far as that goes without reading pixels.

    Raises:
        MissingImageError: The file is missing or is not an image, or the array has another shape or type.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, np.ndarray):
        _check_array(image)
        return
    _check_image_type(image)
    if isinstance(image, Image.Image):
        return
    try:
        with Image.open(image):
            pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(image, error) from error


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
            f"the samples are {given!r:.60}",
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
                f"sample {index} is {sample!r:.60} of type {type(sample).__name__}",
                expected="a steerkit.Sample",
                fix="sk.Sample(text, images=[...]), or sk.read_samples(list) for texts and mappings",
            )
    return given  # type: ignore[return-value]


@contextmanager
def named(index: int, sample: Sample) -> Iterator[None]:
    """Let an error about a sample inside say which one it is."""
    try:
        yield
    except (SampleError, MissingImageError) as error:
        raise type(error)(
            f"sample {index} ({sample.turns[-1][1][:60]!r}): {error.problem}", expected=error.expected, fix=error.fix
        ) from error


def read_samples(
    source: str | Path | Iterable[Sample | Mapping[str, Any] | str],
    *,
    on_error: OnError = "raise",
    columns: Mapping[str, str | None] | None = None,
    image_root: str | Path | None = None,
) -> list[Sample]:
    """Read samples from a JSONL file, a CSV file or a list.

    Args:
        source: `*.jsonl` (one object a line), `*.csv` (with a header), or an iterable of samples, mappings or texts.
            Fields: `text`, `image` (one) or `images` (a list; in CSV a JSON list), `caption`, `label`.
        on_error: What becomes of a bad row: `raise` (default), `skip` (with a warning that names the row), or a
            function of the row number (from 1, as an editor counts the lines) and the error, after which reading goes
            on.
        columns: New names for source fields, as `{"question": "text", "id": None}`; None drops the field.
        image_root: Folder of relative image paths. Default: the folder of the file.

    Returns:
        The samples in order. Image files are checked to exist and to be images, but not decoded.

    Raises:
        SampleError: A bad row under `on_error="raise"`, an unknown kind of file, or no such file.
        OptionError: `on_error` is none of these, or another argument is of another type.
    """
    if on_error not in ("raise", "skip") and not callable(on_error):
        raise OptionError(f"on_error is {on_error!r}", expected="'raise', 'skip' or a function of row number and error")
    expect(Mapping | None, "{'source field': 'text'}", columns=columns)
    expect(PATH | None, "a folder", image_root=image_root)
    root = Path(image_root) if image_root is not None else None
    from_csv = False
    if isinstance(source, (str, Path)):
        path = Path(source)
        rows: Iterator[tuple[int, Any]] = _file_rows(path)
        root = root if root is not None else path.parent
        name = str(path)
        from_csv = path.suffix == ".csv"
    elif isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable):
        what = f"the samples are {source!r:.60} of type {type(source).__name__}"
        raise SampleError(what, expected="a file or a list", fix="put it in a list")
    else:
        rows = enumerate(iter(source), start=1)
        name = "the list"
    samples: list[Sample] = []
    for number, row in rows:
        try:
            samples.append(_sample(row, columns or {}, root, from_csv=from_csv))
        except (SampleError, MissingImageError) as error:
            problem = SampleError(
                f"{name}, row {number}: {error.problem}",
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


def anchor_digest(digests: Iterable[str]) -> str:
    """sha256 of an anchor set from the digests of its samples, in order."""
    state = hashlib.sha256()
    for digest in digests:
        state.update(bytes.fromhex(digest))
    return state.hexdigest()


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.exists():
        raise SampleError(f"no file {str(path)!r}", expected="a .jsonl or .csv file")
    if path.suffix not in (".jsonl", ".ndjson", ".csv"):
        raise SampleError(f"{str(path)!r} ends in {path.suffix!r}", expected=".jsonl or .csv")
    try:
        text = read_bounded(path, MAX_SAMPLE_FILE).decode("utf-8-sig")
    except OSError as error:
        raise SampleError(f"{str(path)!r:.300} can't be read ({error})", expected="a .jsonl or .csv file") from error
    except UnicodeDecodeError as error:
        raise SampleError(f"{str(path)!r} is not UTF-8 ({error})", expected="text in UTF-8") from error
    lines = io.StringIO(text, newline="" if path.suffix == ".csv" else None)
    yield from _csv_rows(path, lines) if path.suffix == ".csv" else _json_rows(lines)


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _json_row(line)


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(lines)
    try:
        names = reader.fieldnames or ()
        if len(set(names)) < len(names):
            raise SampleError(f"{str(path)!r} repeats a column: {list(names)}", expected="every column once")
        for row in reader:
            surplus = row.pop(None, None)  # type: ignore[call-overload]
            if surplus is not None:
                yield (
                    reader.line_num,
                    SampleError(f"{surplus} lie beyond the last column", expected=f"{len(names)} cells"),
                )
            elif missing := [name for name, cell in row.items() if cell is None]:
                yield (
                    reader.line_num,
                    SampleError(f"the row ends before {missing}", expected=f"{len(names)} cells, empty ones included"),
                )
            else:
                yield reader.line_num, row
    except csv.Error as error:
        raise SampleError(
            f"{str(path)!r} is not CSV from line {reader.line_num + 1} on ({error})", expected="comma-separated values"
        ) from error


def _sample(row: Any, columns: Mapping[str, str | None], root: Path | None, *, from_csv: bool) -> Sample:
    if isinstance(row, Sample):
        return row
    if isinstance(row, SampleError):
        raise row
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise SampleError(f"a row is a {type(row).__name__}", expected="an object with a text")
    fields: dict[str, Any] = {}
    for key, value in row.items():
        target = columns.get(key, key)
        if target is None:
            continue
        if target not in _FIELDS:
            raise SampleError(
                f"unknown field {key!r}",
                expected="one of " + ", ".join(_FIELDS),
                fix=f"rename it with columns={{{key!r}: 'text'}} or drop it with columns={{{key!r}: None}}",
            )
        if value is None or (from_csv and value == ""):
            continue
        if target in fields:
            raise SampleError(
                f"two fields are {target!r}", expected="one", fix="drop the other with columns={...: None}"
            )
        fields[target] = value
    images = _images(fields, root, from_csv=from_csv)
    if "text" not in fields:
        raise SampleError("the field 'text' is missing", expected="a text in every row")
    return Sample(
        text=fields["text"],
        images=images,
        caption=fields.get("caption"),
        label=_label(fields.get("label")),
        chat_template_kwargs=fields.get("chat_template_kwargs", {}),
    )


def _json_row(line: str) -> Any:
    """The parsed line, or the error that says why not: whoever reads the rows decides what a bad one means."""
    try:
        return json_object(line, "the line", error=SampleError)
    except SampleError as error:
        return error


def _label(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _images(fields: Mapping[str, Any], root: Path | None, *, from_csv: bool) -> tuple[ImageLike, ...]:
    if "image" in fields and "images" in fields:
        raise SampleError("both 'image' and 'images' are given", expected="one of the two")
    images = fields.get("images", fields.get("image", ()))
    if from_csv and "images" in fields:
        images = json_value(images, "'images'", error=SampleError, fix="write the paths as a JSON list")
    resolved: list[ImageLike] = []
    for image in _as_tuple(images):
        if isinstance(image, (str, Path)):
            path = Path(image)
            path = root / path if root is not None and not path.is_absolute() else path
            check_image(path)
            resolved.append(path)
        else:
            _check_image_type(image)
            resolved.append(image)
    return tuple(resolved)


def _check_array(image: np.ndarray) -> None:
    if image.dtype != "uint8" or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise MissingImageError(
            f"an image array has shape {image.shape} and type {image.dtype}", expected="[height, width, 3] and uint8"
        )


def _check_image_type(image: Any) -> None:
    import numpy as np
    from PIL import Image

    if not isinstance(image, (str, Path, Image.Image, np.ndarray)):
        raise MissingImageError(
            f"an image is of type {type(image).__name__}", expected="a path, a PIL image or a uint8 array"
        )


def _unreadable(image: Any, error: Exception) -> MissingImageError:
    what = repr(str(image)) if isinstance(image, (str, Path)) else "that was opened"
    return MissingImageError(
        f"the image {what} can't be read ({error})",
        expected="an image file that Pillow opens",
        fix="check the path; relative paths are taken from the folder of the sample file",
    )


def _as_tuple(images: Any) -> tuple[Any, ...]:
    if images is None:
        return ()
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
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
            f"chat_template_kwargs is {options!r:.80}", expected="a mapping of names to what JSON can hold"
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
