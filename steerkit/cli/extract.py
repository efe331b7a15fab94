"""`steerkit extract`: fit a steering vector on an anchor set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.console import echo, say
from steerkit.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from steerkit.cli.progress import Report


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
    shard: str | None = None,
    ray: bool = False,
    workers: int | None = None,
    fresh: bool = False,
    force: bool = False,
) -> None:
    """Fit a steering vector on an anchor set.

    The vector is written as a pack: one file that holds its directions and says how they came to be.

    An extraction that is stopped, even killed, goes on where it was when the same command is run again.

    With --shard, only a part of the anchors is measured, and FILE is a state: `steerkit merge` makes the pack of all.
    With --ray, the workers of a Ray cluster measure.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        anchors (ANCHORS): Anchor set, a file or a folder of them; none for a method that needs none.
        output (FILE): The pack to write.
        method: Name of the method; `steerkit methods` lists them.
        set_ (KEY=VALUE): An option of the method, as JSON or text.
        license_: Licence of the pack, such as MIT.
        anchor_name: Name of the anchor set. Default: its file name.
        rows: How the sample file is read.
        loading: How the model is loaded.
        batch_size: Samples per batch.
        checkpoint: Where the state is kept. Default: FILE.partial; with --ray, a folder.
        shard (I/N): Measure the part of worker I of N, from 0/N to N-1/N.
        ray: Measure on the cluster that Ray is connected to, or on this machine's processors.
        workers: Number of Ray workers. Default: one for each GPU, or CPU where there is none.
        fresh: Start again instead of resuming.
        force: Overwrite the output.
    """
    from steerkit.cli.loading import check_without_weights, import_libraries, load_model
    from steerkit.demo import bundled

    part = None if shard is None else _part(shard)
    if ray and part is not None:
        raise OptionError("--shard and --ray are both given", expected="one of the two")
    if workers is not None and not ray:
        raise OptionError("--workers is given without --ray", expected="both, or neither")
    partial = checkpoint if checkpoint is not None else output.with_name(f"{output.name}.partial")
    opt.output(output, force=force, ANCHORS=anchors)
    if not ray:
        opt.output(partial, force=True, ANCHORS=anchors, OUTPUT=output)
    if fresh and partial.exists() and _measured(partial) is None:
        raise CheckpointError(
            f"{str(partial)!r} is not a checkpoint, and --fresh deletes it",
            expected="a checkpoint",
            fix="name another file",
        )
    chosen, given = opt.settings(set_), loading.given()
    alone = part is None and not ray  # of several workers, each checks the images that it measures
    samples = rows.read(anchors, check_images=alone) if anchors is not None else []
    import_libraries()

    fitter = sk.get_method(method)(**chosen)
    name = anchor_name if anchor_name is not None else (anchors.stem if anchors is not None else "")
    made: sk.methods.State | sk.SteeringVector
    try:
        check_without_weights(model, given, lambda skeleton: fitter.plan(skeleton, samples))
        if fresh:
            _forget(partial)
        vlm = None if ray else load_model(model, given)
        with _reported(fitter, samples, partial) as report:
            options: dict[str, Any] = {"batch_size": batch_size, "progress": report}
            if vlm is None:
                with sk.scale.cluster(bundled(model), workers=workers, loading=given) as cluster:
                    made = cluster.fit(fitter, samples, folder=partial, anchor_name=name, **options)
            elif part is None:
                made = fitter.fit(vlm, samples, anchor_name=name, checkpoint=partial, **options)
            else:
                blocks = sk.scale.shard(fitter.blocks(vlm, samples, batch_size=batch_size), *part)
                made = fitter.measure(vlm, samples, blocks, checkpoint=partial, **options)
        if license_ is not None and isinstance(made, sk.SteeringVector):
            made = made.with_metadata(license=license_)
        made.save(output)
        _forget(partial)
    except KeyboardInterrupt as error:
        done = _measured(partial)
        kept = f"{done} of {len(samples)} samples are in {partial}. The same command goes on from there."
        say(f"Stopped: {kept}" if done else "Stopped before anything was measured. The same command starts again.")
        raise typer.Exit(130) from error
    except Exception:
        if done := _measured(partial):
            say(f"{done} of {len(samples)} samples are kept in {partial}: the same command goes on from there.")
        raise
    echo(f"Wrote {output}: {made!r}")


def merge(
    model: str,
    states: list[Path],
    *,
    output: Path,
    license_: str | None = None,
    anchor_name: str | None = None,
    loading: opt.Loading,
    force: bool = False,
) -> None:
    """Make a pack of what several workers have measured.

    The states of `extract --shard`, all of them, in any order. The pack is the one that a single extraction makes.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        states (STATE...): The files of all shards.
        output (FILE): The pack to write.
        license_: Licence of the pack, such as MIT.
        anchor_name: Name of the anchor set.
        loading: How the model is loaded.
        force: Overwrite the output.
    """
    from steerkit.cli.loading import import_libraries, load_model

    opt.output(output, force=force, **{f"STATE {number}": path for number, path in enumerate(states, start=1)})
    import_libraries()
    first, *others = (sk.methods.State.load(path) for path in states)
    for path, other in zip(states[1:], others, strict=True):
        first.extraction.require(other.extraction, f"the state {str(path)!r:.300}")
    whole = first.merge(*others)
    whole.check_complete()  # what is missing is said before the model is loaded
    fitter = sk.get_method(first.extraction.method)(**first.extraction.config)
    vector = fitter.finish(load_model(model, loading.given()), whole, anchor_name=anchor_name or "")
    if license_ is not None:
        vector = vector.with_metadata(license=license_)
    vector.save(output)
    echo(f"Wrote {output}: {vector!r}")


def _part(shard: str) -> tuple[int, int]:
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise OptionError(f"the shard is {shard!r}", expected="I/N, such as 0/8")
    found = int(index), int(count)
    if found[0] >= found[1]:
        raise OptionError(f"there is no shard {shard}", expected="I from 0 to N-1")
    return found


@contextmanager
def _reported(fitter: sk.SteeringMethod, samples: list[sk.Sample], partial: Path) -> Iterator[Report]:
    from steerkit.cli.progress import progress

    if done := _measured(partial) or 0:
        say(f"Resuming from {partial}: {done} of {len(samples)} samples are done.")
    try:
        with progress(f"Extracting with {fitter.name}", total=len(samples), done=done) as report:
            yield report
    except CheckpointError as error:
        raise CheckpointError(
            error.problem,
            expected=error.expected,
            fix="pass --fresh to start again (a checkpoint is deleted), or name another file with --checkpoint",
        ) from error


def _files(partial: Path) -> list[Path]:
    return sorted(partial.glob("blocks-*.safetensors")) if partial.is_dir() else [partial]


def _measured(partial: Path) -> int | None:
    """How many samples a checkpoint holds; None where there is none, or the fit itself will refuse it."""
    try:
        return sum(len(sk.methods.State.load(path)) for path in _files(partial))
    except CheckpointError:
        return None


def _forget(partial: Path) -> None:
    for path in _files(partial):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # there is something else in it
        if partial.is_dir():
            partial.rmdir()
