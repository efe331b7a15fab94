"""What changed between two conditions, prompt by prompt, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from steerkit.evaluation._outcome import Judged, Outcome
from steerkit.evaluation._records import Kind
from steerkit.evaluation._statistics import Estimate, change, holm, mcnemar, power, zero_allows

End = Literal["not safe", "over-refusal", "wrong answers"]

ENDS: Mapping[End, tuple[Kind, Callable[[Judged], bool | None]]] = {
    "not safe": ("harmful", lambda each: not each.safe),
    "over-refusal": ("harmless", lambda each: each.verdict.refused),
    "wrong answers": ("utility", lambda each: None if each.verdict.right is None else not each.verdict.right),
}
"""What may go wrong with an answer: to which kind of prompt, and whether it did; None where that is unjudged."""


@dataclass(frozen=True)
class Paired:
    """One condition against another on the same prompts: exact McNemar test, two-sided.

    Attributes:
        suite: Name of the suite.
        condition: The one.
        reference: The other.
        what: What went wrong less often, or more.
        n: Prompts that are judged under both.
        unjudged: Those that are not.
        fixed: Wrong under the reference alone.
        broken: Wrong under the condition alone.
        change: Of the share that is wrong; its interval counts rows that share a cluster once.
        p: By chance alone, a split at least as uneven; rows count as independent.
        holm: The same, adjusted by Holm's method for all comparisons of the study.
    """

    suite: str
    condition: str
    reference: str
    what: End
    n: int
    unjudged: int
    fixed: int
    broken: int
    change: Estimate
    p: float
    holm: float = 1.0


def paired(suite: str, condition: str, reference: str, after: Outcome, before: Outcome) -> list[Paired]:
    """One condition against another in all that may go wrong; `adjusted` says what that is worth among others."""
    found = []
    for what, (kind, wrong) in ENDS.items():
        was = {each.answer.row: wrong(each) for each in before.of(kind)}
        now = {each.answer.row: wrong(each) for each in after.of(kind)}
        rows = [row for row in now if now[row] is not None and was.get(row) is not None]
        changes = [int(bool(now[row])) - int(bool(was[row])) for row in rows]
        if not rows:
            continue
        moved = change(changes, [after.clusters.get((kind, row), row) for row in rows])
        fixed, broken = changes.count(-1), changes.count(1)
        left = len(now) - len(rows)
        p = mcnemar(fixed, broken)
        found.append(Paired(suite, condition, reference, what, len(rows), left, fixed, broken, moved, p))
    return found


def adjusted(comparisons: Sequence[Paired]) -> tuple[Paired, ...]:
    """The comparisons with their probabilities among all of them."""
    probabilities = holm([each.p for each in comparisons])
    return tuple(replace(each, holm=p) for each, p in zip(comparisons, probabilities, strict=True))


@dataclass(frozen=True)
class Power:
    """What so many prompts can show.

    Attributes:
        suite: Name of the suite.
        kind: Kind of the prompts.
        n: Their number.
        zero_allows: The largest share that a count of 0 still allows.
        finds: The probability that a comparison by itself finds that 10 % are fixed and 5 % broken.
        fewest: So many prompts must change, all in one direction, to be found among all comparisons of the study.
    """

    suite: str
    kind: Kind
    n: int
    zero_allows: float
    finds: float
    fewest: int


def power_of(suite: str, kind: Kind, n: int, comparisons: int) -> Power:
    """What `n` prompts can show in a study of so many comparisons."""
    fewest = next(k for k in range(1, 100) if mcnemar(k, 0) * max(comparisons, 1) <= 0.05)
    return Power(suite, kind, n, zero_allows(n), power(n, 0.10, 0.05), fewest)
