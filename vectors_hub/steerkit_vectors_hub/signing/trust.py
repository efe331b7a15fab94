"""The trust file: whose signatures count, for which packs and how long, and what was revoked."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, ValidationInfo, model_validator

from steerkit._internal.faults import refused_as
from steerkit._internal.files import read_bounded, user_path
from steerkit.interventions import Frozen
from steerkit_vectors_hub.cache import place
from steerkit_vectors_hub.errors import ReferenceFormatError, TrustFileError
from steerkit_vectors_hub.refs import checked_url
from steerkit_vectors_hub.signing.keys import key_fingerprint, public_key_pem, root_pem

PLACE = "STEERKIT_TRUST"
"""Environment variable: the trust file."""

MAX_TRUST = 2**20
MAX_LIST = 2**22
MAX_ENTRIES = 50_000

ModelT = TypeVar("ModelT", bound=Frozen)


def _moment(value: object) -> object:
    """A TOML date means its first moment, in UTC."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        raise ValueError("give a date or a time of TOML, such as 2030-12-31 or 2030-12-31T12:00:00Z")
    return value


def _fingerprint(value: object) -> object:
    return value.replace(":", "").lower() if isinstance(value, str) else value


def _pem(value: str, info: ValidationInfo) -> str:
    """PEM text as it is, or the text of the file that is named, relative to the trust file."""
    if value.lstrip().startswith("-----BEGIN"):
        return value
    path = _relative(value, info)
    try:
        return read_bounded(path, MAX_TRUST).decode("ascii")
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} can't be read ({error}): give PEM text, or the path of a PEM file") from error


def _list(value: str, info: ValidationInfo) -> str:
    """A web address, or a path relative to the trust file."""
    if "://" not in value:
        return _absolute(value, info)
    try:
        return checked_url(value)
    except ReferenceFormatError as error:
        raise ValueError(error.problem) from error


def _relative(value: str, info: ValidationInfo) -> Path:
    try:
        path = Path(value).expanduser()  # refused, not relative, where there is no such home
    except RuntimeError as error:
        raise ValueError(f"{value!r:.300} names a home folder that can't be found ({error})") from error
    return ((info.context or {}).get("folder") or Path()) / path


