"""`steerkit verify`: whether a pack can be trusted, one line for each check."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import one_line, print_json
from steerkit.cli.progress import progress
from steerkit.errors import OptionError


def verify(
    ref: opt.Ref,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Repository id or folder of the model to check it against.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Strength to judge the dose and to screen at. Default: what the pack recommends."),
    ] = None,
    policy: opt.PolicyOption = "strict",
    screening: Annotated[
        bool, typer.Option("--screen/--no-screen", help="Let the model answer canaries with the pack and without.")
    ] = True,
    canaries: Annotated[
        str | None, typer.Option(metavar="SET", help="Canaries: general, demo, or a JSON file of your own.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust file. Default: the user's own.", dir_okay=False)
    ] = None,
    revision: opt.PackRevision = None,
    sha256: opt.Pin = None,
    offline: opt.Offline = False,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    model_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's repository.")] = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Check a pack: who signed it, whether it belongs to a model, and what it does to the model's refusals.

    One line for each check: pass, warn, fail or skip. Exit code 1 if one failed; with --policy warn or off, only for
    a file that is no sound pack, or of other sizes than the model.
    """
    from steerkit.cli.loading import import_libraries, load_model, load_options

    allowed = opt.policy(policy)
    if strength is not None and not math.isfinite(strength):
        raise OptionError(f"--strength is {strength}", expected="a finite number")
    loading = load_options(dtype, device_map, model_revision)
    import_libraries()
    from steerkit_vectors_hub.signing.trust import read_trust
    from steerkit_vectors_hub.verify import verify as verified

    whom = None if trust is None else read_trust(trust)
    vlm = None if model is None else load_model(model, loading)
    with progress(f"checking {ref}") as shown:
        report = verified(
            ref,
            model=vlm,
            strength=strength,
            policy=allowed,
            trust=whom,
            screening=screening,
            canaries=canaries,
            revision=revision,
            sha256=sha256,
            offline=True if offline else None,
            progress=lambda _, done, total: shown(done, total),
        )
    if as_json:
        print_json(report.as_json())
    else:
        for check in report.checks:
            typer.echo(one_line(check))
            if check.fix and check.status in ("fail", "warn"):
                typer.echo(one_line(f"      fix: {check.fix}"))
    if not report.ok:
        raise typer.Exit(1)
