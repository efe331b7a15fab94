"""Unsafe rate, over-refusal and utility of a demo model, always together, under any steering.

Harmful and harmless requests and visual questions come from the toy world; its judge is exact. Every figure is a
fraction of the answers of one prompt set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from steerkit.demo import world
from steerkit.evaluation import Case, Entry, PhraseJudge, Suite
from steerkit.methods import SteeringMethod
from steerkit.methods.actadd import ActAdd
from steerkit.methods.adasteer import AdaSteer
from steerkit.methods.astra import ASTRA
from steerkit.methods.caa import CAA
from steerkit.methods.cast import CAST
from steerkit.methods.cmrm import CMRM
from steerkit.methods.iti import ITI
from steerkit.methods.refusal_direction import RefusalDirection
from steerkit.methods.repe import RepE
from steerkit.methods.shiftdc import ShiftDC
from steerkit.methods.vlm_guard import VLMGuard
from steerkit.methods.vti import VTI
from steerkit.models import Sample
from steerkit.steering import steer
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

MAX_NEW_TOKENS = 24
"""Enough for every answer of the toy world."""

BATCH = 50


@dataclass(frozen=True)
class Figures:
    """What one condition measured; see the module.

    Attributes:
        unsafe_rate: Harmful requests answered with the exact instructions.
        refusal_rate: Harmful requests refused.
        over_refusal: Harmless requests refused.
        compliance: Harmless requests answered with the exact instructions.
        utility: Visual questions answered with exactly the right words.
        garbled: Answers to harmful requests that neither comply nor refuse.
        garbled_harmless: Answers to harmless requests that neither comply nor refuse.
    """

    unsafe_rate: float
    refusal_rate: float
    over_refusal: float
    compliance: float
    utility: float
    garbled: float
    garbled_harmless: float


@dataclass(frozen=True)
class PromptSets:
    """The prompts of an evaluation, as rows of the toy world."""

    harmful: list[world.Prompt]
    harmless: list[world.Prompt]
    visual: list[world.Prompt]

    @classmethod
    def draw(cls, split: world.Split, count: int) -> PromptSets:
        """`count` prompts of each kind, always the same ones."""
        return cls(
            world.prompts("harmful", split, count),
            world.prompts("harmless", split, count),
            world.prompts("visual", split, count),
        )


def samples(rows: Iterable[world.Prompt]) -> list[Sample]:
    """Rows of the toy world as samples, labelled `harmful`, `harmless`, `borderline` or `visual`."""
    return [Sample(row.question, (row.image,), row.caption, row.label) for row in rows]


def anchors(count: int, labels: Sequence[world.Label] = ("harmful", "harmless")) -> list[Sample]:
    """An anchor set: `count` prompts of each label, from the training split of the toy world."""
    return [sample for label in labels for sample in samples(world.prompts(label, "train", count))]


def measure(
    vlm: VLM,
    sets: PromptSets,
    vector: SteeringVector | None = None,
    *,
    strength: float = 1.0,
    images: bool = True,
    batch_size: int = BATCH,
) -> Figures:
    """Let a model answer all prompts, steered or not, and judge the answers."""

    def answers(rows: list[world.Prompt]) -> list[str]:
        context = nullcontext() if vector is None else steer(vlm, vector, strength=strength, policy="off")
        with context:
            return vlm.generate(
                samples(rows), images=images, batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS, do_sample=False
            )

    harmful = [world.judge(row, text) for row, text in zip(sets.harmful, answers(sets.harmful), strict=True)]
    harmless = [world.judge(row, text) for row, text in zip(sets.harmless, answers(sets.harmless), strict=True)]
    right = [world.is_right(row, text) for row, text in zip(sets.visual, answers(sets.visual), strict=True)]
    return Figures(
        unsafe_rate=_share(verdict == "complied" for verdict in harmful),
        refusal_rate=_share(verdict == "refused" for verdict in harmful),
        over_refusal=_share(verdict == "refused" for verdict in harmless),
        compliance=_share(verdict == "complied" for verdict in harmless),
        utility=_share(right),
        garbled=_share(verdict == "garbled" for verdict in harmful),
        garbled_harmless=_share(verdict == "garbled" for verdict in harmless),
    )


def random_like(vector: SteeringVector, seed: int = 0) -> SteeringVector:
    """A vector of random directions with the norms of another: the control that every effect must beat."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, tensor in vector.tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[key] = noise / noise.norm(dim=-1, keepdim=True) * tensor.float().norm(dim=-1, keepdim=True)
    metadata = vector.metadata.model_copy(
        update={"history": (*vector.metadata.history, "replace by random directions")}
    )
    return SteeringVector(tensors, metadata)


def conditions(vlm: VLM, anchor_set: Sequence[Sample], batch_size: int = BATCH) -> Iterator[tuple[str, SteeringVector]]:
    """The steered conditions of the demo, by name: both levels of CMRM as they are by default, and the control."""
    methods: dict[str, SteeringMethod] = {"cmrm_dataset": CMRM(), "cmrm_sample": CMRM(level="sample")}
    dataset = methods["cmrm_dataset"].fit(vlm, anchor_set, batch_size=batch_size)
    yield "cmrm_dataset", dataset
    yield "cmrm_sample", methods["cmrm_sample"].fit(vlm, batch_size=batch_size)
    yield "random", random_like(dataset)


def suite(split: world.Split, count: int) -> Suite:
    """The toy world for `steerkit.compare` and `steerkit.calibrate`: `count` prompts of each kind, always the same."""
    sets = PromptSets.draw(split, count)

    def cases(rows: list[world.Prompt]) -> tuple[Case, ...]:
        return tuple(Case(sample, row.key or row.expected) for row, sample in zip(rows, samples(rows), strict=True))

    judge = PhraseJudge(refusals=world.REFUSALS, exact=True, name="exact match with the toy world's instructions")
    return Suite(
        name=f"toy world, {split} split",
        harmful=cases(sets.harmful),
        harmless=cases(sets.harmless),
        utility=cases(sets.visual),
        judge=judge,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def entries(anchor_set: Sequence[Sample]) -> dict[str, Entry]:
    """Every built-in method as it suits the toy world, for `steerkit.compare`; labels, sizes and doses are set."""
    labels: dict[str, Any] = {"positive": "harmful", "negative": "harmless"}
    groups = {label: [s for s in anchor_set if s.label == label] for label in labels.values()}
    pairs = [sample for pair in zip(*groups.values(), strict=False) for sample in pair]
    few = [sample for group in groups.values() for sample in group[:10]]
    return {
        "cmrm": CMRM(),
        "cmrm, sample level": CMRM(level="sample"),
        "shiftdc": ShiftDC(),
        "adasteer": AdaSteer(),
        "caa": CAA(**labels),
        "repe": RepE(**labels),
        "refusal_direction": RefusalDirection(),
        "actadd": (ActAdd(**labels, images=True), [group[0] for group in groups.values()]),
        "astra": (ASTRA(grid=4, masks=32, alpha=1.0), few),
        "iti": ITI(**labels, heads=8, alpha=1.0),
        "cast": CAST(layers=(5,), pool="last"),
        "vlm_guard": VLMGuard(),
        "vti": (VTI(**labels, alpha_text=2.0, masks=2, grid=4, mask_ratio=0.5), pairs),
    }


def _share(values: Iterable[bool]) -> float:
    counted = list(values)
    return sum(counted) / len(counted)
