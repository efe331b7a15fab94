"""What is added to the last token, by method: each a function of the states of the prompts that are answered.

Written from the formulas of the papers on plain tensors, so that many variants can be compared; what ships is
steerkit's own, which gives the same vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

States = Mapping[str, Tensor]
Change = Callable[[States], Tensor]
Open = Callable[[States], Tensor]
"""Which prompts are steered, `[rows]` of 0 and 1."""
Form = Literal["increments", "literal"]
Groups = Mapping[str, States]
"""The states of the anchors, by suite."""


def placed(by_layer: Tensor, form: Form, layers: Sequence[int] | None = None) -> Tensor:
    """What is added at each layer, of `[layers, ...]` along the depth; nothing at layers that are not named.

    `literal` adds all of it at each layer, `increments` what it gained since the last layer that is steered.
    """
    chosen = list(range(len(by_layer)) if layers is None else layers)
    mine = by_layer[chosen]
    if form == "increments":
        mine = torch.cat([mine[:1], mine[1:] - mine[:-1]])
    out = torch.zeros_like(by_layer)
    out[chosen] = mine
    return out


def shift(groups: Groups, suites: Sequence[str], counterpart: str) -> Tensor:
    """Text less counterpart of every anchor, `[layers, anchors, hidden]`."""
    return torch.cat([groups[suite]["text"] - groups[suite][counterpart] for suite in suites], 1)


def dataset(
    groups: Groups,
    suites: Sequence[str] = ("unsafe", "safe"),
    counterpart: str = "image",
    form: Form = "increments",
    aggregate: Literal["mean", "pca"] = "mean",
    layers: Sequence[int] | None = None,
    minus: Tensor | None = None,
) -> Change:
    """CMRM with one vector for all prompts; `minus` `[layers, k, hidden]` is projected out of it."""
    found = shift(groups, suites, counterpart)
    mean = found.mean(1)
    if aggregate == "pca":
        components = torch.stack([torch.linalg.svd(rows, full_matrices=False)[2][0] for rows in found])
        mean = (mean * components).sum(-1, keepdim=True) * components
    if minus is not None:
        basis = torch.stack([torch.linalg.qr(rows.T)[0] for rows in minus])
        mean = mean - torch.einsum("lhk,lk->lh", basis, torch.einsum("lhk,lh->lk", basis, mean))
    return constant(placed(mean, form, layers))


def constant(vector: Tensor) -> Change:
    """One vector `[layers, hidden]` for all prompts."""
    return lambda states: vector[:, None].expand(-1, states["image"].shape[1], -1)


def sample(counterpart: str = "image", form: Form = "increments", layers: Sequence[int] | None = None) -> Change:
    """CMRM with the shift of the very prompt."""
    return lambda states: placed(states["text"] - states[counterpart], form, layers)


def shiftdc(groups: Groups, layers: Sequence[int], form: Form = "increments") -> Change:
    """The shift of the very prompt along the direction from harmful to harmless text."""
    towards = groups["safe"]["text"].mean(1) - groups["unsafe"]["text"].mean(1)
    unit = towards / towards.norm(dim=-1, keepdim=True)

    def change(states: States) -> Tensor:
        found = placed(states["text"] - states["image"], form, layers)
        return torch.einsum("lnh,lh->ln", found, unit)[..., None] * unit[:, None]

    return change


def refusal(groups: Groups, layers: Sequence[int] | None = None, form: Form = "increments") -> Change:
    """From harmless to harmful text: what makes a model refuse."""
    towards = groups["unsafe"]["text"].mean(1) - groups["safe"]["text"].mean(1)
    return constant(placed(towards, form, layers))


@dataclass(frozen=True)
class Probe:
    """A projection with a threshold at one layer."""

    layer: int
    direction: Tensor
    threshold: float
    accuracy: float

    def __call__(self, states: States) -> Tensor:
        """Which prompts lie beyond the threshold."""
        return (states["image"][self.layer] @ self.direction > self.threshold).float()


def probe(groups: Groups, meets: Sequence[str], fails: Sequence[str], layer: int, ridge: float | None = None) -> Probe:
    """Tell two kinds of anchors with a picture apart: by the difference of their means, or by ridge regression."""
    positive = torch.cat([groups[suite]["image"][layer] for suite in meets])
    negative = torch.cat([groups[suite]["image"][layer] for suite in fails])
    direction = positive.mean(0) - negative.mean(0)
    if ridge is not None:
        both = torch.cat([positive, negative])
        centred = both - both.mean(0)
        target = torch.cat([torch.ones(len(positive)) / len(positive), -torch.ones(len(negative)) / len(negative)])
        kernel = centred @ centred.T
        weights = torch.linalg.solve(kernel + ridge * kernel.diagonal().mean() * torch.eye(len(both)), target)
        direction = centred.T @ weights
    direction = direction / direction.norm()
    p, n = positive @ direction, negative @ direction
    values = torch.cat([p, n]).unique()
    edges = (values[1:] + values[:-1]) / 2
    right = torch.stack([((p > e).float().mean() + (n <= e).float().mean()) / 2 for e in edges])
    best = (right == right.max()).nonzero().flatten()
    chosen = best[len(best) // 2]
    return Probe(layer, direction, float(edges[chosen]), float(right.max()))


def gated(change: Change, gate: Open) -> Change:
    """The change where the gate is open, nothing elsewhere."""
    return lambda states: change(states) * gate(states)[None, :, None]


def times(change: Change, factor: float) -> Change:
    """The change at another strength."""
    return lambda states: change(states) * factor


def spared(groups: Groups, moved: Sequence[str] = ("unsafe", "safe"), kept: str = "visual") -> Probe:
    """The rule of steerkit: the layer that sets the kinds furthest apart, and between them by deviations."""
    found: list[tuple[float, Probe]] = []
    for layer in range(len(groups[kept]["image"])):
        one = torch.cat([groups[suite]["image"][layer] for suite in moved]).double()
        other = groups[kept]["image"][layer].double()
        difference = one.mean(0) - other.mean(0)
        unit = difference / difference.norm()
        high, low = one @ unit, other @ unit
        wide, narrow = high.std(correction=0), low.std(correction=0)
        threshold = low.mean() + narrow / (wide + narrow) * (high.mean() - low.mean())
        merit = difference.norm() / (wide**2 + narrow**2) ** 0.5
        right = ((high > threshold).double().mean() + (low <= threshold).double().mean()) / 2
        found.append((float(merit), Probe(layer, unit.float(), float(threshold), float(right))))
    return max(found, key=lambda pair: pair[0])[1]


def random_like(change: Change, seed: int = 0) -> Change:
    """Random directions of the length of the change at each layer, the same for all prompts."""

    def random(states: States) -> Tensor:
        made = change(states)
        drawn = torch.randn(made.shape[0], 1, made.shape[2], generator=torch.Generator().manual_seed(seed))
        return drawn / drawn.norm(dim=-1, keepdim=True) * made.norm(dim=-1, keepdim=True)

    return random
