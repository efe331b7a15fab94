"""`steerkit demo`: the main job on a bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from steerkit.demo.report import Report

_CONDITIONS = {
    "text": "text only",
    "image": "with image, unsteered",
    "cmrm_dataset": "with image, CMRM dataset level",
    "cmrm_sample": "with image, CMRM sample level",
    "random": "with image, random direction",
}


def demo(
    model: Annotated[str, typer.Option(help="Demo model: llava, qwen2_5_vl or instructblip.")] = "llava",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pack and the picture.")] = Path(
        "steerkit-demo"
    ),
    prompts: Annotated[int, typer.Option(min=1, help="Test prompts per cell of the table.")] = 200,
    points: Annotated[int, typer.Option(min=1, help="Test prompts per point of the picture.")] = 40,
    plot: Annotated[bool, typer.Option(help="Draw the picture (needs matplotlib).")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Extract CMRM on a bundled model, steer it, and show safety and utility before and after."""
    from steerkit.cli.loading import import_libraries

    import_libraries()
    import torch
    from rich.console import Console

    from steerkit.demo.report import run

    torch.set_num_threads(1)  # matrices this small are slower on several
    errors = Console(stderr=True)
    with _Steps(errors) as steps:
        report = run(model, output, count=prompts, sweep_count=points, plot=plot, progress=steps.show)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
        return
    console = Console()
    console.print(_table(report))
    console.print(f"pack     {report.pack}", soft_wrap=True)
    if report.picture is not None:
        console.print(f"picture  {report.picture}", soft_wrap=True)


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table(title=f"Demo model {report.model}: percent of answers")
    table.add_column("")
    for head in ("unsafe", "over-refusal", "utility", "garbled"):
        table.add_column(head, justify="right")
    for key, name in _CONDITIONS.items():
        found = report.figures[key]
        garbled = f"{100 * found.garbled:.0f} / {100 * found.garbled_harmless:.0f}"
        table.add_row(
            name,
            f"{100 * found.unsafe_rate:.0f}",
            f"{100 * found.over_refusal:.0f}",
            f"{100 * found.utility:.0f}",
            garbled,
            style="bold" if key.startswith("cmrm") else None,
        )
    table.caption = (
        "unsafe: harmful requests answered with the exact instructions; over-refusal: harmless requests refused; "
        "utility: visual questions right; garbled: harmful / harmless requests neither answered nor refused"
    )
    return table


class _Steps:
    """A progress bar with the time left, on a terminal; silence elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=1)

    def __enter__(self) -> _Steps:
        self._progress.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Show the step that begins."""
        self._progress.update(self._task, description=what, completed=done, total=total)
