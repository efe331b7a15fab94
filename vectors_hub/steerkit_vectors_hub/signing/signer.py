"""Making a signature: one file beside the pack, over all of its bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerkit._internal.files import read_bounded, user_path, write_atomically
from steerkit._text import first_line
from steerkit.errors import OptionError
from steerkit.vectors import parse_metadata
from steerkit.vectors.formats import parse_pack, read_file
from steerkit_vectors_hub.errors import SigningError
from steerkit_vectors_hub.signing.bundle import parse_signature, read_signature
from steerkit_vectors_hub.signing.keys import check_curve, imported, signing_certificate
from steerkit_vectors_hub.sources.base import SIGNATURE, require_network

PASSWORD = "STEERKIT_KEY_PASSWORD"
"""Environment variable: the password of an encrypted key."""

_MAX_KEY = 2**16


def sign(
    path: str | Path,
    *,
    key: str | Path | None = None,
    certificate: str | Path | None = None,
    chain: Sequence[str | Path] = (),
    keyless: bool = False,
    password: str | None = None,
    identity_token: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Sign a pack, with a key, with a key and its certificate, or with an account through Sigstore.

    Args:
        path: The pack.
        key: Private key on P-256, P-384 or P-521, in a PEM file.
        certificate: Certificate of that key, in a PEM file.
        chain: Certificates between it and the root, in PEM files.
        keyless: Sign with an account: a token of the environment, as in CI, or a login in the browser. The account's
            name becomes public, in the certificate and in Sigstore's log.
        password: Of the key, if it is encrypted; default: STEERKIT_KEY_PASSWORD.
        identity_token: For `keyless`, an OpenID Connect token.
        overwrite: Whether a signature that is there already is replaced.

    Returns:
        The signature: the pack's name with `.sig` behind it.

    Raises:
        OptionError: None or two of the ways were chosen, or there is a signature already.
        PackFormatError: The file is not a pack.
        SigningError: A key or certificate can't be used, the login failed, or the library is not installed.
        OfflineError: `keyless` while offline.
    """
    path = user_path(path)
    key, certificate = (None if each is None else user_path(each) for each in (key, certificate))
    chain = [user_path(each) for each in chain]
    data = read_file(path)
    target = path.with_name(path.name + SIGNATURE)
    if target.exists() and not overwrite:
        raise OptionError(f"{str(target)!r} exists", expected="a pack without a signature", fix="overwrite it")
    if keyless == (key is not None) or (certificate is not None and key is None) or (chain and certificate is None):
        raise OptionError(
            "the way of signing is not clear",
            expected="a key; or a key, its certificate and its chain; or keyless",
        )
    parse_metadata(parse_pack(data, name=path.name).document, name=path.name)
    hashing, config = imported("model_signing.hashing"), imported("model_signing.signing").Config()
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False))
    if key is None:
        require_network("signing with an account")
    with tempfile.TemporaryDirectory(prefix="steerkit-") as folder:
        pack, signature = Path(folder) / path.name, Path(folder) / "made.signature"
        pack.write_bytes(data)  # the library reads a file: it gets the bytes that were audited
        try:
            if key is None:
                config.use_sigstore_signer(use_ambient_credentials=True, identity_token=identity_token)
            elif certificate is None:
                config.use_elliptic_key_signer(private_key=key, password=_checked_key(key, password))
            else:
                _check_certificate(certificate)
                _checked_key(key, None)
                links = chain or [certificate]  # the library can't do without one; the signer's own adds nothing
                config.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=links)
            config.sign(pack, signature)
        except SigningError:
            raise
        except Exception as error:  # of many libraries: the key, the login, the network
            raise SigningError(
                f"{path.name} can't be signed ({first_line(error)})",
                expected="a key and certificate that belong together" if key else "a login, and Sigstore within reach",
            ) from error
        raw = read_signature(signature)
    if parse_signature(raw).sha256 != hashlib.sha256(data).hexdigest():
        raise SigningError(f"{path.name}: the library signed another file", expected="a signature of the pack")
    write_atomically(target, raw)
    return target


def _checked_key(path: Path, password: str | None) -> Any:
    """The password of a key that can be used, as bytes; None if it is not encrypted."""
    serialization = imported("cryptography.hazmat.primitives.serialization")
    given = password or os.environ.get(PASSWORD)
    secret = given.encode() if given else None
    try:
        check_curve(serialization.load_pem_private_key(read_bounded(path, _MAX_KEY), secret))
    except TypeError as error:  # a password without need, or none where one is needed
        if secret is None:
            raise SigningError(f"the key {str(path)!r} is encrypted", expected=f"its password in {PASSWORD}") from error
        secret = None
        check_curve(serialization.load_pem_private_key(read_bounded(path, _MAX_KEY), None))
    except (OSError, ValueError) as error:
        raise SigningError(f"the key {str(path)!r} can't be used ({error})", expected="a private key in PEM") from error
    return secret


def _check_certificate(path: Path) -> None:
    x509, encoding = imported("cryptography.x509"), imported("cryptography.hazmat.primitives.serialization").Encoding
    try:
        signing_certificate(x509.load_pem_x509_certificate(read_bounded(path, _MAX_KEY)).public_bytes(encoding.DER))
    except (OSError, ValueError) as error:
        raise SigningError(
            f"the certificate {str(path)!r} can't be used ({error})", expected="a PEM certificate for signatures"
        ) from error
