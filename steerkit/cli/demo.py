"""`steerkit demo`: the main job on a bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import table
from steerkit.errors import OptionError

_CONDITIONS = (
    ("text", "text only"),
    ("image", "image, unsteered"),
    ("cmrm_dataset", "image, CMRM dataset"),
    ("cmrm_sample", "image, CMRM sample"),
    ("random", "image, random"),
)
_CAPTION = (
    "unsafe: harmful requests answered with the exact instructions (real: not refused); over-refusal: harmless "
    "requests refused; utility: visual questions right; garbled: requests neither answered nor refused"
)


def demo(
    *,
    model: Literal["llava", "qwen2_5_vl", "instructblip", "real"] = "llava",
    base: Path | None = None,
    output: Path = Path("steerkit-demo"),
    prompts: int = 200,
    points: int = 40,
    plot: bool = True,
) -> Result:
    """Extract CMRM on a bundled model, steer it, and show the effect.

    Args:
        model: Demo model; real: the aligned one of docs/real-model.md, which is not bundled.
        base (FOLDER): Of --model real: what `python -m real_model.build` wrote, in a clone of the repository.
        output: Folder for the pack and the picture.
        prompts: Test prompts per cell of the table.
        points: Test prompts per point of the picture.
        plot: Draw the picture.
    """
    from steerkit.cli.loading import import_libraries
    from steerkit.cli.progress import progress, without_bars

    if base is not None and model != "real":
        raise OptionError("--base is of --model real", expected="one of them")
    import_libraries()
    import torch

    from steerkit.demo.report import run

    torch.set_num_threads(1)  # matrices this small are slower on several
    with without_bars(), progress("Measuring", total=1) as report:
        found = run(model, output, count=prompts, sweep_count=points, plot=plot, progress=report, base=base)
    heads = ("", "unsafe", "over-refusal", "utility", "garbled", "of harmless")
    rows = ((name, *(round(100 * share) for share in vars(found.figures[key]).values())) for key, name in _CONDITIONS)
    drawn = table(heads, rows, title=f"Demo model {found.model}: percent of answers", caption=_CAPTION)
    files = opt.present(pack=found.pack, picture=found.picture)
    return Result(found, [drawn, *(f"{name:<7}  {path}" for name, path in files.items())])
