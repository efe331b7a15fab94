"""References: one line of text that says where a pack is, and, if wanted, exactly which one.

    packs/cmrm.safetensors                     a file
    packs/                                     a folder that holds one pack
    cmrm-llava-demo                            a bundled pack
    hf://owner/name[@revision][/file]          a repository of the Hugging Face hub
    https://example.org/cmrm.safetensors       any web server
    s3://bucket/cmrm.safetensors               an object store, or a server that speaks SFTP, through fsspec

No other protocol is spoken and none is chained with another: of those that fsspec knows, some run what a file says.
Each may end in `#sha256=` and 64 hexadecimal digits: then only a file with that digest is ever used.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from steerkit_vectors_hub.errors import ReferenceFormatError

Kind = Literal["path", "bundled", "hf", "web", "fsspec"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The only hosts that plain http is spoken to."""

FILE_SYSTEMS = ("s3", "gs", "gcs", "az", "abfs", "sftp", "memory")
"""Protocols that are left to fsspec. They read bytes and nothing else."""

ENDPOINT = "HF_ENDPOINT"
"""Environment variable: another hub that speaks the protocol of the Hugging Face hub."""

_PIN = re.compile(r"(?P<place>.*)#sha256=(?P<digest>.*)", re.DOTALL)
_NEAR_PIN = re.compile(r"#\s*sha-?\d", re.IGNORECASE)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+._-]+)://")
_PASSWORD = re.compile(r"://[^@\s]*:[^@\s]*@")
_BUNDLED = re.compile(r"[a-z0-9][a-z0-9_-]{0,95}")
_UNQUOTED = ":/?#[]@!$&'()*+,;=%"
_SPECIAL = re.compile(r"refs/(pr/[0-9]+|convert/[\w.-]+)", re.ASCII)
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
    def key(self) -> str:
        """The name under which the cache remembers what it led to: with the hub, where it is not the usual one."""
        if self.kind != "hf":
            return self.place
        return f"{os.environ.get(ENDPOINT, '')} {replace(self, revision=self.revision or 'main').unpinned}".strip()

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
        raise ReferenceFormatError(f"the sha256 is {digest[:80]!r} in {shown(text)}", expected="64 hexadecimal digits")
    if _NEAR_PIN.search(place):
        raise ReferenceFormatError(f"the digest in {shown(text)} is malformed", expected="#sha256= at the very end")
    if not place.strip() or "\0" in place:
        raise ReferenceFormatError(f"the reference is {shown(text)}", expected="a path, a name or a URL")
    found = _SCHEME.match(place)
    scheme = found["scheme"].lower() if found else None
    if scheme is not None and not place.isprintable():  # `urlsplit` would drop some characters, and judge another URL
        raise ReferenceFormatError(
            f"an unprintable character is in {shown(text)}", expected="a URL, in which it is quoted"
        )
    if "::" in place and "://" in place and scheme not in ("http", "https"):
        raise _unspoken(f"{shown(place)} chains protocols")
    if scheme == "hf":
        return _parse_hf(place, text, revision, digest)
    if revision is not None:
        raise ReferenceFormatError(
            f"revision {revision!r:.200} is given for {shown(text)}", expected="a revision for hf://owner/name only"
        )
    if scheme is None:
        return Ref("bundled" if _BUNDLED.fullmatch(place) else "path", place, sha256=digest)
    if scheme in ("http", "https"):
        _refuse_page(checked_url(place))
        return Ref("web", place, sha256=digest)
    if scheme == "file":
        parts = _parts(place)
        if parts.netloc not in ("", "localhost") or not parts.path or "\0" in unquote(parts.path):
            raise ReferenceFormatError(
                f"{shown(place)} is not a file of this machine", expected="file:///path, or the path"
            )
        return Ref("path", unquote(parts.path), sha256=digest)
    if scheme not in FILE_SYSTEMS:
        raise _unspoken(f"{scheme}:// is not a protocol by which packs are fetched")
    if _parts(place).password is not None:
        raise _password_in(_parts(place))
    return Ref("fsspec", place, sha256=digest)


