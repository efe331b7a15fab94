"""The rows of sample files: JSON lines, JSON arrays, CSV, TSV, Parquet and tar, each with its place in the file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from steerkit._internal.files import FileRefused, open_regular
from steerkit._internal.json import json_object
from steerkit.errors import SampleError
from steerkit.models._stored import MAX_FILE as MAX_STORED, parquet_rows, tar_rows

MAX_FILE = 2**32
"""The most bytes of a sample file."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson", ".json")
_STORED = {".parquet": parquet_rows, ".tar": tar_rows}
KINDS = ".jsonl, .json, .csv, .tsv, .parquet or .tar"

Row = tuple[int, Any]
"""The number of the line on which a row begins (in Parquet, of the row), and the row, or the error that stands for it:
what a bad row means is up to whoever reads it."""


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order.

    Raises:
        SampleError: There is no such file, it is of another kind, or it can't be read from some line on.
    """
    kind = path.suffix.lower()
    if kind not in (*_LINES, *_SEPARATORS, *_STORED):
        raise SampleError(f"{str(path)!r:.300} ends in {path.suffix!r}", expected=KINDS)
    with _opened(path, MAX_STORED if kind in _STORED else MAX_FILE) as file:
        if kind in _STORED:
            yield from _STORED[kind](path, file)
        elif kind in _SEPARATORS:
            yield from _separated(path, file, _SEPARATORS[kind])
        elif file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":  # type: ignore[attr-defined]
            yield from _array(path, file)
        else:
            yield from _lines(path, file)


def unit_of(path: Path) -> str:
    """What the number of a row of a file counts."""
    return "row" if path.suffix.lower() in _STORED else "line"


def sound_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The number of each row of a file, where it stands, and the row.

    Raises:
        SampleError: As for `rows`, or a row is bad.
    """
    for number, row in rows(path):
        where = f"{path}, {unit_of(path)} {number}"
        if isinstance(row, SampleError):
            raise SampleError(f"{where}: {row.problem}", expected=row.expected, fix=row.fix) from row
        yield number, where, row


def sample_files(path: Path) -> list[Path]:
    """The files of a folder of samples, in the order of their names; of a file, itself.

    `metadata.csv`, `.jsonl` or `.parquet` is the whole of its folder, as for the image folders of `datasets`.

    Raises:
        SampleError: There is none, or they are of several kinds.
    """
    if not os.path.isdir(path):  # noqa: PTH112  # False for a name that no file can have, of which reading says more
        return [path]
    found = sorted(each for each in path.iterdir() if each.suffix.lower() in (*_LINES, *_SEPARATORS, *_STORED))
    found = [each for each in found if each.stem == "metadata"] or found
    if not found or len({each.suffix.lower() for each in found}) > 1:
        raise SampleError(
            f"the folder {str(path)!r:.300} has {', '.join(each.name for each in found) or 'no such file':.200}",
            expected=f"files that all end in {KINDS}",
            fix="name one of them",
        )
    return found


def is_separated(path: Path) -> bool:
    """Whether the cells of a file are all texts, and empty ones stand for none."""
    return path.suffix.lower() in _SEPARATORS


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[BinaryIO]:
    try:
        with open_regular(path, limit) as file:
            yield file
    except FileNotFoundError as error:
        raise SampleError(f"no file {str(path)!r:.300}", expected=f"a {KINDS} file") from error
    except FileRefused as error:
        raise SampleError(f"{str(path)!r:.300} is not read ({error})", expected=f"a {KINDS} file") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SampleError(f"{str(path)!r:.300} can't be read ({why})", expected=f"a {KINDS} file") from error


def _decoded(path: Path, raw: bytes, line: int) -> str:
    """The text of bytes that begin with a line.

    Raises:
        SampleError: They are not UTF-8; the message names the line, and the encoding that it is likely to be.
    """
    try:
        if b"\0" not in raw[:256]:
            return raw.decode("utf-8-sig" if line == 1 else "utf-8")
        kind, where = "utf-16", line
    except UnicodeDecodeError as error:
        kind, where = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252", line
        where += raw.count(b"\n", 0, error.start)
    raise SampleError(
        f"{str(path)!r:.300} is not in UTF-8 from line {where} on, and may be in {kind}",
        expected="text in UTF-8",
        fix=f"if it is, write it anew: path.write_text(path.read_text({kind!r}), 'utf-8')",
    )


