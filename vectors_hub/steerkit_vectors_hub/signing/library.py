"""Verification by the OpenSSF `model-signing` library, and what it leaves to its caller.

The library reads files by name, so it is given private copies of the very bytes that are judged: nobody can swap a file
between its look and ours. It judges a certificate by the moment at which the certificate began; `current` judges it by
now, because nothing in a signature by key or certificate proves when it was made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steerkit_vectors_hub.signing.bundle import SignatureFile
from steerkit_vectors_hub.signing.keys import imported
from steerkit_vectors_hub.signing.trust import CertificateRule, KeylessRule, Signer

_EXPIRED, _NOT_YET_VALID = 10, 9
"""How OpenSSL numbers these two failures."""


class NotGenuineError(Exception):
    """The signature does not belong to this pack and this key."""


class NotTheirsError(Exception):
    """The certificate or account is not that of the signer."""


class ExpiredError(Exception):
    """A certificate of the chain has expired."""


class NotYetValidError(Exception):
    """A certificate of the chain is not valid yet."""


class UncheckedError(Exception):
    """What the verification needs can't be had."""


def verify(data: bytes, signature: SignatureFile, signer: Signer) -> None:
    """Verify that a signer signed these bytes.

    Raises:
        NotGenuineError: They did not.
        NotTheirsError: The certificate or account is somebody else's.
        ExpiredError: The certificate has expired.
        NotYetValidError: It is not valid yet.
        UncheckedError: The Sigstore trust root can't be had.
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
        elif signer.keyless is not None:
            _use_keyless(config, signer.keyless)
        with _judged():
            config.verify(pack, copy)
    if signer.certificate is not None:
        _check_current(signature.certificates, signer.certificate)


def _use_keyless(config: Any, rule: KeylessRule) -> None:
    trust_config = Path(rule.trust_config) if rule.trust_config else None
    try:
        config.use_sigstore_verifier(identity=rule.identity, oidc_issuer=rule.issuer, trust_config=trust_config)
    except Exception as error:  # of many libraries: the network, the update of the root, the file
        where = f"trust_config {rule.trust_config!r}" if rule.trust_config else "Sigstore's trust root"
        raise UncheckedError(f"{where} can't be used ({_line(error)})") from error


@contextmanager
def _judged() -> Iterator[None]:
    """What the library raises, by what it means."""
    invalid = imported("cryptography.exceptions").InvalidSignature
    path = imported("OpenSSL.crypto").X509StoreContextError
    sigstore = imported("sigstore.errors").VerificationError
    try:
        yield
    except invalid as error:
        raise NotGenuineError("the signature does not verify") from error
    except path as error:
        raise NotTheirsError(_line(error)) from error
    except (sigstore, ValueError, KeyError, TypeError) as error:
        raise NotGenuineError(_line(error)) from error


def _check_current(certificates: tuple[bytes, ...], rule: CertificateRule) -> None:
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
        kinds = {_EXPIRED: ExpiredError, _NOT_YET_VALID: NotYetValidError}
        raise kinds.get(error.errors[0], NotTheirsError)(_line(error)) from error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
