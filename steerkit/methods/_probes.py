"""Logistic regression on many groups of features at once, in float64."""

from __future__ import annotations

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


def fit_probes(x: Float[Tensor, "groups count size"], positive: Float[Tensor, "count"], penalty: float = 1.0) -> Probes:
    """Minimise `sum_n log(1 + exp(-y (w . x + b))) + penalty / 2 |w|^2` in each group, y being 1 or -1.

    By Newton's method with halved steps where a full one does not descend; the bias is not penalised.

    Args:
        x: The features.
        positive: Which samples are of the positive class; some are and some are not.
        penalty: Strength of the regularisation.
    """
    ones = torch.ones(*x.shape[:2], 1, dtype=torch.float64)
    x = torch.cat([x.double(), ones], dim=2)
    y = torch.where(positive.bool(), 1.0, -1.0).double()
    ridge = torch.full((x.shape[2],), penalty, dtype=torch.float64)
    ridge[-1] = 0.0

    def loss(weights: Tensor) -> Tensor:
        margins = torch.einsum("gns,gs->gn", x, weights)
        return softplus(-y * margins).sum(1) + 0.5 * (ridge * weights.square()).sum(1)

    weights = torch.zeros(x.shape[0], x.shape[2], dtype=torch.float64)
    for _ in range(ITERATIONS):
        chance = torch.sigmoid(torch.einsum("gns,gs->gn", x, weights))
        gradient = torch.einsum("gns,gn->gs", x, chance - (y > 0).double()) + ridge * weights
        if float(gradient.abs().max()) < TOLERANCE * x.shape[1]:
            break
        curvature = torch.einsum("gns,gn,gnt->gst", x, chance * (1 - chance), x)
        curvature = curvature + torch.diag(ridge + 1e-12)
        step = torch.linalg.solve(curvature, gradient)
        before, size = loss(weights), torch.ones(x.shape[0], 1, dtype=torch.float64)
        while bool((worse := loss(weights - size * step) > before).any()) and float(size.min()) > 1e-9:
            size = torch.where(worse[:, None], size / 2, size)
        weights = weights - size * step
    return Probes(weights[:, :-1], weights[:, -1])
