"""The cache: packs by the sha256 of their content, and records of which reference led to which content.

    blobs/<sha256>       a pack or a signature; read only after its content has been hashed again
    records/<key>.json   what a reference resolved to, so that it can be used without a network; where that had no
                         signature, the file's time is when one was last asked for
    revocations/         the last copies of revocation lists
    work/<key>/          a transfer under way; one process at a time works in it, under locks/<key>

A file appears by renaming a complete, synchronised one, so none is ever seen half written: not by another process, and
not after a kill or a power cut. Where others may write to the cache as well, no link of theirs is followed in writing,
and nobody works in a folder of another user.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from steerkit._internal.files import open_regular, read_bounded, write_atomically
from steerkit._internal.json import json_object
from steerkit.errors import PackFormatError, SteerKitError
from steerkit.interventions import Frozen
from steerkit.vectors import Sha256
from steerkit.vectors.formats.container import MAX_FILE
from steerkit_vectors_hub.errors import CacheError

PLACE = "STEERKIT_CACHE"
"""Environment variable: the folder of the cache."""

_MAX_RECORD = 2**16


class Record(Frozen):
    """What a reference resolved to.

    Attributes:
        ref: The reference, without a digest.
        sha256: Digest of the file.
        size: Its bytes.
        revision: Commit of the repository, where there is one.
        file: Path inside the repository, or the file's name.
        time: When it was resolved, ISO 8601.
        signature: Digest of the signature that lay beside it, where there was one.
        version: What the source calls this content (an ETag), where it says.
    """

    ref: str
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]
    revision: str | None
    file: str
    time: str
    signature: Sha256 | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """A cache folder. It is made when something is first written to it."""

    root: Path

    @classmethod
    def default(cls) -> Store:
        """That in `$STEERKIT_CACHE`, or `steerkit` in the user's cache folder.

        Raises:
            CacheError: It names a home folder that does not exist.
        """
        return cls(place(PLACE, "XDG_CACHE_HOME", "~/.cache", "steerkit", CacheError))

    def path(self, digest: str) -> Path:
        """Where a pack of this digest is or would be."""
        return self.root / "blobs" / digest

    def find(self, digest: str) -> Path | None:
        """The pack of this digest, hashed just now; None if there is none, or a damaged one."""
        path = self.path(digest)
        with suppress(OSError):
            if hashlib.sha256(read_bounded(path, MAX_FILE)).hexdigest() == digest:
                return path
        return None

    def keep(self, data: bytes) -> str:
        """Put a pack or a signature into the store; return its digest.

        Raises:
            CacheError: The cache can't be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        if self.find(digest) is None:
            self.write(self.path(digest), data)
        return digest

    def write(self, path: Path, data: bytes) -> None:
        """Write a file into one of the folders of the cache, complete or not at all.

        Raises:
            CacheError: The cache can't be written.
        """
        with self._writing():
            write_atomically(self._folder(path.parent.name) / path.name, data)

    def record(self, key: str) -> Record | None:
        """What a key resolved to when it was last resolved."""
        return self._read(self._record_path(key))

    def remember(self, key: str, record: Record) -> None:
        """Note what a key resolved to.

        Raises:
            CacheError: The cache can't be written.
        """
        self.write(self._record_path(key), record.model_dump_json(indent=1).encode())

    def age(self, key: str) -> float | None:
        """Seconds since a key's record was written or renewed; None where there is none."""
        try:
            return time.time() - self._record_path(key).stat().st_mtime
        except OSError:
            return None

    def renew(self, key: str) -> None:
        """Note that a key's record was looked at again, and stays.

        Raises:
            CacheError: The cache can't be written.
        """
        with self._writing():
            os.utime(self._record_path(key), follow_symlinks=os.utime not in os.supports_follow_symlinks)

    def records(self) -> list[Record]:
        """Every record, by reference."""
        try:
            found = [self._read(path) for path in sorted((self.root / "records").glob("*.json"))]
        except OSError:
            return []
        distinct = {(each.ref, each.time, each.sha256, each.signature or ""): each for each in found if each}
        return [distinct[key] for key in sorted(distinct)]

    @contextmanager
    def work(self, key: str) -> Iterator[Path]:
        """A folder for a transfer, with its lock held; what an earlier, killed attempt left is still in it.

        Raises:
            CacheError: The cache can't be written.
        """
        from filelock import FileLock

        name = _name(f"{_user()} {key}")  # of one user: whose folder it is could put links into it
        with self._writing():
            lock = FileLock(self._folder("locks") / name)
            lock.acquire()
        try:
            with self._writing():  # only now: whoever held the lock before may have removed it
                folder = self._folder("work", name, mode=0o700)
                if folder.stat().st_uid not in self._trusted():
                    raise OSError(f"{str(folder)!r} belongs to another user")
            yield folder
        finally:
            lock.release()

    def _trusted(self) -> set[int]:
        """The users whose word counts: this one, the superuser, and the owner of the cache."""
        return {_user(), 0, self.root.stat().st_uid}

    def own(self, path: Path, limit: int) -> tuple[bytes, float] | None:
        """A file that is believed for its name, and when it was written; None where there is none, or it is of others.

        Args:
            path: Of the cache.
            limit: The most bytes that it may have.
        """
        with suppress(OSError), open_regular(path, limit, follow=False) as file:
            found = os.fstat(file.fileno())
            if found.st_uid in self._trusted():
                return file.read(found.st_size), found.st_mtime
        return None

    def _read(self, path: Path) -> Record | None:
        """A record; None where there is none, or it was damaged, or is of others (it is then written anew)."""
        try:
            data, _ = self.own(path, _MAX_RECORD) or (b"", 0.0)
            return Record.model_validate(json_object(data, "the record"))
        except (PackFormatError, ValidationError):
            return None

    def _folder(self, *names: str, mode: int = 0o777) -> Path:
        """A folder of the cache, made if need be; in a cache that others can write to, it may be a link of theirs."""
        path = self.root
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = path / name
            path.mkdir(mode if name == names[-1] else 0o777, exist_ok=True)
            if path.is_symlink():
                raise OSError(f"{str(path)!r} is a symbolic link")
        return path

    def _record_path(self, key: str) -> Path:
        return self.root / "records" / f"{_name(key)}.json"

    def _writing(self) -> AbstractContextManager[None]:
        return saving(f"the cache {str(self.root)!r:.300}")


