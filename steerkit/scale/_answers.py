"""Answers by the workers of a Ray cluster: a batch of a condition's prompts is a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerkit.evaluation import KINDS, Answer, Answering, Condition, PhraseJudge, Suite, answered, batches
from steerkit.scale._cluster import Worker, engaged
from steerkit.vlm import VLM


@contextmanager
def answering(
    model: str | Path, *, workers: int | None = None, loading: Mapping[str, Any] | None = None
) -> Iterator[Answering]:
    """Workers of a Ray cluster that answer suites; on equal hardware, what one process answers.

    Batches hold the same prompts as in one process, and the process that asked writes each of them to its file as soon
    as it is there: so a worker that dies costs a batch, which another makes, and a run that was killed goes on. A model
    that the workers don't have, such as the baseline of a study, is asked in the process itself.

    Args:
        model: Repository id or folder of the model, which every worker can read.
        workers: The number of workers. Default: one for each GPU of the cluster, or each CPU where there is none.
        loading: Options of `steerkit.load`.

    Yields:
        What `generate`, `evaluate`, `compare` and `study` take as `answering`.

    Raises:
        EngineError: Ray is not installed, or a worker was lost more than three times.
        OptionError: The cluster has no place for the workers.
        SteerKitError: Whatever `generate` raises.

    Example:
        >>> with sk.scale.answering("llava-hf/llava-1.5-7b-hf") as answering:
        ...     found = sk.compare(vlm, methods, suite, anchors, folder="run", answering=answering)
    """
    with engaged(_Worker, model, loading, None, workers, "what was answered is in its file") as (_, pool):
        (weights,) = pool.map(lambda actor, _: actor.weights.remote(), [0])

        def answer(vlm: VLM, suite: Suite, work: Sequence[Any], batch_size: int) -> Iterator[list[Answer]]:
            if vlm.weights_digest() != weights:
                yield from answered(vlm, suite, work, batch_size)
                return
            tasks = [
                (_only(suite, rows), conditions, rows)
                for conditions, every in work
                for rows in batches(vlm, suite, (conditions, every), batch_size)
            ]
            yield from pool.map_unordered(lambda actor, task: actor.answer.remote(*task, batch_size), tasks)

        yield answer


class _Worker(Worker):
    """Answers batches."""

    def weights(self) -> str:
        return self.model.weights_digest()

    def answer(
        self, suite: Suite, conditions: list[Condition], rows: list[list[Answer]], batch_size: int
    ) -> list[Answer]:
        return [each for batch in answered(self.model, suite, [(conditions, rows)], batch_size) for each in batch]


def _only(suite: Suite, rows: Sequence[Sequence[Answer]]) -> Suite:
    """The cases of some rows."""
    asked = {(row[0].kind, row[0].row) for row in rows}
    cases = {kind: tuple(case for case in suite.cases(kind) if (kind, case.id) in asked) for kind in KINDS}
    return replace(suite, **cases, judge=PhraseJudge())  # workers don't judge, and a judge may hold a model
