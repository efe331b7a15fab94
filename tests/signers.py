"""Keys, certificates and trust files for the tests of signatures, made on the spot."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

YEAR = timedelta(days=365)


@dataclass(frozen=True)
class KeyPair:
    """A key, and its two PEM files."""

    key: ec.EllipticCurvePrivateKey
    private: Path
    public: Path


@dataclass(frozen=True)
class Certified:
    """A key pair with a certificate, and the file of the certificate."""

    pair: KeyPair
    certificate: x509.Certificate
    path: Path

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()


def key_pair(folder: Path, name: str, curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> KeyPair:
    """A new key on a curve, P-256 by default."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return KeyPair(key, private, public)


def certified(
    folder: Path,
    name: str,
    issuer: Certified | None = None,
    *,
    ca: bool = False,
    since: timedelta = -YEAR,
    until: timedelta = YEAR,
    signs: bool = True,
    subject: str | None = None,
) -> Certified:
    """A certificate for a new key, by an issuer or by itself, valid from and until so long from now."""
    pair = key_pair(folder, name)
    own = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, subject or name),
        ]
    )
    now = datetime.now(UTC)
    usage = {
        "digital_signature": signs,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": not signs,
        "key_cert_sign": ca,
        "crl_sign": ca,
        "encipher_only": False,
        "decipher_only": False,
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer.certificate.subject if issuer else own)
        .public_key(pair.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    certificate = builder.sign((issuer.pair if issuer else pair).key, hashes.SHA256())
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Certified(pair, certificate, path)


def edited(signature: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same signature file after a change of its JSON."""
    document = json.loads(signature.read_bytes())
    change(document)
    signature.write_text(json.dumps(document))
    return signature


def statement(document: dict[str, Any]) -> dict[str, Any]:
    """What a signature file says was signed."""
    return json.loads(b64decode(document["dsseEnvelope"]["payload"]))


def restate(document: dict[str, Any], changed: dict[str, Any]) -> None:
    """Put another statement into a signature file; the signature under it stays as it was."""
    document["dsseEnvelope"]["payload"] = b64encode(json.dumps(changed).encode()).decode()


def resign(document: dict[str, Any], key: ec.EllipticCurvePrivateKey) -> None:
    """Sign what a signature file states with a key on P-256, as the DSSE protocol says."""
    envelope = document["dsseEnvelope"]
    payload, kind = b64decode(envelope["payload"]), envelope["payloadType"]
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    envelope["signatures"][0]["sig"] = b64encode(key.sign(signed, ec.ECDSA(hashes.SHA256()))).decode()
