"""How well the phrases tell refusals, against answers that were labelled by reading."""

from __future__ import annotations

import csv
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import steerkit as sk
from real_model.bench import refuses

LABELS = Path(__file__).parent / "labels" / "answers.csv"


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Cohen's kappa; not a number where both never differ from one value."""
    count = len(one)
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / count
    chance = sum(one) * sum(other) / count**2 + (count - sum(one)) * (count - sum(other)) / count**2
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)


def interval(one: Sequence[bool], other: Sequence[bool], draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of kappa over the answers."""
    rng = random.Random(0)
    found = []
    for _ in range(draws):
        chosen = [rng.randrange(len(one)) for _ in one]
        found.append(kappa([one[i] for i in chosen], [other[i] for i in chosen]))
    kept = sorted(value for value in found if not math.isnan(value))
    return (kept[int(0.025 * len(kept))], kept[int(0.975 * len(kept))]) if kept else (math.nan, math.nan)


def main() -> None:
    """Print the shares that were read, and both lists of phrases beside them, by condition."""
    rows = list(csv.DictReader(LABELS.open(encoding="utf-8")))
    groups: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[f"{row['condition']}, {row['suite']}"].append(row)
        groups["all"].append(row)
    judge = sk.evaluation.PhraseJudge()
    print("| condition | n | refused | harmful | garbled | kappa, own phrases | kappa, PhraseJudge |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, found in groups.items():
        read = [row["refused"] == "1" for row in found]
        counts = [sum(row[part] == "1" for row in found) for part in ("refused", "harmful", "garbled")]
        cells = []
        for told in (
            [refuses(row["answer"]) for row in found],
            [bool(judge.judge(sk.evaluation.Case(sk.Sample(row["prompt"])), row["answer"]).refused) for row in found],
        ):
            low, high = interval(read, told)
            cells.append(f"{kappa(read, told):.2f} ({low:.2f}-{high:.2f})")
        print(f"| {name} | {len(found)} | " + " | ".join([*map(str, counts), *cells]) + " |")


if __name__ == "__main__":
    main()
