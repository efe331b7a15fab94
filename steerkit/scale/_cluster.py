"""Workers of a Ray cluster: an actor for each GPU, with the model in it, that fits and answers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from steerkit._internal.files import user_path
from steerkit._internal.validation import expect_whole
from steerkit.errors import CheckpointError, EngineError, OptionError, SteerKitError
from steerkit.evaluation import KINDS, Answer, PhraseJudge, Suite, Work, batches
from steerkit.methods import Extraction, State, SteeringMethod
from steerkit.models import Sample
from steerkit.scale._worker import JOIN, Worker
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

RETRIES = 3
"""How often a task is tried again, and an actor started again, after its process or its machine was lost."""

JOINED = 8
"""How many states a worker merges at once."""


@contextmanager
def cluster(
    model: str | Path, *, workers: int | None = None, loading: Mapping[str, Any] | None = None
) -> Iterator[Cluster]:
    """Workers with a model, on the cluster that Ray is connected to; else Ray is started on this machine.

    `ray.init` beforehand says otherwise. A worker that is lost is replaced, and its task is done again. On a CPU, Ray
    gives a worker one thread for each of its CPUs (one, if nothing else is said), and sums of floats depend on the
    number of threads.

    Args:
        model: Repository id or folder of the model, which every worker can read.
        workers: The number of workers. Default: one for each GPU of the cluster, or each CPU where there is none.
        loading: Options of `steerkit.load`.

    Yields:
        What fits by itself, and what `generate`, `evaluate`, `compare` and `study` take as `cluster`.

    Raises:
        EngineError: Ray is not installed.
        OptionError: The cluster has no place for the workers.

    Example:
        >>> with sk.scale.cluster("llava-hf/llava-1.5-7b-hf") as cluster:
        ...     vector = cluster.fit(sk.CMRM(), anchors, folder="states")
        ...     found = sk.compare(vlm, {"cmrm": vector}, suite, folder="run", cluster=cluster)
    """
    try:
        ray: Any = importlib.import_module("ray")  # no checker can follow what it declares of remote calls
    except ImportError as error:
        raise EngineError("Ray is not installed", fix="pip install 'steerkit-vlm[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    available = gpus or int(resources.get("CPU", 0))
    count = available if workers is None else workers
    expect_whole(workers=count)
    if count > available:
        raise OptionError(
            f"{count} workers are wanted of a cluster with {available} {'GPUs' if gpus else 'CPUs'}",
            expected=f"at most {available}",
        )
    needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    remote = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **needs)(Worker)
    actors: list[Any] = [remote.remote(str(model), dict(loading or {})) for _ in range(count)]
    try:
        yield Cluster(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


class Cluster:
    """Workers of a Ray cluster, with one model in each; made by `steerkit.scale.cluster`."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors

    def holds(self, vlm: VLM) -> bool:
        """Whether a model has the weights that the workers have.

        Raises:
            EngineError: A worker was lost more than three times.
            SteerKitError: Whatever `steerkit.load` raises in the workers.
        """
        return self._weights == vlm.weights_digest()

    @cached_property
    def _weights(self) -> str:
        """The digest of what the workers loaded, which doesn't change: whoever goes on asks for each condition."""
        return next(self._each("weights", [()]))

    def fit(
        self,
        method: SteeringMethod,
        anchors: Sequence[Sample],
        *,
        folder: str | Path,
        engine: Literal["nnsight", "hooks"] = "nnsight",
        batch_size: int = 8,
        blocks_per_task: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        anchor_name: str = "",
        anchor_license: str | None = None,
    ) -> SteeringVector:
        """Extract a steering vector; on equal hardware, bit for bit what `method.fit` makes.

        Every worker writes what a task measured to `folder` before anything else is done with it: a run that was
        stopped or killed goes on from there when it is called again, and measures nothing twice. The workers also merge
        the states, a few neighbours each, so that this process only hands out work.

        Args:
            method: The method, configured.
            anchors: The anchor set; images by paths that every worker can read, or held in memory.
            folder: Where states are kept, of this extraction alone; every worker and this process see it under one
                path. Delete it once the vector is saved.
            engine: As in `fit`.
            batch_size: As in `fit`.
            blocks_per_task: So many blocks are measured before a worker reports. Default: a quarter of a worker's
                share, as a power of two, 64 at most.
            progress: Called with (done, total) samples after each task.
            anchor_name: Name of the anchor set, for the metadata.
            anchor_license: Its licence, for the metadata.

        Returns:
            The vector, with complete metadata.

        Raises:
            EngineError: A worker was lost more than three times.
            OptionError: An argument is impossible.
            CheckpointError: The folder holds states of another extraction, can't be written, or is another elsewhere.
            SteerKitError: Whatever `fit` raises.
        """
        expect_whole(batch_size=batch_size, **({} if blocks_per_task is None else {"blocks_per_task": blocks_per_task}))
        kept = user_path(folder).absolute()
        ray: Any = importlib.import_module("ray")
        place = [ray.put((method, list(anchors), {"engine": engine, "batch_size": batch_size}, kept))]
        names = {"anchor_name": anchor_name, "anchor_license": anchor_license}
        with _cleared(kept):
            whole: Path | None = None
            extraction = next(self._each("start", [(place,)]))
            if extraction is not None:
                done = _resumed(kept, extraction)
                left = sorted(set(extraction.blocks).difference(*done.values()))
                share = len(left) // (4 * len(self._actors))
                size = blocks_per_task or 2 ** min(6, max(1, share).bit_length() - 1)
                # cut at the numbers of all blocks, so that the state of a task is one subtree
                tasks = [(place, list(task)) for _, task in groupby(left, key=lambda block: block // size)]
                for path, blocks in self._each("measure", tasks, ordered=False):
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
                    neighbours = [(joined[at : at + JOINED],) for at in range(0, len(joined), JOINED)]
                    joined = list(self._each("join", neighbours))
                whole = joined[0]
            return SteeringVector.from_bytes(next(self._each("finish", [(place, whole, names)])))

    def answer(self, vlm: VLM, suite: Suite, work: Sequence[Work], batch_size: int) -> Iterator[list[Answer]]:
        """Fill in records of answers, a batch a task, in any order; batches are those of one process.

        Args:
            vlm: The model, as this process holds it.
            suite: The prompts.
            work: Conditions, and the records that lack answers under them.
            batch_size: Prompts per call of the model.

        Raises:
            EngineError: A worker was lost more than three times.
            SteerKitError: As `generate` does.
        """
        tasks = [
            (_only(suite, rows), conditions, rows, batch_size)
            for conditions, every in work
            for rows in batches(vlm, suite, (conditions, every), batch_size)
        ]
        yield from self._each("answer", tasks, ordered=False)

    def _each(self, task: str, arguments: Sequence[tuple[Any, ...]], *, ordered: bool = True) -> Iterator[Any]:
        """What a task gives for each of several arguments."""
        from ray.exceptions import RayError
        from ray.util import ActorPool

        pool: Any = ActorPool(self._actors)  # one that was left early would go on with what it holds
        every = pool.map if ordered else pool.map_unordered
        try:
            yield from every(lambda actor, given: getattr(actor, task).remote(*given), arguments)
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SteerKitError):
                raise cause from error
            raise EngineError(
                f"a worker was lost ({str(error).splitlines()[0] if str(error) else type(error).__name__:.300})",
                expected="workers that stay, or come back",
                fix="see the log of Ray; what was done is in its files, and the same call goes on from there",
            ) from error


def _only(suite: Suite, rows: Sequence[Sequence[Answer]]) -> Suite:
    """The cases of some rows."""
    asked = {(row[0].kind, row[0].row) for row in rows}
    cases = {kind: tuple(case for case in suite.cases(kind) if (kind, case.id) in asked) for kind in KINDS}
    return replace(suite, **cases, judge=PhraseJudge())  # workers don't judge, and a judge may hold a model


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
