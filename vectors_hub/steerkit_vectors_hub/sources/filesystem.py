"""Files on whatever fsspec can reach: object stores, SSH, a memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steerkit.errors import SteerKitError
from steerkit_vectors_hub.errors import AccessError, DownloadError, PackNotFoundError, ReferenceFormatError
from steerkit_vectors_hub.refs import Ref
from steerkit_vectors_hub.sources.base import (
    MAX_SIGNATURE,
    SIGNATURE,
    Source,
    Target,
    check_signature_size,
    check_size,
    the_only_pack,
    write_part,
)

_CHUNK = 2**20


class FilesystemSource(Source):
    """`protocol://path`, a file or a folder that holds one pack."""

    def key(self, ref: Ref) -> str:
        """The URL."""
        return ref.place

    def locate(self, ref: Ref) -> Target:
        """Ask the file system for a file's size and version."""
        with _translated(ref.place):
            system, path = _open(ref.place)
            info = system.info(path)
            if info.get("type") == "directory":
                names = {str(each).rstrip("/").rpartition("/")[2] for each in system.ls(path, detail=False)}
                name = the_only_pack(names, ref.place)
                place = _lengthened(ref.place, name if ref.place.partition("::")[0].endswith("/") else f"/{name}")
                info = system.info(_open(place)[1])
            else:
                name, place = path.rpartition("/")[2], ref.place
        version = None
        with suppress(Exception):  # optional: not every file system tells versions apart
            version = system.ukey(_open(place)[1])
        return Target(place, name, version=version, size=info.get("size"))

    def download(self, target: Target, folder: Path) -> Path:
        """Copy the file, counting."""
        part = folder / "part"
        count = 0
        with _translated(target.place):
            system, path = _open(target.place)
            with system.open(path, "rb") as remote, part.open("wb") as file:
                while chunk := remote.read(_CHUNK):
                    count += len(chunk)
                    check_size(count, target.place)
                    write_part(file, chunk)
        if target.size is not None and count != target.size:
            raise DownloadError(f"{target.place} ended after {count} bytes", expected=f"{target.size}")
        return part

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same URL with the ending of a signature behind it."""
        url = _lengthened(target.place, SIGNATURE)
        try:
            with _translated(url):
                system, path = _open(url)
                with system.open(path, "rb") as remote:
                    data = remote.read(MAX_SIGNATURE + 1)
        except (PackNotFoundError, AccessError):  # a store that lists nothing answers 403 for what is not there
            return None
        check_signature_size(len(data), url)
        return data


def _lengthened(url: str, end: str) -> str:
    """A URL with more behind its path; in a chain such as `zip://path::https://host/x.zip` the path is in front."""
    first, link, rest = url.partition("::")
    return first + end + link + rest


def _open(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        raise ReferenceFormatError(
            f"{scheme}:// can't be opened ({error})",
            expected="fsspec, and the package that it needs for this protocol",
            fix="pip install 'steerkit-vlm[fsspec]', then the package that is named",
        ) from error
    except ValueError as error:
        raise ReferenceFormatError(
            f"{scheme}:// is no protocol that is known here ({error})", expected="hf://, https://, or one of fsspec's"
        ) from error


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Whatever a file system raises, as an error of ours; each of them has errors of its own.

    Raises:
        PackNotFoundError: There is no such file.
        AccessError: It may not be read.
        DownloadError: Anything else.
    """
    try:
        yield
    except SteerKitError:
        raise
    except FileNotFoundError as error:
        raise PackNotFoundError(f"{url} does not exist", expected="a file, or a folder that holds one pack") from error
    except PermissionError as error:
        raise AccessError(f"{url} may not be read ({error})", expected="a file that you may read") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DownloadError(
            f"{url} can't be transferred ({reason})", expected="a readable file", fix="check the address and try again"
        ) from error
