"""Files on whatever fsspec can reach: object stores, SSH, a memory of its own."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

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
)

_CHUNK = 2**20


class FilesystemSource(Source):
    """`protocol://path`, a file or a folder that holds one pack."""

    def key(self, ref: Ref) -> str:
        """The URL."""
        return ref.place

    def locate(self, ref: Ref) -> Target:
        """Ask the file system for a file's size and version."""
        system, path = _open(ref.place)
        try:
            info = system.info(path)
            if info.get("type") == "directory":
                names = {str(each).rstrip("/").rpartition("/")[2] for each in system.ls(path, detail=False)}
                name = the_only_pack(names, ref.place)
                place = f"{ref.place.rstrip('/')}/{name}"
                info = system.info(_open(place)[1])
            else:
                name, place = path.rpartition("/")[2], ref.place
        except (OSError, ValueError) as error:
            raise _failed(ref.place, error) from error
        version = None
        with suppress(Exception):  # optional: not every file system tells versions apart
            version = system.ukey(_open(place)[1])
        return Target(place, name, version=version, size=info.get("size"))

    def download(self, target: Target, folder: Path) -> Path:
        """Copy the file, counting."""
        system, path = _open(target.place)
        part = folder / "part"
        count = 0
        try:
            with system.open(path, "rb") as remote, part.open("wb") as file:
                while chunk := remote.read(_CHUNK):
                    count += len(chunk)
                    check_size(count, target.place)
                    file.write(chunk)
        except DownloadError:
            raise
        except (OSError, ValueError) as error:
            raise _failed(target.place, error) from error
        if target.size is not None and count != target.size:
            raise DownloadError(f"{target.place} ended after {count} bytes", expected=f"{target.size}")
        return part

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same URL with the ending of a signature behind it."""
        url = target.place + SIGNATURE
        system, path = _open(url)
        try:
            with system.open(path, "rb") as remote:
                data = remote.read(MAX_SIGNATURE + 1)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _failed(url, error) from error
        check_signature_size(len(data), url)
        return data


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


def _failed(url: str, error: Exception) -> Exception:
    if isinstance(error, PackNotFoundError | ReferenceFormatError):
        return error
    if isinstance(error, FileNotFoundError):
        return PackNotFoundError(f"{url} does not exist", expected="a file, or a folder that holds one pack")
    if isinstance(error, PermissionError):
        return AccessError(f"{url} may not be read ({error})", expected="a file that you may read")
    return DownloadError(f"{url} can't be transferred ({error})", expected="a readable file", fix="try again")
