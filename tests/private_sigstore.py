"""A Sigstore instance in memory: certificate authority, certificate log and signature log, for keyless signatures.

It does offline what the services of a private instance do: certifies a key for an account, with a timestamp of the
certificate log, and enters a signature into a log of one entry. What verifies it is the real client.
"""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from signers import KeyPair

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_TIMESTAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_VALID = timedelta(minutes=10)


class PrivateSigstore:
    """An instance that trusts nobody but itself."""

    def __init__(self) -> None:
        self._authority, self._certificates, self._log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self._born = datetime.now(UTC) - timedelta(days=1)
        self._root = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._authority.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._born)
            .not_valid_after(self._born + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._authority.public_key()), critical=False)
            .sign(self._authority, hashes.SHA256())
        )

    def trust_config(self, path: Path, template: dict[str, Any]) -> Path:
        """Write what a client must know of this instance; `template` is that of another, for its signing services."""
        since = {"start": self._born.strftime("%Y-%m-%dT%H:%M:%SZ")}
        root = {
            "mediaType": template["trustedRoot"]["mediaType"],
            "tlogs": [_log_entry(self._log, since)],
            "ctlogs": [_log_entry(self._certificates, since)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "private", "commonName": "authority"},
                    "uri": "https://authority.example",
                    "certChain": {"certificates": [{"rawBytes": _text(_der(self._root))}]},
                    "validFor": since,
                }
            ],
            "timestampAuthorities": [],
        }
        path.write_text(json.dumps({**template, "trustedRoot": root}))
        return path

    def endorse(self, document: dict[str, Any], pair: KeyPair, account: str, issuer: str) -> None:
        """Turn a signature by a key into one by an account: certify the key, and log the signature."""
        certificate = self._certify(pair, account, issuer)
        document["verificationMaterial"] = {
            "certificate": {"rawBytes": _text(_der(certificate))},
            "tlogEntries": [self._logged(document["dsseEnvelope"], certificate)],
            "timestampVerificationData": {"rfc3161Timestamps": []},
        }

    def _certify(self, pair: KeyPair, account: str, issuer: str) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(pair.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + _VALID)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(account)]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.public_key()), critical=False
            )
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
        )

        def with_timestamp(timestamp: bytes) -> x509.Certificate:
            extension = x509.UnrecognizedExtension(_TIMESTAMPS, timestamp)
            return builder.add_extension(extension, critical=False).sign(self._authority, hashes.SHA256())

        body = with_timestamp(self._timestamp(b"", now)).tbs_precertificate_bytes  # the same without the timestamp
        return with_timestamp(self._timestamp(body, now))

    def _timestamp(self, body: bytes, now: datetime) -> bytes:
        """The certificate log's promise, as RFC 6962 lays it out, as an extension's value."""
        milliseconds = int(now.timestamp()) * 1000
        issuer = hashlib.sha256(_spki(self._authority)).digest()
        entry = issuer + len(body).to_bytes(3, "big") + body
        signed = struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + struct.pack("!H", 0)
        signature = self._certificates.sign(signed, ec.ECDSA(hashes.SHA256()))
        identity = hashlib.sha256(_spki(self._certificates)).digest()
        promise = struct.pack("!B32sQHBBH", 0, identity, milliseconds, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(promise) + 2, len(promise)) + promise
        length = bytes([len(listed)]) if len(listed) < 128 else bytes([0x81, len(listed)])
        return b"\x04" + length + listed

    def _logged(self, envelope: dict[str, Any], certificate: x509.Certificate) -> dict[str, Any]:
        """The entry of a signature in the log, with the proofs that it is there."""
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        root = {
            "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
            "payloadHash": {
                "algorithm": "sha256",
                "value": hashlib.sha256(b64decode(envelope["payload"])).hexdigest(),
            },
            "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": _text(pem)}],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": root}).encode()
        identity, time = hashlib.sha256(_spki(self._log)).digest(), int(datetime.now(UTC).timestamp())
        promised = {"body": _text(body), "integratedTime": time, "logID": identity.hex(), "logIndex": 0}
        canonical = json.dumps(promised, separators=(",", ":"), sort_keys=True).encode()
        leaf = hashlib.sha256(b"\0" + body).digest()  # of a tree of one leaf, the root
        note = f"log.example\n1\n{_text(leaf)}\n"
        signed = _text(identity[:4] + self._log.sign(note.encode(), ec.ECDSA(hashes.SHA256())))
        return {
            "logIndex": "0",
            "logId": {"keyId": _text(identity)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(time),
            "inclusionPromise": {"signedEntryTimestamp": _text(self._log.sign(canonical, ec.ECDSA(hashes.SHA256())))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _text(leaf),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 log.example {signed}\n"},
            },
            "canonicalizedBody": _text(body),
        }


def _usage(**granted: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def _log_entry(key: ec.EllipticCurvePrivateKey, since: dict[str, str]) -> dict[str, Any]:
    return {
        "baseUrl": "https://log.example",
        "hashAlgorithm": "SHA2_256",
        "publicKey": {"rawBytes": _text(_spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since},
        "logId": {"keyId": _text(hashlib.sha256(_spki(key)).digest())},
    }


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _text(data: bytes) -> str:
    return b64encode(data).decode()
