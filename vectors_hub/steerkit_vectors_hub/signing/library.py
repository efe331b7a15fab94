"""Verification by the OpenSSF `model-signing` library, and what it leaves to its caller.

The library reads files by name, so it is given private copies of the very bytes that are judged: nobody can swap a file
between its look and ours. It judges a certificate by the moment at which the certificate began; `_current` judges it by
now, because nothing in a signature by key or certificate proves when it was made.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from steerkit._internal.json import json_object
from steerkit._text import first_line
from steerkit_vectors_hub.signing.bundle import SignatureFile
from steerkit_vectors_hub.signing.keys import exported, imported, key_fingerprint, signing_certificate
from steerkit_vectors_hub.signing.trust import CertificateRule, KeylessRule, Signer

Answer = Literal["trusted", "tampered", "lookalike", "expired", "not_yet_valid", "unchecked", "out_of_scope"]

_DATES: dict[int, Answer] = {10: "expired", 9: "not_yet_valid"}
"""How OpenSSL numbers these two failures."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a signer signed a pack, and what speaks against it.

    Attributes:
        answer: `trusted`: they did; `tampered`: the signature is not genuine; `lookalike`: the certificate is another's
            of the same name; `expired`, `not_yet_valid`: the certificate is; `unchecked`: what the verification needs
            is missing; `out_of_scope`: they do not sign for this reference.
        reason: The library's own words.
    """

    answer: Answer
    reason: str = ""


def verify(data: bytes, signature: SignatureFile, signer: Signer) -> Verification:
    """Have the library verify that a signer signed these bytes.

    Raises:
        SigningError: The library is not installed.
    """
    config = imported("model_signing.verifying").Config()
    with tempfile.TemporaryDirectory(prefix="steerkit-") as name:
        folder = Path(name)
        pack, copy, trusted = folder / "pack", folder / "signature", folder / "trusted.pem"
        pack.write_bytes(data)
        copy.write_bytes(signature.raw)
        if signer.key is not None:
            trusted.write_text(signer.key)
            config.use_elliptic_key_verifier(public_key=trusted)
        elif signer.certificate is not None:
            trusted.write_text(signer.certificate.root)
            config.use_certificate_verifier(certificate_chain=[trusted])
        elif signer.keyless is not None and (problem := _use_keyless(config, signer.keyless)):
            return Verification("unchecked", problem)
        verified = _run(config, pack, copy)
    if verified.answer == "trusted" and signer.certificate is not None:
        return _current(signature.certificates, signer.certificate)
    return verified


def verify_by_itself(data: bytes, signature: SignatureFile) -> Verification:
    """Whether the key of the certificate that a signature carries made it. Who issued that certificate is not asked.

    The library is told that it is a signature by key.

    Raises:
        SigningError: The library is not installed.
        ValueError: The certificate may not sign.
    """
    if not signature.certificates:
        return Verification("unchecked", "the trust file has no such key")
    key = exported(signing_certificate(signature.certificates[0]).public_key())
    document = json_object(signature.raw, "the signature")
    document["verificationMaterial"] = {"publicKey": {"hint": key_fingerprint(key)}, "tlogEntries": []}
    return verify(data, replace(signature, raw=json.dumps(document).encode()), Signer(name="itself", key=key))


def _use_keyless(config: Any, rule: KeylessRule) -> str:
    """Give the library Sigstore's trust root; what went wrong, or nothing."""
    trust_config = Path(rule.trust_config) if rule.trust_config else None
    try:
        config.use_sigstore_verifier(identity=rule.identity, oidc_issuer=rule.issuer, trust_config=trust_config)
    except Exception as error:  # of many libraries: the network, the update of the root, the file
        where = f"trust_config {rule.trust_config!r}" if rule.trust_config else "Sigstore's trust root"
        return f"{where} can't be used ({first_line(error)[:300]})"
    return ""


def _run(config: Any, pack: Path, signature: Path) -> Verification:
    """What the library raises, by what it means."""
    invalid = imported("cryptography.exceptions").InvalidSignature
    openssl = imported("OpenSSL.crypto")
    sigstore = imported("sigstore.errors").Error
    try:
        config.verify(pack, signature)
    except invalid:
        return Verification("tampered", "the signature does not verify")
    except openssl.X509StoreContextError as error:
        return Verification("lookalike", first_line(error)[:300])
    except (sigstore, openssl.Error, ValueError, KeyError, TypeError) as error:  # of what the file holds
        return Verification("tampered", first_line(error)[:300])
    return Verification("trusted")


def _current(certificates: tuple[bytes, ...], rule: CertificateRule) -> Verification:
    """Whether the chain holds now."""
    crypto, x509 = imported("OpenSSL.crypto"), imported("cryptography.x509")
    store = crypto.X509Store()
    for root in x509.load_pem_x509_certificates(rule.root.encode()):
        store.add_cert(crypto.X509.from_cryptography(root))
    store.set_time(datetime.now(UTC))
    leaf, *others = (crypto.X509.from_cryptography(x509.load_der_x509_certificate(each)) for each in certificates)
    try:
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        return Verification(_DATES.get(error.errors[0], "lookalike"), first_line(error)[:300])
    return Verification("trusted")
