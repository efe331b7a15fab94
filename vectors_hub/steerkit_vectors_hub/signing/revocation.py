"""Revocation lists: from the trust file, from files, and from web servers, with the last copy kept."""

from __future__ import annotations

import hashlib
import math
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
        named = fingerprints(signature) if self.keys else []
        return next((self.keys[each] for each in named if each in self.keys), None)


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
    problems: dict[str, list[str]] = {"stale": [], "missing": [], "refused": []}
    for place in trust.revocations:
        known, kind, problem = _from_the_web(place, offline=quiet) if "://" in place else (_on_disk(place), "", "")
        if known is not None:
            read.append(known)
            if not kind and known.expires is not None and datetime.now(UTC) >= known.expires:
                kind, problem = "stale", problem or "it has expired"
        if kind:
            problems[kind].append(f"{place} ({problem})")
    both = [trust.revoked, *read]
    return Revocations(
        packs={entry.sha256: entry for each in both for entry in each.packs},
        keys={entry.fingerprint: entry for each in both for entry in each.keys},
        lists=trust.revocations,
        **{kind: tuple(found) for kind, found in problems.items()},
    )


def _on_disk(place: str) -> RevocationList:
    found = parsed(RevocationList, bounded(Path(place), MAX_LIST), place)
    if problem := _impossible(found, None):
        raise TrustFileError(f"{place} {problem}", fix="correct its date, or the clock of this machine")
    return found


def _from_the_web(url: str, *, offline: bool) -> tuple[RevocationList | None, str, str]:
    """The list that counts, if there is one; what is wrong with it, as a field of `Revocations`; and why."""
    store = Store.default()
    path = store.root / "revocations" / f"{hashlib.sha256(url.encode()).hexdigest()}.toml"
    known, age, ahead = None, math.inf, ""
    if kept := store.own(path, MAX_LIST):  # of others, it could say that nothing was revoked
        known = parsed(RevocationList, kept[0], f"the copy of {url}")
        age = time.time() - kept[1]
        # either the clock was ahead when it was stored, or it is behind now and an old list would pass for the next:
        # what the copy revokes goes on counting, beside the list of the server, which is not kept
        ahead = _impossible(known, None)
        if not ahead and 0 <= age < FRESH:
            return known, "", ""
    why = f"the copy {path} {ahead}; delete it if the clock was wrong then"
    try:
        if offline:
            raise OfflineError("offline", fix=None)
        data = fetch(url, MAX_LIST)
        found = parsed(RevocationList, data, url)
    except SteerKitError as error:
        if ahead:
            return known, "refused", f"{why}; {error.problem}"
        return known, "missing" if known is None else "" if 0 <= age < STALE else "stale", error.problem
    if known is not None and ahead:
        both = {"packs": (*known.packs, *found.packs)[:MAX_ENTRIES], "keys": (*known.keys, *found.keys)[:MAX_ENTRIES]}
        return known.model_copy(update=both), "refused", why
    if problem := _impossible(found, known):
        return known, "missing" if known is None else "refused", problem
    store.write(path, data)
    return found, "", ""


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
    lost = len(_entries(known) - _entries(found))
    return f"has the date of the copy, {known.updated.isoformat()}, and lacks {lost} of its entries" if lost else ""


def _entries(found: RevocationList) -> set[str]:
    return {entry.sha256 for entry in found.packs} | {entry.fingerprint for entry in found.keys}
