"""Files that only grow, a record a line: whatever ends a run, what was finished before is there to go on from."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Generic, Self, TypeVar

from filelock import FileLock, Timeout

from steerkit._internal.faults import refused_as
from steerkit._internal.files import OPENING, judged, open_regular, sync_folder
from steerkit._text import quoted
from steerkit.errors import RecordsError
from steerkit.interventions import Frozen

R = TypeVar("R", bound=Frozen)

LARGEST = 2**32
"""Bytes of a file of records."""

_BEGIN = b'{"version":'
_HEAD = 64
_RESERVED = 2**28
"""More zeros at its end than any batch needs are not of a run that was killed."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_records(path: Path, kind: type[R]) -> list[R]:
    """The records of a file; a line that a killed run left half written is none.

    Args:
        path: The file.
        kind: `Answer` or `Verdict`.

    Raises:
        RecordsError: It can't be read, or holds something else.
    """
    try:
        with open_regular(path, LARGEST) as file:
            return _parsed(file.read(os.fstat(file.fileno()).st_size), path, kind)[0]
    except OSError as error:
        raise _failed(path, "read", error) from error


class Journal(Generic[R]):
    """Records in a file, or in memory alone; a context in which the file is locked, so that two runs can't mix.

    Attributes:
        records: All of them, those of earlier runs first.
    """

    def __init__(self, path: Path | None, kind: type[R]) -> None:
        self._path, self._kind = path, kind
        self.records: list[R] = []
        self._file: BinaryIO | None = None
        self._lock: FileLock | None = None
        self._end = self._reserved = 0

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(self._path):  # beside a file that is none of ours, no lock is left
                with open_regular(self._path, LARGEST) as file:
                    _check_begin(file.read(_HEAD), self._path)
            self._lock = FileLock(f"{self._path}.lock", timeout=0)
            self._lock.acquire()
            handle = os.open(self._path, OPENING | os.O_RDWR | os.O_CREAT, 0o666)
            try:
                size = judged(handle, self._path, LARGEST)
                with os.fdopen(os.dup(handle), "rb") as file:
                    self.records, self._end = _parsed(file.read(size), self._path, self._kind)
            except BaseException:
                os.close(handle)  # nothing of it is cut off
                raise
            # unbuffered: what could not be written must not be tried again when the file is closed
            self._file = os.fdopen(handle, "rb+", 0)
            self._file.truncate(self._end)
            self._file.seek(self._end)
            sync_folder(self._path.parent)
        except BaseException as error:
            self._close()
            if isinstance(error, Timeout):
                raise RecordsError(
                    f"another run writes {quoted(str(self._path), 300)}",
                    expected="one run for a file",
                    fix="wait for it, or name another file",
                ) from error
            if isinstance(error, OSError):
                raise _failed(self._path, "written", error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def reserve(self, size: int) -> None:
        """Take room on the disk for what comes next: a disk that is full is found before a model works for nothing.

        Args:
            size: How many bytes are needed at most.

        Raises:
            RecordsError: There is no such room.
        """
        if self._file is None or self._end + size <= self._reserved or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._file.fileno(), self._end, size)
        except OSError as error:
            if error.errno in _FULL:
                raise self._stopped(error) from error
        else:  # zeros, which no record begins with; other errors are of file systems that can't do this
            self._reserved = self._end + size

    def append(self, record: R) -> None:
        """Add a record, and write it.

        Raises:
            RecordsError: It can't be written; `records` holds it all the same.
        """
        self.records.append(record)
        if self._file is None:
            return
        line = record.model_dump_json().encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            raise self._stopped(error) from error
        self._end += len(line)

    def sync(self) -> None:
        """Have everything on the disk, so that a power cut does not lose it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _stopped(self, error: OSError) -> RecordsError:
        assert self._path is not None
        failed = _failed(self._path, "written", error)
        failed.records = tuple(self.records)
        return failed

    def _close(self) -> None:
        if self._file is not None:
            with self._file as file:
                file.truncate(self._end)  # what was reserved, or half written
            self._file = None
        if self._lock is not None:
            self._lock.release()


def _parsed(data: bytes, path: Path, kind: type[R]) -> tuple[list[R], int]:
    """The records, and where the last of them ends."""
    end = data.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
        expected = f"a record of one {kind.__name__.lower()} in each line, as steerkit writes them"
        fix = "name another file; or delete the line, and what it held is made again"
        with refused_as(RecordsError, f"{quoted(str(path), 300)}, line {number}", expected=expected, fix=fix):
            records.append(kind.model_validate_json(line))
    if (data[end:].strip(b"\0") and not _torn(data[end:])) or len(data) - end > _RESERVED:
        raise RecordsError(f"{quoted(str(path), 300)} ends in {quoted(data[end:], 60)}", expected="JSON lines")
    return records, end


def _check_begin(head: bytes, path: Path) -> None:
    if not _torn(head):
        raise RecordsError(
            f"{quoted(str(path), 300)} begins with {quoted(head, 60)}",
            expected="records, as steerkit writes them",
            fix="name another file",
        )


def _torn(rest: bytes) -> bool:
    """Whether the end of a file is the beginning of a record: the end of somebody's other file is not cut off."""
    return rest.startswith(_BEGIN) or _BEGIN.startswith(rest.rstrip(b"\0"))


def _failed(path: Path, what: str, error: OSError) -> RecordsError:
    full = error.errno in _FULL
    return RecordsError(
        f"{quoted(str(path), 300)} can't be {what} ({error.strerror or error})",
        expected="room for the records" if full else "a file in a folder that can be written",
        fix="free some space and run it again: it goes on where it was"
        if full
        else "check the path, and that you may use it",
    )
