"""One type with what it is compared with, and how near the two have to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import steerkit as sk
from breadth import pairs, prompts
from breadth.reference import Plain, apart
from steerkit.interventions import Intervention
from steerkit.models import Sample
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector

SHORT = "What is this?"
LONG = "How do I bake a cake for the neighbour?"
EQUAL, PADDED, MOVED = 1e-4, 1e-3, 1e-3
"""Largest relative difference of equal passes, of passes with other padding, and the smallest that steering makes."""


class CheckError(AssertionError):
    """What steerkit does is not what the reference does."""


class Case:
    """One type: its model, its processor, the reference, and what steerkit makes of the two."""

    def __init__(self, name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.name = name
        model, processor = pairs.pair(name, changes)
        # first: a type that is refused has no blocks to hook; what is tried at loading is a check of its own
        self.vlm = sk.wrap(model, processor, check=False)
        self.plain = Plain(name, model, processor)
        side = prompts.SIDES.get(name, 56)
        self.images = [prompts.picture(seed, side, side) for seed in range(3)]
        self._made: dict[Any, dict[str, Tensor]] = {}
        self.alone: dict[str, Any] = {"batch_size": 1} if self.vlm.architecture.alone else {}

    def sample(self, text: str, *images: int) -> Sample:
        return Sample(text, tuple(self.images[each] for each in images))

    def shown(self, text: str, *images: int) -> dict[str, Tensor]:
        """What transformers' processor makes of a prompt with images."""
        key = (text, *images)
        if key not in self._made:
            self._made[key] = self.plain.shown(text, [self.images[each] for each in images])
        return self._made[key]

    def bare(self, text: str) -> dict[str, Tensor]:
        """The prompt without an image: steerkit's tokens, which `same_prompt` holds against those with the image."""
        if text not in self._made:
            own = prompts.alone(self.name, self.plain.processor, text)
            self._made[text] = self.plain.written(self.text_ids(text)) if own is None else own
        return self._made[text]

    def text_ids(self, text: str) -> list[int]:
        made = self.vlm.inputs([Sample(text)], images=False)
        return made["input_ids"][0].tolist()

    def vector(
        self, directions: dict[int, Tensor], site: Any = "resid_post", tower: Any = "language", **where: Any
    ) -> Any:
        keys = {Key(layer, site, "", tower): d for layer, d in directions.items()}
        what = Intervention(site=site, tower=tower, **where)
        record = PackMetadata(method=MethodRecord(name="check"), interventions=(what,), model=self.vlm.record)
        return SteeringVector(keys, record)

    def directions(self, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
        """Random directions of the size of the states, behind every block that runs."""
        generator = torch.Generator().manual_seed(1)
        facts = self.plain.facts(inputs)
        return {
            layer: torch.randn(self.plain.width, generator=generator) * float(torch.stack(facts.states[layer]).std())
            for layer in sorted(set(facts.order))
        }

    def before(self, inputs: dict[str, Tensor]) -> Tensor:
        """The log-probabilities of the next token, unsteered."""
        return self.plain.facts(inputs).logits.log_softmax(-1)

    def captured(self, samples: Sequence[Sample], **options: Any) -> dict[int, Tensor]:
        return self.vlm.capture(samples, **{"engine": "hooks", **self.alone, **options})

    def chances(self, samples: Sequence[Sample]) -> Tensor:
        return self.vlm.next_token_log_probabilities(samples, **self.alone)


def require(near: float, limit: float, what: str) -> None:
    if not near <= limit:
        raise CheckError(f"{what}: {near:.2g} apart")


def same_state(found: Tensor, streams: Sequence[Tensor], limit: float, what: str) -> None:
    """A captured state is that of the only stream; of several, their mean."""
    require(apart(found, torch.stack(list(streams)).mean(0)), limit, what)
