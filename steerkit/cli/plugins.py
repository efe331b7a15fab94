"""`steerkit models`, `methods` and `formats`: what is installed, and what of it does not load."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import steerkit as sk
from steerkit.cli.command import Result, entries, summary
from steerkit.cli.console import table
from steerkit.cli.loading import import_libraries

if TYPE_CHECKING:
    from steerkit._internal.plugins import Registered


_SEEING = ("AutoModelForImageTextToText",)


def models(kind: str | None = None) -> Result:
    """List the model types that can be steered.

    Each type that takes images with its level in the tests, what it takes beside images, what is declared of it and
    what it can't do; all else is asked of the model and its processor. Types of language models are counted, and listed
    by --json.

    Args:
        kind (TYPE): Show all that is known of one type, the `model_type` of a model's config.json.
    """
    import_libraries()
    from steerkit._internal.plugins import ADAPTERS, registered

    if kind is not None:
        family = sk.models.family_for(kind)
        values = {name: getattr(family, name) for name in family.declared}
        sees = {"asked": family.asked, "probed": family.probed} if family.auto_class in _SEEING else {}
        return Result({**_kind(kind, family), "declared": values, **sees})

    def described(found: Any) -> dict[str, Any]:
        return {"model_types": [kind for record in found for kind in record.types]}

    rows = _rows(registered(ADAPTERS, sk.models.Family), described, model_types=[])
    heads = {"model_types": "model types (config.model_type)", "distribution": "distribution"}
    kinds = [_kind(name, family) for name, family in sk.models.model_types().items()]
    seeing = [row for row in kinds if row["class"] in _SEEING]
    columns = ("level", "also", "declared", "cannot", "needs")
    cells = [
        (row["type"], *(row[name] if name == "level" else ", ".join(row[name]) for name in columns)) for row in seeing
    ]
    shown = table(("model type", "level", "also takes", "declared", "can't", "needs"), cells)
    more = f"and {len(kinds) - len(seeing)} types of language models"
    return Result({"adapters": rows, "types": kinds}, [_table(rows, **heads), shown, more])


def _kind(name: str, family: sk.models.Family) -> dict[str, Any]:
    """What is known of a type: of its record, and of its row in the table of tested types."""
    row = {key: value for key, value in sk.models.tested().get(name, {}).items() if key != "declared"}
    about = {"type": name, "class": family.auto_class, "level": "untested", "declared": family.declared}
    unknown = {key: [] for key in ("also", "cannot", "fails", "needs")}
    found = {**about, **unknown, **row}
    if family.refused:
        found |= {"level": "refused", "cannot": [family.refused]}
    return found


def formats() -> Result:
    """List the formats of other libraries.

    What `steerkit pack convert` reads and writes, each with its convention of numbering layers.
    """
    import_libraries()
    from steerkit_vectors_hub.interop import ForeignWriter, registered_formats

    def described(found: Any) -> dict[str, Any]:
        return {"title": found.title, "layers": found.convention, "written": issubclass(found, ForeignWriter)}

    rows = _rows(registered_formats(), described, title=None, layers=None, written=False)
    return Result({"formats": rows}, [_table(rows, title="", layers="layer convention", written="written")])


def methods() -> Result:
    """List the methods with their papers and options."""
    import_libraries()
    from steerkit._internal.plugins import METHODS, registered

    def described(found: type[sk.SteeringMethod]) -> dict[str, Any]:
        about = summary(found).partition("\n")[0]
        return {"summary": about, "paper": found.paper, "options": describe(found)}

    rows = _rows(registered(METHODS, sk.SteeringMethod), described, summary="", paper="", options=[])
    return Result({"methods": rows}, _methods(rows))


def _rows(
    found: Iterable[Registered], described: Callable[[Any], dict[str, Any]], **unknown: Any
) -> list[dict[str, Any]]:
    """What is shown of each; one that does not load, or can't be described, hides no other and is `unknown`."""
    rows = []
    for each in found:
        about, error = unknown, each.error
        if error is None:
            try:
                about = described(each.value)
            except Exception as problem:  # a default may be made by code of the distribution
                error = f"it can't be described: {type(problem).__name__}: {problem}"
        rows.append({"name": each.name, **about, "distribution": each.distribution, "error": error})
    return rows


def _table(rows: list[dict[str, Any]], **heads: str) -> Any:
    cells = []
    for row in rows:
        about = [row.get(column) for column in heads]
        cells.append([row["name"], *([_broken(row), *about[1:]] if row["error"] else about)])
    return table(("name", *heads.values()), cells)


def _broken(row: dict[str, Any]) -> str:
    return f"BROKEN: {row['error']}"


def _methods(rows: list[dict[str, Any]]) -> Iterator[Any]:
    for row in rows:
        yield f"{row['name']}  {row['paper']}  ({row['distribution']})"
        yield _broken(row) if row["error"] else row["summary"]
        cells = [
            (each["name"], each["type"], "required" if each["required"] else json.dumps(each["default"]), each["doc"])
            for each in row["options"]
        ]
        if cells:
            yield table(("option", "type", "default", ""), cells, plain=True)
        yield ""


def describe(method: type[sk.SteeringMethod]) -> list[dict[str, Any]]:
    """The options of a method: name, type, default and the line that its docstring has for it."""
    docs = entries(method, "Attributes")
    options = []
    for name, field in method.model_fields.items():
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        option = {"name": name, "type": type_text(field.annotation), "required": required}
        plain = json.loads(json.dumps(default, default=str))
        options.append({**option, "default": plain, "doc": docs[name].text if name in docs else ""})
    return options


def type_text(annotation: Any) -> str:
    """A type as one would type its values on the command line: JSON."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is types.NoneType:
        return "null"
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, inner))
    if origin in (tuple, list):
        return "[" + ", ".join("..." if each is Ellipsis else type_text(each) for each in inner) + "]"
    return "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))
