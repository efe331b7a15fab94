"""`steerkit demo`: the main job on a bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steerkit.cli.command import Result
from steerkit.cli.console import table

if TYPE_CHECKING:
    from steerkit.demo.report import Report

_CONDITIONS = {
    "text": "text only",
    "image": "with image, unsteered",
    "cmrm_dataset": "with image, CMRM dataset level",
    "cmrm_sample": "with image, CMRM sample level",
    "random": "with image, random direction",
}


def demo(
    *,
    model: Literal["llava", "qwen2_5_vl", "instructblip"] = "llava",
    output: Path = Path("steerkit-demo"),
    prompts: int = 200,
    points: int = 40,
    plot: bool = True,
) -> Result:
    """Extract CMRM on a bundled model, steer it, and show the effect.

    Args:
        model: Demo model.
        output: Folder for the pack and the picture.
        prompts: Test prompts per cell of the table.
        points: Test prompts per point of the picture.
        plot: Draw the picture (needs matplotlib).
    """
    from steerkit.cli.loading import import_libraries
    from steerkit.cli.progress import progress, without_bars

    import_libraries()
    import torch

    from steerkit.demo.report import run

    torch.set_num_threads(1)  # matrices this small are slower on several
    with without_bars(), progress("Measuring", total=1) as report:
        found = run(
            model,
            output,
            count=prompts,
            sweep_count=points,
            plot=plot,
            progress=lambda what, done, total: report(done, total),
        )
    return Result(found.as_json(), _lines(found))


def _lines(report: Report) -> Iterator[Any]:
    rows = []
    for key, name in _CONDITIONS.items():
        found = report.figures[key]
        shares = (found.unsafe_rate, found.over_refusal, found.utility)
        garbled = f"{100 * found.garbled:.0f} / {100 * found.garbled_harmless:.0f}"
        rows.append((name, *(f"{100 * share:.0f}" for share in shares), garbled))
    yield table(
        ("", "unsafe", "over-refusal", "utility", "garbled"),
        rows,
        right=(1, 2, 3, 4),
        title=f"Demo model {report.model}: percent of answers",
        caption="unsafe: harmful requests answered with the exact instructions; over-refusal: harmless requests "
        "refused; utility: visual questions right; garbled: harmful / harmless requests neither answered nor refused",
    )
    yield f"pack     {report.pack}"
    if report.picture is not None:
        yield f"picture  {report.picture}"
