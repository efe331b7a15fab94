"""`steerkit diff`: what differs between two packs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli.console import clean, console, one_line, print_json
from steerkit.cli.options import AsJson, Debug, Offline

if TYPE_CHECKING:
    from rich.table import Table

    from steerkit_vectors_hub.compare import Comparison

WIDTH = 300


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A pack: what `steerkit info` takes.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another pack.", show_default=False)],
    offline: Offline = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what differs between two packs.

    Cosine and norms of their directions by layer, their interventions and every other field of their documents. Exit
    code 0, whether they differ or not.
    """
    from steerkit.vectors import parse_metadata
    from steerkit.vectors.formats import parse_pack
    from steerkit_vectors_hub.compare import compare
    from steerkit_vectors_hub.resolve import resolve

    files = [resolve(ref, offline=True if offline else None) for ref in (first, second)]
    packs = [parse_pack(file.read(), name=file.ref) for file in files]
    for file, pack in zip(files, packs, strict=True):
        pack.document.update(parse_metadata(pack.document, name=file.ref).model_dump(mode="json"))
    found = compare(*packs)
    if as_json:
        print_json({"a": first, "b": second, "same": found.same, **_plain(asdict(found))})
        return
    _show(found)


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(document))


def _show(found: Comparison) -> None:
    out = console()
    if found.same:
        out.print("The packs are the same: every direction, intervention and field.")
        return
    out.print("Directions: " + ("the same, bit for bit" if found.same_tensors else "they differ"), style="bold")
    if not found.same_tensors:
        out.print(_table(found))
    for title, differences in (("Interventions", found.interventions), ("Other fields", found.fields)):
        out.print(f"{title}: " + (f"{len(differences)} differences" if differences else "the same"), style="bold")
        for each in differences:
            mine, theirs = (clean(json.dumps(value, ensure_ascii=False))[:WIDTH] for value in each.values)
            out.print(f"{one_line(each.field)}\n  A {mine}\n  B {theirs}", soft_wrap=True)


def _table(found: Comparison) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    table.add_column("site")
    for title in ("norm A", "norm B", "cosine", "change"):
        table.add_column(title, justify="right")
    for each in found.directions:
        numbers = [_number(value) for value in (*each.norms, each.cosine, each.relative_change)]
        table.add_row(str(each.layer), clean(f"{each.site} {each.name}".strip()), *numbers)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
