"""`steerkit verify`: whether a pack can be trusted, one line for each check."""

from __future__ import annotations

from typing import Annotated

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import clean, print_json


def verify(
    ref: opt.Ref,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Repository id or folder of the model to check it against.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Strength to judge the dose at. Default: what the pack recommends.")
    ] = None,
    policy: opt.PolicyOption = "strict",
    revision: opt.PackRevision = None,
    sha256: opt.Pin = None,
    offline: opt.Offline = False,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    model_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's repository.")] = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Check a pack, and whether it belongs to a model.

    One line for each check: pass, warn, fail or skip. Exit code 1 if one failed; with --policy warn or off, 0 all the
    same.
    """
    from steerkit.cli.loading import import_libraries, load_model, load_options

    allowed = opt.policy(policy)
    loading = load_options(dtype, device_map, model_revision)
    import_libraries()
    from steerkit_vectors_hub.verify import verify as verified

    report = verified(
        ref,
        model=None if model is None else load_model(model, loading),
        strength=strength,
        policy=allowed,
        revision=revision,
        sha256=sha256,
        offline=True if offline else None,
    )
    if as_json:
        print_json(report.as_json())
    else:
        for check in report.checks:
            typer.echo(clean(check))
            if check.fix and check.status in ("fail", "warn"):
                typer.echo(clean(f"      fix: {check.fix}"))
    if not report.ok:
        raise typer.Exit(1)
