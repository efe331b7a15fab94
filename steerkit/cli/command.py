"""A command from a function: its signature says which options there are, its docstring what they mean.

Positional parameters are arguments and keyword-only ones options. A parameter whose type is a dataclass stands for its
fields, which several commands share. `--json` and `--debug` come by themselves.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer

from steerkit._internal.files import user_path
from steerkit.cli import console, interrupts

_METAVARS: dict[Any, str] = {str: "TEXT", Path: "PATH", int: "N", float: "NUMBER"}

_AS_JSON: ContextVar[bool] = ContextVar("as_json", default=False)


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        document: What `--json` prints: plain values, paths, dataclasses, pydantic models, or what has an `as_json`.
        text: What people see: lines, or what rich draws. Made only when it is shown. Default: the document's fields.
        code: The exit code.
    """

    document: Any
    text: Iterable[Any] | None = None
    code: int = 0


def show(result: Result) -> None:
    """Print a result, in the form that was asked for."""
    if _AS_JSON.get():
        console.print_json(result.document)
    else:
        for part in console.fields(result.document) if result.text is None else result.text:
            console.show(part)


def _remember_debug(ctx: typer.Context, wanted: bool) -> bool:
    ctx.meta["steerkit.debug"] = wanted or ctx.meta.get("steerkit.debug", False)
    return ctx.meta["steerkit.debug"]


Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, is_eager=True, help="Show the traceback of an error.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def command(function: Callable[..., Result | None]) -> Callable[..., None]:
    """What typer makes a command of; see the module."""
    signature = inspect.signature(function, eval_str=True)
    docs = entries(function, "Args")
    groups: dict[str, Any] = {}
    shown: list[Parameter] = []
    for name, parameter in signature.parameters.items():
        if is_dataclass(kind := parameter.annotation):
            groups[name] = kind
            shown += _fields(kind)
        else:
            argument = parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
            shown.append(_parameter(name, kind, parameter.default, docs[name], argument=argument))
    if signature.return_annotation is Result:
        shown.append(Parameter("as_json", Parameter.KEYWORD_ONLY, annotation=AsJson, default=False))
    shown.append(Parameter("debug", Parameter.KEYWORD_ONLY, annotation=Debug, default=False))

    def run(**given: Any) -> None:
        # a shell leaves the ~ of --output=~/file as it is
        given = {name: user_path(value) if isinstance(value, Path) else value for name, value in given.items()}
        debug, as_json = given.pop("debug"), given.pop("as_json", False)
        for name, kind in groups.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        _run(lambda: function(**given), as_json=as_json, debug=debug)

    run.__doc__ = summary(function)
    run.__annotations__ = {each.name: each.annotation for each in shown}
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return run


def _run(work: Callable[[], Result | None], *, as_json: bool, debug: bool) -> None:
    """Do the work of a command and print its result: an error becomes one block and exit code 1, Ctrl-C 130."""
    token = _AS_JSON.set(as_json)
    try:
        with interrupts.raised():
            result = work() or Result(None)
            if result.document is not None:
                show(result)
            if result.code:
                raise typer.Exit(result.code)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        console.print_error(error, debug=debug)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.say("Stopped.")
        raise typer.Exit(130) from error
    finally:
        _AS_JSON.reset(token)


def _fields(kind: Any) -> list[Parameter]:
    """The fields of a group, as parameters; those without a default are arguments."""
    hints = get_type_hints(kind, include_extras=True)
    docs = {name: text for each in reversed(kind.__mro__) for name, text in entries(each, "Attributes").items()}
    return [
        _parameter(each.name, hints[each.name], each.default, docs[each.name], argument=each.default is MISSING)
        for each in fields(kind)
    ]


def _parameter(name: str, kind: Any, default: Any, doc: Entry, *, argument: bool) -> Parameter:
    """A parameter as typer wants it."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    base = next(each for each in parts if each is not types.NoneType)
    inner = get_args(base)[0] if get_origin(base) is list else base
    metavar = doc.note or (name.upper() if argument else _METAVARS.get(inner))
    extra: dict[str, Any] = {"metavar": metavar, "help": doc.text, "show_default": default not in (None, MISSING)}
    if base is int:
        extra["min"] = 1
    if get_origin(base) is list and not argument:
        extra["help"] += " Repeat for more."
    if get_origin(base) is Literal:
        extra["metavar"] = "|".join(get_args(base))
    option = "--" + name.strip("_").replace("_", "-")
    names = [option, f"-{option[2]}"] if name == "output" else [option]
    if base is bool and default is True:
        names = [f"{option}/--no-{option[2:]}"]
    made = typer.Argument(**extra) if argument else typer.Option(*names, **extra)
    default = Parameter.empty if default is MISSING else default
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, made], default=default)


_ENTRY = re.compile(r"^ {4}(\w+)(?: \((.*?)\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)


class Entry(NamedTuple):
    """One entry of a section of a Google docstring: help texts are written there, and nowhere else.

    Attributes:
        note: What stands in parentheses behind the name.
        text: The description, on one line.
    """

    note: str | None
    text: str


def entries(documented: object, title: str) -> dict[str, Entry]:
    """The entries of a section, such as `Args` or `Attributes`, by name."""
    section = re.split(r"\n(?=\S)", (inspect.getdoc(documented) or "").partition(f"\n{title}:\n")[2])[0]
    return {name: Entry(note or None, " ".join(text.split())) for name, note, text in _ENTRY.findall(section)}


def summary(documented: object) -> str:
    """What stands before the first section."""
    return re.split(r"\n(?:Args|Attributes|Raises|Returns):\n", inspect.getdoc(documented) or "")[0].strip()
