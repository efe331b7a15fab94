"""Logistic regression on many groups of features at once, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

TOLERANCE = 1e-9
ITERATIONS = 200


class Probes(NamedTuple):
    """`p(positive) = sigmoid(w . x + b)`, one for each group."""

    weights: Float[Tensor, "groups size"]
    bias: Float[Tensor, "groups"]

    def margins(self, x: Float[Tensor, "groups count size"]) -> Float[Tensor, "groups count"]:
        """`w . x + b`: above 0 for the positive class."""
        return torch.einsum("gns,gs->gn", x, self.weights) + self.bias[:, None]


def fit_probes(
    x: Float[Tensor, "groups count size"] | Sequence[Float[Tensor, "groups part size"]],
    positive: Float[Tensor, "count"],
    penalty: float = 1.0,
) -> Probes:
    """Minimise `sum_n log(1 + exp(-y (w . x + b))) + penalty / 2 |w|^2` in each group, y being 1 or -1.

    By Newton's method with halved steps where a full one does not descend; the bias is not penalised.

    Args:
        x: The features; in parts, where they are many: one at a time is held in float64.
        positive: Which samples are of the positive class; some are and some are not.
        penalty: Strength of the regularisation.
    """
    parts = [x] if isinstance(x, Tensor) else list(x)
    groups, width = parts[0].shape[0], parts[0].shape[2] + 1
    count = sum(part.shape[1] for part in parts)
    targets = torch.where(positive.bool(), 1.0, -1.0).double().split([part.shape[1] for part in parts])
    ridge = torch.full((width,), penalty, dtype=torch.float64, device="cpu")
    ridge[-1] = 0.0

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        for part, y in zip(parts, targets, strict=True):
            yield torch.cat([part.double(), part.new_ones(*part.shape[:2], 1, dtype=torch.float64)], dim=2), y

    def loss(weights: Tensor) -> Tensor:
        found = 0.5 * (ridge * weights.square()).sum(1)
        for x, y in features():
            found = found + softplus(-y * torch.einsum("gns,gs->gn", x, weights)).sum(1)
        return found

    weights = torch.zeros(groups, width, dtype=torch.float64, device="cpu")
    for _ in range(ITERATIONS):
        gradient, curvature = ridge * weights, torch.diag(ridge + 1e-12).repeat(groups, 1, 1)
        for x, y in features():
            chance = torch.sigmoid(torch.einsum("gns,gs->gn", x, weights))
            gradient = gradient + torch.einsum("gns,gn->gs", x, chance - (y > 0).double())
            curvature = curvature + (x * (chance * (1 - chance))[:, :, None]).transpose(1, 2) @ x
        if float(gradient.abs().max()) < TOLERANCE * count:
            break
        step = torch.linalg.solve(curvature, gradient)
        before, size = loss(weights), torch.ones(groups, 1, dtype=torch.float64, device="cpu")
        while bool((worse := loss(weights - size * step) > before).any()) and float(size.min()) > 1e-9:
            size = torch.where(worse[:, None], size / 2, size)
        weights = weights - size * step
    return Probes(weights[:, :-1], weights[:, -1])
