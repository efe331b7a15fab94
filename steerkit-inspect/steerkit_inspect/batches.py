"""One model, and one thread that answers whoever asks, in batches of those that ask for the same.

Inspect sends single requests, from tasks that run at once; a GPU wants them together. Steering belongs to the context
that opened it, so the thread that runs the model is the one that opens it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, cached_property
from queue import Empty, Queue
from threading import RLock, Thread
from typing import Any, NamedTuple

import torch

import steerkit as sk
from steerkit.demo import bundled
from steerkit.models import Images
from steerkit.vectors import SteeringVector, as_strengths
from steerkit.vlm import VLM, Generated

TOGETHER = 0.05
"""Seconds without a further request, after which a batch that is not full begins."""


class Steering(NamedTuple):
    """Under what a request is answered: references of packs, their strengths (None: as recommended), and the rest."""

    refs: tuple[str, ...]
    strengths: tuple[float, ...] | None
    policy: Any
    images: Images
    download: bool


class Answered(NamedTuple):
    """An answer, what steered it, and how long its batch took."""

    made: Generated
    record: dict[str, Any]
    seconds: float


@dataclass
class _Request:
    sample: sk.Sample
    steering: Steering
    options: tuple[tuple[str, Any], ...]
    future: Future[Answered] = field(default_factory=Future)

    @property
    def key(self) -> Hashable:
        return (self.steering, self.options)


class Worker:
    """Answers with one model, which is loaded when the first request comes, and stays."""

    def __init__(self, source: str, options: tuple[tuple[str, Any], ...]) -> None:
        self.source, self.options = source, dict(options)
        self.queue: Queue[tuple[_Request, int]] = Queue()
        self.lock = RLock()
        self.vectors: dict[Hashable, tuple[list[SteeringVector], list[float]]] = {}
        Thread(target=self._run, name=f"steerkit {source}", daemon=True).start()

    def ask(self, sample: sk.Sample, steering: Steering, options: dict[str, Any], batch_size: int) -> Future[Answered]:
        """Put a request into the queue. A future that is cancelled before its batch begins is not answered."""
        request = _Request(sample, steering, tuple(sorted(options.items())))
        self.queue.put((request, batch_size))
        return request.future

    @cached_property
    def _loaded(self) -> VLM:
        vlm = sk.load(bundled(self.source), **self.options)
        if "device_map" not in self.options and torch.cuda.is_available():
            vlm.model.to("cuda")
        return vlm

    @property
    def vlm(self) -> VLM:
        """The model, loaded once."""
        with self.lock:
            return self._loaded

    def _run(self) -> None:
        while True:
            request, most = self.queue.get()
            groups: dict[Hashable, list[_Request]] = {request.key: [request]}
            for _ in range(most - 1):
                try:
                    request, _ = self.queue.get(timeout=TOGETHER)
                except Empty:
                    break
                groups.setdefault(request.key, []).append(request)
            for group in groups.values():
                self._answer([each for each in group if each.future.set_running_or_notify_cancel()])

    def _answer(self, group: Sequence[_Request]) -> None:
        """Answer a batch; where it fails, one after the other, so that a request fails by itself alone."""
        if not group:
            return
        try:
            answers = self._answers(group)
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
            else:
                for each in group:
                    self._answer([each])
            return
        for request, answered in zip(group, answers, strict=True):
            request.future.set_result(answered)

    def _answers(self, group: Sequence[_Request]) -> list[Answered]:
        began, steering, options = time.monotonic(), group[0].steering, dict(group[0].options)
        seed = options.pop("seed", None)
        vectors, strengths = self._vectors(steering)
        with ExitStack() as stack:
            if seed is not None:
                stack.enter_context(torch.random.fork_rng())
                torch.manual_seed(seed)
            if vectors:
                stack.enter_context(sk.steer(self.vlm, vectors, strength=strengths, policy=steering.policy))
            samples = [each.sample for each in group]
            made = sorted(self.vlm.answers(samples, images=steering.images, batch_size=len(samples), **options))
        record = {"vectors": [each.source for each in vectors], "strengths": strengths, "batch": len(made)}
        return [Answered(each, record, time.monotonic() - began) for each in made]

    def _vectors(self, steering: Steering) -> tuple[list[SteeringVector], list[float]]:
        if steering not in self.vectors:
            offline = None if steering.download else True
            found = [sk.load_vector(ref, offline=offline, policy=steering.policy) for ref in steering.refs]
            given = steering.strengths
            doses = [each.metadata.strength.recommended for each in found]
            if given is not None:
                doses = as_strengths(list(given) if len(given) != 1 else given[0], len(found))
            self.vectors[steering] = (found, doses)
        return self.vectors[steering]


worker = cache(Worker)
"""One for each model and the options that it is loaded with, for all conditions under which it is asked."""
