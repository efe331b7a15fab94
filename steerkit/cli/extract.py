"""`steerkit extract`: fit a steering vector on an anchor set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import echo, say
from steerkit.errors import CheckpointError

if TYPE_CHECKING:
    from steerkit.methods import SteeringMethod
    from steerkit.models import Sample
    from steerkit.vectors import SteeringVector


def extract(
    model: str,
    anchors: Path | None = None,
    *,
    output: Path,
    method: str = "cmrm",
    set_: list[str] | None = None,
    license_: str | None = None,
    anchor_name: str | None = None,
    rows: opt.SampleFile,
    loading: opt.Loading,
    batch_size: int = 8,
    checkpoint: Path | None = None,
    fresh: bool = False,
    force: bool = False,
) -> None:
    """Fit a steering vector on an anchor set.

    The vector is written as a pack: one file that holds its directions and says how they came to be.

    An extraction that is stopped, even killed, goes on where it was when the same command is run again.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        anchors (ANCHORS): Anchor set, .jsonl or .csv; none for a method that needs none.
        output (FILE): The pack to write.
        method: Name of the method; `steerkit methods` lists them.
        set_ (KEY=VALUE): An option of the method, as JSON or text.
        license_: Licence of the pack, such as MIT.
        anchor_name: Name of the anchor set. Default: its file name.
        rows: How the sample file is read.
        loading: How the model is loaded.
        batch_size: Samples per batch.
        checkpoint: Where the state is kept. Default: FILE.partial.
        fresh: Start again instead of resuming.
        force: Overwrite the output.
    """
    from steerkit.cli.loading import check_without_weights, import_libraries, load_model

    partial = checkpoint if checkpoint is not None else output.with_name(f"{output.name}.partial")
    opt.output(output, force=force, ANCHORS=anchors)
    opt.output(partial, force=True, ANCHORS=anchors, OUTPUT=output)
    if fresh and partial.exists() and _measured(partial) is None:
        raise CheckpointError(
            f"{str(partial)!r} is not a checkpoint, and --fresh deletes it",
            expected="a checkpoint",
            fix="name another file",
        )
    chosen, given = opt.settings(set_), loading.given()
    samples = rows.read(anchors) if anchors is not None else []
    import_libraries()
    from steerkit.methods import get_method

    fitter = get_method(method)(**chosen)
    name = anchor_name if anchor_name is not None else (anchors.stem if anchors is not None else "")
    try:
        check_without_weights(model, given, lambda skeleton: fitter.plan(skeleton, samples))
        vlm = load_model(model, given)
        if fresh:
            partial.unlink(missing_ok=True)
        vector = _fit(fitter, vlm, samples, partial, batch_size=batch_size, anchor_name=name)
        if license_ is not None:
            vector = vector.with_metadata(license=license_)
        vector.save(output)
        partial.unlink(missing_ok=True)
    except KeyboardInterrupt as error:
        done = _measured(partial)
        kept = f"{done} of {len(samples)} samples are in {partial}. The same command goes on from there."
        say(f"Stopped: {kept}" if done else "Stopped before anything was measured. The same command starts again.")
        raise typer.Exit(130) from error
    except Exception:
        if done := _measured(partial):
            say(f"{done} of {len(samples)} samples are kept in {partial}: the same command goes on from there.")
        raise
    echo(f"Wrote {output}: {vector!r}")


def _fit(fitter: SteeringMethod, vlm: Any, samples: list[Sample], partial: Path, **options: Any) -> SteeringVector:
    from steerkit.cli.progress import progress

    if done := _measured(partial) or 0:
        say(f"Resuming from {partial}: {done} of {len(samples)} samples are done.")
    try:
        with progress(f"Extracting with {fitter.name}", total=len(samples), done=done) as report:
            return fitter.fit(vlm, samples, checkpoint=partial, progress=report, **options)
    except CheckpointError as error:
        raise CheckpointError(
            error.problem,
            expected=error.expected,
            fix="pass --fresh to start again (a checkpoint is deleted), or name another file with --checkpoint",
        ) from error


def _measured(partial: Path) -> int | None:
    """How many samples a checkpoint holds; None where there is none, or the fit itself will refuse it."""
    from steerkit.methods import State

    try:
        return len(State.load(partial))
    except CheckpointError:
        return None
