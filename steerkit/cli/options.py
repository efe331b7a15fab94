"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from steerkit.errors import OptionError
from steerkit.policy import Policy


def _set_debug(ctx: typer.Context, wanted: bool) -> bool:
    ctx.meta["steerkit.debug"] = wanted or ctx.meta.get("steerkit.debug", False)
    return wanted


Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Repository id or folder of the model.", show_default=False)
]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Dtype = Annotated[str | None, typer.Option(help="Type of the weights: bfloat16, float16, float32 or auto.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="Where the weights go, as in transformers. Default: the GPU where there is one, else the CPU."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's repository.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="OLD=NEW", help="Rename a field of the sample file; OLD= drops it. Repeat for more."),
]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="A file, a folder, a bundled name, hf://owner/name[@revision][/file], https://..., or what fsspec knows; "
        "#sha256=... at its end pins the file.",
        show_default=False,
    ),
]
PackRevision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.")]
Pin = Annotated[str | None, typer.Option("--sha256", help="The only digest to accept.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use the cache alone. Also: STEERKIT_OFFLINE=1.")]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy", help="strict: a failed check is an error. warn: it is a warning. off: checks are not enforced."
    ),
]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave malformed rows out and say which.")]


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """`{key: value}` from `key=value` arguments.

    Raises:
        typer.BadParameter: One has no `=`, or a key is given twice.
    """
    found: dict[str, str] = {}
    for item in given or ():
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint=option)
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice", param_hint=option)
        found[key] = value
    return found


def policy(given: str) -> Policy:
    """The policy of that name.

    Raises:
        OptionError: There is none.
    """
    if given not in get_args(Policy):
        raise OptionError(f"--policy is {given!r}", expected=", ".join(get_args(Policy)))
    return cast("Policy", given)


def settings(given: Iterable[str] | None) -> dict[str, Any]:
    """The options of a method from `--set key=value`: JSON where the value is JSON, else text."""
    return {key: _json_or_text(value) for key, value in pairs(given, "--set").items()}


def columns(given: Iterable[str] | None) -> dict[str, str | None]:
    """New names of fields from `--columns old=new`; an empty name drops the field."""
    return {old: new or None for old, new in pairs(given, "--columns").items()}


def check_names(given: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Refuse a setting that the method does not have, and name the nearest.

    Raises:
        OptionError: A name is unknown.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise OptionError(
                f"{owner} has no option {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
                expected="one of " + ", ".join(known),
                fix="`steerkit methods` lists the options of every method",
            )


def check_output(path: Path, *, force: bool) -> None:
    """Refuse an output that exists or can't be written.

    Raises:
        OptionError: See above.
    """
    import os

    if path.is_dir():
        raise OptionError(f"the output {str(path)!r} is a folder", expected="a file name")
    if path.exists() and not force:
        raise OptionError(
            f"the output {str(path)!r} exists", expected="a new file", fix="name another file, or pass --force"
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OptionError(f"{str(folder)!r} can't be written to", expected="a folder that you may write to")


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
