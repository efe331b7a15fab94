"""`steerkit pack diff`: what differs between two packs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import table

if TYPE_CHECKING:
    from steerkit_vectors_hub.compare import Comparison

WIDTH = 300


def diff(
    first: str,
    second: str,
    *,
    offline: bool = False,
) -> Result:
    """Show what differs between two packs.

    Cosine and norms of their directions by layer, their interventions and every other field of their documents. Exit
    code 0, whether they differ or not.

    Args:
        first (A): A pack: what `steerkit pull` takes.
        second (B): Another pack.
        offline: Use the cache alone. Also: STEERKIT_OFFLINE=1.
    """
    from steerkit_vectors_hub.compare import compare

    packs = []
    for ref in (first, second):
        raw, document = opt.read_pack(opt.PackRef(ref, offline=offline).resolve())
        raw.document.update(document)
        packs.append(raw)
    found = compare(*packs)
    return Result({"a": first, "b": second, "same": found.same, **asdict(found)}, _lines(found))


def _lines(found: Comparison) -> Iterator[Any]:
    if found.same:
        yield "The packs are the same: every direction, intervention and field."
        return
    yield "Directions: " + ("the same, bit for bit" if found.same_tensors else "they differ")
    if not found.same_tensors:
        heads = ("layer", "site", "norm A", "norm B", "cosine", "change")
        rows = []
        for each in found.directions:
            measured = (*each.norms, each.cosine, each.relative_change)
            numbers = ["-" if value is None else f"{value:.4g}" for value in measured]
            rows.append((str(each.layer), f"{each.site} {each.name}".strip(), *numbers))
        yield table(heads, rows, right=(0, 2, 3, 4, 5), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, differences in (("Interventions", found.interventions), ("Other fields", found.fields)):
        yield f"{title}: " + (f"{len(differences)} differences" if differences else "the same")
        for each in differences:
            mine, theirs = (json.dumps(value, ensure_ascii=False)[:WIDTH] for value in each.values)
            yield from (each.field, f"  A {mine}", f"  B {theirs}")
