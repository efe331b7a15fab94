"""Samples and anchor sets: a text, its images, optionally a caption and a label.

Images stay what the caller gave (a path, a PIL image or an array) until a batch needs their pixels, so an anchor set
may be much larger than memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from steerkit._internal.json import json_object, json_value
from steerkit._internal.validation import PATH, expect
from steerkit.errors import MissingImageError, OptionError, SampleError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray"
else:
    ImageLike: TypeAlias = Any

Turn: TypeAlias = tuple[str, str]
"""One turn of a chat: `(role, text)`, role being `system`, `user` or `assistant`."""

OnError: TypeAlias = "Literal['raise', 'skip'] | Callable[[int, SampleError], object]"

_FIELDS = ("text", "image", "images", "caption", "label")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt: its text, its images, and what is known about it.

    Attributes:
        text: The user's message, or a chat as `(role, text)` turns that ends with the user's.
        images: Paths, PIL images or `[height, width, 3]` uint8 arrays; they belong to the first user turn.
        caption: A description of the images, for methods whose reference is text with a caption.
        label: The group that a contrastive method puts this sample in, such as `harmful` or `harmless`.
    """

    text: str | tuple[Turn, ...]
    images: tuple[ImageLike, ...] = field(default=())
    caption: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", _as_tuple(self.images))
        if isinstance(self.text, str):
            _check_text(self.text)
        else:
            object.__setattr__(self, "text", _checked_turns(self.text))
        for name in ("caption", "label"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise SampleError(f"{name} is {value!r}", expected="a string or None")

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The chat as turns; a plain text is one user turn."""
        return (("user", self.text),) if isinstance(self.text, str) else self.text

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
        head = {"turns": self.turns, "caption": self.caption, "label": self.label}
        state.update(json.dumps(head, sort_keys=True, ensure_ascii=False).encode())
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
            f"sample {index} ({str(sample.text)[:60]!r}): {error.problem}", expected=error.expected, fix=error.fix
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
    if not path.is_file():
        raise SampleError(f"no file {str(path)!r}", expected="a .jsonl or .csv file")
    if path.suffix not in (".jsonl", ".ndjson", ".csv"):
        raise SampleError(f"{str(path)!r} ends in {path.suffix!r}", expected=".jsonl or .csv")
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as lines:
            yield from _csv_rows(path, lines) if path.suffix == ".csv" else _json_rows(lines)
    except UnicodeDecodeError as error:
        raise SampleError(f"{str(path)!r} is not UTF-8 ({error})", expected="text in UTF-8") from error


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
    return Sample(text=fields["text"], images=images, caption=fields.get("caption"), label=_label(fields.get("label")))


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


def _check_text(text: str, role: str = "user") -> None:
    if role == "user" and not text.strip():
        raise SampleError("the text of a sample is empty", expected="a non-empty string or a list of turns")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(
            f"the text {text!r:.80} holds half a character ({error.reason})", expected="Unicode"
        ) from error


def _as_tuple(images: Any) -> tuple[Any, ...]:
    if images is None:
        return ()
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return tuple(images)
    return (images,)


def _checked_turns(turns: Any) -> tuple[Turn, ...]:
    if not isinstance(turns, Sequence):
        raise SampleError(f"the text of a sample is {turns!r:.80}", expected="a string or a list of turns")
    checked: list[Turn] = []
    for turn in turns:
        pair = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else turn
        if (
            not isinstance(pair, (tuple, list))
            or len(pair) != 2
            or pair[0] not in _ROLES
            or not isinstance(pair[1], str)
        ):
            raise SampleError(f"a turn is {turn!r:.80}", expected="(role, text) with role system, user or assistant")
        _check_text(pair[1], pair[0])
        checked.append((pair[0], pair[1]))
    if not checked or checked[-1][0] != "user":
        raise SampleError("a chat does not end with the user's turn", expected="turns that end with ('user', text)")
    return tuple(checked)
