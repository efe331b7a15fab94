"""An index of packs: what search, the catalogue page and the bundled packs are made from.

It is one JSON file; `schema/index-v1.json` is its JSON Schema, made from the models below and checked in, so that
others can write and check an index without this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steerkit._internal.faults import refused_as
from steerkit._internal.files import read_bounded, write_atomically
from steerkit._internal.json import json_object
from steerkit._text import one_line
from steerkit.interventions import Frozen
from steerkit.vectors import Line, Metric, PackMetadata, Sha256, Text, parse_metadata
from steerkit.vectors.formats import RawPack, parse_pack
from steerkit_vectors_hub.bundled import FOLDER, INDEX
from steerkit_vectors_hub.errors import IndexFormatError
from steerkit_vectors_hub.plots import NormSeries, norm_series
from steerkit_vectors_hub.resolve import Resolved

MAX_INDEX = 2**26
"""Bytes; a larger file is not read."""

MAX_VALUES = 2**23

SCHEMA = Path(__file__).parent / "schema" / "index-v1.json"

Short = Annotated[str, Field(max_length=500)]


class IndexedModel(Frozen):
    """The model that a pack is for; see `steerkit.vectors.ModelRecord`."""

    id: Text = ""
    revision: Line | None = None
    architecture: Short
    model_type: Short
    hidden_size: Annotated[int, Field(gt=0)]
    layer_count: Annotated[int, Field(gt=0)]


class Entry(Frozen):
    """One pack.

    Attributes:
        name: What people call it: its repository, its file or the name it is bundled under.
        ref: The reference that loads exactly this pack.
        sha256: Digest of the file.
        size: Its bytes.
        norms: Of its directions.
    """

    name: Annotated[str, Field(min_length=1, max_length=500)]
    ref: Annotated[str, Field(min_length=1, max_length=2000)]
    sha256: Sha256
    size: Annotated[int, Field(gt=0)]
    method: Short
    paper: Text = ""
    model: IndexedModel
    license: Line | None = None
    authors: tuple[Line, ...] = ()
    description: Text = ""
    created: Line | None = None
    strength: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    metrics: tuple[Metric, ...] = ()
    norms: tuple[NormSeries, ...] = ()


class Index(Frozen):
    """The whole file."""

    index_version: Literal[1] = 1
    title: Short = "steerkit packs"
    generated: Short | None = None
    packs: Annotated[tuple[Entry, ...], Field(max_length=100_000)] = ()


def entry_of(resolved: Resolved, *, name: str | None = None) -> Entry:
    """What an index says of a pack, after its audit.

    Raises:
        PackFormatError: It is not a pack.
        IndexFormatError: It is one that an index can't hold, such as one with a path of thousands of characters.
    """
    shown = one_line(resolved.ref)
    raw = parse_pack(resolved.read(), name=shown)
    metadata = parse_metadata(raw.document, name=shown)
    bounds, fix = "a pack within the bounds of an index", "`steerkit pack inspect` shows its fields"
    with refused_as(IndexFormatError, f"{shown:.300}", expected=bounds, fix=fix, wrong="can't be described"):
        return _entry(resolved, raw, metadata, name or _name(resolved))


def _entry(resolved: Resolved, raw: RawPack, metadata: PackMetadata, name: str) -> Entry:
    model = metadata.model
    fields = dict(
        name=name,
        ref=resolved.pinned,
        sha256=resolved.sha256,
        size=resolved.size,
        method=metadata.method.name,
        paper=metadata.method.paper,
        model=IndexedModel.model_validate({field: getattr(model, field) for field in IndexedModel.model_fields}),
        license=metadata.license,
        authors=metadata.authors,
        description=metadata.description,
        created=metadata.created,
        strength=metadata.strength.recommended,
        metrics=metadata.metrics,
        norms=norm_series(raw),
    )
    return Entry.model_validate(fields)


def make_index(entries: Iterable[Entry], *, title: str = "steerkit packs", dated: bool = True) -> Index:
    """An index of packs, by name.

    Raises:
        IndexFormatError: The title is too long, or there are too many packs.
    """
    generated = datetime.now(UTC).isoformat(timespec="seconds") if dated else None
    ordered = sorted(entries, key=lambda entry: (entry.name, entry.sha256))
    return parse_index({"title": title, "generated": generated, "packs": tuple(ordered)}, name="what was given")


def write_index(index: Index, path: Path) -> None:
    """Write an index file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(index.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode())


def read_index(path: Path) -> Index:
    """Read an index file.

    Raises:
        IndexFormatError: It is missing, too large, or not an index of a known version.
    """
    with refused_as(IndexFormatError, f"{str(path)!r:.300}", expected="an index of packs"):
        data = read_bounded(path, MAX_INDEX)
    document = json_object(data, repr(str(path)), error=IndexFormatError, most=MAX_VALUES)
    return parse_index(document, name=str(path))


def bundled_index() -> Index:
    """The index of the bundled packs."""
    path = FOLDER / INDEX
    return read_index(path) if path.is_file() else Index()


def parse_index(document: Any, *, name: str) -> Index:
    """Validate the content of an index file.

    Raises:
        IndexFormatError: A field is missing, unknown or out of bounds; the message names each.
    """
    expected, fix = "an index of version 1", "make it with `steerkit hub index`"
    with refused_as(IndexFormatError, name, expected=expected, fix=fix, wrong="is not an index"):
        return Index.model_validate(document)


def search(
    entries: Iterable[Entry],
    text: str = "",
    *,
    model: str | None = None,
    method: str | None = None,
    metric: str | None = None,
) -> list[Entry]:
    """The entries that hold every word of a text, and match what else is given, without regard to case.

    Args:
        entries: Where to look.
        text: Words, looked for in name, description, model, method, licence and authors.
        model: A part of the model's id, architecture or type.
        method: The name of a method.
        metric: The name of a metric that was measured.
    """
    return [entry for entry in entries if _matches(entry, text.lower().split(), model, method, metric)]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of an index file; after a change, `python -m steerkit_vectors_hub.index` writes `SCHEMA` anew."""
    schema = Index.model_json_schema(mode="validation")
    for part in (schema, *schema["$defs"].values()):
        part["description"] = part["description"].partition("\n")[0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _matches(entry: Entry, words: list[str], model: str | None, method: str | None, metric: str | None) -> bool:
    ids = f"{entry.model.id} {entry.model.architecture} {entry.model.model_type}".lower()
    everything = " ".join(
        [entry.name, entry.description, ids, entry.method, entry.license or "", *entry.authors]
    ).lower()
    return (
        all(word in everything for word in words)
        and (model is None or model.lower() in ids)
        and (method is None or method.lower() == entry.method.lower())
        and (metric is None or metric.lower() in {each.name.lower() for each in entry.metrics})
    )


def _name(resolved: Resolved) -> str:
    if resolved.kind == "hf":
        return "/".join(resolved.ref.removeprefix("hf://").partition("@")[0].split("/")[:2])
    return resolved.file.removesuffix(".safetensors")


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
