"""What one process of the cluster does, with the model in it."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from steerkit.evaluation import Answer, Condition, Suite, answered
from steerkit.methods import Extraction, State, SteeringMethod
from steerkit.models import Sample
from steerkit.vlm import VLM

JOIN = "join-"
"""How the files of joined states begin, until the vector is made."""

Fit = tuple[SteeringMethod, list[Sample], dict[str, Any], Path]
"""The method, the anchors, the options of `measure`, and the folder of the states."""


class Worker:
    """One process of the cluster, with the model in it."""

    def __init__(self, model: str, loading: Mapping[str, Any]) -> None:
        from steerkit.vlm import load

        self.model: VLM = load(model, **loading)
        if torch.cuda.is_available() and "device_map" not in loading:
            self.model.model.to("cuda")
        self.place: list[Any] = []
        self.given: Fit | None = None

    def weights(self) -> str:
        return self.model.weights_digest()

    def start(self, place: list[Any]) -> Extraction | None:
        """What is measured, or None where the method measures nothing."""
        method, anchors, options, _ = self._fit(place)
        if not method.blocks(self.model, anchors, batch_size=options["batch_size"]):
            return None
        return method.measure(self.model, anchors, [], **options).extraction

    def measure(self, place: list[Any], blocks: list[int]) -> tuple[Path, list[int]]:
        """Measure some blocks, and say where they are."""
        method, anchors, options, folder = self._fit(place)
        state = method.measure(self.model, anchors, blocks, **options)
        return state.save(folder / f"blocks-{blocks[0]:08}-{blocks[-1]:08}.safetensors"), blocks

    def join(self, paths: list[Path]) -> Path:
        """Merge states of neighbours."""
        if len(paths) == 1:
            return paths[0]
        first, *others = map(State.load, paths)
        return first.merge(*others).save(paths[0].with_name(f"{JOIN}{secrets.token_hex(8)}.safetensors"))

    def finish(self, place: list[Any], whole: Path | None, names: dict[str, Any]) -> bytes:
        method, anchors, *_ = self._fit(place)
        if whole is None:
            return method.fit(self.model, anchors=anchors, **names).to_bytes()
        return method.finish(self.model, State.load(whole), **names).to_bytes()

    def answer(
        self, suite: Suite, conditions: list[Condition], rows: list[list[Answer]], batch_size: int
    ) -> list[Answer]:
        return [each for batch in answered(self.model, suite, [(conditions, rows)], batch_size) for each in batch]

    def _fit(self, place: list[Any]) -> Fit:
        """What a fit is given once, by its place in Ray's store; in a list, Ray leaves it to us when it is read."""
        if self.given is None or self.place != place:
            ray: Any = importlib.import_module("ray")
            self.place, self.given = place, ray.get(place[0])
        assert self.given is not None
        return self.given
