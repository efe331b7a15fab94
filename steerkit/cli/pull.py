"""`steerkit pull`: get a pack from wherever it is, into the cache or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import say

if TYPE_CHECKING:
    from steerkit_vectors_hub.resolve import Resolved


def pull(
    pack: opt.PackRef,
    *,
    output: Path | None = None,
    force: bool = False,
) -> Result:
    """Get a pack by reference.

    It is transferred if it is not in the cache yet, hashed and audited. The line `pinned` is a reference to exactly
    this file, for ever: use it where the pack is loaded. A signature that lies beside it comes along, unjudged; a pack
    that was revoked is refused.

    Args:
        pack: The pack.
        output (FILE): Write a copy here, for use without the cache.
        force: Overwrite the output.
    """
    from steerkit_vectors_hub.load import check_handed_on
    from steerkit_vectors_hub.sources.base import SIGNATURE

    beside = None
    if output is not None:
        opt.output(output, force=force, REF=pack.ref)
        beside = output.with_name(output.name + SIGNATURE)
        opt.output(beside, force=force)  # the signature of what was there before would be replaced or removed
    found = pack.resolve()
    opt.read_pack(found)
    check_handed_on(found, offline=True if pack.offline else None)
    if output is not None and beside is not None:
        _copy(found, output, beside)
    document = describe(found, output, beside)
    signed = "" if found.signature is None else " A signature came with it and was not verified."
    say(("Transferred and audited." if found.transferred else "Already on this machine; audited.") + signed)
    rows = ((key, document[key]) for key in ("file", "sha256", "revision", "pinned"))
    return Result(document, [f"{key:<8}  {value}" for key, value in rows if value is not None])


def _copy(found: Resolved, output: Path, beside: Path) -> None:
    from steerkit._internal.files import write_atomically
    from steerkit_vectors_hub.signing.bundle import read_signature

    signature = None if found.signature is None else read_signature(found.signature)
    write_atomically(output, found.read())
    if signature is None:
        beside.unlink(missing_ok=True)  # of what was there before
    else:
        write_atomically(beside, signature)


def describe(found: Resolved, output: Path | None = None, beside: Path | None = None) -> dict[str, Any]:
    """What is printed of a pack that was found, or was copied to an output."""
    signature = None if found.signature is None else str(beside or found.signature)
    return {
        "ref": found.ref,
        "kind": found.kind,
        "file": str(output or found.path),
        "signature": signature,
        "sha256": found.sha256,
        "bytes": found.size,
        "revision": found.revision,
        "pinned": found.pinned,
        "transferred": found.transferred,
    }
