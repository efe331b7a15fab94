"""`steerkit hub index` and `steerkit hub catalogue`: an index of packs, and a web page made from it."""

from __future__ import annotations

from pathlib import Path

from steerkit.cli import options as opt
from steerkit.cli.console import echo, say
from steerkit.errors import OptionError


def index(
    refs: list[str],
    *,
    output: Path,
    title: str | None = None,
    add: bool = False,
    offline: bool = False,
    force: bool = False,
) -> None:
    """Write an index of packs.

    Each is found, audited and described with a reference that is pinned to its digest. `steerkit hub search --index`
    and `steerkit hub catalogue` read it.

    Args:
        refs (REF...): The packs.
        output (FILE): The index to write.
        title: Of the index and its catalogue page. Default: with --add, the one it has; steerkit packs.
        add: Keep what the index holds; a pack of the same name is replaced.
        offline: Use the cache alone. Also: STEERKIT_OFFLINE=1.
        force: Overwrite the output.
    """
    from steerkit_vectors_hub.index import Index, entry_of, make_index, read_index, write_index
    from steerkit_vectors_hub.load import check_handed_on
    from steerkit_vectors_hub.resolve import resolve

    for ref in refs:
        opt.output(output, force=force or add, REF=ref)
    before = read_index(output) if add and output.exists() else Index()
    entries = {entry.name: entry for entry in before.packs}
    given: dict[str, str] = {}
    for ref in refs:
        found = resolve(ref, offline=True if offline else None)
        if found.kind == "path":
            say(f"{found.pinned} is a path: on other machines the index will not lead to the pack")
        entry = entry_of(found)
        check_handed_on(found, offline=True if offline else None)
        if entry.name in given and entries[entry.name] != entry:
            raise OptionError(
                f"{given[entry.name]!r} and {ref!r} are both named {entry.name!r}",
                expected="packs of different names",
                fix="rename one of the files",
            )
        given[entry.name] = ref
        entries[entry.name] = entry
    write_index(make_index(entries.values(), title=before.title if title is None else title), output)
    echo(f"Wrote {output}: {len(entries)} packs")


def catalogue(
    index: Path,
    *,
    output: Path,
    force: bool = False,
) -> None:
    """Make a web page from an index.

    One HTML file that needs nothing else: packs with figures and norms, to be filtered by model, method and metric.

    Args:
        index (INDEX): The index file.
        output (FILE): The page to write.
        force: Overwrite the output.
    """
    from steerkit._internal.files import write_atomically
    from steerkit_vectors_hub.catalogue import page
    from steerkit_vectors_hub.index import read_index

    opt.output(output, force=force, INDEX=index)
    read = read_index(index)
    write_atomically(output, page(read).encode())
    echo(f"Wrote {output}: {len(read.packs)} packs")
