"""CAST: conditional activation steering (arXiv 2409.05907)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from steerkit.errors import LayerRangeError
from steerkit.interventions import (
    Add,
    CapturePool,
    FiniteFloat,
    Gate,
    Gates,
    Intervention,
    Measure,
    Pool,
    StoredDirection,
    _arithmetic as ops,
)
from steerkit.methods._base import Fit, Plan, SteeringMethod, at_depth, by_label
from steerkit.methods._differences import difference_components
from steerkit.methods._moments import Groups, Moments, Observations
from steerkit.methods._requirements import require_begun, require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key

CONDITION = "condition"

TOLD = 0.25
"""The part of the way from a gate that is always open to a perfect one, in F1, below which fitting warns."""


class CAST(SteeringMethod):
    """Add a behaviour vector to every token, if the prompt meets a condition.

    With c the condition vector of a layer, and h the mean of the prompt's hidden states there:

        sim = cos(h, tanh(P h))     P = c c^T / (c . c)     h' = h + strength * v   where sim is past the threshold

    Both vectors are the first principal component of pairwise-centred states: each state less the middle of its pair.
    Those of pair i are d(i) / 2 and -d(i) / 2, d(i) being the difference, so it is the component of the uncentred d(i).

    Where the paper leaves a choice, or we differ from it:

    * Layer, threshold and comparison maximise F1 on the anchors, as in the paper. It tries a grid of thresholds; we try
      the middles between the similarities that occur, and among equals take the widest gap.
    * Of several condition layers one suffices, with one threshold for all, as in the public code.
    * Condition layers lie at or below the first behaviour layer: what comes later can't decide in time.
    * The code measures both vectors at a block's output, and reads the condition and adds the behaviour at its input,
      one block earlier. We do all of it at the output, so its layer n is our n - 1.
    * A component has no sign. The code chooses it by a vote over the pairs, we by the mean difference.
    * The code averages the behaviour's states over a suffix behind the prompt, which is the beginning of an answer: so
      do we over the assistant's turn that an anchor of `towards` or `away` ends in.
    * Pairs: condition prompts belong together by their number only, so d runs over all pairs, by their moments.
    * The behaviour labels default to those of the condition: v then points from harmless to harmful, which makes a
      model refuse, and is read at the last token, where there is no beginning of an answer. Anchors with the paper's
      suffixes have labels of their own, in `towards` and `away`.
    * Layers and strength of the behaviour are chosen by hand in the paper, several layers at once; None is one of ours.
    * `scale` makes 1 a dose: the length of the mean difference along v; `unit` is the paper's.

    Choosing the threshold needs the states themselves: fitting keeps 4 bytes for each anchor, candidate layer and
    hidden dimension, about 0.5 MB for an anchor of a model of 7 billion parameters with all layers; of many, in the
    folder for temporary files.

    Attributes:
        meets: Label of the prompts that meet the condition.
        fails: Label of those that do not.
        towards: Label that the behaviour vector points to; None for `meets`.
        away: Label that it points away from; None for `fails`.
        layers: 0-based decoder blocks where the behaviour is added; None for the one at 60 % of the depth.
        condition_layers: Blocks where the condition is read, any of which suffices; None for the best single one.
        pool: What of the prompt is read: the `mean` of its states, as in the code, or its `last` token.
        behaviour_pool: What of the behaviour's anchors is read: the mean over the `answer` that they begin, the `mean`
            over all their tokens, or the `last` one; None for `answer` with `towards` and `away`, else `last`.
        images: Show the anchors with their images.
        scale: Length of the behaviour vector.
        coefficient: Strength of the behaviour.
    """

    name: ClassVar[str] = "cast"
    paper: ClassVar[str] = "arXiv 2409.05907"
    distinct: ClassVar = ("meets", "fails")

    meets: str = "harmful"
    fails: str = "harmless"
    towards: str | None = None
    away: str | None = None
    layers: tuple[int, ...] | None = None
    condition_layers: tuple[int, ...] | None = None
    pool: Pool = "mean"
    behaviour_pool: CapturePool | None = None
    images: bool = True
    scale: Literal["mean_projection", "unit"] = "mean_projection"
    coefficient: FiniteFloat = 1.0

    @model_validator(mode="after")
    def _two_ways(self) -> CAST:
        if self._behaviour[0] == self._behaviour[1]:
            raise ValueError(f"towards and away are both {self._behaviour[0]!r}")
        return self

    @property
    def _behaviour(self) -> tuple[str, str]:
        return self.towards or self.meets, self.away or self.fails

    @property
    def _behaviour_pool(self) -> CapturePool:
        if self.behaviour_pool is not None:
            return self.behaviour_pool
        return "last" if self.towards is None or self.away is None else "answer"

    def _conditions(self, model: SteerableModel, behaviour: Sequence[int]) -> list[int]:
        if self.condition_layers is None:
            return list(range(behaviour[0] + 1))
        wanted = model.check_layers(self.condition_layers)
        if wanted[-1] > behaviour[0]:
            raise LayerRangeError(
                f"the condition is read at layer {wanted[-1]} and decides on layer {behaviour[0]}, which comes before",
                expected=f"condition layers up to {behaviour[0]}",
            )
        return wanted

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """All labels must occur, and no other; the condition comes before the behaviour."""
        require_labels(anchors, *dict.fromkeys((self.meets, self.fails, *self._behaviour)))
        if self._behaviour_pool == "answer":
            require_begun(anchors, *self._behaviour)
        layers = model.check_layers(at_depth(model, 0.6) if self.layers is None else self.layers)
        self._conditions(model, layers)
        return Plan(layers, second_moments=True, shown=(self.images,), rows=True)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """States of the condition's prompts, pooled, and of the behaviour's."""
        found: dict[str, Mapping[int, Tensor]] = {}
        conditions = self._conditions(model, layers)
        parts: tuple[tuple[str, tuple[str, str], Sequence[int], CapturePool], ...] = (
            (CONDITION, (self.meets, self.fails), conditions, self.pool),
            ("behaviour", self._behaviour, layers, self._behaviour_pool),
        )
        for kind, labels, where, pool in parts:
            shown = [sample for sample in batch if sample.label in labels]
            if not shown:
                continue
            captured = model.capture(shown, images=self.images, layers=where, pool=pool)
            split = by_label(shown, captured, labels)
            found |= {f"{kind} positive": split[labels[0]], f"{kind} negative": split[labels[1]]}
        return found

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Both vectors, and the point at which the condition tells its prompts best."""
        conditions = self._conditions(model, layers)
        vectors: dict[int, Tensor] = {}
        similar: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in conditions:
            positive, negative = (found[f"{CONDITION} {side}"][layer] for side in ("positive", "negative"))
            vectors[layer] = _component(positive, negative)[0]
            stored = vectors[layer].float()  # as the engine will read it
            similar[layer] = _similarities(positive, stored), _similarities(negative, stored)
        choices = [(layer,) for layer in conditions] if self.condition_layers is None else [tuple(conditions)]
        best = max(
            (point for choice in choices for point in _points(choice, similar)), key=lambda point: (point.f1, point.gap)
        )
        _check_told(best, found)
        directions = {Key(layer, name=CONDITION): vectors[layer] for layer in best.layers}
        for layer in layers:
            positive, negative = (found[f"behaviour {side}"][layer] for side in ("positive", "negative"))
            component, mean = _component(positive, negative)
            length = float(mean @ component) if self.scale == "mean_projection" else 1.0
            directions[Key(layer)] = length * component
        gates = tuple(self._gate(layer, best) for layer in best.layers)
        add = Intervention(
            operation=Add(),
            layers=tuple(layers),
            tokens="all",
            gate=gates[0] if len(gates) == 1 else Gates(gates=gates),
            strength=self.coefficient,
        )
        return Fit(directions, (add,))

    def _gate(self, layer: int, point: Point) -> Gate:
        direction = StoredDirection(name=CONDITION, layer=layer)
        measure = Measure(kind="tanh_cosine", direction=direction, layer=layer, pool=self.pool)
        return Gate(measure=measure, threshold=point.threshold, above=point.above)


