"""A fit on the workers of a Ray cluster: an actor for each GPU, a few blocks a task, a file for each task."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

from steerkit._internal.validation import expect_whole
from steerkit.errors import EngineError, OptionError, SteerKitError
from steerkit.methods import State, SteeringMethod
from steerkit.models import Sample
from steerkit.vectors import SteeringVector

RETRIES = 3
"""How often a task is tried again, and an actor started again, after its process or its machine was lost."""


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
    blocks_per_task: int = 8,
    progress: Callable[[int, int], None] | None = None,
    anchor_name: str = "",
    anchor_license: str | None = None,
) -> SteeringVector:
    """Extract a steering vector on a Ray cluster; on equal hardware, bit for bit what `method.fit` makes.

    Every worker loads the model once. What a task measured is written to `folder` by this process, before anything
    else is done with it: a run that was stopped or killed goes on from there when it is called again, and does nothing
    twice. A worker that is lost is replaced, and its task is done again. Connects to the running cluster, or starts
    Ray on this machine: `ray.init` beforehand says otherwise.

    On a CPU, Ray gives a worker one thread for each of its CPUs (one, if nothing else is said), and sums of floats
    depend on the number of threads.

    Args:
        method: The method, configured.
        model: Repository id or folder of the model, which every worker can read.
        anchors: The anchor set; images by paths that every worker can read, or held in memory.
        folder: Where states are kept; of this extraction alone. Delete it once the vector is saved.
        workers: The number of workers. Default: one for each GPU of the cluster, or each CPU where there is none.
        loading: Options of `steerkit.load`.
        engine: As in `fit`.
        batch_size: As in `fit`.
        blocks_per_task: So many blocks are measured before a worker reports.
        progress: Called with (done, total) samples after each task.
        anchor_name: Name of the anchor set, for the metadata.
        anchor_license: Its licence, for the metadata.

    Returns:
        The vector, with complete metadata.

    Raises:
        EngineError: Ray is not installed, or a worker was lost more than three times.
        OptionError: An argument is impossible, or the cluster has no place for the workers.
        CheckpointError: The folder holds states of another extraction, or can't be written.
        SteerKitError: Whatever `fit` raises.
    """
    expect_whole(batch_size=batch_size, blocks_per_task=blocks_per_task)
    try:
        ray: Any = importlib.import_module("ray")  # no checker can follow what it declares of remote calls
        from ray.exceptions import RayError
        from ray.util import ActorPool
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
    place = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    worker = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **place)(_Worker)
    options = {"engine": engine, "batch_size": batch_size}
    shared = ray.put(list(anchors))
    actors: list[Any] = [
        worker.remote(method, str(model), dict(loading or {}), [shared], options) for _ in range(count)
    ]
    try:
        state = ray.get(actors[0].start.remote())
        if state is not None:
            state = _resumed(Path(folder), state)
            left = state.missing
            tasks = [left[at : at + blocks_per_task] for at in range(0, len(left), blocks_per_task)]
            found: State
            for found in cast("Any", ActorPool(actors)).map_unordered(
                lambda actor, blocks: actor.measure.remote(blocks), tasks
            ):
                blocks = sorted(found.blocks)
                found.save(Path(folder) / f"blocks-{blocks[0]:08}-{blocks[-1]:08}.safetensors")
                state = state.merge(found)
                if progress is not None:
                    progress(len(state), state.extraction.anchors)
        names = {"anchor_name": anchor_name, "anchor_license": anchor_license}
        return SteeringVector.from_bytes(ray.get(actors[0].finish.remote(state, names)))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SteerKitError):
            raise cause from error
        raise EngineError(
            f"a worker was lost ({str(error).splitlines()[0] if str(error) else type(error).__name__:.300})",
            expected="workers that stay, or come back",
            fix=f"see the log of Ray; what was measured is in {str(folder)!r}, and the same call goes on from there",
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)


class _Worker:
    """One process of the cluster, with the model in it."""

    def __init__(
        self,
        method: SteeringMethod,
        model: str,
        loading: dict[str, Any],
        anchors: list[Any],
        options: dict[str, Any],
    ) -> None:
        from steerkit.vlm import load

        ray: Any = importlib.import_module("ray")
        self._method, self._options = method, options
        self._anchors: list[Sample] = ray.get(anchors[0])  # in a list, Ray leaves it to us when it is read
        self._model = load(model, **loading)
        if torch.cuda.is_available() and "device_map" not in loading:
            self._model.model.to("cuda")

    def start(self) -> State | None:
        """A state without any block, or None where the method measures nothing."""
        if not self._method.blocks(self._model, self._anchors, batch_size=self._options["batch_size"]):
            return None
        return self.measure([])

    def measure(self, blocks: list[int]) -> State:
        return self._method.measure(self._model, self._anchors, blocks, **self._options)

    def finish(self, state: State | None, names: dict[str, Any]) -> bytes:
        if state is None:
            return self._method.fit(self._model, anchors=self._anchors, **names).to_bytes()
        return self._method.finish(self._model, state, **names).to_bytes()


def _resumed(folder: Path, state: State) -> State:
    """What an earlier run left in the folder."""
    for path in sorted(folder.glob("blocks-*.safetensors")):
        found = State.load(path)
        state.extraction.require(found.extraction, f"the state {str(path)!r:.300}")
        state = state.merge(found)
    return state
