"""Files on any web server, with the standard library: bounded, resumed after a cut, never over an open line."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from steerkit.errors import SteerKitError
from steerkit.vectors.formats.container import MAX_FILE
from steerkit_vectors_hub.errors import (
    AccessError,
    CacheError,
    DownloadError,
    PackNotFoundError,
    ReferenceFormatError,
)
from steerkit_vectors_hub.refs import Ref, checked_url
from steerkit_vectors_hub.sources.base import (
    MAX_SIGNATURE,
    SIGNATURE,
    Source,
    Target,
    check_signature_size,
    check_size,
    write_part,
)

TIMEOUT = 30.0
"""Seconds without a byte before a transfer counts as broken."""

TRIES = 5
"""How often a transfer is resumed without having moved on."""

_CHUNK = 2**20


class WebSource(Source):
    """`https://host/path`."""

    def key(self, ref: Ref) -> str:
        """The URL."""
        return ref.place

    def locate(self, ref: Ref) -> Target:
        """Ask for the headers of a file; a server that does not answer that is asked for the file later."""
        name = unquote(urlsplit(ref.place).path).rpartition("/")[2] or "pack.safetensors"
        try:
            with _open(ref.place, method="HEAD") as response:
                headers = response.headers
        except urllib.error.HTTPError as error:
            if error.code in (403, 405, 501):
                return Target(ref.place, name)
            raise _failed(ref.place, error) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _failed(ref.place, error) from error
        return Target(ref.place, name, version=_strong(headers.get("ETag")), size=_length(headers))

    def download(self, target: Target, folder: Path) -> Path:
        """Transfer a file; what an earlier attempt left is continued if the server still has the same version."""
        part, tag = folder / "part", folder / "etag"
        tries = TRIES
        while True:
            before = part.stat().st_size if part.is_file() else 0
            try:
                _transfer(target.place, part, tag)
                return part
            except urllib.error.HTTPError as error:
                if error.code != 416 or before == 0:
                    raise _failed(target.place, error) from error
                part.unlink()  # it is longer than the file has become
                failure: Exception = error
            except (DownloadError, CacheError):
                raise
            except (OSError, http.client.HTTPException) as error:
                failure = error
            moved = part.is_file() and part.stat().st_size > before
            tries = TRIES if moved else tries - 1
            if not tries:
                raise _failed(target.place, failure) from failure

    def signature(self, target: Target, folder: Path) -> bytes | None:
        """The file of the same URL with the ending of a signature behind its path."""
        parts = urlsplit(target.place)
        url = urlunsplit(parts._replace(path=parts.path + SIGNATURE))
        try:
            data = _beginning(url, MAX_SIGNATURE + 1)
        except SteerKitError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and _is_none(error.__cause__.code):
                return None
            raise
        if not data.lstrip().startswith(b"{"):  # many servers answer with a page for what is not there
            return None
        check_signature_size(len(data), url)
        return data


def _is_none(code: int) -> bool:
    """Whether a status says that there is no such file; a store that lists nothing answers 403, others 400 or 405."""
    return 400 <= code < 500 and code not in (408, 425, 429)  # those say: later


def fetch(url: str, limit: int) -> bytes:
    """A short file, at once.

    Raises:
        PackNotFoundError: There is none.
        AccessError: The server asks for a login.
        DownloadError: It can't be transferred, or has more than `limit` bytes.
        ReferenceFormatError: The address is not encrypted.
    """
    data = _beginning(url, limit + 1)
    if len(data) > limit:
        raise DownloadError(f"{url} has more than {limit} bytes", expected=f"at most {limit}")
    return data


def _beginning(url: str, size: int) -> bytes:
    """The first bytes of a file, at most so many."""
    try:
        with _open(checked_url(url)) as response:
            return response.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, error) from error


def _length(headers: Mapping[str, str]) -> int | None:
    """What a server says of a body's length, if that is a number."""
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _transfer(url: str, part: Path, tag: Path) -> None:
    """One request: the rest of a file, or all of it."""
    done = part.stat().st_size if part.is_file() else 0
    version = tag.read_text() if tag.is_file() else None
    headers = {"Range": f"bytes={done}-", "If-Range": version} if done and version else {}
    with _open(url, headers=headers) as response:
        resumed = response.status == 206 and str(response.headers.get("Content-Range")).startswith(f"bytes {done}-")
        if response.status == 206 and not resumed:
            raise DownloadError(f"{url}: a part was sent that was not asked for", expected=f"bytes {done} onwards")
        announced = _length(response.headers)
        expected = None if announced is None else announced + (done if resumed else 0)
        check_size(expected, url)
        tag.write_text(_strong(response.headers.get("ETag")) or "")
        count = done if resumed else 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read1(_CHUNK):
                count += len(chunk)
                check_size(count, url)
                write_part(file, chunk)
        if expected is not None and count < expected:
            raise http.client.IncompleteRead(b"", expected - count)


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


def _open(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Any:
    from steerkit._version import __version__

    fixed = {"User-Agent": f"steerkit/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers={**fixed, **(headers or {})}, method=method)
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _strong(etag: str | None) -> str | None:
    """An ETag that stands for exactly these bytes."""
    return etag if etag and etag.startswith('"') else None


def _failed(url: str, error: Exception) -> Exception:
    code = error.code if isinstance(error, urllib.error.HTTPError) else None
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    if isinstance(error, DownloadError):
        return error
    if code in (404, 410):
        return PackNotFoundError(f"{url}: the server answers {code}", expected="a file", fix="check the address")
    if code in (401, 403):
        return AccessError(f"{url}: the server answers {code}", expected="a file that anyone may read")
    return DownloadError(
        f"{url} can't be transferred ({error or type(error).__name__})",
        expected=f"a file of at most {MAX_FILE} bytes",
        fix="check the network and try again; offline=True uses what is in the cache",
    )
