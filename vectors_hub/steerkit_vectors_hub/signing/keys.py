"""Public keys and certificates as PEM, by the `cryptography` library."""

from __future__ import annotations

import hashlib
import importlib
from typing import TYPE_CHECKING, Any

from steerkit_vectors_hub.errors import SigningError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""Those that model-signing knows."""


def imported(module: str) -> Any:
    """A module of the extra `sign`.

    Raises:
        SigningError: The extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SigningError(
            f"signatures can't be made or verified ({error})",
            expected="the OpenSSF model-signing library",
            fix="pip install 'steerkit-vlm[sign]'",
        ) from error


def key_fingerprint(pem: str) -> str:
    """sha256 of a public key's PEM file, in the form in which `public_key_pem` returns it."""
    return hashlib.sha256(pem.encode()).hexdigest()


def certificate_fingerprint(der: bytes) -> str:
    """sha256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it, without colons."""
    return hashlib.sha256(der).hexdigest()


def public_key_pem(text: str) -> str:
    """A public key in the one form that has the fingerprint.

    Raises:
        ValueError: It is not a public key on a curve that can sign packs.
    """
    serialization = imported("cryptography.hazmat.primitives.serialization")
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key: give the public one, and keep this one secret")
    try:
        key = serialization.load_pem_public_key(text.encode())
    except imported("cryptography.exceptions").UnsupportedAlgorithm as error:
        raise ValueError(f"the key can't be read ({error})") from error
    return exported(key)


def exported(key: Any) -> str:
    """The PEM of a public key.

    Raises:
        ValueError: It is on no curve that can sign packs.
    """
    serialization = imported("cryptography.hazmat.primitives.serialization")
    check_curve(key)
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form).decode()


def check_curve(key: Any) -> None:
    """Refuse a key that model-signing can't use.

    Raises:
        ValueError: It is of another kind, or on another curve.
    """
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in CURVES:
        raise ValueError(
            f"the key is {curve or type(key).__name__.strip('_')}: give an elliptic curve key, {', '.join(CURVES)}"
        )


def root_pem(text: str) -> str:
    """Root certificates, as they were given.

    Raises:
        ValueError: One can't be read.
    """
    imported("cryptography.x509").load_pem_x509_certificates(text.encode())
    return text


def signing_certificate(der: bytes) -> Certificate:
    """A certificate that may sign.

    Raises:
        ValueError: It can't be read, its key can't be used, or it does not say that it is for signatures.
    """
    x509, exceptions = imported("cryptography.x509"), imported("cryptography.exceptions")
    certificate = x509.load_der_x509_certificate(der)
    try:
        check_curve(certificate.public_key())
        may_sign = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        may_sign = False
    except (exceptions.UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"the certificate can't be read ({error})") from error
    if not may_sign:
        raise ValueError("the certificate is not for signatures: its keyUsage must hold digitalSignature")
    return certificate
