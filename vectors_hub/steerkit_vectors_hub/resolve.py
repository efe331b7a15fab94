"""From a reference to one verified file on this machine, and what is known of where it came from."""

from __future__ import annotations

import hashlib
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from steerkit._internal.files import user_path
from steerkit._text import near
from steerkit.errors import SteerKitError
from steerkit.vectors.formats import parse_pack, read_file
from steerkit_vectors_hub.bundled import bundled_names, bundled_path
from steerkit_vectors_hub.cache import Record, Store
from steerkit_vectors_hub.errors import (
    AccessError,
    DigestMismatchError,
    DownloadError,
    OfflineError,
    PackNotFoundError,
    ReferenceFormatError,
    SignatureFormatError,
)
from steerkit_vectors_hub.refs import Kind, Ref, parse_ref
from steerkit_vectors_hub.signing.bundle import parse_signature, read_signature
from steerkit_vectors_hub.sources import Source, Target, source_of
from steerkit_vectors_hub.sources.base import FRESH, SIGNATURE, check_size, is_offline, the_only_pack

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)
_CUT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A pack on this machine whose digest was checked.

    Attributes:
        ref: The reference that was asked for, without a digest.
        kind: How it was resolved.
        path: The file.
        sha256: Digest of the file.
        size: Its bytes.
        revision: Commit of the repository it came from, where there is one.
        file: Path inside the repository, or the file's name.
        pinned: A reference to exactly this file, permanently.
        transferred: Whether it came over the network just now.
        signature: The signature that lies beside it, where there is one; nothing is said of its worth.
    """

    ref: str
    kind: Kind
    path: Path
    sha256: str
    size: int
    revision: str | None
    file: str
    pinned: str
    transferred: bool = False
    signature: Path | None = None

    def read(self) -> bytes:
        """The bytes, hashed again: what is checked is what is used.

        Raises:
            DigestMismatchError: The file was changed since it was resolved.
        """
        data = read_file(self.path)
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise _mismatch(str(self.path), found, self.sha256)
        return data


def resolve(
    ref: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
    token: bool | str | None = None,
    cache: str | Path | None = None,
    force_download: bool = False,
) -> Resolved:
    """Find the pack that a reference means, transferring it if it is not here yet.

    Args:
        ref: See `steerkit_vectors_hub.refs`.
        revision: Branch, tag or commit of a repository.
        sha256: The only digest to accept.
        offline: Whether to use no network; default: as the environment says.
        token: For the Hugging Face hub; default: that of `hf auth login` or HF_TOKEN.
        cache: The folder of the cache; default: `cache_folder()`.
        force_download: Transfer it again, whatever the cache holds.

    Raises:
        ReferenceFormatError: The reference is malformed or ambiguous, or a token is given for another place than the
            Hugging Face hub.
        PackNotFoundError: There is no such pack.
        AccessError: A login or an agreement is missing, or a path may not be read.
        DigestMismatchError: The file is another than the one pinned or announced.
        PackFormatError: What was transferred is not a pack.
        DownloadError: The transfer failed.
        OfflineError: It is not in the cache, and there must be no network.
        CacheError: The cache can't be written.
    """
    parsed = parse_ref(ref, revision=revision, sha256=sha256)
    if parsed.kind in ("path", "bundled"):
        return _on_this_machine(parsed)
    if token is not None and parsed.kind != "hf":
        raise ReferenceFormatError(
            f"a token is given for {parsed.unpinned}, to which none is sent",
            expected="hf://owner/name, or no token",
        )
    quiet = offline if offline is not None else is_offline()
    if quiet and force_download:
        raise OfflineError(
            f"{parsed.unpinned} is to be downloaded again, and there must be no network",
            expected="one of force_download and the cache alone (local_files_only, STEERKIT_OFFLINE, HF_HUB_OFFLINE)",
        )
    store = Store.default() if cache is None else Store(user_path(cache).absolute())
    return _Elsewhere(parsed, store, source_of(parsed.kind, token)).resolved(quiet, again=force_download)


def _on_this_machine(parsed: Ref) -> Resolved:
    bundled = bundled_path(parsed.place) if parsed.kind == "bundled" else None
    try:
        path = bundled or user_path(parsed.place)
        if path.is_dir():
            path = path / the_only_pack((each.name for each in path.iterdir()), repr(parsed.place))
        exists = path.exists()
    except PermissionError as error:
        raise AccessError(f"{parsed.place!r:.300} may not be read", expected="a path that you may read") from error
    except (OSError, RuntimeError) as error:  # no such user, a name that is too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise PackNotFoundError(
            f"{parsed.place!r:.300} can't be looked up ({reason})",
            expected="a file, or a folder that holds one pack",
            fix="check the path",
        ) from error
    if not exists:
        raise _no_such(parsed)
    data = read_file(path)
    digest = hashlib.sha256(data).hexdigest()
    _check_pin(parsed, digest)
    return Resolved(
        ref=parsed.unpinned,
        kind="bundled" if bundled else "path",
        path=path,
        sha256=digest,
        size=len(data),
        revision=None,
        file=path.name,
        pinned=f"{parsed.place if bundled else path}#sha256={digest}",
        signature=_beside(path),
    )


def _beside(path: Path) -> Path | None:
    """The signature beside a file that was read."""
    signature = path.with_name(path.name + SIGNATURE)
    try:
        return signature if signature.exists() else None
    except OSError:  # with its ending, the name is longer than that of any file
        return None


def _no_such(parsed: Ref) -> PackNotFoundError:
    if parsed.kind == "path":
        repository, cut = _REPOSITORY.fullmatch(parsed.place), _CUT.match(parsed.place)
        return PackNotFoundError(
            f"{parsed.place!r} does not exist",
            expected="a file, or a folder that holds one pack",
            fix="check the path"
            + (f"; a repository of the Hugging Face hub is hf://{parsed.place}" if repository else "")
            + ("; a URL has two slashes, and is given as text, since a pathlib.Path loses one" if cut else ""),
        )
    return PackNotFoundError(
        f"no bundled pack and no file is named {parsed.place!r}." + near(parsed.place, bundled_names()),
        expected="one of " + (", ".join(bundled_names()) or "none is bundled") + "; a path; hf://owner/name; https://",
    )


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """A reference that leads over the network, or to what is kept of it."""

    ref: Ref
    store: Store
    source: Source

    def resolved(self, quiet: bool, *, again: bool = False) -> Resolved:
        """From the cache where that is certain to be right, else over the network; `again`: that in any case."""
        record = self.store.record(self.ref.key)
        fixed = quiet or (self.ref.is_immutable and self.ref.file)
        digest = self.ref.sha256 or (record.sha256 if record is not None and fixed else None)
        whole = quiet or record is None or record.signature is None or self.store.find(record.signature) is not None
        if not again and digest is not None and whole and self.store.find(digest) is not None:
            if record is not None and record.sha256 == digest and not quiet:
                record = self._signed_since(record)
            return self._result(digest, record)
        if quiet:
            raise self._not_here(record)
        target = self.source.locate(self.ref)
        check_size(target.size, self.ref.unpinned)
        _check_pin(self.ref, target.sha256)
        key = self._exact(target).key
        if not again and (digest := self._known(target, key)) is not None:
            return self._noted(target, digest)
        with self.store.work(key) as folder:
            digest = None if again else self._known(target, key)  # another process may have been faster
            return self._noted(target, digest or self._transfer(target, folder), transferred=digest is None)

    def _known(self, target: Target, key: str) -> str | None:
        """The digest of a target whose content is in the store already."""
        digest = target.sha256
        if digest is None and target.version is not None and (record := self.store.record(key)) is not None:
            digest = record.sha256 if record.version == target.version else None
        return digest if digest is not None and self.store.find(digest) is not None else None

    def _transfer(self, target: Target, folder: Path) -> str:
        """Transfer a target into the store; a file that is not a pack, or not the announced one, never gets there."""
        data = self.source.download(target, folder)
        try:
            digest = hashlib.sha256(data).hexdigest()
            for announced in (target.sha256, self.ref.sha256):
                if announced not in (None, digest):
                    raise _mismatch(self.ref.unpinned, digest, str(announced))
            # how git names a file's content
            named = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            if target.git_sha1 not in (None, named):
                raise _mismatch(self.ref.unpinned, f"{digest} and git's sha1 {named}", f"git's sha1 {target.git_sha1}")
            parse_pack(data, name=self.ref.unpinned)
            return self.store.keep(data)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _noted(self, target: Target, digest: str, *, transferred: bool = False) -> Resolved:
        """What was found, once it is noted under the reference and under the more exact ones that it stands for."""
        _check_pin(self.ref, digest)
        record = self._remember(target, digest, self._signature(target, digest))
        return self._result(digest, record, transferred=transferred)

    def _remember(self, target: Target, digest: str, signature: str | None) -> Record:
        record = Record(
            ref=self.ref.unpinned,
            sha256=digest,
            size=self.store.path(digest).stat().st_size,
            revision=target.revision,
            file=target.file,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            signature=signature,
            version=target.version,
        )
        exact = self._exact(target)
        for each in {self.ref.key, replace(exact, revision=self.ref.revision).key, exact.key}:
            known = self.store.record(each)
            if known is None or known.model_copy(update={"time": record.time, "ref": record.ref}) != record:
                self.store.remember(each, record)
        return record

    def _signature(self, target: Target, digest: str) -> str | None:
        """Have the signature beside a file in the store; its digest, or None if there is none."""
        if target.signed is False:
            return None
        key = self._exact(target).key
        known = self.store.record(key)
        same = known is not None and known.sha256 == digest
        before = known.signature if known is not None and same else None
        if target.signed and before is not None and self.store.find(before) is not None:
            return before  # of this very commit
        try:
            with self.store.work(f"{key} signature") as folder:
                data = self.source.signature(target, folder)
                shutil.rmtree(folder, ignore_errors=True)
        except DownloadError:
            if target.signed or not same:  # it is there, or may be, so nothing else would be true
                raise
            return before  # of the very same file
        return None if data is None else self.store.keep(data)

    def _signed_since(self, record: Record) -> Record:
        """What is known of a fixed pack in the cache, once it was asked whether it has a signature by now.

        It is asked at most once an hour, and never at a commit, which gains no file. Where the server can't be
        reached, or has another pack or another pack's signature by now, the pack stays what it was: it needs no
        network.
        """
        age = self.store.age(self.ref.key)
        if record.signature is not None or self.ref.is_immutable or (age is not None and 0 <= age < FRESH):
            return record
        with suppress(SteerKitError):
            # before it is asked: one that does not answer would else be waited for at every load
            self.store.renew(self.ref.key)
            target = self.source.locate(self.ref)
            signature = None
            if target.sha256 in (None, record.sha256):
                signature = self._signature(target, record.sha256)
            if signature is not None and not _is_of_another(self.store.path(signature), record.sha256):
                return self._remember(target, record.sha256, signature)
        return record

    def _not_here(self, record: Record | None) -> SteerKitError:
        if record is None:
            return OfflineError(
                f"{self.ref} is not in the cache {str(self.store.root)!r:.300}",
                expected="a pack that was pulled before",
                fix="run `steerkit pull` with a network first, or leave the offline mode",
            )
        if self.ref.sha256 not in (None, record.sha256):
            return _mismatch(self.ref.unpinned, record.sha256, str(self.ref.sha256))
        state = "damaged" if self.store.path(record.sha256).exists() else "gone"
        return OfflineError(
            f"the copy of {self.ref} in the cache is {state}",
            expected=f"a file with sha256 {record.sha256}",
            fix="run `steerkit pull` with a network again",
        )

    def _result(self, digest: str, record: Record | None, *, transferred: bool = False) -> Resolved:
        """A file of the store; what is known of another file of the same reference is not said of it."""
        file, revision = self.ref.file, self.ref.revision if self.ref.is_immutable else None
        signature = None
        if record is not None and record.sha256 == digest:
            file, revision, signature = record.file, record.revision, record.signature
        else:
            others = (each.signature for each in self.store.records() if each.sha256 == digest)
            signature = next(filter(None, others), None)
        exact = Ref("hf", self.ref.place, revision, file) if self.ref.kind == "hf" and revision else self.ref
        return Resolved(
            ref=self.ref.unpinned,
            kind=self.ref.kind,
            path=self.store.path(digest),
            sha256=digest,
            size=self.store.path(digest).stat().st_size,
            revision=revision,
            file=file or self.ref.place.rpartition("/")[2],
            pinned=str(replace(exact, sha256=digest)),
            transferred=transferred,
            signature=None if signature is None else self.store.path(signature),
        )

    def _exact(self, target: Target) -> Ref:
        """The reference to the very file that was found."""
        if self.ref.kind == "hf":
            return Ref("hf", target.place, target.revision, target.file)
        return Ref(self.ref.kind, target.place)


def _is_of_another(signature: Path, digest: str) -> bool:
    """Whether a signature names another pack; of one that can't be read, that is for `signing.check` to judge."""
    try:
        return parse_signature(read_signature(signature)).sha256 != digest
    except SignatureFormatError:
        return False


def _check_pin(parsed: Ref, found: str | None) -> None:
    if None not in (parsed.sha256, found) and parsed.sha256 != found:
        raise _mismatch(parsed.unpinned, str(found), str(parsed.sha256))


def _mismatch(what: str, found: str, expected: str) -> DigestMismatchError:
    return DigestMismatchError(
        f"{what} has sha256 {found}",
        expected=expected,
        fix="it was damaged on the way, or replaced: don't use it; if its publisher announced a new version, pin that",
    )
