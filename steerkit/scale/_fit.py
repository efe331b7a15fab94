"""A fit on the workers of a Ray cluster: a few blocks a task, a file for each task."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from steerkit._internal.validation import expect_whole
from steerkit.errors import CheckpointError
from steerkit.methods import Extraction, State, SteeringMethod
from steerkit.models import Sample
from steerkit.scale._cluster import Worker, engaged
from steerkit.vectors import SteeringVector

JOINED, JOIN = 8, "join-"
"""How many states a worker merges at once, and how the files that hold them begin until the vector is made."""


def fit(
    method: SteeringMethod,
    model: str | Path,
    anchors: Sequence[Sample],
    *,
    folder: str | Path,
    workers: int | None = None,
    loading: Mapping[str, Any] | None = None,
    engine: Literal["nnsight", "hooks"] = "nnsight",
    batch_size: int = 8,
    blocks_per_task: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    anchor_name: str = "",
    anchor_license: str | None = None,
) -> SteeringVector:
    """Extract a steering vector on a Ray cluster; on equal hardware, bit for bit what `method.fit` makes.

    Every worker loads the model once, and writes what a task measured to `folder` before anything else is done with
    it: a run that was stopped or killed goes on from there when it is called again, and measures nothing twice. A
    worker that is lost is replaced, and its task is done again. The workers also merge the states, a few neighbours
    each, so that this process only hands out work. Connects to the running cluster, or starts Ray on this machine:
    `ray.init` beforehand says otherwise.

    On a CPU, Ray gives a worker one thread for each of its CPUs (one, if nothing else is said), and sums of floats
    depend on the number of threads.

    Args:
        method: The method, configured.
        model: Repository id or folder of the model, which every worker can read.
        anchors: The anchor set; images by paths that every worker can read, or held in memory.
        folder: Where states are kept, of this extraction alone; every worker and this process see it under one path.
            Delete it once the vector is saved.
        workers: The number of workers. Default: one for each GPU of the cluster, or each CPU where there is none.
        loading: Options of `steerkit.load`.
        engine: As in `fit`.
        batch_size: As in `fit`.
        blocks_per_task: So many blocks are measured before a worker reports. Default: a quarter of a worker's share,
            as a power of two, 64 at most.
        progress: Called with (done, total) samples after each task.
        anchor_name: Name of the anchor set, for the metadata.
        anchor_license: Its licence, for the metadata.

    Returns:
        The vector, with complete metadata.

    Raises:
        EngineError: Ray is not installed, or a worker was lost more than three times.
        OptionError: An argument is impossible, or the cluster has no place for the workers.
        CheckpointError: The folder holds states of another extraction, can't be written, or is another one elsewhere.
        SteerKitError: Whatever `fit` raises.
    """
    expect_whole(batch_size=batch_size, **({} if blocks_per_task is None else {"blocks_per_task": blocks_per_task}))
    place = Path(folder).absolute()
    options = {"engine": engine, "batch_size": batch_size}
    shared = (method, list(anchors), options, place)
    kept = f"what was measured is in {str(place)!r}, and the same call goes on from there"
    with engaged(_Worker, model, loading, shared, workers, kept) as (actors, pool), _cleared(place):
        whole: Path | None = None
        extraction = next(pool.map(lambda actor, _: actor.start.remote(), [0]))
        if extraction is not None:
            done = _resumed(place, extraction)
            left = sorted(set(extraction.blocks).difference(*done.values()))
            size = blocks_per_task or 2 ** min(6, max(1, len(left) // (4 * len(actors))).bit_length() - 1)
            # cut at the numbers of all blocks, so that the state of a task is one subtree
            tasks = [list(task) for _, task in groupby(left, key=lambda block: block // size)]
            for path, blocks in pool.map_unordered(lambda actor, task: actor.measure.remote(task), tasks):
                if not path.exists():
                    raise CheckpointError(
                        f"a worker wrote {str(path)!r:.300}, which is not there for the process that asked",
                        expected="a folder that all machines share",
                        fix="name one on a file system of all of them",
                    )
                done[path] = blocks
                if progress is not None:
                    progress(sum(len(extraction.span(one)) for each in done.values() for one in each), len(anchors))
            joined = sorted(done, key=lambda path: done[path][0])
            while len(joined) > 1:
                neighbours = [joined[at : at + JOINED] for at in range(0, len(joined), JOINED)]
                joined = list(pool.map(lambda actor, paths: actor.join.remote(paths), neighbours))
            whole = joined[0]
        names = {"anchor_name": anchor_name, "anchor_license": anchor_license}
        return SteeringVector.from_bytes(*pool.map(lambda actor, path: actor.finish.remote(path, names), [whole]))


class _Worker(Worker):
    """Measures blocks."""

    shared: tuple[SteeringMethod, list[Sample], dict[str, Any], Path]

    def start(self) -> Extraction | None:
        """What is measured, or None where the method measures nothing."""
        method, anchors, options, _ = self.shared
        if not method.blocks(self.model, anchors, batch_size=options["batch_size"]):
            return None
        return method.measure(self.model, anchors, [], **options).extraction

    def measure(self, blocks: list[int]) -> tuple[Path, list[int]]:
        """Measure some blocks, and say where they are."""
        method, anchors, options, folder = self.shared
        state = method.measure(self.model, anchors, blocks, **options)
        return state.save(folder / f"blocks-{blocks[0]:08}-{blocks[-1]:08}.safetensors"), blocks

    def join(self, paths: list[Path]) -> Path:
        """Merge states of neighbours."""
        if len(paths) == 1:
            return paths[0]
        first, *others = map(State.load, paths)
        return first.merge(*others).save(self.shared[-1] / f"{JOIN}{secrets.token_hex(8)}.safetensors")

    def finish(self, whole: Path | None, names: dict[str, Any]) -> bytes:
        method, anchors, *_ = self.shared
        if whole is None:
            return method.fit(self.model, anchors=anchors, **names).to_bytes()
        return method.finish(self.model, State.load(whole), **names).to_bytes()


def _resumed(folder: Path, extraction: Extraction) -> dict[Path, list[int]]:
    """What an earlier run left in the folder: the blocks of each state.

    Raises:
        CheckpointError: One is damaged, or of another extraction.
    """
    found: dict[Path, list[int]] = {}
    for path in sorted(folder.glob("blocks-*.safetensors")):
        state = State.load(path)
        extraction.require(state.extraction, f"the state {str(path)!r:.300}")
        found[path] = sorted(state.blocks)
    return found


@contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    """Without joined states, of a run that was killed or of this one."""

    def clear() -> None:
        for path in folder.glob(f"{JOIN}*.safetensors"):
            path.unlink(missing_ok=True)

    clear()
    try:
        yield
    finally:
        clear()
