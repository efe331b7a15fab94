"""Two kinds of prompts, separated, by ridge regression on their hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.methods._differences import require_shift

PENALTIES = (0.1, 0.3, 1.0)
"""Of the ridge, in units of the mean squared singular value of the centred states."""


class Separation(NamedTuple):
    """Where two kinds are separated best: a state `h` is of the first kind where `h @ direction > threshold`."""

    layer: int
    direction: Float[Tensor, "hidden"]
    threshold: float


def separate(rows: Mapping[int, tuple[Float[Tensor, "first hidden"], Float[Tensor, "second hidden"]]]) -> Separation:
    """Tell two kinds by a unit direction and a threshold at one layer.

    There are more dimensions than anchors, so that every layer tells the anchors without an error. Layer, penalty and
    threshold therefore follow from what each anchor is taken for by the regression on all others, which has a closed
    form (Allen 1974): least is the mean squared error of it (of both kinds alike, however many there are of each), and
    the threshold lies as many standard deviations from the mean of the one kind as from that of the other.

    Args:
        rows: The states of both kinds, by layer.

    Raises:
        EmptyAnchorSetError: Both kinds have the same mean at every layer.
    """
    best: tuple[float, Separation] | None = None
    for layer, (first, second) in rows.items():
        x = torch.cat([first, second]).double()
        y = torch.cat([x.new_ones(len(first)), -x.new_ones(len(second))])
        share = torch.where(y > 0, x.new_tensor(0.5 / len(first)), x.new_tensor(0.5 / len(second)))
        mean, root = share @ x, share.sqrt()
        left, values, right = torch.linalg.svd((x - mean) * root[:, None], full_matrices=False)
        squares, tiny = values.square(), torch.finfo(x.dtype).tiny
        for penalty in PENALTIES:
            ridge = (penalty * squares.mean()).clamp_min(tiny)
            along = left.T @ (y * root)  # the mean of y is 0
            fitted = left @ (squares / (squares + ridge) * along)
            leverage = left.square() @ (squares / (squares + ridge)) + share
            left_out = y - (y - fitted / root) / (1 - leverage).clamp_min(1e-12)
            error = float(share @ (y - left_out).square())
            if best is None or error < best[0]:
                weights = right.T @ (values / (squares + ridge) * along)
                length = weights.norm().clamp_min(tiny)
                between = _between(left_out[: len(first)], left_out[len(first) :])
                best = error, Separation(layer, weights / length, float((between + mean @ weights) / length))
    assert best is not None, "there is a layer"
    require_shift(best[1].direction)
    return best[1]


def _between(high: Tensor, low: Tensor) -> Tensor:
    """As many standard deviations from the one mean as from the other; half way where there are none."""
    wide, narrow = (kind.std(correction=0) for kind in (high, low))
    share = narrow / (wide + narrow) if float(wide + narrow) else 0.5
    return low.mean() + share * (high.mean() - low.mean())
