"""`steerkit methods`: the steering methods, with every option that `extract --set` takes."""

from __future__ import annotations

import inspect
import json
import re
import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from steerkit.cli.console import clean, console, print_json
from steerkit.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from steerkit._internal.plugins import Registered
    from steerkit.methods import SteeringMethod


def methods(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the methods with their papers and options."""
    from steerkit._internal.plugins import METHODS, registered
    from steerkit.cli.loading import import_libraries
    from steerkit.methods import SteeringMethod

    import_libraries()
    rows = [_row(each) for each in registered(METHODS, SteeringMethod)]
    if as_json:
        print_json({"methods": rows})
    else:
        _show(rows)


def _row(found: Registered) -> dict[str, Any]:
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
    section = docstring.partition("\nAttributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if match := re.match(r"    (\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _plain(value: Any) -> Any:
    """A default as JSON has it."""
    return json.loads(json.dumps(value, default=str))


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    out = console()
    for row in rows:
        out.print(f"{clean(row['name'])}  {clean(row['paper'])}  ({clean(row['distribution'])})", style="bold")
        if row["error"] is not None:
            out.print(f"BROKEN: {clean(row['error'])}\n", style="red")
            continue
        out.print(clean(row["summary"]))
        table = Table("option", "type", "default", "", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for option in row["options"]:
            default = "required" if option["required"] else json.dumps(option["default"])
            table.add_row(*(clean(each) for each in (option["name"], option["type"], default, option["doc"])))
        out.print(table)
        out.print()
