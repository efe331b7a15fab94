"""Rows of the files that hold their images: Parquet as `datasets` writes it, and tar as webdataset does.

An image stays where it is until a batch needs it, so the rows of a set of any size fit in memory.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from steerkit._internal.files import open_regular
from steerkit._internal.json import json_object
from steerkit.errors import SampleError

MAX_FILE = 2**36
"""The most bytes of a Parquet or tar file, of which little is read at a time."""

MAX_TEXT = 2**24
"""The most bytes of a text or JSON member of a tar file."""

_FIELDS = {"txt": "text", "cls": "label"}


@dataclass(frozen=True, slots=True)
class TarMember:
    """Some bytes of a tar file."""

    path: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def read(self, limit: int) -> bytes:
        """Its bytes.

        Raises:
            OSError: They are too many, or not there any more.
        """
        if self.size > limit:
            raise OSError(f"{self.size} bytes, and at most {limit} are read")
        with open_regular(self.path, MAX_FILE) as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the file ends before it")
        return data


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The bytes of one image of a Parquet file: `leaf` of a row of a row group; of a list, one of its elements."""

    path: Path
    leaf: str
    group: int
    row: int
    element: int | None

    def __str__(self) -> str:
        return f"{self.path}:{self.leaf}, row {self.row + 1} of row group {self.group}"

    def read(self, limit: int) -> bytes:
        """Its bytes.

        Raises:
            OSError: They are too many, or the cell holds none.
        """
        cell = _cells(self.path, self.path.stat().st_mtime_ns, self.group, self.leaf)[self.row]
        data = (cell if self.element is None else cell.values[self.element])["bytes"]
        if not data.is_valid:
            raise OSError("it has no bytes")
        if len(data.as_buffer()) > limit:
            raise OSError(f"{len(data.as_buffer())} bytes, and at most {limit} are read")
        return data.as_py()


Stored: TypeAlias = TarMember | ParquetCell
"""An image inside a larger file: `read(limit)` gives its bytes."""


@functools.lru_cache(maxsize=2)  # neighbours are asked for one after the other
def _cells(path: Path, changed: int, group: int, leaf: str) -> Any:
    """The column of a row group, whose images are decoded one by one."""
    import pyarrow.parquet as pq  # type: ignore[import-not-found]

    with open_regular(path, MAX_FILE) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=[leaf]).column(0)


def parquet_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file; images that `datasets` stored are left in it.

    Raises:
        SampleError: pyarrow is not installed, or the file can't be read from some row on.
    """
    try:
        import pyarrow as pa  # type: ignore[import-not-found]
        import pyarrow.parquet as pq  # type: ignore[import-not-found]
    except ImportError as error:
        raise SampleError(
            f"{str(path)!r:.300} is a Parquet file, and pyarrow is not installed",
            expected="pyarrow",
            fix="pip install 'steerkit-vlm[parquet]', or save the rows as JSON lines",
        ) from error
    number = 0
    try:
        table = pq.ParquetFile(file)
        leaves = [table.schema.column(index).path for index in range(len(table.schema))]
        stored = {
            leaf.partition(".")[0]: leaf
            for leaf in leaves
            if leaf.endswith(".bytes") and f"{leaf.removesuffix('bytes')}path" in leaves
        }
        shown = [leaf for leaf in leaves if leaf not in stored.values()]
        for group in range(table.num_row_groups):
            left = bool(stored)
            for leaf in stored.values():
                values = table.read_row_group(group, columns=[f"{leaf.removesuffix('bytes')}path"]).column(0)
                known = table.metadata.row_group(group).column(leaves.index(leaf)).statistics
                # bytes that are absent where there is an image: a file elsewhere, which `path` names
                left = left and known is not None and known.null_count == sum(map(_absent, values.to_pylist()))
            row = 0
            for batch in table.iter_batches(batch_size=64, row_groups=[group], columns=shown if left else leaves):
                for fields in batch.to_pylist():
                    number += 1
                    if left:
                        for name, leaf in stored.items():
                            fields[name] = _left(fields[name], ParquetCell(path, leaf, group, row, None))
                    row += 1
                    yield number, fields
    except (pa.ArrowException, OSError) as error:
        raise SampleError(
            f"{str(path)!r:.300} can't be read from row {number + 1} on ({str(error)[:200]})", expected="a Parquet file"
        ) from error


def _absent(value: Any) -> int:
    """How many images a cell lacks, as Parquet counts: an empty list lacks one."""
    if isinstance(value, list) and value:
        return sum(each is None for each in value)
    return int(not value)


def _left(value: Any, cell: ParquetCell) -> Any:
    """What stands for the images of a cell of which only the paths were read."""
    if isinstance(value, list):
        return [each and replace(cell, element=index) for index, each in enumerate(value)]
    return value and cell


def tar_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The rows of a tar file as webdataset writes it: neighbours with the same name up to its first dot are one row.

    `NAME.json` holds fields; `NAME.FIELD.txt` one (`NAME.txt` the text, `NAME.cls` the label); other members are
    images, in their order.

    Raises:
        SampleError: It can't be read from some member on.
    """
    number = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = (member for member in archive if not member.isdir())
            for number, (_, group) in enumerate(groupby(members, _key), start=1):
                try:
                    yield number, _row(path, archive, list(group))
                except SampleError as error:
                    yield number, error
    except (tarfile.TarError, OSError) as error:
        raise SampleError(
            f"{str(path)!r:.300} can't be read from row {number + 1} on ({str(error)[:200]})",
            expected="a tar file that is not compressed",
        ) from error


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _row(path: Path, archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    images: list[TarMember] = []
    for member in members:
        shown = f"{member.name!r:.200}"
        if not member.isreg() or member.issparse():
            raise SampleError(f"{shown} is a link, a device or sparse", expected="plain files")
        field, _, kind = member.name.rpartition("/")[2].partition(".")[2].rpartition(".")
        kind = kind.lower()
        if kind == "json" and not field:
            fields = json_object(_content(archive, member), shown, error=SampleError)
        elif kind in ("txt", "cls"):
            try:
                fields = {field or _FIELDS[kind]: _content(archive, member).decode()}
            except UnicodeDecodeError as error:
                raise SampleError(f"{shown} is not in UTF-8 ({error})", expected="text in UTF-8") from error
        else:
            images.append(TarMember(path, member.name, member.offset_data, member.size))
            continue
        if twice := sorted(row.keys() & fields.keys()):
            raise SampleError(f"{shown} gives {twice[0]!r} again", expected="every field once")
        row |= fields
    if images and "images" in row:
        raise SampleError(f"{images[0].name!r:.200} is an image beside the field 'images'", expected="one of the two")
    return row | ({"images": images} if images else {})


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_TEXT:
        raise SampleError(f"{member.name!r:.200} has {member.size} bytes", expected=f"at most {MAX_TEXT}")
    with cast("BinaryIO", archive.extractfile(member)) as file:
        return file.read()
