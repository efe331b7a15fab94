"""`steerkit sign`: sign a pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import one_line, print_json


def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack.", show_default=False)],
    key: Annotated[
        Path | None,
        typer.Option(help="Private key, a PEM file. The password of an encrypted one is in STEERKIT_KEY_PASSWORD."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Certificate of the key, a PEM file.")] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(help="A certificate between it and the root, a PEM file. Repeat for more.")
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Sign with an account, through Sigstore. It needs a network.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a signature that is there.")] = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Sign a pack.

    The signature is one file beside it, FILE.sig, over all of its bytes, as the OpenSSF model-signing library makes it.
    With --keyless, the account that you log in with becomes public.
    """
    from steerkit_vectors_hub.signing import signer
    from steerkit_vectors_hub.signing.bundle import parse_signature, read_signature
    from steerkit_vectors_hub.signing.revocation import fingerprints

    made = signer.sign(file, key=key, certificate=certificate, chain=chain or (), keyless=keyless, overwrite=force)
    found = parse_signature(read_signature(made))
    shown = {
        "signature": str(made),
        "kind": found.kind,
        "fingerprint": fingerprints(found)[0],
        "sha256": found.sha256,
    }
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        typer.echo(one_line(f"{name:<11}  {value}"))
