"""`steerkit extract`: fit a steering vector on an anchor set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import clean, say
from steerkit.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from steerkit.methods import SteeringMethod
    from steerkit.models import Sample
    from steerkit.vectors import SteeringVector


def extract(
    model: opt.Model,
    anchors: Annotated[
        Path | None,
        typer.Argument(metavar="ANCHORS", help="Anchor set, .jsonl or .csv; none for a method that needs none."),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The pack to write.")],
    method: Annotated[str, typer.Option(help="Name of the method; `steerkit methods` lists them.")] = "cmrm",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of the method, as JSON or text. Repeat for more."),
    ] = None,
    batch_size: opt.BatchSize = 8,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    revision: opt.Revision = None,
    license_: Annotated[str | None, typer.Option("--license", help="Licence of the pack.")] = None,
    anchor_name: Annotated[str | None, typer.Option(help="Name of the anchor set. Default: its file name.")] = None,
    columns: opt.Columns = None,
    skip_bad_rows: opt.SkipBadRows = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Where the state is kept. Default: FILE.partial.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again instead of resuming.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Fit a steering vector on an anchor set.

    The vector is written as a pack: one file that holds its directions and says how they came to be.

    An extraction that is stopped, even killed, goes on where it was when the same command is run again.
    """
    from steerkit.cli.loading import check_without_weights, import_libraries, load_model, load_options

    partial = checkpoint if checkpoint is not None else output.with_name(f"{output.name}.partial")
    opt.check_output(output, force=force)
    opt.check_output(partial, force=True)
    _check_distinct({"ANCHORS": anchors, "--output": output, "--checkpoint": partial})
    if fresh and partial.exists() and not _is_checkpoint(partial):
        raise CheckpointError(
            f"{str(partial)!r} is no checkpoint, and --fresh deletes it",
            expected="a checkpoint",
            fix="name another file",
        )
    loading = load_options(dtype, device_map, revision)
    chosen, renamed = opt.settings(set_), opt.columns(columns)
    samples = read_file(anchors, renamed, skip=skip_bad_rows) if anchors is not None else []
    import_libraries()
    fitter = _configured(method, chosen)
    name = anchor_name if anchor_name is not None else (anchors.stem if anchors is not None else "")
    try:
        check_without_weights(model, loading, lambda skeleton: fitter.plan(skeleton, samples))
        vlm = load_model(model, loading)
        if fresh:
            partial.unlink(missing_ok=True)
        vector = _fit(fitter, vlm, samples, partial, batch_size=batch_size, anchor_name=name)
        if license_ is not None:
            vector = vector.with_metadata(license=license_)
        vector.save(output)
        partial.unlink(missing_ok=True)
    except KeyboardInterrupt as error:
        say(_stopped(partial, len(samples)))
        raise typer.Exit(130) from error
    except Exception:
        if done := measured(partial):
            say(f"{done} of {len(samples)} samples are kept in {partial}: the same command goes on from there.")
        raise
    typer.echo(clean(f"Wrote {output}: {vector!r}"))


def _check_distinct(files: dict[str, Path | None]) -> None:
    """Refuse one file in two roles: it would be written over, or deleted at the end.

    Raises:
        OptionError: Two are the same.
    """
    seen: dict[Path, str] = {}
    for role, path in files.items():
        if path is None:
            continue
        if (other := seen.setdefault(path.resolve(), role)) is not role:
            raise OptionError(f"{other} and {role} are both {str(path)!r}", expected="a file for each")


def read_file(path: Path, columns: dict[str, str | None], *, skip: bool) -> list[Sample]:
    """The samples of a file; bad rows end the command, or are named and left out.

    Raises:
        SampleError: A row is bad, or there is no such file.
    """
    from steerkit.models import read_samples

    bad: list[int] = []

    def leave_out(number: int, error: Exception) -> None:
        bad.append(number)
        say(f"left out: {error}")

    samples = read_samples(path, columns=columns, on_error=leave_out if skip else "raise")
    if bad:
        say(f"{len(bad)} of {len(samples) + len(bad)} rows of {path} were left out")
    return samples


def _configured(name: str, options: dict[str, Any]) -> SteeringMethod:
    from steerkit.methods import get_method

    kind = get_method(name)
    opt.check_names(options, kind.model_fields, f"method {name!r}")
    return kind(**options)


def _fit(fitter: SteeringMethod, vlm: Any, samples: list[Sample], partial: Path, **options: Any) -> SteeringVector:
    from steerkit.cli.progress import progress

    done = measured(partial)
    if done:
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


def measured(partial: Path) -> int:
    """How many samples a checkpoint holds; 0 for none, and for a file that the fit itself will refuse."""
    import json

    try:
        return len(json.loads(_state(partial) or "")["digests"])
    except (ValueError, KeyError, TypeError):
        return 0


def _is_checkpoint(path: Path) -> bool:
    return _state(path) is not None


def _state(partial: Path) -> str | None:
    """What a checkpoint says of itself; None for any other file."""
    import json

    from steerkit._internal.files import open_regular

    try:
        with open_regular(partial, 2**36) as file:  # the header of a safetensors file stands behind its length
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(min(length, 2**28)))["__metadata__"]["extraction"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _stopped(partial: Path, total: int) -> str:
    if not (done := measured(partial)):
        return "Stopped before anything was measured. The same command starts again."
    return f"Stopped: {done} of {total} samples are in {partial}. The same command goes on from there."
