"""The cache: packs by the sha256 of their content, and records of which reference led to which content.

    blobs/<sha256>       a pack or a signature; read only after its content has been hashed again
    records/<key>.json   what a reference resolved to, so that it can be used without a network; where that had no
                         signature, the file's time is when one was last asked for
    revocations/         the last copies of revocation lists
    work/<key>/          a transfer under way; one process at a time works in it, under locks/<key>

A pack and a record appear by renaming a complete, synchronised file, so neither is ever seen half written: not by
another process, and not after a kill or a power cut. A damaged pack is never used; a good one is never lost to another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from steerkit._internal.files import sync_folder, write_atomically
from steerkit._internal.json import json_object
from steerkit.errors import PackFormatError
from steerkit.vectors.formats.container import read_file
from steerkit_vectors_hub.errors import CacheError
from steerkit_vectors_hub.places import place

PLACE = "STEERKIT_CACHE"
"""Environment variable: the folder of the cache."""


_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Record:
    """What a reference resolved to.

    Attributes:
        ref: The reference, without a digest.
        sha256: Digest of the file.
        size: Its bytes.
        revision: Commit of the repository, where there is one.
        file: Path inside the repository, or the file's name.
        time: When it was resolved, ISO 8601.
        signature: Digest of the signature that lay beside it, where there was one.
    """

    ref: str
    sha256: str
    size: int
    revision: str | None
    file: str
    time: str
    signature: str | None = None


def cache_folder() -> Path:
    """`$STEERKIT_CACHE`, or `steerkit` in the user's cache folder.

    Raises:
        CacheError: It names a home folder that there is not.
    """
    return place(PLACE, "XDG_CACHE_HOME", "~/.cache", "steerkit", CacheError)


@dataclass(frozen=True, slots=True)
class Store:
    """A cache folder. It is made when something is first written to it."""

    root: Path

    @classmethod
    def default(cls) -> Store:
        """The store of `cache_folder()`.

        Raises:
            CacheError: The folder's name leads to no place.
        """
        return cls(cache_folder())

    def path(self, digest: str) -> Path:
        """Where a pack of this digest is or would be."""
        return self.root / "blobs" / digest

    def find(self, digest: str) -> Path | None:
        """The pack of this digest, hashed just now; None if there is none, or a damaged one."""
        path = self.path(digest)
        return path if file_digest(path) == digest else None

    def adopt(self, path: Path, digest: str) -> Path:
        """Move a file, whose digest was checked, to its place.

        Raises:
            CacheError: The cache can't be written.
        """
        target = self.path(digest)
        with self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.replace(target)
            sync_folder(target.parent)
        return target

    def keep(self, data: bytes) -> str:
        """Put a signature into the store; return its digest.

        Raises:
            CacheError: The cache can't be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        if self.find(digest) is None:
            self.write(self.path(digest), data)
        return digest

    def write(self, path: Path, data: bytes) -> None:
        """Write a file of the cache, complete or not at all.

        Raises:
            CacheError: The cache can't be written.
        """
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)

    def record(self, key: str) -> Record | None:
        """What a key resolved to when it was last resolved."""
        return _read_record(self._record_path(key))

    def remember(self, key: str, record: Record) -> None:
        """Note what a key resolved to.

        Raises:
            CacheError: The cache can't be written.
        """
        self.write(self._record_path(key), json.dumps(asdict(record), indent=1).encode())

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
            os.utime(self._record_path(key))

    def records(self) -> list[Record]:
        """Every record, by reference."""
        found = (_read_record(path) for path in sorted((self.root / "records").glob("*.json")))
        return sorted({record for record in found if record is not None}, key=lambda record: (record.ref, record.time))

    @contextmanager
    def work(self, key: str) -> Iterator[Path]:
        """A folder for a transfer, with its lock held; what an earlier, killed attempt left is still in it.

        Raises:
            CacheError: The cache can't be written.
        """
        from filelock import FileLock

        name = _name(key)
        folder = self.root / "work" / name
        with self._writing():
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / name)
            lock.acquire()
        try:
            with self._writing():
                folder.mkdir(parents=True, exist_ok=True)  # only now: whoever held the lock before may have removed it
            yield folder
        finally:
            lock.release()

    def _record_path(self, key: str) -> Path:
        return self.root / "records" / f"{_name(key)}.json"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheError(
                f"the cache {str(self.root)!r} can't be written ({error})",
                expected="a folder that you may write to, with space left",
                fix=f"set {PLACE} to another folder",
            ) from error


def file_digest(path: Path) -> str | None:
    """sha256 of a file; None where it can't be read or is larger than any pack."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except PackFormatError:
        return None


def _read_record(path: Path) -> Record | None:
    """A record; None where there is none, or it was damaged (it is then written anew)."""
    try:
        record = Record(**json_object(path.read_bytes(), "the record"))
    except (OSError, ValueError, TypeError):
        return None
    texts = (record.ref, record.sha256, record.file, record.time, record.revision or "")
    whole = all(isinstance(text, str) for text in texts) and len(record.sha256) == 64 and type(record.size) is int
    signed = record.signature is None or (isinstance(record.signature, str) and _DIGEST.fullmatch(record.signature))
    return record if whole and signed and record.sha256.isalnum() else None


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