@contextmanager
def saving(what: str = "what arrives") -> Iterator[None]:
    """Tell what this machine's disk refuses from what the network does, where a file is written or read back.

    Raises:
        CacheError: It can't be written.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(error, what) from error


def unwritable(error: BaseException, what: str = "what arrives") -> CacheError:
    """The error for what this machine can't store."""
    return CacheError(
        f"{what} can't be written ({error})",
        expected="a folder that you may write to, with space left, and no links in it",
        fix=f"set {PLACE} to another folder",
    )


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _name(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def place(variable: str, base: str, usual: str, rest: str, error: type[SteerKitError]) -> Path:
    """The path that a variable names, or `rest` in the folder that the variable `base` names, usually `usual`.

    Raises:
        SteerKitError: `error`: a home folder in it can't be found, because there is no such user, or no HOME.
    """
    if chosen := os.environ.get(variable):
        return _expanded(chosen, f"the environment variable {variable}", variable, error)
    if folder := os.environ.get(base):
        return Path(folder) / rest
    return _expanded(usual, f"where {variable} and {base} are not set, it", variable, error) / rest


def _expanded(text: str, what: str, variable: str, error: type[SteerKitError]) -> Path:
    try:
        return Path(text).expanduser()  # refused, not relative, where there is no such home
    except RuntimeError as cause:
        raise error(
            f"{what} is {text!r:.300}, and its home folder can't be found ({cause})",
            expected="a path; ~ stands for the home folder of a user of this machine",
            fix=f"set {variable} to an absolute path",
        ) from cause
