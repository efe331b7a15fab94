"""`steerkit verify`: whether a pack can be trusted, one line for each check."""

from __future__ import annotations

import math
from pathlib import Path

from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.errors import OptionError
from steerkit.policy import Policy


def verify(
    pack: opt.PackRef,
    *,
    with_: list[str] | None = None,
    model: str | None = None,
    strength: float | None = None,
    policy: Policy = "strict",
    screen: bool = True,
    canaries: str | None = None,
    trust: Path | None = None,
    weights: opt.Weights,
    model_revision: str | None = None,
) -> Result:
    """Check who signed a pack, and what it does to a model.

    Whether it is sound, signed and current, belongs to the model, and what it does to its refusals.

    One line for each check: pass, warn, fail or skip. Exit code 1 if one failed; with --policy warn or off, only for
    a file that is not a valid pack, or of other sizes than the model.

    Args:
        pack: The pack.
        with_ (REF): Another pack that will be used together with it; they are judged as one.
        model (MODEL): Repository id or folder of the model to check it against.
        strength: Strength to judge the dose and to screen at. Default: what the pack recommends.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        screen: Let the model answer canaries with the pack and without.
        canaries (SET): Canaries: general, or a JSON file. Default: those in the model's folder.
        trust (FILE): Trust file. Default: the user's own.
        weights: How the model is loaded.
        model_revision: Branch, tag or commit of the model's repository.
    """
    from steerkit.cli.loading import import_libraries, load_model
    from steerkit.cli.progress import progress

    given = weights.given(model_revision)
    if strength is not None and not math.isfinite(strength):
        raise OptionError(f"--strength is {strength}", expected="a finite number")
    import_libraries()
    from steerkit_vectors_hub.signing.trust import read_trust
    from steerkit_vectors_hub.verify import verify as verified

    whom = None if trust is None else read_trust(trust)
    vlm = None if model is None else load_model(model, given)
    with progress(f"checking {pack.ref}") as shown:
        report = verified(
            [pack.ref, *(with_ or ())] if with_ else pack.ref,
            model=vlm,
            strength=strength,
            policy=policy,
            trust=whom,
            screening=screen,
            canaries=canaries,
            progress=lambda _, done, total: shown(done, total),
            **pack.options(),
        )
    lines = [
        line
        for check in report.checks
        for line in (str(check), f"      fix: {check.fix}" if check.fix and check.status in ("fail", "warn") else "")
        if line
    ]
    return Result(report.as_json(), lines, code=0 if report.ok else 1)
