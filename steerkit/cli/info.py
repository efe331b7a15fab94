"""`steerkit hub info`: where a pack comes from and what it is, by reference."""

from __future__ import annotations

from typing import Any

from steerkit._text import one_line
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.pull import describe


def info(pack: opt.PackRef) -> Result:
    """Show what a pack is, by reference.

    Where it comes from, its digest, and what its makers say of it; `steerkit pack inspect` shows every field of the
    file.
    """
    from steerkit_vectors_hub.index import entry_of

    found = pack.resolve()
    entry = entry_of(found)
    spans = [f"{each.title}: layers {each.layers[0]} to {each.layers[-1]}" for each in entry.norms]
    rows: list[tuple[str, Any]] = [
        ("name", entry.name),
        ("description", entry.description),
        ("method", entry.method),
        ("model", f"{entry.model.id or '-'} ({entry.model.architecture})"),
        ("revision of it", entry.model.revision),
        ("directions", "; ".join(spans) or "measured on each prompt"),
        ("strength", f"{entry.strength:g}"),
        ("licence", entry.license),
        ("authors", ", ".join(entry.authors)),
        ("created", entry.created),
        *((f"figure {one_line(each.name):.40}", f"{each.value:g} {each.condition}".strip()) for each in entry.metrics),
        ("file", found.path),
        ("revision", found.revision),
        ("pinned", found.pinned),
    ]
    width = max(len(key) for key, _ in rows)
    return Result(
        {**describe(found), "pack": entry.model_dump(mode="json")},
        [f"{key:<{width}}  {value or '-'}" for key, value in rows],
    )