class Point(NamedTuple):
    """A condition point: where it is read, what it is compared with, and how well that tells the anchors."""

    layers: tuple[int, ...]
    threshold: float
    above: bool
    f1: float
    gap: float


def _check_told(best: Point, found: Groups) -> None:
    """Warn where the condition tells its prompts from others little better than a gate that is always open."""
    meets, fails = (next(iter(found[f"{CONDITION} {side}"].values())).count for side in ("positive", "negative"))
    always = 2 * meets / (2 * meets + fails)
    if best.f1 < always + TOLD * (1 - always):
        warnings.warn(
            f"CAST's condition tells its anchors with an F1 of {best.f1:.2f}, and a gate that is always open with "
            f"{always:.2f}: it will steer nearly every prompt, or any. Anchors that differ in what the condition is "
            "about are told better",
            stacklevel=3,
        )


def _points(layers: tuple[int, ...], similar: dict[int, tuple[Tensor, Tensor]]) -> list[Point]:
    """Every threshold that tells some anchors from others, in both directions."""
    points: list[Point] = []
    for above in (True, False):
        # any of the layers suffices: the largest similarity decides above a threshold, the smallest below
        pooled = torch.amax if above else torch.amin
        meets, fails = (pooled(torch.stack([similar[layer][side] for layer in layers]), 0) for side in (0, 1))
        values = torch.cat([meets, fails]).double().unique()
        edges = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
        gaps = values.diff() if len(values) > 1 else torch.zeros(1, device="cpu")
        for threshold, gap in zip(edges.tolist(), gaps.tolist(), strict=True):
            hits, wrong = ((part > threshold) == above for part in (meets, fails))
            true, false = int(hits.sum()), int(wrong.sum())
            f1 = 2 * true / (true + false + len(meets))
            points.append(Point(layers, threshold, above, f1, gap))
    return points


def _component(positive: Moments, negative: Moments) -> tuple[Tensor, Tensor]:
    """The first component of all differences, its sign along their mean, and their mean."""
    return difference_components(positive, negative)[0], positive.mean - negative.mean


def _similarities(moments: Moments, vector: Tensor) -> Tensor:
    return torch.cat([ops.tanh_cosine(rows.double(), vector) for rows in moments.kept])
