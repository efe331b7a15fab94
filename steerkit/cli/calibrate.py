"""`steerkit calibrate`: choose the strength of a pack within a budget, or of several at one dose, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steerkit.cli import options as opt
from steerkit.cli.compare import (
    MaxNewTokens,
    Prompts,
    Refusals,
    check_arguments,
    is_demo,
    read_suite,
    refuse_given,
    refuse_repeated,
)
from steerkit.cli.console import print_json, say
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit.evaluation import Suite
    from steerkit.vectors import SteeringVector
    from steerkit.vlm import VLM

BUDGET = "kl=0.1"


def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Repository id or folder, or the name of a demo model.")
    ],
    packs: Annotated[
        list[Path], typer.Argument(metavar="PACK...", help="The pack to calibrate; with --equal-kl, one or several.")
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The pack to write; with --equal-kl, the folder for packs."
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(metavar="KIND=LIMIT", help=f"kl, over_refusal or utility_loss. Default: {BUDGET}."),
    ] = None,
    per_layer: Annotated[
        float | None,
        typer.Option(metavar="KL", help="First give each layer the strength at which it alone costs this KL, in nats."),
    ] = None,
    equal_kl: Annotated[
        float | None,
        typer.Option(metavar="KL", help="Instead: the strength at which each pack costs this KL, in nats."),
    ] = None,
    maximum: Annotated[
        float | None, typer.Option(help="The largest strength to consider. Default: 4; with --equal-kl, 16.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="How finely. Default: 0.05; with --equal-kl, 0.01.")] = None,
    prompts: Prompts = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind, of a demo model. Default: 40.")
    ] = None,
    refusal: Refusals = None,
    max_new_tokens: MaxNewTokens = None,
    policy: opt.PolicyOption = "strict",
    batch_size: opt.BatchSize = 16,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    revision: opt.Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Choose the strength of a pack: the least unsafe one within a budget.

    With --equal-kl, choose the strengths at which several packs move the model equally far. The choice and the curve go
    into the packs' metadata.
    """
    from steerkit.cli.loading import import_libraries

    answers = {"--refusal": refusal, "--max-new-tokens": max_new_tokens}
    own = {"--prompts": prompts, **answers, "--dtype": dtype, "--device-map": device_map, "--revision": revision}
    check_arguments(model, own, count)
    if equal_kl is None:
        if len(packs) > 1:
            raise OptionError(
                f"{len(packs)} packs are calibrated", expected="one", fix="one run for each, or --equal-kl for all"
            )
        targets = [output]
    else:
        ignored = {"--budget": budget, "--per-layer": per_layer, **answers}
        refuse_given(ignored, "--equal-kl", "leave it out: the dose alone decides, and nothing is answered")
        refuse_repeated([pack.name for pack in packs])
        targets = [output / pack.name for pack in packs]
    for target in targets:
        opt.check_output(target, force=force)
    kind, limit = _budget(budget or BUDGET)
    options: Any = {"batch_size": batch_size, "progress": say, "policy": opt.policy(policy)}
    import_libraries()
    import steerkit as sk
    from steerkit.evaluation import Budget

    allowed = Budget(cast("Any", kind), limit)
    vectors = [sk.SteeringVector.load(pack) for pack in packs]
    vlm, suite = _prepared(model, prompts, count, refusal, max_new_tokens, (dtype, device_map, revision))
    given = {"maximum": maximum, "tolerance": tolerance}
    options |= {key: value for key, value in given.items() if value is not None}
    if equal_kl is not None:
        harmless = [case.sample for case in suite.harmless]
        _write_equal(
            sk.evaluation.equal_kl(vlm, vectors, harmless, equal_kl, **options), targets, equal_kl, as_json=as_json
        )
        return
    found = sk.calibrate(vlm, vectors[0], suite, allowed, per_layer=per_layer, **options)
    found.vector.save(output)
    if not found.monotone:
        say("the curve is not monotone: the search may have missed the optimum; look at it in the pack")
    if not found.strength:
        say("no strength that was tried within the budget is safer than none")
    if as_json:
        record = found.vector.metadata.strength.model_dump(mode="json")
        print_json({**record, "unsafe": found.unsafe, "cost": found.cost, "prompts_run": found.prompts_run})
        return
    typer.echo(
        f"Wrote {output}: strength {found.strength:.3g}, unsafe {100 * found.unsafe:.0f} %, {kind} {found.cost:.3g}, "
        f"{found.prompts_run} prompts run"
    )


def _prepared(
    model: str,
    prompts: Path | None,
    count: int | None,
    refusals: list[str] | None,
    max_new_tokens: int | None,
    loading: tuple[str | None, str | None, str | None],
) -> tuple[VLM, Suite]:
    """The model and its suite, of a demo model or the user's own."""
    from steerkit.cli.loading import load_model, load_options
    from steerkit.demo import MODELS, model_path

    if is_demo(model):
        from steerkit.demo.evaluation import suite

        return load_model(model_path(model), {"dtype": "float32"}), suite("dev", count or 40)
    if prompts is None:
        raise OptionError(
            f"{model!r} is calibrated without prompts", expected="--prompts, or a demo model: " + ", ".join(MODELS)
        )
    made = read_suite(prompts, refusals, max_new_tokens)
    return load_model(model, load_options(*loading)), made


def _write_equal(vectors: list[SteeringVector], targets: list[Path], kl: float, *, as_json: bool) -> None:
    for vector, target in zip(vectors, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        vector.save(target)
    pairs = list(zip(targets, (vector.metadata.strength for vector in vectors), strict=True))
    if as_json:
        print_json([{"pack": str(target), **record.model_dump(mode="json")} for target, record in pairs])
        return
    for target, record in pairs:
        typer.echo(f"Wrote {target}: strength {record.recommended:.3g} at a KL of {kl:g} nats")


def _budget(text: str) -> tuple[str, float]:
    kind, _, limit = text.partition("=")
    try:
        return kind, float(limit)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not KIND=LIMIT", param_hint="--budget") from error
