"""`steerkit models`, `methods` and `formats`: what is installed, and what of it does not load."""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from steerkit.cli.command import Result
from steerkit.cli.console import table

if TYPE_CHECKING:
    from steerkit._internal.plugins import Registered
    from steerkit.methods import SteeringMethod


def models() -> Result:
    """List the model families that can be steered.

    Each adapter with the model types that it serves and the distribution that provides it.
    """
    from steerkit._internal.plugins import ADAPTERS, registered
    from steerkit.cli.loading import import_libraries
    from steerkit.models import Family

    import_libraries()
    rows = [
        {
            "name": each.name,
            "model_types": [] if each.value is None else [kind for record in each.value for kind in record.types],
            "distribution": each.distribution,
            "error": each.error,
        }
        for each in registered(ADAPTERS, Family)
    ]
    heads = ("adapter", "model types (config.model_type)", "distribution")
    cells = [(row["name"], _or_error(row, ", ".join(row["model_types"])), row["distribution"]) for row in rows]
    return Result({"adapters": rows}, iter([table(heads, cells)]))


def formats() -> Result:
    """List the formats of other libraries.

    What `steerkit pack convert` reads and writes, each with its convention of numbering layers.
    """
    from steerkit.cli.loading import import_libraries

    import_libraries()
    from steerkit_vectors_hub.interop import ForeignWriter, registered_formats

    rows: list[dict[str, Any]] = [
        {
            "name": each.name,
            "title": None if each.value is None else each.value.title,
            "layers": None if each.value is None else each.value.convention,
            "written": each.value is not None and issubclass(each.value, ForeignWriter),
            "error": each.error,
        }
        for each in registered_formats()
    ]
    cells = [
        (row["name"], _or_error(row, row["title"]), row["layers"] or "", "yes" if row["written"] else "")
        for row in rows
    ]
    return Result({"formats": rows}, iter([table(("format", "", "layer convention", "written"), cells)]))


def methods() -> Result:
    """List the methods with their papers and options."""
    from steerkit._internal.plugins import METHODS, registered
    from steerkit.cli.loading import import_libraries
    from steerkit.methods import SteeringMethod

    import_libraries()
    rows = [_method(each) for each in registered(METHODS, SteeringMethod)]
    return Result({"methods": rows}, _methods(rows))


def _or_error(row: dict[str, Any], text: str) -> str:
    return text if row["error"] is None else f"BROKEN: {row['error']}"


def _method(found: Registered) -> dict[str, Any]:
    """What is shown of a method; one whose options can't be described hides no other."""
    options: list[dict[str, Any]] = []
    error = found.error
    if found.value is not None:
        try:
            options = describe(found.value)
        except Exception as problem:  # a default may be made by code of the distribution
            error = f"the defaults of its options can't be made: {type(problem).__name__}: {problem}"
    return {
        "name": found.name,
        "summary": "" if found.value is None else (inspect.getdoc(found.value) or "").partition("\n")[0],
        "paper": "" if found.value is None else found.value.paper,
        "options": options,
        "distribution": found.distribution,
        "error": error,
    }


def _methods(rows: list[dict[str, Any]]) -> Iterator[Any]:
    for row in rows:
        yield f"{row['name']}  {row['paper']}  ({row['distribution']})"
        yield _or_error(row, row["summary"])
        cells = [
            (each["name"], each["type"], "required" if each["required"] else json.dumps(each["default"]), each["doc"])
            for each in row["options"]
        ]
        if cells:
            yield table(("option", "type", "default", ""), cells, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        yield ""


def describe(method: type[SteeringMethod]) -> list[dict[str, Any]]:
    """The options of a method: name, type, default and the line that its docstring has for it."""
    docs = _attributes(inspect.getdoc(method) or "")
    return [
        {
            "name": name,
            "type": type_text(field.annotation),
            "required": field.is_required(),
            "default": None if field.is_required() else _plain(field.get_default(call_default_factory=True)),
            "doc": docs.get(name, ""),
        }
        for name, field in method.model_fields.items()
    ]


def type_text(annotation: Any) -> str:
    """A type as one would type its values on the command line: JSON."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
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


def _attributes(docstring: str) -> dict[str, str]:
    """`{name: text}` from the `Attributes:` section of a Google docstring."""
    section = re.split(r"\n(?=\S)", docstring.partition("\nAttributes:\n")[2])[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _plain(value: Any) -> Any:
    """A default as JSON has it."""
    return json.loads(json.dumps(value, default=str))
