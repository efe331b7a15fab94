"""Revocation lists: from the trust file, from files, and from web servers, with the last copy kept."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from steerkit.errors import SteerKitError
from steerkit_vectors_hub.cache import Store
from steerkit_vectors_hub.errors import OfflineError, TrustFileError
from steerkit_vectors_hub.signing.bundle import SignatureFile
from steerkit_vectors_hub.signing.keys import certificate_fingerprint, exported, signing_certificate
from steerkit_vectors_hub.signing.trust import (
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
"""Seconds after which an old copy, where there is no newer one to be had, is worth a warning."""


@dataclass(frozen=True, slots=True)
class Revocations:
    """Everything that is revoked, by digest and by fingerprint.

    Attributes:
        packs: By sha256.
        keys: By fingerprint.
        lists: Where it was read.
        stale: Lists of which there is only an old copy, and why.
        missing: Lists of which there is none, and why.
    """

    packs: Mapping[str, RevokedPack] = field(default_factory=dict)
    keys: Mapping[str, RevokedKey] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

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

    A list from a web server is asked for at most once an hour. If it can't be had, the last copy counts.

    Args:
        trust: The trust file.
        offline: Whether to use no network; default: as the environment says.

    Raises:
        TrustFileError: A list on this machine is missing or malformed.
    """
    quiet = offline if offline is not None else is_offline()
    read = []
    stale, missing = [], []
    for place in trust.revocations:
        if "://" not in place:
            read.append(parsed(RevocationList, bounded(Path(place), MAX_LIST), place))
            continue
        found, problem, old = _from_the_web(place, offline=quiet)
        if found is None:
            missing.append(f"{place} ({problem})")
        else:
            read.append(found)
            if problem and old:
                stale.append(f"{place} ({problem})")
    both = [trust.revoked, *read]
    return Revocations(
        packs={entry.sha256: entry for each in both for entry in each.packs},
        keys={entry.fingerprint: entry for each in both for entry in each.keys},
        lists=trust.revocations,
        stale=tuple(stale),
        missing=tuple(missing),
    )


def _from_the_web(url: str, *, offline: bool) -> tuple[RevocationList | None, str, bool]:
    """A list, what kept it from being newer, and whether it is so old that this matters."""
    store = Store.default()
    path = store.root / "revocations" / f"{hashlib.sha256(url.encode()).hexdigest()}.toml"
    age = time.time() - path.stat().st_mtime if path.is_file() else None
    known = parsed(RevocationList, bounded(path, MAX_LIST), f"the copy of {url}") if age is not None else None
    if known is not None and age is not None and 0 <= age < FRESH:
        return known, "", False
    try:
        if offline:
            raise OfflineError("offline", fix=None)
        data = fetch(url, MAX_LIST)
        found = parsed(RevocationList, data, url)
        if known is not None and found.updated < known.updated:
            raise TrustFileError(f"it is of {found.updated.isoformat()}, older than the copy")
    except SteerKitError as error:
        return known, error.problem, age is None or not 0 <= age < STALE
    store.write(path, data)
    return found, "", False
