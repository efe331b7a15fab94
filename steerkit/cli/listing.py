"""`steerkit hub list`: the packs that are on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steerkit.cli.command import Result
from steerkit.cli.console import table


def listing() -> Result:
    """List the packs on this machine.

    The bundled ones, and those in the cache with the reference that they came from. All of them load without a network.
    """
    from steerkit_vectors_hub.bundled import bundled_names, bundled_path
    from steerkit_vectors_hub.cache import Store

    store = Store.default()
    there = (record for record in store.records() if store.path(record.sha256).is_file())
    latest = {(record.ref, record.sha256, record.revision, record.file): record for record in there}
    packs: list[dict[str, Any]] = [
        *({"ref": name, "kind": "bundled", "file": str(bundled_path(name))} for name in bundled_names()),
        *(
            {
                "ref": record.ref,
                "kind": "cache",
                "file": str(store.path(record.sha256)),
                "sha256": record.sha256,
                "bytes": record.size,
                "revision": record.revision,
                "time": record.time,
            }
            for record in latest.values()
        ),
    ]
    return Result({"cache": str(store.root), "packs": packs}, _table(packs, str(store.root)))


def _table(packs: list[dict[str, Any]], cache: str) -> Iterator[Any]:
    if not packs:
        yield f"No pack is here. The cache is {cache}."
        return
    rows = []
    for each in packs:
        shown = [str(each.get(key) or "-") for key in ("ref", "kind", "sha256", "revision")]
        day = str(each.get("time") or "-")[:10]
        rows.append([*(text[:12] if len(text) in (40, 64) else text for text in shown), day])
    yield table(("reference", "where", "sha256", "revision", "resolved"), rows)
