"""Revocation lists: from the trust file, from files, and from web servers, with the last copy kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from steerkit.errors import SteerKitError
from steerkit_vectors_hub.cache import Store
from steerkit_vectors_hub.errors import OfflineError, TrustFileError
from steerkit_vectors_hub.signing.bundle import SignatureFile
from steerkit_vectors_hub.signing.keys import certificate_fingerprint, exported, signing_certificate
from steerkit_vectors_hub.signing.trust import (
    MAX_ENTRIES,
    MAX_LIST,
    RevocationList,
    RevokedKey,
    RevokedPack,
    TrustFile,
    bounded,
    key_fingerprint,
    parsed,
)
from steerkit_vectors_hub.sources.base import FRESH, is_offline
from steerkit_vectors_hub.sources.web import fetch

STALE = 7 * 24 * 3600.0
"""Seconds after which an old copy, where no newer one can be fetched, is worth a warning."""

AHEAD = timedelta(days=1)
"""How far the date of a list may lie in the future, for clocks that differ and dates without a time. A list dated
further ahead is refused: no later one could replace it for as long as that."""


@dataclass(frozen=True, slots=True)
class Revocations:
    """Everything that is revoked, by digest and by fingerprint.

    Attributes:
        packs: By sha256.
        keys: By fingerprint.
        lists: Where it was read.
        stale: Lists of which there is only an old copy, and why.
        missing: Lists of which there is none, and why.
        refused: Lists whose server answered with one that can't be the next, and why; the last copy counts.
    """

    packs: Mapping[str, RevokedPack] = field(default_factory=dict)
    keys: Mapping[str, RevokedKey] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def key_of(self, signature: SignatureFile) -> RevokedKey | None:
        """The entry that revokes a signature's key, or a certificate of its chain."""
        if not self.keys:
            return None
        return next((self.keys[each] for each in fingerprints(signature) if each in self.keys), None)


def fingerprints(signature: SignatureFile) -> list[str]:
    """By which a signature's key can be revoked: the key's, and those of its certificates, the signer's first."""
    found = [signature.key] if signature.key else []
    found += [certificate_fingerprint(each) for each in signature.certificates]
    if signature.kind == "certificate":
        found.append(key_fingerprint(exported(signing_certificate(signature.certificates[0]).public_key())))
    return found


def read_revocations(trust: TrustFile, *, offline: bool | None = None) -> Revocations:
    """Read every list that a trust file names.

    A list from a web server is asked for at most once an hour. If there is no answer, or one that can't follow the last
    copy, the last copy counts.

    Args:
        trust: The trust file.
        offline: Whether to use no network; default: as the environment says.

    Raises:
        TrustFileError: A list on this machine is missing, malformed or dated in the future.
    """
    quiet = offline if offline is not None else is_offline()
    read: list[RevocationList] = []
    stale, missing, refused = [], [], []
    for place in trust.revocations:
        if "://" not in place:
            found = parsed(RevocationList, bounded(Path(place), MAX_LIST), place)
            if problem := _impossible(found, None):
                raise TrustFileError(f"{place} {problem}", fix="correct its date, or the clock of this machine")
            read.append(found)
            if _expired(found):
                stale.append(f"{place} (it has expired)")
            continue
        asked = _from_the_web(place, offline=quiet)
        if asked.known is None:
            missing.append(f"{place} ({asked.problem})")
            continue
        read.append(asked.known)
        if asked.refused:
            refused.append(f"{place} ({asked.problem})")
        elif asked.old or _expired(asked.known):
            stale.append(f"{place} ({asked.problem or 'it has expired'})")
    both = [trust.revoked, *read]
    return Revocations(
        packs={entry.sha256: entry for each in both for entry in each.packs},
        keys={entry.fingerprint: entry for each in both for entry in each.keys},
        lists=trust.revocations,
        stale=tuple(stale),
        missing=tuple(missing),
        refused=tuple(refused),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What came of asking for a list.

    Attributes:
        known: The list that counts; None if there is none.
        problem: What kept it from being the newest.
        old: Whether that is a copy so old that it matters.
        refused: Whether the server answered, with a list that can't be the next.
    """

    known: RevocationList | None
    problem: str = ""
    old: bool = False
    refused: bool = False


def _from_the_web(url: str, *, offline: bool) -> _Asked:
    store = Store.default()
    path = store.root / "revocations" / f"{hashlib.sha256(url.encode()).hexdigest()}.toml"
    age = time.time() - path.stat().st_mtime if path.is_file() else None
    known = parsed(RevocationList, bounded(path, MAX_LIST), f"the copy of {url}") if age is not None else None
    if known is not None and (problem := _impossible(known, None)):
        # either the clock was ahead when it was stored, or it is behind now and an old list would pass for the next:
        # what the copy revokes goes on counting, and keeps no list out
        return _beside(known, url, f"the copy {path} {problem}; delete it if the clock was wrong then", offline=offline)
    if known is not None and age is not None and 0 <= age < FRESH:
        return _Asked(known)
    try:
        if offline:
            raise OfflineError("offline", fix=None)
        data = fetch(url, MAX_LIST)
        found = parsed(RevocationList, data, url)
    except SteerKitError as error:
        return _Asked(known, error.problem, old=age is None or not 0 <= age < STALE)
    if problem := _impossible(found, known):
        return _Asked(known, problem, refused=True)
    store.write(path, data)
    return _Asked(found)


def _beside(known: RevocationList, url: str, problem: str, *, offline: bool) -> _Asked:
    """What counts beside a copy that is dated in the future: the list of the server as well, which is not kept."""
    try:
        if offline:
            raise OfflineError("offline", fix=None)
        found = parsed(RevocationList, fetch(url, MAX_LIST), url)
    except SteerKitError as error:
        return _Asked(known, f"{problem}; {error.problem}", refused=True)
    both = {"packs": (*known.packs, *found.packs)[:MAX_ENTRIES], "keys": (*known.keys, *found.keys)[:MAX_ENTRIES]}
    return _Asked(known.model_copy(update=both), problem, refused=True)


def _impossible(found: RevocationList, known: RevocationList | None) -> str:
    """Why a list can't be the one that follows the last copy; empty if it can.

    A list that is not signed can't be told from a forged one by anything but its date and what it holds: it may not go
    back, it may not lose an entry without a newer date, and it may not be dated so that nothing could follow it.
    """
    if found.updated > datetime.now(UTC) + AHEAD:
        return f"is dated {found.updated.isoformat()}, which lies in the future"
    if known is None or found.updated > known.updated:
        return ""
    if found.updated < known.updated:
        return f"is of {found.updated.isoformat()}, older than the copy of {known.updated.isoformat()}"
    lost = _entries(known) - _entries(found)
    return (
        f"has the date of the copy, {known.updated.isoformat()}, and lacks {len(lost)} of its entries" if lost else ""
    )


def _entries(found: RevocationList) -> set[str]:
    return {entry.sha256 for entry in found.packs} | {entry.fingerprint for entry in found.keys}


def _expired(found: RevocationList) -> bool:
    return found.expires is not None and datetime.now(UTC) >= found.expires
