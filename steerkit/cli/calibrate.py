"""`steerkit calibrate`: choose the strength of a pack within a budget, or of several at one dose, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import say
from steerkit.cli.suites import Prompts, refuse_given, refuse_repeated
from steerkit.errors import OptionError
from steerkit.policy import Policy

if TYPE_CHECKING:
    from steerkit.vectors import SteeringVector

BUDGET = "kl=0.1"


def calibrate(
    model: str,
    packs: list[Path],
    *,
    output: Path,
    budget: str | None = None,
    per_layer: float | None = None,
    equal_kl: float | None = None,
    maximum: float | None = None,
    tolerance: float | None = None,
    prompts: Prompts,
    policy: Policy = "strict",
    loading: opt.Loading,
    batch_size: int = 16,
    force: bool = False,
) -> Result:
    """Choose the strength of a pack within a budget.

    Of the strengths whose cost stays within it, the one at which the model is least unsafe. With --equal-kl, the
    strengths at which several packs move the model equally far. The choice and the curve go into the packs' metadata.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        packs (PACK...): The pack to calibrate; with --equal-kl, one or several.
        output (FILE): The pack to write; with --equal-kl, the folder for packs.
        budget (KIND=LIMIT): kl, over_refusal or utility_loss. Default: kl=0.1.
        per_layer (KL): First give each layer the strength at which it alone costs this KL, in nats.
        equal_kl (KL): Instead: the strength at which each pack costs this KL, in nats.
        maximum: The largest strength to consider. Default: 4; with --equal-kl, 16.
        tolerance: How finely. Default: 0.05; with --equal-kl, 0.01.
        prompts: The suite of prompts.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        loading: How the model is loaded.
        batch_size: Samples per batch.
        force: Overwrite the output.
    """
    from steerkit.cli.loading import import_libraries, load_model

    if equal_kl is None:
        if len(packs) > 1:
            raise OptionError(
                f"{len(packs)} packs are calibrated", expected="one", fix="one run for each, or --equal-kl for all"
            )
        targets = [output]
    else:
        ignored = {"--budget": budget, "--per-layer": per_layer, "--refusal": prompts.refusal}
        ignored["--max-new-tokens"] = prompts.max_new_tokens
        refuse_given(ignored, "--equal-kl", "leave it out: the dose alone decides, and nothing is answered")
        refuse_repeated([pack.name for pack in packs])
        targets = [output / pack.name for pack in packs]
    for target in targets:
        opt.output(target, force=force, PROMPTS=prompts.prompts, **{f"PACK {pack}": pack for pack in packs})
    kind, limit = _budget(budget or BUDGET)
    given = loading.given()
    options: Any = {"batch_size": batch_size, "progress": say, "policy": policy}
    options |= {k: v for k, v in {"maximum": maximum, "tolerance": tolerance}.items() if v is not None}
    import_libraries()
    import steerkit as sk
    from steerkit.evaluation import Budget

    allowed = Budget(cast("Any", kind), limit)
    vectors = [sk.load_vector(pack, policy=policy) for pack in packs]
    suite = prompts.suite()
    vlm = load_model(model, given)
    if equal_kl is not None:
        harmless = [case.sample for case in suite.harmless]
        return _write(sk.evaluation.equal_kl(vlm, vectors, harmless, equal_kl, **options), targets, equal_kl)
    found = sk.calibrate(vlm, vectors[0], suite, allowed, per_layer=per_layer, **options)
    found.vector.save(output)
    if not found.monotone:
        say("the curve is not monotone: the search may have missed the optimum; look at it in the pack")
    if not found.strength:
        say("no strength that was tried within the budget is safer than none")
    record = found.vector.metadata.strength.model_dump(mode="json")
    measured = {"unsafe": found.unsafe, "cost": found.cost, "prompts_run": found.prompts_run}
    told = f"strength {found.strength:.3g}, unsafe {100 * found.unsafe:.0f} %, {kind} {found.cost:.3g}"
    return Result({**record, **measured}, [f"Wrote {output}: {told}, {found.prompts_run} prompts run"])


def _write(vectors: list[SteeringVector], targets: list[Path], kl: float) -> Result:
    for vector, target in zip(vectors, targets, strict=True):
        vector.save(target)
    found = [(target, vector.metadata.strength) for vector, target in zip(vectors, targets, strict=True)]
    return Result(
        [{"pack": str(target), **record.model_dump(mode="json")} for target, record in found],
        [f"Wrote {target}: strength {record.recommended:.3g} at a KL of {kl:g} nats" for target, record in found],
    )


def _budget(text: str) -> tuple[str, float]:
    kind, _, limit = text.partition("=")
    try:
        return kind, float(limit)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not KIND=LIMIT", param_hint="--budget") from error
