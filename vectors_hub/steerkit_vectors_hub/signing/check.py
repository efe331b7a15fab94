"""What a signature is worth, and whether a pack or a key was revoked: one `Check` each.

`details["answer"]` tells the outcomes apart:

    signature    unsigned, trusted, unknown_signer, tampered, malformed, expired, not_yet_valid, revoked,
                 out_of_scope, unchecked
    revocation   no_lists, not_revoked, stale, rolled_back, unavailable, revoked
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from steerkit._text import one_line
from steerkit.policy import Check, Status
from steerkit_vectors_hub.errors import ReferenceFormatError, SignatureFormatError, SigningError
from steerkit_vectors_hub.refs import parse_ref
from steerkit_vectors_hub.signing import library
from steerkit_vectors_hub.signing.bundle import SignatureFile, parse_signature, read_signature
from steerkit_vectors_hub.signing.keys import certificate_fingerprint, signing_certificate
from steerkit_vectors_hub.signing.revocation import Revocations, read_revocations
from steerkit_vectors_hub.signing.trust import RevokedKey, RevokedPack, Signer, TrustFile, default_trust

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_DONT = "don't use this pack; ask its publisher, over a channel that you trust"
_KNOWN = "if you know them, add them to the trust file; compare the fingerprint over a channel that you trust"
_LIST = "get a network, or ask who keeps the list"

_SIGNATURE: dict[str, tuple[Status, str, str]] = {
    "unsigned": ("warn", "the pack is unsigned{why}", "ask its publisher to sign it, or pin its sha256 if you know it"),
    "trusted": ("pass", "signed by {who}", ""),
    "tampered": ("fail", "it names {who} as its signer, and was not made by them or was changed: {why}", _DONT),
    "changed": (
        "fail",
        "the pack is not the one that was signed: it was changed after signing, or the signature is another's",
        _DONT,
    ),
    "lookalike": ("fail", "its certificate looks like that of {who} and is not: {why}", _DONT),
    "unknown_signer": ("warn", "the signer is not in the trust file: the signature {why}", _KNOWN),
    "expired": ("fail", "signed by {who}, and expired: {why}", "ask them to sign it again, or renew their entry"),
    "not_yet_valid": ("fail", "signed by {who}, and not valid yet: {why}", "check the clock of this machine"),
    "out_of_scope": (
        "fail",
        "signed by {who}, but not theirs to sign: {why}",
        "load it by its reference, or widen refs",
    ),
    "unchecked": ("fail", "by {who}, and can't be verified: {why}", "get a network, or give trust_config"),
    "revoked": ("fail", "the key that it names as its signer was revoked: {why}", _DONT),
    "malformed": ("fail", "this is not a signature of one pack: {why}", "get it again, or sign the pack again"),
}
"""What is said of a signature by its answer, and what to do."""

_SAME = {"changed": "tampered", "lookalike": "unknown_signer"}
"""Answers that differ in their words only."""

_REVOCATION: dict[str, tuple[Status, str, str]] = {
    "revoked": ("fail", "{why}", _DONT),
    "unavailable": ("fail", "there is no list: {why}", "get a network once, or take the list out of the trust file"),
    "rolled_back": (
        "warn",
        "a list was refused: {why}",
        f"the last copy counts; check the clock of this machine; {_LIST}",
    ),
    "stale": ("warn", "a list is old: {why}", _LIST),
    "no_lists": ("skip", "the trust file names no revocation list", ""),
    "not_revoked": ("pass", "not among {why}", ""),
}


def check_origin(
    data: bytes, *, signature: Path | None, ref: str | None, trust: TrustFile | None = None, offline: bool | None = None
) -> list[Check]:
    """Check who signed a pack, and whether it was revoked.

    Args:
        data: Its bytes: those that will be loaded.
        signature: The file beside it; None if there is none.
        ref: The reference by which it was resolved, for signers who count for some references only.
        trust: Whose signatures count; default: the user's trust file.
        offline: Whether to use no network; default: as the environment says.

    Returns:
        The signature: `pass` only for a valid one by a signer of the trust file. Without one: `warn` if unsigned or
        signed by an unknown signer, but `fail` where the trust file requires signatures, and for unknown signers where
        it names any. `fail` for whatever else is wrong. And the revocation, see `check_revocation`.

    Raises:
        TrustFileError: The trust file or a list in it is malformed, or a list on this machine is missing.
        SigningError: The trust file names keys, and what reads them is not installed.
    """
    trust = trust if trust is not None else default_trust()
    revocations = read_revocations(trust, offline=offline)
    return [
        _signature(data, signature, ref, trust, revocations),
        check_revocation(data, signature=signature, revocations=revocations),
    ]


def _signature(
    data: bytes, signature: Path | None, ref: str | None, trust: TrustFile, revocations: Revocations
) -> Check:
    """Whether somebody who is trusted signed exactly this pack."""
    if signature is None:
        required = ", and the trust file requires a signature" if trust.require_signature else ""
        return _check("unsigned", why=required, strict=trust.require_signature)
    try:
        signed = parse_signature(read_signature(signature))
        if signed.sha256 != hashlib.sha256(data).hexdigest():
            return _check("changed", signed)
        certificate = _certificate(signed) if trust.signers or revocations.keys else None
        if (entry := revocations.key_of(signed)) is not None:
            return _check("revoked", signed, why=entry.reason)
        results = [_judged(data, signed, each, ref) for each in trust.signers if _may_be(each, signed, certificate)]
        passed = [each for each in results if each.status == "pass"]
        return (passed or results or [_unknown_signer(data, signed, trust)])[0]
    except SignatureFormatError as error:
        return _check("malformed", why=error.problem)
    except SigningError as error:
        return Check("signature", "fail", error.problem, str(error.fix), {"answer": "unchecked"})


def check_revocation(data: bytes, *, signature: Path | None, revocations: Revocations) -> Check:
    """Whether a pack, or the key that signed it, was revoked.

    Args:
        data: Its bytes.
        signature: The file beside it; None if there is none.
        revocations: What `read_revocations` returned.

    Returns:
        `fail` if it was, or if a list could never be fetched; `warn` if a list is old and can't be renewed, or if its
        server answers with one that can't follow the last copy; `skip` if the trust file names no list and no entry.
    """
    digest = hashlib.sha256(data).hexdigest()
    entry: RevokedPack | RevokedKey | None = revocations.packs.get(digest)
    what = f"the pack with sha256 {digest}"
    if entry is None and revocations.keys and signature is not None:
        what = "the key that its signature names"
        with suppress(ValueError, SigningError):  # malformed, or not to be read: the other check fails for it
            entry = revocations.key_of(parse_signature(read_signature(signature)))
    found = ((revocations.missing, "unavailable"), (revocations.refused, "rolled_back"), (revocations.stale, "stale"))
    answer, why = next(((answer, "; ".join(problems)) for problems, answer in found if problems), ("not_revoked", ""))
    if entry is not None:
        when = f" on {entry.date.date().isoformat()}" if entry.date else ""
        answer, why = "revoked", f"{what} was revoked{when}: {entry.reason}"
    elif answer == "not_revoked":
        why = f"{len(revocations.packs)} packs and {len(revocations.keys)} keys"
        answer = answer if revocations.lists or revocations.packs or revocations.keys else "no_lists"
    status, sentence, fix = _REVOCATION[answer]
    return Check("revocation", status, one_line(sentence.format(why=why)), fix, {"answer": answer})


def _certificate(signed: SignatureFile) -> Certificate | None:
    """The signer's certificate, where there is one."""
    if not signed.certificates:
        return None
    try:
        return signing_certificate(signed.certificates[0])
    except ValueError as error:
        raise SignatureFormatError(str(error), fix="ask the publisher for another certificate") from error


