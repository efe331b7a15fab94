"""A method under test: how it is configured, the model and the anchors that it is shown, and what it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from steerkit.errors import ContractError, LabelError, SteerKitError
from steerkit.methods import SteeringMethod
from steerkit.models import Sample
from steerkit.testing import tiny
from steerkit.testing.reference_hooks import counted_passes
from steerkit.testing.samples import example_anchors, picture
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

TOLERANCE = 1e-3
"""Largest difference, relative to the largest entry, that rounding may make between two ways to the same directions.

Measured on the built-in methods: below 2e-5 for means, below 2e-4 for principal components.
"""


@dataclass(frozen=True)
class MethodCase:
    """One method, one configuration; model, anchors and vector are made when a check first needs them.

    Attributes:
        kind: The class.
        options: How it is configured.
        given: What it is fitted on, where the caller says it.
        model: The same of the model.
    """

    kind: type[SteeringMethod]
    options: Mapping[str, Any]
    given: Sequence[Sample] | None = None
    model: VLM | None = None

    def method(self) -> SteeringMethod:
        """A new object of the class."""
        return self.kind(**self.options)

    @cached_property
    def vlm(self) -> VLM:
        """The model: the tiny LLaVA, unless the caller gave one."""
        return self.model if self.model is not None else tiny.vlm("llava")

    @cached_property
    def anchors(self) -> list[Sample]:
        """The caller's, or the example anchors with the labels that the method's own `plan` asks for."""
        if self.given is not None:
            return list(self.given)
        anchors = example_anchors()
        try:
            self.method().plan(self.vlm, anchors)
        except LabelError as error:
            if not error.labels:
                raise
            anchors = example_anchors(error.labels)
        return anchors

    @cached_property
    def together(self) -> int:
        """How many neighbours in the anchor set belong together, where a plan says so."""
        return self.method().plan(self.vlm, self.anchors).together

    @property
    def measures(self) -> bool:
        """Whether the method measures anchors at all."""
        return self.method().plan(self.vlm, self.anchors).measures

    @cached_property
    def vector(self) -> SteeringVector:
        """What the method fits."""
        return self.fit()

    @cached_property
    def prompts(self) -> list[Sample]:
        """Some of the anchors and some other prompts, with images and without."""
        others = [Sample("Which way is north?", (picture(50),)), Sample("What is this?"), Sample("Tell me a story.")]
        return [replace(sample, label=None) for sample in self.anchors[:3]] + others

    def fit(self, anchors: Sequence[Sample] | None = None, **options: Any) -> SteeringVector:
        """A fit by a new object, reading through hooks unless it is told otherwise."""
        given = self.anchors if anchors is None else anchors
        return self.method().fit(self.vlm, given, **{"engine": "hooks", **options})

    def refused_or_fitted(self, anchors: Sequence[Sample], what: str, fix: str) -> bool:
        """Whether a fit on these anchors works; an honest refusal before the model runs is as good.

        Raises:
            ContractError: It is neither.
        """
        with counted_passes(self.vlm.model) as ran:
            try:
                self.fit(anchors)
            except SteerKitError as error:
                if ran:
                    raise ContractError(f"{what} are refused only after the model ran ({error})", fix=fix) from error
                return False
            except Exception as error:
                raise ContractError(f"{what} end in {type(error).__name__}: {error}", fix=fix) from error
        return True


def assert_same(found: SteeringVector, expected: SteeringVector, difference: str, tolerance: float = 0.0) -> None:
    """Two vectors do the same: every number is equal, or equal up to rounding, relative to the largest of its kind.

    Args:
        found: The one.
        expected: The other.
        difference: What they differ in, for the message.
        tolerance: 0, or `TOLERANCE`.

    Raises:
        ContractError: They do not.
    """
    if list(found.tensors) != list(expected.tensors):
        raise ContractError(f"{difference}: directions at {list(found.tensors)} and {list(expected.tensors)}")
    for key, tensor in expected.tensors.items():
        gap = float((found.tensors[key].float() - tensor.float()).abs().max() / tensor.float().abs().max())
        if not gap <= tolerance:
            raise ContractError(f"{difference}: the directions at {tuple(key)} differ by {gap:.3g} of their size")
    one, other = ([json.loads(each.model_dump_json()) for each in vector.interventions] for vector in (found, expected))
    if not _same(one, other, tolerance):
        raise ContractError(f"{difference}: the interventions differ")


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return abs(one - other) <= tolerance * max(abs(one), abs(other), 1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(*each, tolerance) for each in zip(one, other, strict=True))
    return bool(one == other)
