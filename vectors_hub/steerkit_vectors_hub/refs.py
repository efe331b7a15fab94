"""References: one line of text that says where a pack is, and, if wanted, exactly which one.

    packs/cmrm.safetensors                     a file
    packs/                                     a folder that holds one pack
    cmrm-llava-demo                            a bundled pack
    hf://owner/name[@revision][/file]          a repository of the Hugging Face hub
    https://example.org/cmrm.safetensors       any web server
    s3://bucket/cmrm.safetensors               any file system that fsspec knows

Each may end in `#sha256=` and 64 hexadecimal digits: then only a file with that digest is ever used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from steerkit._internal.text import one_line
from steerkit_vectors_hub.errors import ReferenceFormatError

Kind = Literal["path", "bundled", "hf", "web", "fsspec"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The only hosts that plain http and ftp are spoken to."""

_OPEN = ("http", "ftp")
"""Protocols that are not encrypted."""

_AT = ("github", "git")
"""Protocols of fsspec in which what stands before an @ is a repository, and no password."""

_PIN = re.compile(r"(?P<place>.*)#sha256=(?P<digest>.*)", re.DOTALL)
_NEAR_PIN = re.compile(r"#\s*sha-?\d", re.IGNORECASE)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?")
_BUNDLED = re.compile(r"[a-z0-9][a-z0-9_-]{0,95}")
_UNQUOTED = ":/?#[]@!$&'()*+,;=%"
_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PAGE = re.compile(r"/(?P<repo>[^/]+/[^/]+?)/?(?:/(?:tree|blob)/(?P<revision>[^/]+)(?P<file>/.+?)?/?)?")
_REVISION = re.compile(r"(?:refs/(?:pr|convert)/[^/]+|[^/]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference, read.

    Attributes:
        kind: How it is resolved.
        place: The path, the name, `owner/name`, or the URL.
        revision: Branch, tag or commit, of a repository only.
        file: Path inside the repository, where it is given.
        sha256: The only digest that is accepted, where it is pinned.
    """

    kind: Kind
    place: str
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None

    @property
    def is_immutable(self) -> bool:
        """Whether the revision is a commit, whose content never changes."""
        return self.revision is not None and is_commit(self.revision)

    def __str__(self) -> str:
        """The reference as text that `parse_ref` reads again."""
        return self.unpinned + (f"#sha256={self.sha256}" if self.sha256 else "")

    @property
    def unpinned(self) -> str:
        """The same without the digest."""
        if self.kind != "hf":
            return self.place
        revision = f"@{_quoted(self.revision)}" if self.revision else ""
        return f"hf://{self.place}{revision}" + (f"/{self.file}" if self.file else "")


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit by its full name."""
    return _COMMIT.fullmatch(revision) is not None


def parse_ref(text: str, *, revision: str | None = None, sha256: str | None = None) -> Ref:
    """Read a reference.

    A bare name such as `cmrm-llava-demo` is a bundled pack; write `./name` for a folder of that name.

    Args:
        text: The reference.
        revision: The revision, if it is not in the text.
        sha256: The digest, if it is not in the text.

    Raises:
        ReferenceFormatError: It is malformed, or says two different things.
    """
    place, digest = _split_pin(text)
    digest = _one("the sha256", digest, sha256.lower() if sha256 else None, text)
    if digest is not None and not _DIGEST.fullmatch(digest):
        raise ReferenceFormatError(f"the sha256 is {digest[:80]!r} in {text!r}", expected="64 hexadecimal digits")
    if _NEAR_PIN.search(place):
        raise ReferenceFormatError(f"the digest in {text!r} is malformed", expected="#sha256= at the very end")
    if not place.strip() or "\0" in place:
        raise ReferenceFormatError(f"the reference is {text!r}", expected="a path, a name or a URL")
    found = _SCHEME.match(place)
    scheme = found["scheme"].lower() if found else None
    plain = one_line(place).replace("\t", " ")
    if scheme is not None and plain != place:  # `urlsplit` would drop some characters, and judge another address
        raise ReferenceFormatError(f"a control character is in {text!r:.300}", expected="a URL, in which it is quoted")
    if scheme == "hf":
        return _parse_hf(place, text, revision, digest)
    if revision is not None:
        raise ReferenceFormatError(
            f"revision {revision!r} is given for {text!r}", expected="a revision for hf://owner/name only"
        )
    if scheme is None:
        return Ref("bundled" if _BUNDLED.fullmatch(place) else "path", place, sha256=digest)
    if scheme in ("http", "https"):
        return Ref("web", _no_page(checked_url(place)), sha256=digest)
    if scheme == "file":
        parts = _parts(place)
        if parts.netloc not in ("", "localhost") or not parts.path or "\0" in unquote(parts.path):
            raise ReferenceFormatError(f"{place!r} is no file of this machine", expected="file:///path, or the path")
        return Ref("path", unquote(parts.path), sha256=digest)
    for part in place.split("::"):  # a chain, such as zip://a.safetensors::https://host/x.zip
        if "://" in part:
            _check_part(part)
    return Ref("fsspec", place, sha256=digest)


def _split_pin(text: str) -> tuple[str, str | None]:
    match = _PIN.fullmatch(text)
    return (match["place"], match["digest"].lower()) if match else (text, None)


def _one(what: str, mine: str | None, given: str | None, text: str) -> str | None:
    if mine and given and mine != given:
        raise ReferenceFormatError(f"{what} is {given!r} and {mine!r} in {text!r}", expected="the same, or only one")
    return mine or given


def _parse_hf(place: str, text: str, revision: str | None, digest: str | None) -> Ref:
    def malformed(problem: str) -> ReferenceFormatError:
        return ReferenceFormatError(f"{problem} in {text!r}", expected="hf://owner/name[@revision][/file]")

    owner, slash, rest = place[len("hf://") :].partition("/")
    if not slash or not rest:
        raise malformed("no owner and name")
    name, at, tail = rest, "", ""
    if (end := re.search(r"[@/]", rest)) is not None:
        name, at, tail = rest[: end.start()], end[0], rest[end.end() :]
    stated: str | None = None
    if at == "@":
        match = _REVISION.match(tail)
        if match is None:
            raise malformed("an empty revision")
        stated, tail = unquote(match[0]), tail[match.end() :].removeprefix("/")
    for part in (owner, name):
        if not _NAME.fullmatch(part) or "--" in part or ".." in part:
            raise malformed(f"{part!r} is no name")
    file = tail or None
    if file is not None and any(step in ("", ".", "..") for step in file.split("/")):
        raise malformed(f"{file!r} is no path")
    if file is not None and not file.endswith(".safetensors"):
        raise malformed(f"{file!r} is no .safetensors file")
    chosen = _one("the revision", stated, revision, text)
    if chosen is not None and (chosen.startswith("/") or ".." in chosen):
        raise malformed(f"{chosen!r} is no revision")
    return Ref("hf", f"{owner}/{name}", chosen, file, digest)


def _check_part(url: str) -> None:
    """Refuse a part of what fsspec is asked for that is not encrypted or holds a password.

    A name alone is none: some protocols need it, and in others it is a container's.
    """
    parts = _parts(url)
    if parts.password is not None and parts.scheme not in _AT:
        raise _password_in(parts)
    _check_encrypted(url, parts)


def checked_url(url: str) -> str:
    """A web address that may be asked for a pack.

    Raises:
        ReferenceFormatError: It is not encrypted, or holds a password or a fragment.
    """
    parts = _parts(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ReferenceFormatError(f"{url!r} is no web address", expected="https://host/path")
    if parts.username or parts.password:
        raise _password_in(parts)
    if not url.isascii() or " " in url:
        named = parts.hostname.isascii()
        raise ReferenceFormatError(
            f"{url!r} holds characters that a URL quotes",
            expected="ASCII without spaces",
            fix=f"write {quote(url, safe=_UNQUOTED)}" if named else "write the host as its xn-- name",
        )
    _check_encrypted(url, parts)
    if parts.fragment:
        raise ReferenceFormatError(f"{url!r} ends in #{parts.fragment}", expected="#sha256= and 64 digits, or nothing")
    return url


def _no_page(url: str) -> str:
    """A web address, unless it is a page about a repository, as browsers show it, and not a file."""
    parts = _parts(url)
    page = _PAGE.fullmatch(parts.path)
    if page is None or parts.hostname not in _HUBS:
        return url
    at = f"@{page['revision']}" if page["revision"] else ""
    file = page["file"] if (page["file"] or "").endswith(".safetensors") else ""
    raise ReferenceFormatError(
        f"{url!r} is a page of the Hugging Face hub", expected="a pack", fix=f"write hf://{page['repo']}{at}{file}"
    )


def _check_encrypted(url: str, parts: SplitResult) -> None:
    if parts.scheme in _OPEN and parts.hostname not in LOOPBACK:
        raise ReferenceFormatError(
            f"{url!r} is not encrypted", expected="https://", fix="whoever is on the way could change the pack"
        )


def _password_in(parts: SplitResult) -> ReferenceFormatError:
    return ReferenceFormatError(
        f"a password is in the URL of {parts.hostname}",
        expected="a URL without one",
        fix="references end up in logs and records: give it to the file system's own configuration, or use hf://",
    )


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:  # such as half a bracket, or an impossible address in brackets
        raise ReferenceFormatError(f"{url!r} is no URL ({error})", expected="https://host/path") from error


def _quoted(revision: str | None) -> str:
    text = revision or ""
    return text if re.fullmatch(r"refs/(pr|convert)/[^/]+", text) else quote(text, safe="")