def _may_be(signer: Signer, signed: SignatureFile, certificate: Certificate | None) -> bool:
    """Whether a signature says that it is by this signer."""
    if signer.key is not None or certificate is None:
        return signed.kind == "key" and signed.key == signer.fingerprint
    if signer.certificate is not None:
        rule = signer.certificate
        return (
            signed.kind == "certificate"
            and rule.subject in (None, certificate.subject.rfc4514_string())
            and rule.fingerprint in (None, certificate_fingerprint(signed.certificates[0]))
        )
    return signed.kind == "keyless" and signer.keyless is not None and signer.keyless.identity in _accounts(certificate)


def _accounts(certificate: Certificate) -> list[str]:
    """The e-mail addresses and URLs that a certificate is for."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        each for kind in (x509.RFC822Name, x509.UniformResourceIdentifier) for each in names.get_values_for_type(kind)
    ]


def _judged(data: bytes, signed: SignatureFile, signer: Signer, ref: str | None) -> Check:
    """What a signature is worth that says it is by this signer."""
    verified = library.verify(data, signed, signer)
    if verified.answer == "trusted":
        verified = _within_limits(signer, ref)
    return _check(verified.answer, signed, f"{signer.name} ({_short(signed)})", verified.reason, signer=signer)


def _within_limits(signer: Signer, ref: str | None) -> library.Verification:
    """Whether the signer counts now, and for this reference."""
    now = datetime.now(UTC)
    if signer.expires is not None and now >= signer.expires:
        return library.Verification("expired", f"the trust file counts them until {signer.expires.isoformat()}")
    if signer.not_before is not None and now < signer.not_before:
        return library.Verification("not_yet_valid", f"the trust file counts them from {signer.not_before.isoformat()}")
    if signer.refs and not _in_scope(signer.refs, ref):
        place = ref or "a pack without a reference"
        return library.Verification("out_of_scope", f"they sign for {', '.join(signer.refs)}, and this is {place}")
    return library.Verification("trusted")


def _in_scope(patterns: tuple[str, ...], ref: str | None) -> bool:
    """Whether a pattern matches a reference: of a repository its name alone, of anything else all of it."""
    if ref is None:
        return False
    try:
        parsed = parse_ref(ref)
    except ReferenceFormatError:
        return False
    place = f"hf://{parsed.place}" if parsed.kind == "hf" else parsed.place
    return ".." not in unquote(place).split("/") and any(fnmatchcase(place, pattern) for pattern in patterns)


def _unknown_signer(data: bytes, signed: SignatureFile, trust: TrustFile) -> Check:
    """Judge a signature whose signer is not in the trust file: who made it is only what it claims."""
    who = _short(signed)
    try:
        if (certificate := _certificate(signed)) is not None:
            names = [certificate.subject.rfc4514_string(), *_accounts(certificate)]
            who += f" in the name of {' '.join(name[:200] for name in names if name) or 'nobody'}"
        verified = library.verify_by_itself(data, signed)
    except SigningError as error:
        who, verified = _short(signed), library.Verification("unchecked", error.problem)
    if verified.answer == "tampered":
        return _check("tampered", signed, who, verified.reason)
    why = f"was made with {who}, which the trust file does not name"
    if verified.answer != "trusted":
        why = f"names {who} as its signer; not verified, since {verified.reason}"
    return _check("unknown_signer", signed, why=why, strict=bool(trust.signers) or trust.require_signature)


def _short(signed: SignatureFile) -> str:
    what = "key" if signed.key else "certificate" if signed.kind == "certificate" else "account's certificate"
    return f"{what} {_fingerprint(signed)[:16]}"


def _fingerprint(signed: SignatureFile) -> str:
    return signed.key or certificate_fingerprint(signed.certificates[0])


def _check(
    answer: str,
    signed: SignatureFile | None = None,
    who: str = "",
    why: str = "",
    *,
    signer: Signer | None = None,
    strict: bool = False,
) -> Check:
    status, sentence, fix = _SIGNATURE[answer]
    details = {"answer": _SAME.get(answer, answer)}
    if signed is not None:
        details |= {"kind": signed.kind, "fingerprint": _fingerprint(signed), "signed_as": signed.signed_as}
    if signer is not None:
        details["signer"] = signer.name
    message = one_line(sentence.format(who=who, why=why))
    return Check("signature", "fail" if strict else status, message, fix, details)