def _numbered(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file as it was when it was opened; what is written to it meanwhile is not part of it."""
    left = os.fstat(file.fileno()).st_size
    for number, raw in enumerate(file, start=1):
        if len(raw) > left:
            raise SampleError(f"{str(path)!r:.300} was changed while it was read", expected="a file at rest")
        left -= len(raw)
        yield number, raw


def _lines(path: Path, file: BinaryIO) -> Iterator[Row]:
    for number, raw in _numbered(path, file):
        try:
            line = _decoded(path, raw, number)
            if not line.strip():
                continue
            row: Any = json_object(line, "the line", error=SampleError, fix=_json_fix(line))
        except SampleError as error:
            if number == 1 and b"\0" in raw:
                raise
            row = error
        yield number, row


def _json_fix(line: str) -> str | None:
    text = line.strip()
    if text in ("{", "["):
        return "one object a line: json.dumps(row) without indent; or a JSON array of all rows"
    return "use double quotes, as json.dumps(row) does" if text.startswith("{'") else None


def _array(path: Path, file: BinaryIO) -> Iterator[Row]:
    text = _decoded(path, file.read(os.fstat(file.fileno()).st_size), 1)
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    first = True
    while True:
        at = _past_space(text, at)
        ended = text[at : at + 1] == "]"
        if ended or not (first or text[at : at + 1] == ","):
            break
        start = at if first else _past_space(text, at + 1)
        first = False
        line, counted = line + text.count("\n", counted, start), start
        try:
            at = decoder.raw_decode(text, start)[1]
        except (ValueError, RecursionError) as error:
            raise SampleError(
                f"{str(path)!r:.300}, line {line}: not JSON ({str(error)[:120]})", expected="a JSON array of objects"
            ) from error
        try:
            yield line, json_object(text[start:at], "the row", error=SampleError)
        except SampleError as error:
            yield line, error
    if not ended or text[at + 1 :].strip():
        line += text.count("\n", counted, at + 1)
        raise SampleError(
            f"{str(path)!r:.300}, line {line}: {text[at + ended : at + 40].strip()!r:.40} follows a row or the array",
            expected="a JSON array of objects and nothing behind it, or one object a line",
        )


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _separated(path: Path, file: BinaryIO, separator: str) -> Iterator[Row]:
    decoded = (_decoded(path, raw, number) for number, raw in _numbered(path, file))
    reader = csv.reader(decoded, delimiter=separator, strict=True)
    names: list[str] = []
    before = 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not cells:
                continue
            if not names:
                names = _header(path, cells, separator)
            elif len(cells) == len(names):
                yield line, dict(zip(names, cells, strict=True))
            elif len(cells) > len(names):
                surplus = f"{cells[len(names) :]!r:.80} lie beyond the last column"
                yield line, SampleError(surplus, expected=f"{len(names)} cells", fix="quote cells that hold separators")
            else:
                missing = f"the row ends before {names[len(cells) :]}"
                yield line, SampleError(missing, expected=f"{len(names)} cells, empty ones included")
    except csv.Error as error:
        raise SampleError(
            f"{str(path)!r:.300} is not CSV from line {before + 1} on ({error})",
            expected=f"values separated by {separator!r}, in double quotes where they hold it or a line break",
        ) from error


def _header(path: Path, names: list[str], separator: str) -> list[str]:
    if len(set(names)) < len(names):
        raise SampleError(f"{str(path)!r:.300} repeats a column: {names!r:.200}", expected="every column once")
    for other in ";\t,|":
        if len(names) == 1 and other in names[0]:
            raise SampleError(
                f"the header of {str(path)!r:.300} is one column, {names[0]!r:.120}",
                expected=f"columns separated by {separator!r}",
                fix=f"it seems to be separated by {other!r}: save it as .csv with commas or as .tsv with tabs, or pass "
                f"list(csv.DictReader(open(path, newline=''), delimiter={other!r}))",
            )
    return names
