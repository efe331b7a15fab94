"""What a signature file says, read strictly: one pack, one signature, no field that another reader might see.

The file is a Sigstore bundle as the OpenSSF `model-signing` library writes it for a single file. That library verifies
it. It also accepts more than belongs to one pack, such as several files, left-out paths and older forms; that is
refused here. Nothing in this module says that a signature is valid.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from steerkit._internal.faults import refused_as
from steerkit._internal.files import read_bounded
from steerkit._internal.json import json_object
from steerkit_vectors_hub.errors import SignatureFormatError
from steerkit_vectors_hub.sources.base import MAX_SIGNATURE

MAX_CERTIFICATES = 10
"""In the chain that a bundle carries."""

_EXPECTED = "a signature of one pack, as `steerkit pack sign` or model-signing makes it"
_FIX = "get the signature again from the publisher, or sign the pack again"

PartT = TypeVar("PartT", bound=BaseModel)
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Base64 = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SIGNATURE)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Key(_Part):
    hint: Hex


class _Certificate(_Part):
    raw: Base64 = Field(alias="rawBytes")


class _Chain(_Part):
    certificates: list[_Certificate] = Field(min_length=1, max_length=MAX_CERTIFICATES)


class _Material(_Part):
    key: _Key | None = Field(None, alias="publicKey")
    chain: _Chain | None = Field(None, alias="x509CertificateChain")
    certificate: _Certificate | None = None
    log_entries: list[dict[str, Any]] = Field(alias="tlogEntries", max_length=10)
    timestamps: dict[str, Any] | None = Field(None, alias="timestampVerificationData")


class _Signed(_Part):
    sig: Base64
    keyid: Literal["", None] = ""


class _Envelope(_Part):
    payload: Base64
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: list[_Signed] = Field(min_length=1, max_length=1)


class _Bundle(_Part):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    material: _Material = Field(alias="verificationMaterial")
    envelope: _Envelope = Field(alias="dsseEnvelope")


class _Digest(_Part):
    sha256: Hex


class _Subject(_Part):
    name: str = Field(max_length=1000)
    digest: _Digest


class _Resource(_Part):
    name: Literal["."]
    algorithm: Literal["sha256"]
    digest: Hex


class _Serialization(_Part):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool = False
    ignore_paths: list[str] = []


class _Predicate(_Part):
    serialization: _Serialization
    resources: list[_Resource] = Field(min_length=1, max_length=1)


class _Statement(_Part):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_Subject] = Field(min_length=1, max_length=1)
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class SignatureFile:
    """What a signature file claims. Only the library can say whether it is true.

    Attributes:
        raw: The file.
        kind: `key`; `certificate`; `keyless`, by Sigstore.
        sha256: Digest of the pack that was signed.
        signed_as: Name that the pack had then; it is only informative.
        key: Fingerprint of the key: sha256 of its PEM file; None for the other kinds.
        certificates: In DER, the signer's first; empty for a key.
    """

    raw: bytes
    kind: Literal["key", "certificate", "keyless"]
    sha256: str
    signed_as: str
    key: str | None
    certificates: tuple[bytes, ...]


def parse_signature(raw: bytes) -> SignatureFile:
    """Read the signature of one pack.

    Raises:
        SignatureFormatError: It is something else; the message names the field.
    """
    if len(raw) > MAX_SIGNATURE:
        raise _refused(f"it has more than {MAX_SIGNATURE} bytes")
    bundle = _validated(_Bundle, raw, "the signature")
    statement = _validated(_Statement, _decoded(bundle.envelope.payload, "payload"), "what was signed")
    resource, subject = statement.predicate.resources[0], statement.subject[0]
    if hashlib.sha256(bytes.fromhex(resource.digest)).hexdigest() != subject.digest.sha256:
        raise _refused("its subject is another file than its resource")
    _decoded(bundle.envelope.signatures[0].sig, "sig")
    material = bundle.material
    given = [part for part in (material.key, material.chain, material.certificate) if part is not None]
    if len(given) != 1:
        raise _refused(f"it names {len(given)} keys and certificates, not one")
    if material.certificate is None and (material.log_entries or material.timestamps):
        raise _refused("it has log entries and is not keyless")
    chain = material.chain.certificates if material.chain else [material.certificate] if material.certificate else []
    return SignatureFile(
        raw=raw,
        kind="key" if material.key else "certificate" if material.chain else "keyless",
        sha256=resource.digest,
        signed_as=subject.name,
        key=material.key.hint if material.key else None,
        certificates=tuple(_decoded(each.raw, "rawBytes") for each in chain),
    )


def read_signature(path: Path) -> bytes:
    """The bytes of a signature file, read once and bounded.

    Raises:
        SignatureFormatError: It can't be read, or is too large.
    """
    with refused_as(SignatureFormatError, f"{str(path)!r:.300}", expected=_EXPECTED, fix=_FIX):
        return read_bounded(path, MAX_SIGNATURE)


def _validated(kind: type[PartT], raw: bytes, what: str) -> PartT:
    with refused_as(SignatureFormatError, what, expected=_EXPECTED, fix=_FIX):
        return kind.model_validate(json_object(raw, what, error=SignatureFormatError, fix=_FIX))


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _refused(f"{field} is not base64 ({error})") from error


def _refused(problem: str) -> SignatureFormatError:
    return SignatureFormatError(problem, expected=_EXPECTED, fix=_FIX)
