"""`steerkit hub search`: find packs in an index, or on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.cli.command import Result
from steerkit.cli.console import say, table
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit_vectors_hub.index import Entry

_FIGURES = 8
"""As many of a pack's are shown."""


def search(
    words: list[str] | None = None,
    *,
    index: list[Path] | None = None,
    model: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    hub: bool = False,
) -> Result:
    """Find packs.

    In index files, by default that of the bundled packs; with --hub, among the repositories of the Hugging Face hub
    that carry the tag `steerkit`.

    Args:
        words ([WORDS]): All of them must occur.
        index (FILE): An index file. Default: the bundled packs.
        model: Part of the model's id, class or type.
        method: Name of the method.
        metric: Name of a figure that must have been measured.
        hub: Ask the Hugging Face hub instead; WORDS and --method only.
    """
    text = " ".join(words or ())
    if hub:
        return _on_the_hub(text, method, {"--index": index, "--model": model, "--metric": metric})
    from steerkit_vectors_hub.index import bundled_index, read_index, search as find

    indexes = [read_index(path) for path in index] if index else [bundled_index()]
    entries = [entry for each in indexes for entry in each.packs]
    found = find(entries, text, model=model, method=method, metric=metric)
    return Result({"packs": [entry.model_dump(mode="json") for entry in found]}, _table(found))


def _on_the_hub(text: str, method: str | None, ignored: dict[str, Any]) -> Result:
    from steerkit_vectors_hub.sources.huggingface import MOST_PUBLISHED, published

    if given := [name for name, value in ignored.items() if value]:
        raise OptionError(
            f"{' and '.join(given)} with --hub", expected="WORDS and --method, which are all that the hub can look for"
        )
    refs = [f"hf://{repo_id}" for repo_id in published(text, method)]
    if not refs:
        say("No repository matches.")
    if len(refs) == MOST_PUBLISHED:
        say(f"These are {MOST_PUBLISHED}; there may be more: look for more words.")
    return Result({"packs": [{"name": ref.removeprefix("hf://"), "ref": ref} for ref in refs]}, refs)


def _table(found: Sequence[Entry]) -> Iterator[Any]:
    rows = []
    for entry in found:
        about = f"{entry.method} for {entry.model.id or entry.model.architecture}, {entry.license or 'no licence'}"
        pack = dict.fromkeys((entry.name, entry.ref.partition("#")[0], about))
        rows.append(("\n".join(pack), "\n".join(_figures(entry))))
    yield table(("pack", "figures"), rows, show_lines=True) if rows else "No pack matches."


def _figures(entry: Entry) -> list[str]:
    """A line for each condition: without it, a figure of the model alone would pass for one of the pack."""
    lines: dict[str, list[str]] = {}
    for each in entry.metrics[:_FIGURES]:
        lines.setdefault(each.condition[:100], []).append(f"{each.name} {each.value:g}")
    left = len(entry.metrics) - _FIGURES
    shown = [(f"{condition}: " if condition else "") + ", ".join(figures) for condition, figures in lines.items()]
    return [*shown, *([f"and {left} more"] if left > 0 else [])]
