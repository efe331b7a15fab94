"""Figures with their uncertainty: shares, means, and changes of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Z = 1.959963984540054
"""The standard normal quantile of a two-sided interval of 95 %."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval of 95 %.

    Attributes:
        value: The figure; NaN where nothing was measured.
        low: Lower end of the interval.
        high: Upper end.
        n: Of how many, the unjudged ones included.
        unjudged: How many of them count neither way.
        clusters: Of how many clusters they are, where some share one; else 0.
    """

    value: float
    low: float
    high: float
    n: int = 0
    unjudged: int = 0
    clusters: int = 0


def rate(values: Iterable[bool | None], clusters: Sequence[object] | None = None) -> Estimate:
    """A share of those that are not None, with Wilson's interval.

    None, which is unjudged, could be either: the interval reaches from where all of them were false to where all were
    true. 0 of nothing lies anywhere.

    Args:
        values: Truth values, or None.
        clusters: What each belongs to, such as its image. Where some share a cluster, the interval is that of the
            bootstrap by cluster or, where it is wider, as for a share of 0 or 1, Wilson's of so many clusters.
    """
    counted = list(values)
    judged = [bool(value) for value in counted if value is not None]
    n, held = len(counted), sum(judged)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    unjudged = n - len(judged)
    value = held / len(judged) if judged else math.nan
    low, high = wilson(held, n)[0], wilson(held + unjudged, n)[1]
    groups = len(set(clusters)) if clusters is not None else n
    if groups in (1, n):  # what is one and the same for all is no sample of anything
        return Estimate(value, low, high, n, unjudged)
    drawn = [
        bootstrap([float(doubt if each is None else each) for each in counted], clusters=clusters) for doubt in (0, 1)
    ]
    if held in (0, n - unjudged):
        low, high = (
            wilson(round(groups * held / n), groups)[0],
            wilson(round(groups * (held + unjudged) / n), groups)[1],
        )
    return Estimate(value, min(low, drawn[0].low), max(high, drawn[1].high), n, unjudged, groups)


def wilson(held: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of `n`."""
    share = held / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (0.0 if held == 0 else middle - half), (1.0 if held == n else middle + half)


def bootstrap(values: Sequence[float], *, clusters: Sequence[object] | None = None) -> Estimate:
    """A mean, with the percentile interval of its bootstrap, seeded; NaN of nothing.

    Args:
        values: The values; truth values for a share.
        clusters: What each belongs to, such as its image: clusters are drawn as a whole, since values of one are more
            alike than others. What is one and the same for all is no sample of anything, and is not drawn.
    """
    if not values:
        return Estimate(math.nan, math.nan, math.nan)
    return ratio(values, [1.0] * len(values), clusters)


def ratio(values: Sequence[float], others: Sequence[float], clusters: Sequence[object] | None = None) -> Estimate:
    """The ratio of two sums, with its interval by bootstrap; see `bootstrap`."""
    names = list(range(len(values)) if clusters is None or len(set(clusters)) == 1 else clusters)
    number = {name: at for at, name in enumerate(dict.fromkeys(names))}
    sums, counts = np.zeros(len(number)), np.zeros(len(number))
    for value, other, name in zip(values, others, names, strict=True):
        sums[number[name]] += value
        counts[number[name]] += other
    drawn = np.random.default_rng(0).integers(0, len(number), (RESAMPLES, len(number)))
    means = np.sort(sums[drawn].sum(1) / counts[drawn].sum(1))
    n = len(values)
    low, high = float(means[int(0.025 * RESAMPLES)]), float(means[int(0.975 * RESAMPLES) - 1])
    return Estimate(sum(values) / sum(others), low, high, n, clusters=len(number) if len(number) < n else 0)


