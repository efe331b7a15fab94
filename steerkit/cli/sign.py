"""`steerkit pack sign`: sign a pack."""

from __future__ import annotations

from pathlib import Path

from steerkit.cli.command import Result


def sign(
    file: Path,
    *,
    key: Path | None = None,
    certificate: Path | None = None,
    chain: list[Path] | None = None,
    keyless: bool = False,
    force: bool = False,
) -> Result:
    """Sign a pack.

    The signature is one file beside it, FILE.sig, over all of its bytes, as the OpenSSF model-signing library makes it.
    With --keyless, the account that you log in with becomes public.

    Args:
        file (FILE): The pack.
        key: Private key, a PEM file. The password of an encrypted one is in STEERKIT_KEY_PASSWORD.
        certificate: Certificate of the key, a PEM file.
        chain: A certificate between it and the root, a PEM file.
        keyless: Sign with an account, through Sigstore. It needs a network.
        force: Overwrite the output.
    """
    from steerkit_vectors_hub.load import check_handed_on
    from steerkit_vectors_hub.resolve import resolve
    from steerkit_vectors_hub.signing import signer
    from steerkit_vectors_hub.signing.bundle import parse_signature, read_signature
    from steerkit_vectors_hub.signing.revocation import fingerprints

    if file.is_file():  # what else it is, the signer refuses
        check_handed_on(resolve(str(file.absolute())))
    made = signer.sign(file, key=key, certificate=certificate, chain=chain or (), keyless=keyless, overwrite=force)
    found = parse_signature(read_signature(made))
    document = {
        "signature": str(made),
        "kind": found.kind,
        "fingerprint": fingerprints(found)[0],
        "sha256": found.sha256,
    }
    return Result(document, [f"{name:<11}  {value}" for name, value in document.items()])
