"""`steerkit catalogue`: a web page made from an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import one_line


def catalogue(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The index file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Make a web page from an index.

    One HTML file that needs nothing else: packs with figures and norms, to be filtered by model, method and metric.
    """
    from steerkit._internal.files import write_atomically
    from steerkit_vectors_hub.catalogue import page
    from steerkit_vectors_hub.index import read_index

    opt.check_output(output, force=force)
    read = read_index(index)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page(read).encode())
    typer.echo(one_line(f"Wrote {output}: {len(read.packs)} packs"))