def _absolute(value: str, info: ValidationInfo) -> str:
    return str(_relative(value, info).absolute())


Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Fingerprint = Annotated[str, BeforeValidator(_fingerprint), Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
PublicKey = Annotated[str, AfterValidator(_pem), AfterValidator(public_key_pem)]
Root = Annotated[str, AfterValidator(_pem), AfterValidator(root_pem)]


class CertificateRule(Frozen):
    """Which certificates stand for a signer.

    Attributes:
        root: The roots that issued them, directly or not: PEM, or the path of a PEM file.
        subject: Of the signing certificate, as RFC 4514 writes it: `CN=packs,O=Example`.
        fingerprint: sha256 of the signing certificate.
    """

    root: Root
    subject: Text | None = None
    fingerprint: Fingerprint | None = None

    @model_validator(mode="after")
    def _is_someone(self) -> CertificateRule:
        if self.subject is None and self.fingerprint is None:
            raise ValueError("give subject or fingerprint: a root alone trusts everybody whom it certifies")
        return self


class KeylessRule(Frozen):
    """Which account stands for a signer, by Sigstore.

    Attributes:
        identity: The account: an e-mail address, or the URL of a workflow.
        issuer: The URL of the OpenID Connect provider that authenticates it.
        trust_config: Path of a Sigstore client trust configuration; default: the public instance's, over the network.
    """

    identity: Text
    issuer: Text
    trust_config: Annotated[str, AfterValidator(_absolute)] | None = None


class Signer(Frozen):
    """Somebody whose signature counts: by a key, by a certificate, or by an account.

    Attributes:
        name: For messages.
        key: Public key, elliptic curve: PEM, or the path of a PEM file.
        certificate: See `CertificateRule`.
        keyless: See `KeylessRule`.
        refs: Patterns of the references that they sign for, such as `hf://owner/*`; empty: all.
        not_before: When their signatures begin to count.
        expires: When they no longer do.
    """

    name: Name
    key: PublicKey | None = None
    certificate: CertificateRule | None = None
    keyless: KeylessRule | None = None
    refs: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    not_before: Moment | None = None
    expires: Moment | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Signer:
        if sum(each is not None for each in (self.key, self.certificate, self.keyless)) != 1:
            raise ValueError("give exactly one of key, certificate and keyless")
        if self.not_before is not None and self.expires is not None and self.not_before >= self.expires:
            raise ValueError("not_before must be earlier than expires: no signature would ever count")
        return self

    @property
    def fingerprint(self) -> str | None:
        """Of the key, where there is one."""
        return key_fingerprint(self.key) if self.key else None


class RevokedPack(Frozen):
    """A pack that must not be used any more, whoever signed it."""

    sha256: Fingerprint
    reason: Text
    date: Moment | None = None


class RevokedKey(Frozen):
    """A key or certificate whose signatures, all of them, count no more."""

    fingerprint: Fingerprint
    reason: Text
    date: Moment | None = None


class Revoked(Frozen):
    """What was revoked."""

    packs: Annotated[tuple[RevokedPack, ...], Field(max_length=MAX_ENTRIES)] = ()
    keys: Annotated[tuple[RevokedKey, ...], Field(max_length=MAX_ENTRIES)] = ()


class RevocationList(Revoked):
    """A file of what was revoked.

    Attributes:
        updated: When it was last changed; must rise whenever it is.
        expires: When there will be a newer one, so that a list that is held back is noticed.
    """

    updated: Moment
    expires: Moment | None = None


class TrustFile(Frozen):
    """Whose signatures count.

    Attributes:
        signers: The people.
        require_signature: Whether a pack without a signature by one of them is refused.
        revocations: Revocation lists: paths and https addresses.
        revoked: Entries of one's own.
    """

    signers: Annotated[tuple[Signer, ...], Field(max_length=1000)] = ()
    require_signature: bool = False
    revocations: Annotated[tuple[Annotated[Text, AfterValidator(_list)], ...], Field(max_length=20)] = ()
    revoked: Revoked = Revoked()


def trust_path() -> Path:
    """`$STEERKIT_TRUST`, or `steerkit/trust.toml` in the user's configuration folder.

    Raises:
        TrustFileError: It names a home folder that does not exist.
    """
    return place(PLACE, "XDG_CONFIG_HOME", "~/.config", "steerkit/trust.toml", TrustFileError)


def default_trust() -> TrustFile:
    """The user's trust file; an empty one where it does not exist, unless STEERKIT_TRUST names it.

    Raises:
        TrustFileError: It is malformed, can't be read, or is missing where STEERKIT_TRUST says it is.
    """
    path = trust_path()
    try:
        path.lstat()  # not what a link leads to: one that leads nowhere is no reason to trust everybody
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError:  # a folder that may not be looked into: whether it is there is said by reading it
        there = True
    return read_trust(path) if os.environ.get(PLACE) or there else TrustFile()


def read_trust(path: str | Path) -> TrustFile:
    """Read a trust file.

    Raises:
        TrustFileError: It is missing or malformed; the message names the field.
        SigningError: It names keys, and what reads them is not installed.
    """
    path = user_path(path)
    return parsed(TrustFile, bounded(path, MAX_TRUST), str(path), folder=path.absolute().parent)


def bounded(path: Path, limit: int) -> bytes:
    """A file of text, at most so long.

    Raises:
        TrustFileError: It can't be read, or is longer.
    """
    with refused_as(TrustFileError, f"{str(path)!r:.300}", expected="a short TOML file"):
        return read_bounded(path, limit)


def parsed(kind: type[ModelT], data: bytes, name: str, *, folder: Path | None = None) -> ModelT:
    """A model from TOML.

    Raises:
        TrustFileError: The line, or the field, that is wrong.
    """
    try:
        document: Mapping[str, Any] = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise TrustFileError(f"{name} is not TOML ({error})", expected="TOML in UTF-8") from error
    expected = "the fields of a trust file or a revocation list"
    with refused_as(TrustFileError, name, expected=expected, fix="correct the field; docs/signing.md shows every one"):
        return kind.model_validate(document, context={"folder": folder})
