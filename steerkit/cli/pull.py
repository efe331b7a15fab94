"""`steerkit pull`: get a pack from wherever it is, into the cache or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import one_line, print_json, say

if TYPE_CHECKING:
    from steerkit_vectors_hub.resolve import Resolved


def pull(
    ref: opt.Ref,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a copy here, for use without the cache."),
    ] = None,
    revision: opt.PackRevision = None,
    sha256: opt.Pin = None,
    offline: opt.Offline = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Get a pack by reference.

    It is transferred if it is not in the cache yet, hashed and audited. The line `pinned` is a reference to exactly
    this file, for ever: use it where the pack is loaded. A signature that lies beside it comes along, unjudged.
    """
    from steerkit._internal.files import write_atomically
    from steerkit.vectors import parse_metadata
    from steerkit.vectors.formats import parse_pack
    from steerkit_vectors_hub.resolve import resolve
    from steerkit_vectors_hub.signing.bundle import read_signature
    from steerkit_vectors_hub.sources.base import SIGNATURE

    beside = None
    if output is not None:
        opt.check_output(output, force=force)
        beside = output.with_name(output.name + SIGNATURE)
        opt.check_output(beside, force=force)  # the signature of what was there before would be replaced or removed
    found = resolve(ref, revision=revision, sha256=sha256, offline=True if offline else None)
    data = found.read()
    parse_metadata(parse_pack(data, name=found.ref).document, name=found.ref)
    if output is not None and beside is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        signature = None if found.signature is None else read_signature(found.signature)
        write_atomically(output, data)
        if signature is None:
            beside.unlink(missing_ok=True)  # of what was there before
        else:
            write_atomically(beside, signature)
    shown = describe(found, output)
    if as_json:
        print_json(shown)
        return
    for key in ("file", "sha256", "revision", "pinned"):
        if shown[key] is not None:
            typer.echo(one_line(f"{key:<8}  {shown[key]}"))
    signed = "" if found.signature is None else " A signature came with it and was not verified."
    say(("Transferred and audited." if found.transferred else "Already on this machine; audited.") + signed)


def describe(found: Resolved, output: Path | None = None) -> dict[str, Any]:
    """What is printed of a pack that was found."""
    from steerkit_vectors_hub.sources.base import SIGNATURE

    return {
        "ref": found.ref,
        "kind": found.kind,
        "file": str(output or found.path),
        "signature": None if found.signature is None else str(f"{output}{SIGNATURE}" if output else found.signature),
        "sha256": found.sha256,
        "bytes": found.size,
        "revision": found.revision,
        "pinned": found.pinned,
        "transferred": found.transferred,
    }
