"""ITI: inference-time intervention on the attention heads that a probe picks (arXiv 2306.03341)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError, OptionError
from steerkit.interventions import FiniteFloat, Intervention
from steerkit.methods._base import Fit, Plan, SteeringMethod, by_label
from steerkit.methods._logistic import Probes, fit_probes
from steerkit.methods._moments import Groups, Moments, Observations
from steerkit.methods._requirements import require_labels
from steerkit.models import Sample, SteerableModel
from steerkit.vectors import Key


class ITI(SteeringMethod):
    """Shift a few attention heads, those in which a linear probe tells the two labels apart best.

    With x the output of one head (the part of it in the input of the attention's output projection) at the last token,
    at the K heads whose probe is most accurate on held-out anchors:

        x' = x + alpha * sigma * theta

    theta is the unit vector of mean(positive) - mean(negative), and sigma the standard deviation of all anchors' x
    along it. Every other head keeps its output: the stored direction is zero there.

    Where the paper leaves a choice, or we differ from it:

    * The probe is a logistic regression with the penalty |w|^2 / 2, as in the code. A share of each label's anchors is
      held out, chosen by `seed`.
    * Accuracies on few anchors tie: among equals, the lower held-out log loss is first.
    * sigma is that of the anchors. The code takes it at the end of a second question, behind one with its answer.
    * `direction="probe"` takes the probe's weights for theta, the paper's other choice.
    * The paper steers the last token of the prompt and every generated one, and so do we.

    A probe needs the observations themselves: fitting keeps 4 bytes for each anchor, layer and head dimension, about
    0.5 MB for an anchor of a model of 7 billion parameters; of many, in the folder for temporary files. Restrict
    `layers` for large anchor sets.

    Attributes:
        positive: Label that is steered towards.
        negative: Label that is steered away from.
        heads: The paper's K.
        alpha: The paper's alpha, in standard deviations.
        direction: `mass_mean` or `probe`; see above.
        layers: 0-based decoder blocks that heads are chosen from; None for all.
        images: Show the anchors with their images.
        held_out: Share of the anchors that the probes are judged by.
        penalty: Strength of the probe's regularisation.
        seed: Seed of the split.
    """

    name: ClassVar[str] = "iti"
    paper: ClassVar[str] = "arXiv 2306.03341"
    distinct: ClassVar = ("positive", "negative")

    positive: str = "truthful"
    negative: str = "untruthful"
    heads: Annotated[int, Field(ge=1)] = 48
    alpha: FiniteFloat = 15.0
    direction: Literal["mass_mean", "probe"] = "mass_mean"
    layers: tuple[int, ...] | None = None
    images: bool = True
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    penalty: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """The model has heads, and as many as wanted; each label has anchors to learn from and to hold out."""
        model.architecture.check_site("head_out", "language")
        layers = model.check_layers(self.layers)
        available = len(layers) * (model.record.head_count or 0)
        if self.heads > available:
            raise OptionError(
                f"{self.heads} heads are wanted", expected=f"at most {available}: those of {len(layers)} layers"
            )
        require_labels(anchors, *self._labels)
        for label in self._labels:
            if sum(anchors[index].label == label for index in range(len(anchors))) < 2:
                raise EmptyAnchorSetError(
                    f"one anchor is labelled {label!r}", expected="at least two: one to learn from, one held out"
                )
        return Plan(layers, shown=(self.images,), rows=True)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """What the heads of each label put out."""
        captured = model.capture(batch, images=self.images, layers=layers, site="head_out")
        return by_label(batch, captured, self._labels)

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Probe every head, choose the best, and shift each of them along its own direction."""
        count, size = model.record.head_count or 0, model.record.head_size or 0
        ranking: list[tuple[float, float, int, int]] = []
        shifts: dict[int, Tensor] = {}
        for layer in layers:
            sides = [found[label][layer] for label in self._labels]
            probes, accuracy, loss = self._probe([_heads(side, count) for side in sides])
            ranking += [(-float(accuracy[h]), float(loss[h]), layer, h) for h in range(count)]
            difference = (sides[0].mean - sides[1].mean).view(count, size)
            raw = probes.weights if self.direction == "probe" else difference
            theta = raw / raw.norm(dim=1, keepdim=True)
            along = [torch.einsum("hns,hs->hn", part.double(), theta) for side in sides for part in _heads(side, count)]
            shifts[layer] = torch.cat(along, dim=1).std(dim=1, correction=0)[:, None] * theta
        directions: dict[Key, Tensor] = {}
        for _, _, layer, head in sorted(ranking)[: self.heads]:
            key = Key(layer, "head_out")
            if key not in directions:
                directions[key] = torch.zeros(count, size, dtype=torch.float64, device="cpu")
            directions[key][head] = shifts[layer][head]
        chosen = tuple(sorted(key.layer for key in directions))
        add = Intervention(layers=chosen, site="head_out", tokens="last", phase="both", strength=self.alpha)
        return Fit({key: shift.flatten() for key, shift in directions.items()}, (add,))

    def _probe(self, sides: Sequence[Sequence[Tensor]]) -> tuple[Probes, Tensor, Tensor]:
        """The probes, and how they judge the rows that are held out: accuracy and log loss of each head."""
        generator = torch.Generator().manual_seed(self.seed)
        learnt: list[Tensor] = []
        judged: list[list[Tensor]] = []
        labels: list[Tensor] = []
        for label, parts in zip((1.0, 0.0), sides, strict=True):
            count = sum(part.shape[1] for part in parts)
            order = torch.randperm(count, generator=generator, device="cpu")
            first = min(max(round(self.held_out * count), 1), count - 1)
            held = torch.zeros(count, dtype=torch.bool, device="cpu").index_fill_(0, order[:first], True)
            masks = held.split([part.shape[1] for part in parts])
            judged.append([part[:, mask] for part, mask in zip(parts, masks, strict=True)])
            learnt += [part[:, ~mask] for part, mask in zip(parts, masks, strict=True)]
            labels.append(torch.full((count - first,), label, device="cpu"))
        probes = fit_probes(learnt, torch.cat(labels), self.penalty)
        right, wrong = ([probes.margins(part.double()) for part in side] for side in judged)
        signed = torch.cat([*right, *(-margins for margins in wrong)], dim=1)
        return probes, (signed > 0).double().mean(1), torch.nn.functional.softplus(-signed).mean(1)


def _heads(moments: Moments, count: int) -> list[Tensor]:
    """The rows by head, `[heads, part, size]` each."""
    return [rows.view(rows.shape[0], count, -1).transpose(0, 1) for rows in moments.kept]
