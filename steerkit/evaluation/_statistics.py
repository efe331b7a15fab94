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
    """A figure with its interval of 95 %.

    Attributes:
        value: The figure; NaN where nothing was measured.
        low: Lower end of the interval.
        high: Upper end.
        n: Of how many, the unjudged ones included.
        unjudged: How many of them count neither way.
    """

    value: float
    low: float
    high: float
    n: int = 0
    unjudged: int = 0


def rate(values: Iterable[bool | None]) -> Estimate:
    """A share of those that are not None, with Wilson's interval.

    None, which is unjudged, could be either: the interval reaches from where all of them were false to where all were
    true. 0 of nothing lies anywhere.
    """
    counted = list(values)
    judged = [bool(value) for value in counted if value is not None]
    n, held = len(counted), sum(judged)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    unjudged = n - len(judged)
    low, high = wilson(held, n)[0], wilson(held + unjudged, n)[1]
    return Estimate(held / len(judged) if judged else math.nan, low, high, n, unjudged)


def wilson(held: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of `n`."""
    share = held / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (0.0 if held == 0 else middle - half), (1.0 if held == n else middle + half)


def bootstrap(values: Sequence[float], resamples: int = 1000, seed: int = 0) -> Estimate:
    """A mean, with the percentile interval of its bootstrap, seeded; NaN of nothing."""
    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    generator = random.Random(seed)
    n = len(values)
    means = sorted(sum(generator.choices(values, k=n)) / n for _ in range(resamples))
    return Estimate(sum(values) / n, means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1], n)


def sign_test(worse: int, better: int) -> float:
    """Exact one-sided sign test on the pairs that changed (one-sided McNemar).

    Pairs that did not change say nothing about the direction of a change. Without a direction, each of those that did
    would have changed either way with probability 1/2; this is the probability of `worse` or more among them.
    """
    changed = worse + better
    return sum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2**changed
