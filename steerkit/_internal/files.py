"""Files: read within a bound through one descriptor, and written so that they appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from steerkit.errors import FileWriteError, SteerKitError

_CHUNK = 2**20

OPENING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
"""Flags with which a file of unknown kind is opened, so that opening it neither waits nor does anything."""


class FileRefused(OSError):
    """A file that exists and must not be used: it is of the wrong kind, too large, or changed while it was read."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a caller has written: `~` is the home folder, as in a shell, wherever one is saved or loaded."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - `Path.expanduser` raises where there is no such home


@contextmanager
def open_regular(path: str | os.PathLike[str], limit: int, *, follow: bool = True) -> Iterator[BufferedReader]:
    """Open a regular file to read, and judge what was opened rather than what the path named a moment before.

    Opening never blocks, so a FIFO is refused instead of waited for, and a device is refused before it is read. What
    the file grows by later is up to the reader: `read_bounded` counts.

    Args:
        path: The file.
        limit: The most bytes that it may have.
        follow: Whether the last part of the path may be a symbolic link.

    Yields:
        The open file.

    Raises:
        FileRefused: It is not a regular file, or larger than the limit.
        OSError: It can't be opened.
    """
    flags = os.O_RDONLY | OPENING | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    try:
        handle = os.open(path, flags)
    except ValueError as error:  # a null byte in the path
        raise FileRefused(f"{_shown(path)} is not a path ({error})") from error
    try:
        judged(handle, path, limit)
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        yield file


def judged(handle: int, path: str | os.PathLike[str], limit: int) -> int:
    """The size of what was opened, if it is a regular file.

    Raises:
        FileRefused: It is something else, or larger than the limit.
    """
    opened = os.fstat(handle)
    if not stat.S_ISREG(opened.st_mode):
        raise FileRefused(f"{_shown(path)} is not a regular file")
    if opened.st_size > limit:
        raise FileRefused(f"{_shown(path)} has {opened.st_size} bytes, and at most {limit} are read")
    return opened.st_size


def same_file(file: BufferedReader) -> Path:
    """A path that leads to an open file, whatever its name leads to by now; where the system has none, its name."""
    through = Path(f"/proc/self/fd/{file.fileno()}")
    return through if through.exists() else Path(os.fsdecode(file.name))


def read_bounded(path: str | os.PathLike[str], limit: int, *, follow: bool = True) -> bytes:
    """The content of a regular file, read once through one descriptor, never more than `limit` bytes.

    Args:
        path: The file.
        limit: The most bytes that it may have.
        follow: Whether the last part of the path may be a symbolic link.

    Raises:
        FileRefused: It is not a regular file, larger than the limit, or was changed while it was read.
        OSError: It can't be opened or read.
    """
    with open_regular(path, limit, follow=follow) as file:
        before = os.fstat(file.fileno())
        # files of /proc state no size; of any other, what was not there when it was opened is not read
        most = before.st_size if before.st_size else limit
        parts, count = [], 0
        while count <= most and (part := file.read(min(_CHUNK, most + 1 - count))):
            parts.append(part)
            count += len(part)
        after = os.fstat(file.fileno())
    if count > limit:
        raise FileRefused(f"{_shown(path)} has more than {limit} bytes")
    if before.st_size and (count, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise FileRefused(f"{_shown(path)} was changed while it was read")
    return b"".join(parts)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once the block has ended well, and is gone otherwise.

    Its content is on the disk before it is renamed: neither another process nor a power cut sees half a file. A
    symbolic link at `path` is replaced, and what it leads to is left alone.

    Args:
        path: The file; its folder is made if need be, and the user's umask says who may read it.

    Yields:
        The file to write, beside it.

    Raises:
        FileRefused: At `path` is something that no file should take the place of, such as a device.
    """
    with _replacing(path) as (temporary, file):
        file.close()
        yield temporary


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all; see `replacing`.

    Raises:
        FileWriteError: It can't be written, or should not be.
    """
    with writing(path), _replacing(path) as (_, file):
        file.write(data)
        file.flush()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise what the system refuses inside, where a file is written, as an error that names the file.

    Raises:
        FileWriteError: It can't be written, or should not be.
    """
    try:
        yield
    except SteerKitError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise FileWriteError(
            f"{_shown(path)} can't be written: {reason}",
            expected="a path that may be written to, with space for the file",
            fix="free some space, or choose another path",
        ) from error


@contextmanager
def _replacing(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FileRefused(f"{_shown(path)} is not a regular file")
    temporary = path.parent / f".steerkit-{secrets.token_hex(8)}"
    file = create(temporary)
    try:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        with file:
            yield temporary, file
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # a library that writes it may have put a file with a mode of its own in its place
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def create(path: Path) -> BinaryIO:
    """Open a new file to write; one that is there is never followed, written to or emptied.

    Raises:
        OSError: There is something at the path, or it can't be written.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb")


def _shown(path: str | os.PathLike[str]) -> str:
    return f"{os.fspath(path)!r:.300}"


def sync_folder(folder: Path) -> None:
    """Make a renaming in a folder last; where the system can't open folders, it is left to the system."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
