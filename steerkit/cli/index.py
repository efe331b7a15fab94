"""`steerkit index`: write an index of packs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import one_line, say


def index(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="The packs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The index to write.")],
    title: Annotated[
        str | None,
        typer.Option(help="Of the index and its catalogue page. Default: with --add, the one it has; steerkit packs."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep what the index holds; a pack of the same name is replaced.")
    ] = False,
    offline: opt.Offline = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Write an index of packs.

    Each is found, audited and described with a reference that is pinned to its digest. `steerkit search --index` and
    `steerkit catalogue` read it.
    """
    from steerkit.errors import OptionError
    from steerkit_vectors_hub.index import Index, entry_of, make_index, read_index, write_index
    from steerkit_vectors_hub.resolve import resolve

    opt.check_output(output, force=force or add)
    before = read_index(output) if add and output.exists() else Index()
    entries = {entry.name: entry for entry in before.packs}
    given: dict[str, str] = {}
    for ref in refs:
        found = resolve(ref, offline=True if offline else None)
        if found.kind == "path":
            say(f"{found.pinned} is a path: whoever reads the index elsewhere does not find the pack")
        entry = entry_of(found)
        if entry.name in given and entries[entry.name] != entry:
            raise OptionError(
                f"{given[entry.name]!r} and {ref!r} are both named {entry.name!r}",
                expected="packs of different names",
                fix="rename one of the files",
            )
        given[entry.name] = ref
        entries[entry.name] = entry
    write_index(make_index(entries.values(), title=before.title if title is None else title), output)
    typer.echo(one_line(f"Wrote {output}: {len(entries)} packs"))
