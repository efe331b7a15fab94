"""Workers of a Ray cluster: an actor for each GPU, with the model in it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from steerkit._internal.validation import expect_whole
from steerkit.errors import EngineError, OptionError, SteerKitError
from steerkit.vlm import VLM

RETRIES = 3
"""How often a task is tried again, and an actor started again, after its process or its machine was lost."""


class Worker:
    """One process of the cluster, with the model in it."""

    def __init__(self, model: str, loading: Mapping[str, Any], shared: list[Any]) -> None:
        from steerkit.vlm import load

        ray: Any = importlib.import_module("ray")
        self.shared = ray.get(shared[0])  # in a list, Ray leaves it to us when it is read
        self.model: VLM = load(model, **loading)
        if torch.cuda.is_available() and "device_map" not in loading:
            self.model.model.to("cuda")


@contextmanager
def engaged(
    kind: type[Worker],
    model: str | Path,
    loading: Mapping[str, Any] | None,
    shared: Any,
    workers: int | None,
    kept: str,
) -> Iterator[tuple[list[Any], Any]]:
    """Workers, and the pool of them, on the cluster that is connected to; or Ray is started on this machine.

    Args:
        kind: What they are.
        model: Repository id or folder of the model.
        loading: Options of `steerkit.load`.
        shared: What all of them are given once.
        workers: How many. Default: one for each GPU of the cluster, or each CPU where there is none.
        kept: What is not lost with a worker, for messages.

    Raises:
        EngineError: Ray is not installed, or a worker was lost more than three times.
        OptionError: The cluster has no place for the workers.
    """
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
    needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    remote = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **needs)(kind)
    place = ray.put(shared)
    actors: list[Any] = [remote.remote(str(model), dict(loading or {}), [place]) for _ in range(count)]
    try:
        yield actors, cast("Any", ActorPool(actors))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, SteerKitError):
            raise cause from error
        raise EngineError(
            f"a worker was lost ({str(error).splitlines()[0] if str(error) else type(error).__name__:.300})",
            expected="workers that stay, or come back",
            fix=f"see the log of Ray; {kept}",
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)
