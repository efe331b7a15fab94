"""`steerkit pack inspect`: everything that a pack says of itself, and how large its directions are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from steerkit._text import one_line
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import bar, table

if TYPE_CHECKING:
    from steerkit.vectors.formats import RawPack

BAR = 40


def inspect(pack: opt.PackRef) -> Result:
    """Show what a pack holds, after an audit.

    Every field of its document, and the norm of its directions by layer. No model is needed.
    """
    found = pack.resolve()
    raw, metadata = opt.read_pack(found)
    tensors = _tensors(raw)
    document = {
        "file": str(found.path),
        "pinned": found.pinned,
        "bytes": len(raw.data),
        "metadata": metadata,
        "tensors": tensors,
    }
    return Result(document, _lines(found.ref, document))


def _tensors(raw: RawPack) -> list[dict[str, Any]]:
    from steerkit.interventions import site_label
    from steerkit.vectors.formats import parse_tensor_name

    found: list[dict[str, Any]] = []
    for name, info in raw.tensors.items():
        layer, site, part, tower = parse_tensor_name(name)
        stored = {"dtype": info.dtype, "shape": list(info.shape), "norms": raw.norms(name).tolist()}
        found.append({"layer": layer, "site": site_label(site, tower), "name": part, **stored})
    return sorted(found, key=lambda entry: (entry["site"], entry["name"], entry["layer"]))


def _lines(ref: str, document: dict[str, Any]) -> Iterator[Any]:
    tensors = document["tensors"]
    yield f"{ref}  {document['bytes']} bytes, {len(tensors)} directions, audit passed"
    fields = [(one_line(key), value) for key, value in _flat(document["metadata"])]
    width = max(len(key) for key, _ in fields)
    yield from (f"{key:<{width}}  {value}" for key, value in fields)
    if not tensors:
        yield "No stored directions: this vector is measured on each prompt."
        return
    largest = max(max(entry["norms"]) for entry in tensors)
    rows = []
    for entry in tensors:
        norm, count = max(entry["norms"]), len(entry["norms"])
        site = f"{entry['site']} {entry['name']}".strip() + (f" ({count} rows)" if count > 1 else "")
        rows.append((str(entry["layer"]), site, bar(norm, largest, BAR), f"{norm:.4g}"))
    options: dict[str, Any] = {"title_justify": "left", "box": None, "pad_edge": False}
    yield table(("layer", "site", "", "norm"), rows, right=(0, 3), title="Norm of the directions, by layer", **options)


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
