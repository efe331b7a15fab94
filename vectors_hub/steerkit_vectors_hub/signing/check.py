"""What a signature is worth, and whether a pack or a key was revoked: one `Check` each.

`details["answer"]` tells the outcomes apart:

    signature    unsigned, trusted, stranger, tampered, malformed, expired, not_yet_valid, revoked, out_of_scope,
                 unchecked
    revocation   no_lists, not_revoked, stale, rolled_back, unavailable, revoked
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from steerkit._text import one_line
from steerkit.policy import Check, Status
from steerkit.vectors.formats import read_file
from steerkit_vectors_hub.errors import ReferenceFormatError, SignatureFormatError, SigningError
from steerkit_vectors_hub.refs import parse_ref
from steerkit_vectors_hub.signing import library
from steerkit_vectors_hub.signing.bundle import SignatureFile, parse_signature, read_signature
from steerkit_vectors_hub.signing.keys import certificate_fingerprint, signing_certificate
from steerkit_vectors_hub.signing.revocation import Revocations, read_revocations
from steerkit_vectors_hub.signing.trust import RevokedKey, RevokedPack, Signer, TrustFile, default_trust

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from steerkit_vectors_hub.resolve import Resolved

_DONT = "don't use this pack; ask its publisher, over a channel that you trust"

_SAID: dict[library.Answer, tuple[str, str]] = {
    "trusted": ("signed by {who}", ""),
    "tampered": ("it names {who} as its signer, and was not made by them or was changed: {why}", _DONT),
    "stranger": ("its certificate looks like that of {who} and is not: {why}", _DONT),
    "expired": ("signed by {who}, and expired: {why}", "ask them to sign it again, or renew their entry if it is due"),
    "not_yet_valid": ("signed by {who}, and not valid yet: {why}", "check the clock of this machine"),
    "out_of_scope": ("signed by {who}, but not theirs to sign: {why}", "load it by its reference, or widen their refs"),
    "unchecked": ("by {who}, and can't be verified: {why}", "get a network, or give trust_config"),
}
"""What is said of a signature by somebody whom the trust file names, and what to do."""


def check_origin(
    found: Resolved, data: bytes, *, trust: TrustFile | None = None, offline: bool | None = None
) -> list[Check]:
    """Check signature and revocation of a pack that was resolved.

    Args:
        found: What `resolve` found.
        data: Its bytes, as `found.read()` returned them: those that will be loaded.
        trust: Whose signatures count; default: the user's trust file.
        offline: Whether to use no network; default: as the environment says.

    Raises:
        TrustFileError: The trust file or a list in it is malformed.
        SigningError: The trust file names keys, and what reads them is not installed.
    """
    trust = trust if trust is not None else default_trust()
    revocations = read_revocations(trust, offline=offline)
    return [
        check_signature(data, signature=found.signature, trust=trust, ref=found.ref, revocations=revocations),
        check_revocation(data, signature=found.signature, trust=trust, revocations=revocations),
    ]


def check_signature(
    pack: Path | bytes,
    *,
    signature: Path | None,
    trust: TrustFile,
    ref: str | None = None,
    revocations: Revocations | None = None,
) -> Check:
    """Whether somebody who is trusted signed exactly this pack.

    Args:
        pack: Its bytes, or its file, which is read once. Give the bytes that will be loaded.
        signature: The file beside it; None if there is none.
        trust: Whose signatures count.
        ref: Where the pack is from, for signers who count for some references only.
        revocations: What `read_revocations` returned; default: it is called.

    Returns:
        `pass` only for a valid signature by a signer of the trust file. Without one: `warn` if unsigned or signed by
        a stranger, but `fail` where the trust file requires signatures, and for strangers where it names signers.
        `fail` for whatever else is wrong.

    Raises:
        TrustFileError: A revocation list is malformed.
        PackFormatError: The pack can't be read.
    """
    if signature is None:
        return _check(
            "fail" if trust.require_signature else "warn",
            "unsigned",
            "the pack is unsigned" + (", and the trust file requires a signature" if trust.require_signature else ""),
            "ask its publisher to sign it, or pin its sha256 if you know it from elsewhere",
        )
    data = pack if isinstance(pack, bytes) else read_file(pack)
    try:
        signed = parse_signature(read_signature(signature))
        if signed.sha256 != hashlib.sha256(data).hexdigest():
            return _check(
                "fail",
                "tampered",
                "the pack is not the one that was signed: it was changed after signing, or the signature is another's",
                _DONT,
                signed,
            )
        revocations = revocations if revocations is not None else read_revocations(trust)
        certificate = _certificate(signed) if trust.signers or revocations.keys else None
        if (entry := revocations.key_of(signed)) is not None:
            return _check(
                "fail", "revoked", f"the key that it names as its signer was revoked: {entry.reason}", _DONT, signed
            )
        results = [_judged(data, signed, each, ref) for each in trust.signers if _may_be(each, signed, certificate)]
        passed = [each for each in results if each.status == "pass"]
        return (passed or results or [_stranger(data, signed, trust)])[0]
    except SignatureFormatError as error:
        return _check("fail", "malformed", f"this is not a signature of one pack: {error.problem}", str(error.fix))
    except SigningError as error:
        return _check("fail", "unchecked", error.problem, str(error.fix))


def check_revocation(
    pack: Path | bytes,
    *,
    signature: Path | None,
    trust: TrustFile,
    revocations: Revocations | None = None,
    offline: bool | None = None,
) -> Check:
    """Whether a pack, or the key that signed it, was revoked.

    Args:
        pack: Its bytes, or its file.
        signature: The file beside it; None if there is none.
        trust: Which lists count.
        revocations: What `read_revocations` returned; default: it is called.
        offline: Whether to use no network; default: as the environment says.

    Returns:
        `fail` if it was, or if a list could never be fetched; `warn` if a list is old and can't be renewed, or if its
        server answers with one that can't follow the last copy; `skip` if the trust file names no list and no entry.

    Raises:
        TrustFileError: A list on this machine is missing or malformed.
        PackFormatError: The pack can't be read.
    """
    known = revocations if revocations is not None else read_revocations(trust, offline=offline)
    digest = hashlib.sha256(pack if isinstance(pack, bytes) else read_file(pack)).hexdigest()
    entry: RevokedPack | RevokedKey | None = known.packs.get(digest)
    what = f"the pack with sha256 {digest}"
    if entry is None and known.keys and signature is not None:
        entry, what = _revoked_key(known, signature), "the key that its signature names"
    if entry is not None:
        when = f" on {entry.date.date().isoformat()}" if entry.date else ""
        return _revocation("fail", "revoked", f"{what} was revoked{when}: {entry.reason}", _DONT)
    if known.missing:
        fix = "get a network once, or take the list out of the trust file"
        return _revocation("fail", "unavailable", f"there is no list: {'; '.join(known.missing)}", fix)
    if known.refused:
        fix = "the last copy counts; ask who keeps the list, over another channel, and check the clock of this machine"
        return _revocation("warn", "rolled_back", f"a list was refused: {'; '.join(known.refused)}", fix)
    if known.stale:
        fix = "get a network, or ask who keeps the list"
        return _revocation("warn", "stale", f"a list is old: {'; '.join(known.stale)}", fix)
    if not (known.lists or known.packs or known.keys):
        return _revocation("skip", "no_lists", "the trust file names no revocation list")
    return _revocation("pass", "not_revoked", f"not among {len(known.packs)} packs and {len(known.keys)} keys")


def _revoked_key(known: Revocations, signature: Path) -> RevokedKey | None:
    try:
        return known.key_of(parse_signature(read_signature(signature)))
    except (ValueError, SigningError):  # malformed, or not to be read: `check_signature` fails for it
        return None


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
    if signer.key is not None:
        return signed.kind == "key" and signed.key == signer.fingerprint
    if certificate is None:
        return False
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
        *names.get_values_for_type(x509.RFC822Name),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
    ]


def _judged(data: bytes, signed: SignatureFile, signer: Signer, ref: str | None) -> Check:
    """What a signature is worth that says it is by this signer."""
    verdict = library.verify(data, signed, signer)
    if verdict.answer == "trusted":
        verdict = _within_limits(signer, ref)
    sentence, fix = _SAID[verdict.answer]
    message = sentence.format(who=f"{signer.name} ({_short(signed)})", why=verdict.reason)
    return _check("pass" if verdict.answer == "trusted" else "fail", verdict.answer, message, fix, signed, signer)


def _within_limits(signer: Signer, ref: str | None) -> library.Verdict:
    """Whether the signer counts now, and for this reference."""
    now = datetime.now(UTC)
    if signer.expires is not None and now >= signer.expires:
        return library.Verdict("expired", f"the trust file counts them until {signer.expires.isoformat()}")
    if signer.not_before is not None and now < signer.not_before:
        return library.Verdict("not_yet_valid", f"the trust file counts them from {signer.not_before.isoformat()}")
    if signer.refs and not _in_scope(signer.refs, ref):
        place = ref or "a pack without a reference"
        return library.Verdict("out_of_scope", f"they sign for {', '.join(signer.refs)}, and this is {place}")
    return library.Verdict("trusted")


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


def _stranger(data: bytes, signed: SignatureFile, trust: TrustFile) -> Check:
    """Judge a signature whose signer is not in the trust file: who made it is only what it claims."""
    try:
        who, verdict = _who(signed), library.verify_by_itself(data, signed)
    except SigningError as error:
        who, verdict = _short(signed), library.Verdict("unchecked", error.problem)
    if verdict.answer == "tampered":
        sentence, fix = _SAID["tampered"]
        return _check("fail", "tampered", sentence.format(who=who, why=verdict.reason), fix, signed)
    return _check(
        "fail" if trust.signers or trust.require_signature else "warn",
        "stranger",
        "the signer is not in the trust file: the signature "
        + (
            f"was made with {who}, which the trust file does not name"
            if verdict.answer == "trusted"
            else f"names {who} as its signer; not verified, since {verdict.reason}"
        ),
        "if you know them, add them to the trust file; compare the fingerprint over a channel that you trust",
        signed,
    )


def _who(signed: SignatureFile) -> str:
    certificate = _certificate(signed)
    if certificate is None:
        return _short(signed)
    names = [certificate.subject.rfc4514_string(), *_accounts(certificate)]
    return f"{_short(signed)} in the name of {' '.join(name[:200] for name in names if name) or 'nobody'}"


def _short(signed: SignatureFile) -> str:
    what = "key" if signed.key else "certificate" if signed.kind == "certificate" else "account's certificate"
    return f"{what} {_fingerprint(signed)[:16]}"


def _fingerprint(signed: SignatureFile) -> str:
    return signed.key or certificate_fingerprint(signed.certificates[0])


def _check(
    status: Status,
    answer: str,
    message: str,
    fix: str,
    signed: SignatureFile | None = None,
    signer: Signer | None = None,
) -> Check:
    details = {"answer": answer}
    if signed is not None:
        details |= {"kind": signed.kind, "fingerprint": _fingerprint(signed), "signed_as": signed.signed_as}
    if signer is not None:
        details["signer"] = signer.name
    return Check("signature", status, one_line(message), one_line(fix), details)


def _revocation(status: Status, answer: str, message: str, fix: str = "") -> Check:
    return Check("revocation", status, one_line(message), fix, {"answer": answer})
