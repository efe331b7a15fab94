"""`steerkit list`: the packs that are on this machine."""

from __future__ import annotations

from steerkit.cli import options as opt
from steerkit.cli.console import console, one_line, print_json


def listing(as_json: opt.AsJson = False, debug: opt.Debug = False) -> None:
    """List the packs on this machine.

    The bundled ones, and those in the cache with the reference that they came from. All of them load without a network.
    """
    from steerkit_vectors_hub.bundled import bundled_names, bundled_path
    from steerkit_vectors_hub.cache import Store

    store = Store.default()
    rows = [{"ref": name, "kind": "bundled", "file": str(bundled_path(name))} for name in bundled_names()]
    there = (record for record in store.records() if store.path(record.sha256).is_file())
    cached = {
        (record.ref, record.sha256, record.revision, record.file): record for record in there
    }  # the latest of each
    documents = [
        *rows,
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
            for record in cached.values()
        ),
    ]
    if as_json:
        print_json({"cache": str(store.root), "packs": documents})
        return
    from rich.table import Table

    table = Table()
    table.add_column("reference", overflow="fold")  # cut off, it could not be copied
    for head in ("where", "sha256", "revision", "resolved"):
        table.add_column(head, no_wrap=True)
    for each in documents:
        shown = [str(each.get(key) or "-") for key in ("ref", "kind", "sha256", "revision")]
        shown.append(str(each.get("time") or "-")[:10])  # the day: with the hour, references would be broken in two
        table.add_row(*(one_line(text[:12] if len(text) in (40, 64) else text) for text in shown))
    console().print(table if documents else f"No pack is here. The cache is {one_line(store.root)}.")