def change(changes: Sequence[int], clusters: Sequence[object]) -> Estimate:
    """The change of a share between two conditions, from that of each pair: -1, 0 or 1.

    The interval is that of the bootstrap by cluster or, where it is wider, that of Bonett and Price (2012) of so many
    clusters: where no pair has changed, the bootstrap alone would be certain that none ever does.
    """
    drawn = bootstrap(changes, clusters=clusters)
    groups = (drawn.clusters or len(changes)) + 2
    down, up = (changes.count(step) / len(changes) * (groups - 2) + 1 for step in (-1, 1))
    middle = (up - down) / groups
    half = Z * math.sqrt(((up + down) / groups - middle**2) / groups)
    return replace(drawn, low=max(min(drawn.low, middle - half), -1.0), high=min(max(drawn.high, middle + half), 1.0))


def sign_test(worse: int, better: int) -> float:
    """Exact one-sided sign test on the pairs that changed (one-sided McNemar).

    Pairs that did not change say nothing about the direction of a change. Without a direction, each of those that did
    would have changed either way with probability 1/2; this is the probability of `worse` or more among them.
    """
    changed = worse + better
    return sum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2**changed


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided McNemar test on the pairs that changed: the probability of a split as uneven, by chance alone."""
    return min(1.0, 2 * sign_test(max(fixed, broken), min(fixed, broken)))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities of several tests, adjusted by Holm's method: below 0.05, the test holds among all of them."""
    adjusted, largest = [0.0] * len(probabilities), 0.0
    for rank, index in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[index]))
        adjusted[index] = largest
    return adjusted


def zero_allows(n: int) -> float:
    """The largest share that a count of 0 of `n` still allows, at 95 %: 0.088 of 40."""
    return wilson(0, n)[1]


def power(n: int, fixed: float, broken: float, alpha: float = 0.05) -> float:
    """The probability that `mcnemar` finds a difference, of `n` pairs.

    Args:
        n: Prompts.
        fixed: The share of them that changes one way.
        broken: The share that changes the other way.
        alpha: The level.
    """
    found, changing = 0.0, fixed + broken
    for changed in range(1, n + 1):
        by_chance, tails, k = _binomial(changed, 0, 0.5), 0.0, 0
        while 2 * by_chance <= alpha:  # a split as uneven as this one is found
            tails += _binomial(changed, k, fixed / changing) + _binomial(changed, changed - k, fixed / changing)
            k += 1
            by_chance += _binomial(changed, k, 0.5)
        found += _binomial(n, changed, changing) * tails
    return found


def kappa(one: Sequence[bool | None], other: Sequence[bool | None]) -> Estimate:
    """Cohen's kappa of two judges, with the large-sample interval of Fleiss, Cohen and Everitt (1969).

    Args:
        one: What one says of each answer; None, where it is unjudged, leaves the answer out, and is counted.
        other: What the other says.

    Returns:
        NaN, with an interval of everything, where nothing was judged, or both say one and the same of all answers.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    n, unjudged = len(pairs), len(one) - len(pairs)
    shares = {(a, b): pairs.count((a, b)) / max(n, 1) for a in (False, True) for b in (False, True)}
    rows = [shares[side, False] + shares[side, True] for side in (False, True)]
    columns = [shares[False, side] + shares[True, side] for side in (False, True)]
    agreed, chance = shares[False, False] + shares[True, True], rows[0] * columns[0] + rows[1] * columns[1]
    if n == 0 or chance == 1.0:
        return Estimate(math.nan, -1.0, 1.0, len(one), unjudged)
    value = (agreed - chance) / (1 - chance)
    spread = -((value - chance * (1 - value)) ** 2)
    for (a, b), share in shares.items():
        if a == b:
            spread += share * (1 - (rows[a] + columns[a]) * (1 - value)) ** 2
        else:
            spread += share * ((1 - value) * (columns[a] + rows[b])) ** 2
    half = Z * math.sqrt(max(spread, 0.0) / n) / (1 - chance)
    return Estimate(value, max(value - half, -1.0), min(value + half, 1.0), len(one), unjudged)


def _binomial(n: int, k: int, share: float) -> float:
    if share in (0.0, 1.0):
        return float(k == n * share)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))
