"""The command line: one command per file, imported when it is used, so that `--help` answers at once.

Nothing here or at the top of a command's module imports torch, transformers, numpy or pydantic; the work of a command
imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from steerkit.cli.console import print_error, say, wants_traceback
from steerkit.cli.options import Debug
from steerkit.errors import SteerKitError

COMMANDS = (
    *("extract", "generate", "inspect", "convert", "diff"),
    *("search", "list", "info", "verify", "pull", "push", "sign", "index", "catalogue"),
    *("compare", "calibrate"),
    *("models", "methods", "new", "demo"),
)
"""Each is the function of that name in the module of that name, but for those in `_MODULES`."""

_MODULES = {"list": "listing"}
"""A module named `list` would hide the built-in one here."""

_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}
"""Help in plain text: the rich one imports rich first, which takes as long as everything else together."""


class LazyGroup(TyperGroup):
    """Commands by name, each imported on first use; their errors become one readable block and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command, or None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            name = _MODULES.get(cmd_name, cmd_name)
            module = importlib.import_module(f"steerkit.cli.{name}")
            single = typer.Typer(**_PLAIN)
            single.command(cmd_name)(getattr(module, name))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands[cmd_name]

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`, absent as False: an absent None would make typer import pydantic to convert it."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import every command before an unknown name is compared with them."""
        if args and args[0] not in COMMANDS:
            for name in COMMANDS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; exit with 1 after an error of steerkit and with 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except SteerKitError as error:
            print_error(error, traceback=wants_traceback(ctx))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            say("Stopped.")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    help="Steer vision-language models at inference.",
    epilog="Any command takes --help. Exit codes: 0 done, 1 error, 2 wrong usage, 130 stopped by Ctrl-C.",
    **_PLAIN,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from steerkit._version import __version__

        typer.echo(f"steerkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `steerkit` command."""
    try:
        app(prog_name="steerkit")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
