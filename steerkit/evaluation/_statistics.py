"""Figures with their uncertainty: shares, means, and changes of pairs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""The standard normal quantile of a two-sided interval of 95 %."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval of 95 %."""

    value: float
    low: float
    high: float


def rate(values: Iterable[bool]) -> Estimate:
    """A share, with Wilson's interval; 0 of nothing lies anywhere."""
    counted = list(values)
    n = len(counted)
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    share = sum(counted) / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))


def bootstrap(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Estimate:
    """A mean, with the percentile interval of its bootstrap, seeded; NaN of nothing."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    generator = random.Random(seed)
    n = len(values)
    means = sorted(sum(generator.choices(values, k=n)) / n for _ in range(resamples))
    return Estimate(sum(values) / n, means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1])


def sign_test(worse: int, better: int) -> float:
    """Exact one-sided sign test on the pairs that changed (one-sided McNemar).

    Pairs that did not change say nothing about the direction of a change. Without a direction, each of those that did
    would have changed either way with probability 1/2; this is the probability of `worse` or more among them.
    """
    changed = worse + better
    return sum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2**changed
