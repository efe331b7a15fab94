"""Loading a vector from wherever it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from steerkit._internal.validation import PATH, expect, expect_one_of
from steerkit.policy import Check, Policy, enforce
from steerkit.vectors import SteeringVector
from steerkit_vectors_hub.errors import UntrustedPackError
from steerkit_vectors_hub.resolve import Resolved, resolve
from steerkit_vectors_hub.signing.check import check_origin, check_revocation
from steerkit_vectors_hub.signing.revocation import read_revocations
from steerkit_vectors_hub.signing.trust import TrustFile, default_trust
from steerkit_vectors_hub.verify import pack_dose


def load_vector(
    ref: str | Path,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
    token: bool | str | None = None,
    cache: str | Path | None = None,
    force_download: bool = False,
    policy: Policy = "strict",
    trust: TrustFile | None = None,
) -> SteeringVector:
    """Load a steering vector by reference: the pack is found, transferred if need be, hashed, audited and built.

    Args:
        ref: A file; a folder that holds one pack; the name of a bundled pack; `hf://owner/name[@revision][/file]`;
            `https://...`; any URL that fsspec knows. Each may end in `#sha256=` and the digest of the file.
        revision: Branch, tag or commit of a repository, if the reference does not name it.
        sha256: The only digest to accept, if the reference does not name it.
        offline: Whether to use the cache alone; default: as STEERKIT_OFFLINE and HF_HUB_OFFLINE say.
        token: For the Hugging Face hub; default: that of `hf auth login` or HF_TOKEN.
        cache: The folder of the cache; default: STEERKIT_CACHE, or the user's own.
        force_download: Transfer it again, whatever the cache holds.
        policy: What becomes of the checks that need no model (`steerkit verify` lists them). `strict`: a failed one is
            an error; `warn`: a `TrustWarning`; `off`: nothing is said. A file that is not a pack is always an error.
        trust: Whose signatures count; default: the user's trust file. That a pack is unsigned, or signed by somebody
            unknown, is said only where this names signers.

    Returns:
        The vector. Its `source` is a reference to exactly this file, with commit and digest.

    Raises:
        UntrustedPackError: A check failed, under `strict`.
        TrustFileError: The trust file or a revocation list in it is malformed.
        SteerKitError: The kinds that `steerkit_vectors_hub.errors` and `SteeringVector.load` name.
    """
    expect(PATH, "a reference: a text, or a path", ref=ref)
    expect(bool | str | None, "a token of the Hugging Face hub", token=token)
    expect(PATH | None, "a folder", cache=cache)
    expect(bool, "True or False", force_download=force_download)
    expect(bool | None, "True, False, or None for what the environment says", offline=offline)
    expect_one_of(get_args(Policy), policy=policy)
    trust = default_trust() if trust is None else trust
    resolved = resolve(
        os.fsdecode(ref),
        revision=revision,
        sha256=sha256,
        offline=offline,
        token=token,
        cache=cache,
        force_download=force_download,
    )
    data = resolved.read()
    vector = SteeringVector.from_bytes(data, source=resolved.pinned)
    checks = [
        *check_origin(data, signature=resolved.signature, ref=resolved.ref, trust=trust, offline=offline),
        pack_dose([vector]),
    ]
    enforce([each for each in checks if trust.signers or not _by_no_known_signer(each)], policy, UntrustedPackError)
    return vector


def check_handed_on(found: Resolved, *, offline: bool | None = None) -> None:
    """Refuse a pack that was revoked, where it is copied, listed or signed for others without becoming a vector here.

    Raises:
        UntrustedPackError: It, or the key that signed it, was revoked; or a list could never be fetched.
        TrustFileError: The trust file or a revocation list in it is malformed.
    """
    revocations = read_revocations(default_trust(), offline=offline)
    check = check_revocation(found.read(), signature=found.signature, revocations=revocations)
    enforce([check], "strict", UntrustedPackError)


def _by_no_known_signer(check: Check) -> bool:
    """Whether all that it says is that no known signer signed a pack, as is so of most."""
    return check.status == "warn" and check.details.get("answer") in ("unsigned", "unknown_signer")
