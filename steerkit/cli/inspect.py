"""`steerkit inspect`: everything that a pack says of itself, and how large its directions are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from steerkit.cli import options as opt
from steerkit.cli.console import console, one_line, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from steerkit.vectors.formats import RawPack

BAR = 40


def inspect(
    ref: opt.Ref,
    revision: opt.PackRevision = None,
    sha256: opt.Pin = None,
    offline: opt.Offline = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Show what a pack holds, after an audit.

    Every field of its document, and the norm of its directions by layer. No model is needed.
    """
    from steerkit.vectors import parse_metadata
    from steerkit.vectors.formats import parse_pack
    from steerkit_vectors_hub.resolve import resolve

    found = resolve(ref, revision=revision, sha256=sha256, offline=True if offline else None)
    file = str(found.path)
    raw = parse_pack(found.read(), name=found.ref)
    document = parse_metadata(raw.document, name=found.ref).model_dump(mode="json")
    tensors = _tensors(raw)
    if as_json:
        print_json(
            {"file": file, "pinned": found.pinned, "bytes": len(raw.data), "metadata": document, "tensors": tensors}
        )
        return
    out = console()
    out.print(f"{one_line(found.ref)}  {len(raw.data)} bytes, {len(tensors)} directions, audit passed", soft_wrap=True)
    out.print(_fields(document), soft_wrap=True)
    if tensors:
        out.print(_chart(tensors))
    else:
        out.print("No stored directions: this vector is measured on each prompt.")


def _tensors(raw: RawPack) -> list[dict[str, Any]]:
    from steerkit.interventions import site_label
    from steerkit.vectors.formats import parse_tensor_name

    found: list[dict[str, Any]] = []
    for name, info in raw.tensors.items():
        layer, site, part, tower = parse_tensor_name(name)
        found.append(
            {
                "layer": layer,
                "site": site_label(site, tower),
                "name": part,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "norms": raw.norms(name).tolist(),
            }
        )
    return sorted(found, key=lambda entry: (entry["site"], entry["name"], entry["layer"]))


def _fields(document: dict[str, Any]) -> str:
    rows = list(_flat(document))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{one_line(key):<{width}}  {one_line(value)}" for key, value in rows)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a document with its dotted path."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        items = [(f"{path}[{index}]", each) for index, each in enumerate(value)]
    if items:
        for key, each in items:
            yield from _flat(each, key)
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value)) or "-"
    else:
        yield path, "-" if value in (None, "", {}) else str(value)


def _chart(tensors: list[dict[str, Any]]) -> Table:
    """One bar for each direction, as long as its norm; of several rows, the longest."""
    from rich.bar import Bar
    from rich.table import Table

    table = Table(title="Norm of the directions, by layer", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("site")
    table.add_column("", width=BAR, no_wrap=True)
    table.add_column("norm", justify="right")
    largest = max(max(entry["norms"]) for entry in tensors)
    for entry in tensors:
        norm, rows = max(entry["norms"]), len(entry["norms"])
        site = f"{entry['site']} {entry['name']}".strip() + (f" ({rows} rows)" if rows > 1 else "")
        table.add_row(str(entry["layer"]), one_line(site), Bar(largest, 0, norm, width=BAR), f"{norm:.4g}")
    return table
