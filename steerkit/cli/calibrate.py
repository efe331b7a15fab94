"""`steerkit calibrate`: choose the strength of a pack within a budget, and write it into the pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from steerkit.cli import options as opt
from steerkit.cli.compare import Prompts
from steerkit.cli.console import print_json, say
from steerkit.errors import OptionError


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Repository id or folder, or the name of a demo model.")
    ],
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="The pack to calibrate.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The pack to write.")],
    budget: Annotated[str, typer.Option(metavar="KIND=LIMIT", help="kl, over_refusal or utility_loss.")] = "kl=0.1",
    maximum: Annotated[float, typer.Option(help="The largest strength to consider.")] = 4.0,
    tolerance: Annotated[float, typer.Option(help="How finely.")] = 0.05,
    prompts: Prompts = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts of each kind, of a demo model.")] = 40,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers.")] = 64,
    batch_size: opt.BatchSize = 16,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    revision: opt.Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Choose the strength of a pack: the least unsafe one within a budget.

    The choice and the curve go into the pack's metadata.
    """
    from steerkit.cli.loading import import_libraries, load_model, load_options

    opt.check_output(output, force=force)
    kind, limit = _budget(budget)
    import_libraries()
    import steerkit as sk
    from steerkit.calibration import Budget
    from steerkit.cli.compare import read_suite
    from steerkit.demo import MODELS, model_path

    allowed = Budget(cast("Any", kind), limit)
    vector = sk.SteeringVector.load(pack)
    if model in MODELS and not Path(model).exists():
        from steerkit.demo.evaluation import suite

        made, vlm = suite("dev", count), load_model(model_path(model), {"dtype": "float32"})
    elif prompts is None:
        raise OptionError(
            f"{model!r} is calibrated without prompts", expected="--prompts, or a demo model: " + ", ".join(MODELS)
        )
    else:
        made = read_suite(prompts, None, max_new_tokens)
        vlm = load_model(model, load_options(dtype, device_map, revision))
    found = sk.calibrate(
        vlm, vector, made, allowed, maximum=maximum, tolerance=tolerance, batch_size=batch_size, progress=say
    )
    found.vector.save(output)
    if not found.monotone:
        say("the curve is not monotone: the search may have missed the optimum; look at it in the pack")
    if as_json:
        record = found.vector.metadata.strength.model_dump(mode="json")
        print_json({**record, "unsafe": found.unsafe, "cost": found.cost, "prompts_run": found.prompts_run})
        return
    typer.echo(
        f"Wrote {output}: strength {found.strength:.3g}, unsafe {100 * found.unsafe:.0f} %, {kind} {found.cost:.3g}, "
        f"{found.prompts_run} prompts run"
    )


def _budget(text: str) -> tuple[str, float]:
    kind, _, limit = text.partition("=")
    try:
        return kind, float(limit)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not KIND=LIMIT", param_hint="--budget") from error
