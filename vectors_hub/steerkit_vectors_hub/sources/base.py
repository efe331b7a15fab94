"""What a source must be able to do: say what it would send, and send it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from steerkit.vectors import PACK, Sha256
from steerkit.vectors.formats.container import MAX_FILE
from steerkit_vectors_hub.errors import DownloadError, OfflineError, PackNotFoundError, ReferenceFormatError
from steerkit_vectors_hub.refs import Ref

OFFLINE = ("STEERKIT_OFFLINE", "HF_HUB_OFFLINE")
"""Environment variables: any of them, set to 1, true, yes or on, means that no network is used."""

SIGNATURE = ".sig"
"""What stands behind the name of a pack in the name of its signature."""

MAX_SIGNATURE = 2**18

CHUNK = 2**20

FRESH = 3600.0
"""Seconds for which a server is not asked again for a revocation list, or for a signature that it did not have."""


@dataclass(frozen=True)
class Target:
    """One file at a source, found but not transferred; what a source says of it is checked to be of these types.

    Attributes:
        place: The repository or URL, exactly.
        file: Path inside the repository, or the file's name.
        revision: Commit of the repository, where there is one.
        version: What changes whenever the content does (a commit, an ETag); None if nothing says so.
        size: Bytes, where the source says so.
        sha256: Digest, where the source says so.
        git_sha1: Name of the file's content in git, where the source says that instead.
        signed: Whether a signature lies beside it; None if the source does not say before it is asked for one.
    """

    place: str
    file: str
    revision: str | None = None
    version: str | None = None
    size: Annotated[int | None, Field(ge=0)] = None
    sha256: Sha256 | None = None
    git_sha1: str | None = None
    signed: bool | None = None


class Source(ABC):
    """A kind of place that packs are transferred from."""

    @abstractmethod
    def locate(self, ref: Ref) -> Target:
        """Find the file that a reference means, without transferring it.

        Raises:
            PackNotFoundError: There is none.
            AccessError: The source asks for a login.
            DownloadError: The source can't be reached.
        """

    @abstractmethod
    def download(self, target: Target, folder: Path) -> bytes:
        """Transfer a file, by way of a folder that nobody else uses meanwhile.

        Raises:
            DownloadError: The transfer failed or exceeded its bounds.
            CacheError: There is no space for it.
        """

    @abstractmethod
    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The signature beside a file, of at most MAX_SIGNATURE bytes; None if there is none.

        Args:
            target: The file.
            folder: For the transfer; nobody else uses it meanwhile.

        Raises:
            DownloadError: The transfer failed or exceeded its bounds.
        """


def is_offline() -> bool:
    """Whether the environment says that no network is used."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)


def require_network(what: str) -> None:
    """Refuse what can't be done offline.

    Raises:
        OfflineError: The environment says that no network is used.
    """
    if is_offline():
        raise OfflineError(
            f"{what} needs a network, and the environment says that there is none",
            expected=f"{' and '.join(OFFLINE)} unset",
            fix="leave the offline mode",
        )


def untransferred(what: str, reason: object, expected: str, *, cached: bool = True) -> DownloadError:
    """The error for a transfer that failed, of something that the cache may hold."""
    fix = "check the network and the address, and try again" + ("; offline=True uses what is in the cache" * cached)
    return DownloadError(f"{what} can't be transferred ({reason})", expected=expected, fix=fix)


def check_size(size: int | None, where: str, limit: int | None = None) -> None:
    """Refuse a file that is larger than any pack, or than a limit of its own, before it is transferred or kept.

    Raises:
        DownloadError: It is.
    """
    if size is not None and size > (MAX_FILE if limit is None else limit):
        raise DownloadError(f"{where} has {size} bytes or more", expected=f"at most {limit or MAX_FILE}")


def read_stream(stream: IO[bytes], where: str, limit: int | None = None) -> bytes:
    """All that a stream holds.

    Raises:
        DownloadError: It holds more than any pack, or than a limit of its own.
    """
    parts, count = [], 0
    while chunk := stream.read(CHUNK):
        parts.append(chunk)
        count += len(chunk)
        check_size(count, where, limit)
    return b"".join(parts)


def the_only_pack(names: Iterable[str], where: str) -> str:
    """The pack of a folder or repository: `steering_vector.safetensors`, or the one `.safetensors` file that it has.

    Raises:
        PackNotFoundError: There is none.
        ReferenceFormatError: There are several; the message names them.
    """
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if not found:
        raise PackNotFoundError(f"{where} holds no .safetensors file", expected="a pack", fix="check the reference")
    if PACK in found:  # beside it can be a model's own weights
        return PACK
    if len(found) > 1:
        shown = ", ".join(found[:10]) + (" ..." if len(found) > 10 else "")
        raise ReferenceFormatError(
            f"{where} holds {len(found)} .safetensors files: {shown}",
            expected="one, or a reference that names it",
            fix=f"append the name of the pack, such as /{found[0]}",
        )
    return found[0]
