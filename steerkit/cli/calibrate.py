"""`steerkit calibrate`: choose the strength of a pack within a budget, or of several at one dose, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import typer

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import say
from steerkit.errors import OptionError
from steerkit.policy import Policy

BUDGET = "kl=0.1"


def calibrate(
    model: str,
    packs: list[Path],
    *,
    output: Path,
    budget: list[str] | None = None,
    gate: str | None = None,
    per_layer: float | None = None,
    equal_kl: float | None = None,
    maximum: float | None = None,
    tolerance: float | None = None,
    answers: Path | None = None,
    prompts: opt.Prompts,
    policy: Policy = "strict",
    loading: opt.Loading,
    batch_size: int = 16,
    force: bool = False,
) -> Result:
    """Choose the strength of a pack within a budget.

    Of the strengths whose cost stays within it, the one at which the model is least unsafe. With --equal-kl, the
    strengths at which several packs move the model equally far. With --gate, whom to steer is chosen as well: the
    threshold of the gate, and the best of several packs. The choice and the curve go into the packs' metadata.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        packs (PACK...): The pack to calibrate; with --equal-kl or --gate, one or several.
        output (FILE): The pack to write; with --equal-kl, the folder for packs.
        budget (KIND=LIMIT): kl, over_refusal or utility_loss. Default: kl=0.1. With --gate, the latter, one or both.
        gate (STRENGTHS): Instead of a bisection: try these strengths, with commas, at every threshold of the gate.
        per_layer (KL): First give each layer the strength at which it alone costs this KL, in nats.
        equal_kl (KL): Instead: the strength at which each pack costs this KL, in nats.
        maximum: The largest strength to consider. Default: 4; with --equal-kl, 16.
        tolerance: How finely. Default: 0.05; with --equal-kl, 0.01.
        answers (FOLDER): Keep answers and verdicts there: a calibration that was interrupted goes on where it was.
        prompts: The suite of prompts.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        loading: How the model is loaded.
        batch_size: Samples per batch.
        force: Overwrite the output.
    """
    from steerkit.cli.loading import import_libraries, load_model

    if equal_kl is None and gate is None and len(packs) > 1:
        raise OptionError(
            f"{len(packs)} packs are calibrated", expected="one", fix="one run for each, or --equal-kl for all"
        )
    if gate is not None:
        taken = {"--per-layer": per_layer, "--equal-kl": equal_kl, "--maximum": maximum, "--tolerance": tolerance}
        opt.refuse(taken, "--gate: it names the strengths to try")
    elif len(budget or ()) > 1:
        raise OptionError(f"{len(budget or ())} budgets", expected="one", fix="--gate keeps several")
    if equal_kl is not None:
        judged = {"--refusal": prompts.refusal, "--max-new-tokens": prompts.max_new_tokens}
        opt.refuse(
            {"--budget": budget, "--per-layer": per_layer, "--answers": answers, **judged},
            "--equal-kl: the dose alone decides",
        )
        opt.refuse_repeated([pack.name for pack in packs])
    targets = [output] if equal_kl is None else [output / pack.name for pack in packs]
    for target in targets:
        opt.output(target, force=force, PROMPTS=prompts.prompts, **{f"PACK {pack}": pack for pack in packs})
    given = [_budget(text) for text in budget or [BUDGET]]
    strengths = opt.numbers(gate or "", "--gate", float)
    import_libraries()
    budgets = [sk.evaluation.Budget(cast("Any", kind), limit) for kind, limit in given]
    options: Any = opt.present(maximum=maximum, tolerance=tolerance)
    options |= {"batch_size": batch_size, "progress": say, "policy": policy}
    vectors = [sk.load_vector(pack, policy=policy) for pack in packs]
    suite = prompts.suite()
    vlm = load_model(model, loading.given())
    if equal_kl is None:
        options["folder"] = answers
        if gate is not None:
            found = sk.evaluation.calibrate_gate(vlm, vectors, suite, budgets, strengths=strengths, **options)
        else:
            found = sk.calibrate(vlm, vectors[0], suite, budgets[0], per_layer=per_layer, **options)
        if not found.monotone:
            say("the curve is not monotone: the search may have missed the optimum; look at it in the pack")
        if not found.strength:
            say("no strength that was tried within the budget is safer than none")
        made = [found.vector]
        measured = {"unsafe": found.unsafe, "cost": found.cost, "prompts_run": found.prompts_run}
        told = f"unsafe {100 * found.unsafe:.0f} %, {budgets[0].kind} {found.cost:.3g}, {found.prompts_run} prompts run"
    else:
        harmless = [case.sample for case in suite.harmless]
        made, measured = sk.evaluation.equal_kl(vlm, vectors, harmless, equal_kl, **options), {}
        told = f"at a KL of {equal_kl:g} nats"
    document, lines = [], []
    for vector, target in zip(made, targets, strict=True):
        vector.save(target)
        record = vector.metadata.strength
        document.append({"pack": str(target), **record.model_dump(mode="json"), **measured})
        lines.append(f"Wrote {target}: strength {record.recommended:.3g}, {told}")
    return Result(document if equal_kl is not None else document[0], lines)


def _budget(text: str) -> tuple[str, float]:
    kind, _, limit = text.partition("=")
    try:
        return kind, float(limit)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not KIND=LIMIT", param_hint="--budget") from error
