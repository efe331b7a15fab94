"""ITI: inference-time intervention on the attention heads that a probe picks (arXiv 2306.03341)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError, OptionError
from steerkit.interventions import FiniteFloat, Intervention
from steerkit.methods._base import Fit, Observations, Plan, SteeringMethod, by_label
from steerkit.methods._moments import Groups
from steerkit.methods._probes import Probes, fit_probes
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

    A probe needs the observations themselves: fitting keeps 8 bytes for each anchor, layer and head dimension, about
    1 MB for an anchor of a model of 7 billion parameters. Restrict `layers` for large anchor sets.

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

    @model_validator(mode="after")
    def _two_labels(self) -> ITI:
        if self.positive == self.negative:
            raise ValueError(f"positive and negative are both {self.positive!r}")
        return self

    def plan(self, model: SteerableModel, anchors: Sequence[Sample]) -> Plan:
        """The model has heads, and as many as wanted; each label has anchors to learn from and to hold out."""
        model.architecture.check_site("head_out", "language")
        layers = model.check_layers(self.layers)
        available = len(layers) * (model.record.head_count or 0)
        if self.heads > available:
            raise OptionError(
                f"{self.heads} heads are wanted", expected=f"at most {available}: those of {len(layers)} layers"
            )
        require_labels(anchors, self.positive, self.negative)
        for label in (self.positive, self.negative):
            if sum(anchors[index].label == label for index in range(len(anchors))) < 2:
                raise EmptyAnchorSetError(
                    f"one anchor is labelled {label!r}", expected="at least two: one to learn from, one held out"
                )
        return Plan(layers, shown=(self.images,), rows=True)

    def observe(self, model: SteerableModel, batch: Sequence[Sample], layers: Sequence[int]) -> Observations:
        """What the heads of each label put out."""
        captured = model.capture(batch, images=self.images, layers=layers, site="head_out")
        return by_label(batch, captured, (self.positive, self.negative))

    def solve(self, model: SteerableModel, found: Groups, layers: Sequence[int]) -> Fit:
        """Probe every head, choose the best, and shift each of them along its own direction."""
        count, size = model.record.head_count or 0, model.record.head_size or 0
        ranking: list[tuple[float, float, int, int]] = []
        shifts: dict[int, Tensor] = {}
        for layer in layers:
            positive, negative = (
                _rows(found[label][layer].rows, count, size) for label in (self.positive, self.negative)
            )
            probes, accuracy, loss = self._probe(positive, negative)
            ranking += [(-float(accuracy[h]), float(loss[h]), layer, h) for h in range(count)]
            raw = probes.weights if self.direction == "probe" else positive.mean(1) - negative.mean(1)
            theta = raw / raw.norm(dim=1, keepdim=True)
            along = torch.einsum("hns,hs->hn", torch.cat([positive, negative], dim=1), theta)
            shifts[layer] = along.std(dim=1, correction=0)[:, None] * theta
        directions: dict[Key, Tensor] = {}
        for _, _, layer, head in sorted(ranking)[: self.heads]:
            key = Key(layer, "head_out")
            directions.setdefault(key, torch.zeros(count, size, dtype=torch.float64))[head] = shifts[layer][head]
        chosen = tuple(sorted(key.layer for key in directions))
        add = Intervention(layers=chosen, site="head_out", tokens="last", phase="both", strength=self.alpha)
        return Fit({key: shift.flatten() for key, shift in directions.items()}, (add,))

    def _probe(self, positive: Tensor, negative: Tensor) -> tuple[Probes, Tensor, Tensor]:
        """The probes of a layer's heads, and their accuracy and log loss on what was held out."""
        generator = torch.Generator().manual_seed(self.seed)
        learnt, judged = [], []
        for rows in (positive, negative):
            order = torch.randperm(rows.shape[1], generator=generator)
            first = min(max(round(self.held_out * len(order)), 1), len(order) - 1)
            judged.append(rows[:, order[:first]])
            learnt.append(rows[:, order[first:]])
        labels = torch.cat([torch.full((part.shape[1],), 1.0 - index) for index, part in enumerate(learnt)])
        probes = fit_probes(torch.cat(learnt, dim=1), labels, self.penalty)
        signed = torch.cat([probes.margins(judged[0]), -probes.margins(judged[1])], dim=1)
        return probes, (signed > 0).double().mean(1), torch.nn.functional.softplus(-signed).mean(1)


def _rows(rows: Tensor | None, count: int, size: int) -> Tensor:
    """`[heads, anchors, size]`."""
    assert rows is not None  # the plan keeps them
    return rows.reshape(rows.shape[0], count, size).transpose(0, 1)
