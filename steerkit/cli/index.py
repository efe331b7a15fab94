"""`steerkit index`: write an index of packs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import one_line


def index(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="The packs.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The index to write.")],
    title: Annotated[str, typer.Option(help="Of the index and its catalogue page.")] = "steerkit packs",
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
    from steerkit_vectors_hub.index import entry_of, make_index, read_index, write_index
    from steerkit_vectors_hub.resolve import resolve

    opt.check_output(output, force=force or add)
    entries = {entry.name: entry for entry in read_index(output).packs} if add and output.exists() else {}
    given: dict[str, str] = {}
    for ref in refs:
        entry = entry_of(resolve(ref, offline=True if offline else None))
        if entry.name in given and entries[entry.name] != entry:
            raise OptionError(
                f"{given[entry.name]!r} and {ref!r} are both named {entry.name!r}",
                expected="packs of different names",
                fix="rename one of the files",
            )
        given[entry.name] = ref
        entries[entry.name] = entry
    write_index(make_index(entries.values(), title=title), output)
    typer.echo(one_line(f"Wrote {output}: {len(entries)} packs"))
