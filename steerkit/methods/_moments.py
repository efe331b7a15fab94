"""Running statistics of hidden states: the memory of one batch and of the sums, whatever the size of the anchor set.

Sums are kept in float64, so statistics of parts merge into those of the whole (equal up to the rounding of float64).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(eq=False)
class Moments:
    """Count, sum and, where asked for, second moments of rows `[hidden]`.

    Second moments are kept as the rows themselves while there are fewer than `hidden` of them, and as the
    `[hidden, hidden]` sum of outer products from then on: whichever is smaller.

    Attributes:
        count: Number of rows.
        total: `[hidden]`, their sum.
        rows: `[count, hidden]`, or None.
        outer: `[hidden, hidden]`, or None.
        keep: Keep the rows, however many they are.
    """

    count: int
    total: Float[Tensor, "hidden"]
    rows: Float[Tensor, "count hidden"] | None
    outer: Float[Tensor, "hidden hidden"] | None
    keep: bool = False

    @classmethod
    def of(cls, rows: Float[Tensor, "count hidden"], *, second: bool, keep: bool = False) -> Moments:
        """The statistics of some rows."""
        wide = rows.detach().cpu().double()
        return cls(wide.shape[0], wide.sum(0), wide if second else None, None, keep)._compact()

    def merge(self, other: Moments) -> Moments:
        """The statistics of both sets of rows together."""
        rows = outer = None
        if self.rows is not None and other.rows is not None:
            rows = torch.cat([self.rows, other.rows])
        elif self._second and other._second:
            outer = self._outer() + other._outer()
        return Moments(
            self.count + other.count, self.total + other.total, rows, outer, self.keep or other.keep
        )._compact()

    @property
    def mean(self) -> Float[Tensor, "hidden"]:
        """The mean row, float64."""
        return self.total / self.count

    def principal(self, *, center: bool) -> tuple[Float[Tensor, "hidden"], float]:
        """The first principal component and its standard deviation.

        Args:
            center: Subtract the mean first. Without, the component is the direction of greatest second moment, which
                contains the common shift.

        Returns:
            The unit vector, its sign such that the mean row has a non-negative component along it, and the root mean
            square of the (centred) rows along it.
        """
        if self.rows is not None:
            rows = self.rows - self.mean if center else self.rows
            _, values, right = torch.linalg.svd(rows, full_matrices=False)
            direction, spread = right[0], values[0] / self.count**0.5
        else:
            moment = self._outer() / self.count
            if center:
                moment = moment - torch.outer(self.mean, self.mean)
            values, vectors = torch.linalg.eigh(moment)
            direction, spread = vectors[:, -1], values[-1].clamp_min(0.0).sqrt()
        sign = -1.0 if float(direction @ self.mean) < 0 else 1.0
        return sign * direction, float(spread)

    def variance(self, direction: Float[Tensor, "hidden"]) -> float:
        """The variance of the rows along a direction, whatever its length; needs second moments."""
        unit = direction.double() / direction.double().norm()
        if self.rows is not None:
            square = float((self.rows @ unit).square().mean())
        else:
            square = float(unit @ self._outer() @ unit) / self.count
        return max(square - float(self.mean @ unit) ** 2, 0.0)

    def second_moment(self) -> Float[Tensor, "hidden hidden"]:
        """The mean outer product of the rows, float64; needs second moments."""
        return self._outer() / self.count

    @property
    def _second(self) -> bool:
        return self.rows is not None or self.outer is not None

    def _outer(self) -> Tensor:
        return self.outer if self.outer is not None else self.rows.T @ self.rows  # type: ignore[union-attr]

    def _compact(self) -> Moments:
        if self.rows is not None and not self.keep and self.count >= self.rows.shape[1]:
            self.rows, self.outer = None, self._outer()
        return self


Groups = dict[str, dict[int, Moments]]
"""`{group: {layer: Moments}}`."""


def merge_groups(first: Groups, second: Groups) -> Groups:
    """The statistics of two parts of an anchor set together."""
    merged = {name: dict(layers) for name, layers in first.items()}
    for name, layers in second.items():
        mine = merged.setdefault(name, {})
        for layer, moments in layers.items():
            mine[layer] = mine[layer].merge(moments) if layer in mine else moments
    return merged
