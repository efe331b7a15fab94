"""Files in object stores and on SFTP servers, through fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steerkit._text import first_line
from steerkit.errors import SteerKitError
from steerkit_vectors_hub.errors import AccessError, DownloadError, PackNotFoundError, ReferenceFormatError
from steerkit_vectors_hub.refs import Ref
from steerkit_vectors_hub.sources.base import (
    MAX_SIGNATURE,
    SIGNATURE,
    Source,
    Target,
    read_stream,
    the_only_pack,
    untransferred,
)


class FilesystemSource(Source):
    """`protocol://path`, a file or a folder that holds one pack."""

    def locate(self, ref: Ref) -> Target:
        """Ask the file system for a file's size and version."""
        place = ref.place
        with _opened(place) as (system, path):
            info = system.info(path)
            if info.get("type") == "directory":
                names = {str(each).rstrip("/").rpartition("/")[2] for each in system.ls(path, detail=False)}
                place = f"{place.rstrip('/')}/{the_only_pack(names, place)}"
                if "::" in place:  # fsspec would open something else: what stands before it, or a chain
                    raise ReferenceFormatError(f"{place!r:.300} chains protocols", expected="a name without ::")
                path = system._strip_protocol(place)
                info = system.info(path)
            version = None
            with suppress(Exception):  # optional: not every file system tells versions apart
                version = str(system.ukey(path))
        size = info.get("size")
        return Target(place, path.rpartition("/")[2], version=version, size=size if isinstance(size, int) else None)

    def download(self, target: Target, folder: Path) -> bytes:
        """Read the file, counting."""
        data = _read(target.place)
        if target.size is not None and len(data) != target.size:
            raise DownloadError(f"{target.place} ended after {len(data)} bytes", expected=f"{target.size}")
        return data

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same URL with the ending of a signature behind it."""
        try:
            return _read(target.place + SIGNATURE, MAX_SIGNATURE)
        except (PackNotFoundError, AccessError):  # a store that lists nothing answers 403 for what is not there
            return None


def _read(url: str, limit: int | None = None) -> bytes:
    with _opened(url) as (system, path), system.open(path, "rb") as stream:
        return read_stream(stream, url, limit)


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; whatever it raises is an error of ours.

    Raises:
        ReferenceFormatError: The package that it needs is not installed.
        PackNotFoundError: There is no such file.
        AccessError: It may not be read.
        DownloadError: Anything else.
    """
    try:
        from fsspec.core import url_to_fs

        yield url_to_fs(url)
    except SteerKitError:
        raise
    except ImportError as error:
        raise ReferenceFormatError(
            f"{url.partition('://')[0]}:// can't be opened ({error})",
            expected="fsspec, and the package that it needs for this protocol",
            fix="pip install 'steerkit-vlm[fsspec]', then the package that is named",
        ) from error
    except FileNotFoundError as error:
        raise PackNotFoundError(f"{url} does not exist", expected="a file, or a folder that holds one pack") from error
    except PermissionError as error:
        raise AccessError(f"{url} may not be read ({error})", expected="a file that you may read") from error
    except Exception as error:
        raise untransferred(url, first_line(error), "a readable file", cached=False) from error
