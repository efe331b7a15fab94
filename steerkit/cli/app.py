"""The commands, in groups; each is imported when it is used, so that `--help` answers at once.

Nothing here or at the top of a command's module imports torch, transformers, numpy or pydantic; the work of a command
imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

import steerkit as sk
from steerkit.cli import console
from steerkit.cli.command import Debug, command

_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}
"""Help in plain text: the rich one imports rich first, which takes as long as everything else together."""

EXIT_CODES = (
    "Exit codes: 0 done, 1 error, 2 wrong usage, 130 stopped by Ctrl-C. Errors are explained on stderr; "
    "--debug, before or after the command, adds the traceback."
)


class Group(TyperGroup):
    """Commands by name, each imported on first use. Subclasses are final, and are tables.

    Attributes:
        table: Under the heading of each section, the module of each command, as `module` or `module:function`, or a
            group.
    """

    table: ClassVar[dict[str, dict[str, str | type[Group]]]]

    @property
    def homes(self) -> dict[str, str | type[Group]]:
        """The table without its headings."""
        return {name: home for section in self.table.values() for name, home in section.items()}

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the table."""
        return list(self.homes)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command, or None where there is none of this name."""
        if cmd_name in self.homes and cmd_name not in self.commands:
            self.commands[cmd_name] = _made(cmd_name, self.homes[cmd_name])
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Under each heading, the first sentence of each command's help."""
        width = formatter.width - 14
        for heading, section in self.table.items():
            rows = [(f"{name:<10}", self.get_command(ctx, name).get_short_help_str(width)) for name in section]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`, absent as False: an absent None would make typer import pydantic to convert it."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Say where a command of another group is; an unknown name is compared with every command, all imported."""
        for name, home in self.homes.items():
            if args and args[0] not in self.homes:
                self.get_command(ctx, name)
                if not isinstance(home, str) and any(args[0] in section for section in home.table.values()):
                    ctx.fail(f"No such command {args[0]!r}. Did you mean '{name} {args[0]}'?")
        return super().resolve_command(ctx, args)


class Hub(Group):
    """Find, get and publish packs."""

    table: ClassVar = {
        "Get": {"search": "hub:search", "info": "hub:info", "pull": "hub:pull", "list": "hub:listing"},
        "Publish": {each: f"hub:{each}" for each in ("push", "index", "catalogue")},
    }


class Pack(Group):
    """Inspect, compare, convert, sign and verify packs."""

    table: ClassVar = {
        "Commands": {**{each: f"pack:{each}" for each in ("inspect", "diff", "sign", "verify")}, "convert": "convert"},
    }


class Root(Group):
    """Steer vision-language models at inference."""

    table: ClassVar = {
        "Steer": {
            **{"extract": "extract", "merge": "extract:merge"},
            **{each: each for each in ("generate", "serve", "play", "compare", "calibrate", "study", "demo")},
            "judge-check": "judge_check",
        },
        "Share": {"push": "hub:push", "pull": "hub:pull", "verify": "pack:verify", "hub": Hub, "pack": Pack},
        "Set up and extend": {
            **{"doctor": "doctor", "models": "plugins:models", "methods": "plugins:methods"},
            **{"formats": "plugins:formats", "new": "new"},
        },
    }


def _made(name: str, home: str | type[Group]) -> Any:
    if not isinstance(home, str):
        made = typer.Typer(cls=home, help=home.__doc__, no_args_is_help=True, **_PLAIN)
        made.callback()(_nothing)
        group = typer.main.get_group(made)
        group.name = name
        return group
    module, _, function = home.partition(":")
    single = typer.Typer(**_PLAIN)
    single.command(name)(command(getattr(importlib.import_module(f"steerkit.cli.{module}"), function or module)))
    return typer.main.get_command(single)


def _nothing(debug: Debug = False) -> None:
    pass


def _print_version(wanted: bool) -> None:
    if wanted:
        console.echo(f"steerkit {sk.__version__}")
        raise typer.Exit


app = typer.Typer(name="steerkit", cls=Root, no_args_is_help=True, help=Root.__doc__, epilog=EXIT_CODES, **_PLAIN)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    pass


def run() -> int:
    """Run the command line, and return its exit code."""
    console.prepare()
    code: Any = 0
    try:
        app(prog_name="steerkit")
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        console.say("Stopped.")
        code = 130
    except Exception as error:  # of a command's module that can't be imported
        console.print_error(error, debug="--debug" in sys.argv)
        code = 1
    return console.close(code or 0)
