"""`steerkit search`: find packs in an index, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import console, one_line, print_json, say
from steerkit.errors import OptionError

_FIGURES = 8
"""As many of a pack's are shown."""

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from steerkit_vectors_hub.index import Entry


def search(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]", help="All of them must occur.")] = None,
    index: Annotated[
        list[Path] | None,
        typer.Option("--index", metavar="FILE", help="An index file; repeat for more. Default: the bundled packs."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Part of the model's id, class or type.")] = None,
    method: Annotated[str | None, typer.Option(help="Name of the method.")] = None,
    metric: Annotated[str | None, typer.Option(help="Name of a figure that must have been measured.")] = None,
    hub: Annotated[
        bool, typer.Option("--hub", help="Ask the Hugging Face hub instead; WORDS and --method only.")
    ] = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Find packs.

    In index files, by default that of the bundled packs; with --hub, among the repositories of the Hugging Face hub
    that carry the tag `steerkit`.
    """
    text = " ".join(words or ())
    if hub:
        _on_the_hub(text, method, {"--index": index, "--model": model, "--metric": metric}, as_json=as_json)
        return
    from steerkit_vectors_hub.index import bundled_index, read_index
    from steerkit_vectors_hub.index import search as find

    indexes = [read_index(path) for path in index] if index else [bundled_index()]
    entries = [entry for each in indexes for entry in each.packs]
    show(find(entries, text, model=model, method=method, metric=metric), as_json=as_json)


def _on_the_hub(text: str, method: str | None, ignored: Mapping[str, object], *, as_json: bool) -> None:
    """Repositories of the hub, one a line."""
    from steerkit_vectors_hub.sources.huggingface import MOST_PUBLISHED, published

    if given := [name for name, value in ignored.items() if value]:
        raise OptionError(
            f"{' and '.join(given)} with --hub", expected="WORDS and --method, which are all that the hub can look for"
        )
    refs = [f"hf://{repo_id}" for repo_id in published(text, method)]
    if as_json:
        print_json({"packs": [{"name": ref.removeprefix("hf://"), "ref": ref} for ref in refs]})
    else:
        for ref in refs:
            typer.echo(one_line(ref))
        if not refs:
            say("No repository matches.")
    if len(refs) == MOST_PUBLISHED:
        say(f"These are {MOST_PUBLISHED}; there may be more: look for more words.")


def show(entries: Iterable[Entry], *, as_json: bool) -> None:
    """Entries of an index as a table or as JSON."""
    found = list(entries)
    if as_json:
        documents: list[dict[str, Any]] = [entry.model_dump(mode="json") for entry in found]
        print_json({"packs": documents})
        return
    from rich.table import Table

    table = Table(show_lines=True)
    for head in ("pack", "figures"):
        table.add_column(head, overflow="fold")  # cut off, a reference could not be copied
    for entry in found:
        model = entry.model.id or entry.model.architecture
        about = f"{entry.method} for {model}, {entry.license or 'no licence'}"
        pack = dict.fromkeys((entry.name, entry.ref.partition("#")[0], about))
        table.add_row(*("\n".join(map(one_line, lines)) for lines in (pack, _figures(entry))))
    console().print(table if found else "No pack matches.")


def _figures(entry: Entry) -> list[str]:
    """A line for each condition: without it, a figure of the model alone would pass for one of the pack."""
    lines: dict[str, list[str]] = {}
    for each in entry.metrics[:_FIGURES]:
        lines.setdefault(each.condition[:100], []).append(f"{each.name} {each.value:g}")
    left = len(entry.metrics) - _FIGURES
    shown = [(f"{condition}: " if condition else "") + ", ".join(figures) for condition, figures in lines.items()]
    return [*shown, *([f"and {left} more"] if left > 0 else [])]
