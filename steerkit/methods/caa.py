"""CAA: contrastive activation addition (arXiv 2312.06681)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from steerkit.interventions import Add, CapturePool, FiniteFloat, Intervention
from steerkit.methods._base import Fit, Plan, SteeringMethod, at_depth, by_label
from steerkit.methods._moments import Groups, Observations
from steerkit.methods._requirements import require_begun, require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key


class CAA(SteeringMethod):
    """Add the difference of the means of two labelled groups: `h' = h + c * (mean(positive) - mean(negative))`.

    Where the paper leaves a choice, or we differ from it:

    * Its pairs are a question with one or the other letter of an answer behind it, read at the letter. Ours are any two
      groups of prompts, read at the last prompt token, where the answer begins, or with `pool` over the answer: of
      answers that show a trait and answers that don't, the difference is a persona vector (arXiv 2507.21509).
    * It adds at one layer, to every token after the prompt. The first of these is predicted at the prompt's last token,
      so that one is steered too.
    * It finds the layer by a sweep. Without one we take the block at 40 % of the depth, where its best layers lie (13
      of 32 for Llama 2 7B).
    * It scales the vectors of several behaviours to one length. We leave the difference as long as it is.

    Attributes:
        positive: Label that is steered towards.
        negative: Label that is steered away from.
        layers: 0-based decoder blocks; None for the one at 40 % of the depth.
        pool: What of the anchors is read: the `last` token, the `mean` over all, or that over the `answer` that they
            begin.
        images: Show the anchors with their images.
        phase: `both` steers the last prompt token and every generated one; `prompt` the former only.
        multiplier: The paper's c.
    """

    name: ClassVar[str] = "caa"
    paper: ClassVar[str] = "arXiv 2312.06681"
    distinct: ClassVar = ("positive", "negative")

    positive: str = "positive"
    negative: str = "negative"
    layers: tuple[int, ...] | None = None
    pool: CapturePool = "last"
    images: bool = True
    phase: Literal["prompt", "both"] = "both"
    multiplier: FiniteFloat = 1.0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """Both labels must occur, and no other."""
        require_labels(anchors, *self._labels)
        if self.pool == "answer":
            require_begun(anchors, *self._labels)
        layers = at_depth(model, 0.4) if self.layers is None else self.layers
        return Plan(model.check_layers(layers), shown=(self.images,))

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """The hidden states of each label."""
        return by_label(batch, model.capture(batch, images=self.images, layers=layers, pool=self.pool), self._labels)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """The difference of the means."""
        positive, negative = found[self.positive], found[self.negative]
        directions = {Key(layer): positive[layer].mean - negative[layer].mean for layer in layers}
        add = Intervention(operation=Add(), layers=tuple(layers), phase=self.phase, strength=self.multiplier)
        return Fit(directions, (add,))