def _unspoken(problem: str) -> ReferenceFormatError:
    return ReferenceFormatError(
        problem,
        expected=", ".join(f"{each}://" for each in ("hf", "https", "file", *FILE_SYSTEMS)),
        fix="fetch the file by other means, and give its path",
    )


def shown(text: str) -> str:
    """A reference as messages quote it: short, and without a password."""
    return f"{_PASSWORD.sub('://...@', text)!r:.300}"


def _split_pin(text: str) -> tuple[str, str | None]:
    match = _PIN.fullmatch(text)
    return (match["place"], match["digest"].lower()) if match else (text, None)


def _one(what: str, mine: str | None, given: str | None, text: str) -> str | None:
    if mine and given and mine != given:
        raise ReferenceFormatError(
            f"{what} is {given!r:.200} and {mine!r:.200} in {shown(text)}", expected="the same, or only one"
        )
    return mine or given


def _parse_hf(place: str, text: str, revision: str | None, digest: str | None) -> Ref:
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    def malformed(problem: str) -> ReferenceFormatError:
        return ReferenceFormatError(f"{problem} in {shown(text)}", expected="hf://owner/name[@revision][/file]")

    try:
        found = parse_hf_uri("hf" + place[len("hf") :])
    except HfUriError as error:
        raise malformed(error.msg) from error
    if found.type != "model":
        raise malformed(f"a {found.type}, and packs are in repositories of models")
    if place.endswith("/") or any(step in (".", "..") for step in found.path_in_repo.split("/")):
        raise malformed("an incomplete path")
    if found.path_in_repo and not found.path_in_repo.endswith(".safetensors"):
        raise malformed(f"{found.path_in_repo!r:.200} is not a .safetensors file")
    chosen = _one("the revision", found.revision, revision, text)
    if chosen is not None and (not chosen or chosen.startswith("/") or ".." in chosen or not chosen.isprintable()):
        raise malformed(f"{chosen!r:.200} is not a revision")
    return Ref("hf", found.id, chosen, found.path_in_repo or None, digest)


def checked_url(url: str) -> str:
    """A web address that may be asked for a pack.

    Raises:
        ReferenceFormatError: It is not encrypted, or holds a password or a fragment.
    """
    parts = _parts(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ReferenceFormatError(f"{shown(url)} is not a web address", expected="https://host/path")
    if parts.username or parts.password:
        raise _password_in(parts)
    if not url.isascii() or " " in url:
        named = parts.hostname.isascii()
        raise ReferenceFormatError(
            f"{shown(url)} holds characters that a URL quotes",
            expected="ASCII without spaces",
            fix=f"write {quote(url, safe=_UNQUOTED)}" if named else "write the host as its xn-- name",
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ReferenceFormatError(
            f"{shown(url)} is not encrypted", expected="https://: anybody on the network path could change the pack"
        )
    if parts.fragment:
        raise ReferenceFormatError(
            f"{shown(url)} ends in #{parts.fragment:.200}", expected="#sha256= and 64 digits, or nothing"
        )
    return url


def _refuse_page(url: str) -> None:
    """Refuse a page about a repository, as browsers show it: it is not a file."""
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        page = parse_hf_uri(url)
    except HfUriError:  # of another server, or of the hub and neither a page of a repository nor a file
        return
    if "/resolve/" in url:
        return
    file = page.path_in_repo if page.path_in_repo.endswith(".safetensors") else None
    ref = Ref("hf", page.id, page.revision, file)
    raise ReferenceFormatError(
        f"{shown(url)} is a page of the Hugging Face hub",
        expected="a pack, in a repository of a model",
        fix=f"write {ref}" if page.type == "model" else None,
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
        raise ReferenceFormatError(f"{shown(url)} is not a URL", expected="https://host/path") from error


def _quoted(revision: str) -> str:
    return revision if _SPECIAL.fullmatch(revision) else quote(revision, safe="")
