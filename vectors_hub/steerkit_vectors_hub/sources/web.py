"""Files on any web server, with the standard library: bounded, resumed after a cut, never over an open line."""

from __future__ import annotations

import http.client
import re
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from steerkit._internal.files import create, read_bounded
from steerkit.errors import SteerKitError
from steerkit_vectors_hub.cache import saving
from steerkit_vectors_hub.errors import AccessError, CacheError, DownloadError, PackNotFoundError, ReferenceFormatError
from steerkit_vectors_hub.refs import Ref, checked_url
from steerkit_vectors_hub.sources.base import (
    CHUNK,
    MAX_FILE,
    MAX_SIGNATURE,
    SIGNATURE,
    Source,
    Target,
    check_size,
    read_stream,
    untransferred,
)

TIMEOUT = 30.0
"""Seconds without a byte before a transfer counts as broken."""

TRIES = 5
"""How often a transfer is resumed without having moved on."""

_WANTED = f"a file of at most {MAX_FILE} bytes"


class WebSource(Source):
    """`https://host/path`."""

    def locate(self, ref: Ref) -> Target:
        """Ask for the headers of a file; a server that does not answer that is asked for the file later."""
        name = unquote(urlsplit(ref.place).path).rpartition("/")[2] or "pack.safetensors"
        try:
            with _asked(ref.place, method="HEAD") as response:
                return Target(ref.place, name, version=_strong_etag(response), size=_length(response))
        except SteerKitError as error:
            if _status(error) in (403, 405, 501):
                return Target(ref.place, name)
            raise

    def download(self, target: Target, folder: Path) -> bytes:
        """Transfer a file; what an earlier attempt left is continued if the server still has the same version."""
        part = folder / "part"
        tries = TRIES
        while True:
            before = _size(part)
            try:
                _transfer(target.place, part, folder / "etag")
                with saving():
                    return read_bounded(part, MAX_FILE, follow=False)
            except CacheError:  # of a full disk: it is not kept full
                part.unlink(missing_ok=True)
                raise
            except DownloadError as error:
                broken = isinstance(error.__cause__, (OSError, http.client.HTTPException))
                if _status(error) == 416 and before:
                    part.unlink()  # it is longer than the file has become
                elif not broken:  # what breaks a bound is not gone on with
                    part.unlink(missing_ok=True)
                    raise
                elif _status(error) is not None:
                    raise
                tries = TRIES if _size(part) > before else tries - 1
                if not tries:
                    raise

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same URL with the ending of a signature behind its path."""
        parts = urlsplit(target.place)
        url = urlunsplit(parts._replace(path=parts.path + SIGNATURE))
        try:
            with _asked(url) as response:
                beginning = response.read(MAX_SIGNATURE + 1)
        except SteerKitError as error:
            code = _status(error)
            # a store that lists nothing answers 403, others 400 or 405; 408, 425 and 429 say: later
            if code is not None and 400 <= code < 500 and code not in (408, 425, 429):
                return None
            raise
        if not beginning.lstrip().startswith(b"{"):  # many servers answer with a page for what is not there
            return None
        check_size(len(beginning), url, MAX_SIGNATURE)
        return beginning


def fetch(url: str, limit: int) -> bytes:
    """A short file, at once.

    Raises:
        PackNotFoundError: There is none.
        AccessError: The server asks for a login.
        DownloadError: It can't be transferred, or has more than `limit` bytes.
        ReferenceFormatError: The address is not encrypted.
    """
    with _asked(checked_url(url)) as response:
        return read_stream(response, url, limit)


def _transfer(url: str, part: Path, tag: Path) -> None:
    """One request: the rest of a file, or all of it."""
    done, version = _size(part), ""
    with suppress(OSError, UnicodeError):
        version = read_bounded(tag, 2**12, follow=False).decode("ascii")
    resuming = {"Range": f"bytes={done}-", "If-Range": version} if done and version else {}
    with _asked(url, headers=resuming) as response:
        resumed = response.status == 206 and str(response.headers.get("Content-Range")).startswith(f"bytes {done}-")
        if response.status == 206 and not resumed:
            raise DownloadError(f"{url}: a part was sent that was not asked for", expected=f"bytes {done} onwards")
        count = done if resumed else 0
        announced = _length(response)
        expected = None if announced is None else announced + count
        check_size(expected, url)
        with saving():
            if not resumed:
                for left in (part, tag):
                    left.unlink(missing_ok=True)
                with create(tag) as file:
                    file.write((_strong_etag(response) or "").encode())
                create(part).close()
        while chunk := response.read1(CHUNK):
            count += len(chunk)
            check_size(count, url)
            with saving(), part.open("ab") as file:  # written at once, so that it outlives a kill
                file.write(chunk)
        if expected is not None and count < expected:
            raise http.client.IncompleteRead(b"", expected - count)


def _size(part: Path) -> int:
    """Bytes of what arrived so far; none of a link, or of a file that has another name as well."""
    try:
        found = part.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0


@contextmanager
def _asked(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Iterator[Any]:
    """The answer to one request; whatever goes wrong until it is read is an error of ours.

    Raises:
        PackNotFoundError: The server says that there is no such file.
        AccessError: It asks for a login.
        DownloadError: Anything else.
    """
    from steerkit._version import __version__

    fixed = {"User-Agent": f"steerkit/{__version__}", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(url, headers={**fixed, **(headers or {})}, method=method)
        with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
            yield response
    except SteerKitError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"{url}: the server answers {error.code}"
        if error.code in (404, 410):
            raise PackNotFoundError(answer, expected="a file", fix="check the address") from error
        if error.code in (401, 403):
            raise AccessError(answer, expected="a file that anyone may read") from error
        raise untransferred(url, error, _WANTED) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise untransferred(url, str(error) or type(error).__name__, _WANTED) from error


def _status(error: SteerKitError) -> int | None:
    """What a server answered, if that is what went wrong."""
    return error.__cause__.code if isinstance(error.__cause__, urllib.error.HTTPError) else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to where the file itself could have been asked for."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        downgraded = req.full_url.startswith("https:") and not newurl.startswith("https:")
        try:
            checked_url(newurl.partition("#")[0])
        except ReferenceFormatError:
            downgraded = True
        if downgraded:
            raise DownloadError(
                f"{req.full_url} leads to {newurl}", expected="an https:// address", fix="don't use this server"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _length(response: Any) -> int | None:
    """What a server says of a body's length, if that is a number."""
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _strong_etag(response: Any) -> str | None:
    """An ETag that stands for exactly these bytes."""
    etag = response.headers.get("ETag")
    return etag if etag and etag.startswith('"') else None
