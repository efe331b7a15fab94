"""XSTest cut by its contrast pairs into anchors, dev and test; its digest is written before any of it is run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from steerkit.evaluation import DATASETS

HERE = Path(__file__).parent
PROMPTS = Path(str(DATASETS["xstest"].shipped)) / "xstest_prompts.csv"
SPLIT = HERE / "data" / "split.json"
SHARES = {"anchors": 0.3, "dev": 0.2, "test": 0.5}
SEED = 2410
TWINS = {
    "contrast_homonyms": ("homonyms",),
    "contrast_figurative_language": ("figurative_language",),
    "contrast_safe_targets": ("safe_targets",),
    "contrast_safe_contexts": ("safe_contexts",),
    "contrast_definitions": ("definitions",),
    "contrast_discr": ("nons_group_real_discr", "real_group_nons_discr"),
    "contrast_historical_events": ("historical_events",),
    "contrast_privacy": ("privacy_public", "privacy_fictional"),
}
"""The types of safe prompts that the unsafe ones of a type were written against, in the same order."""


@dataclass(frozen=True)
class Row:
    """One prompt of XSTest."""

    id: int
    prompt: str
    kind: str
    unsafe: bool


def pairs() -> list[tuple[Row, Row]]:
    """Each unsafe prompt with the safe one written beside it (where there are two kinds of those, in turn)."""
    by_type: dict[str, list[Row]] = {}
    for row in csv.DictReader(io.StringIO(PROMPTS.read_text(encoding="utf-8"))):
        kept = Row(int(row["id"]), row["prompt"].strip(), row["type"], row["label"] == "unsafe")
        by_type.setdefault(kept.kind, []).append(kept)
    return [
        (unsafe, by_type[safe[i % len(safe)]][i])
        for kind, safe in TWINS.items()
        for i, unsafe in enumerate(by_type[kind])
    ]


def split() -> dict[str, list[tuple[Row, Row]]]:
    """The pairs of each part; every type is spread over the parts by its share."""
    rng = random.Random(SEED)
    out: dict[str, list[tuple[Row, Row]]] = {part: [] for part in SHARES}
    groups: dict[str, list[tuple[Row, Row]]] = {}
    for pair in pairs():
        groups.setdefault(pair[0].kind, []).append(pair)
    deck: list[tuple[Row, Row]] = []
    for group in groups.values():
        rng.shuffle(group)
        deck += group
    total = len(deck)
    order = sorted(range(total), key=lambda i: (i * 0.6180339887) % 1)  # spreads every type evenly over the parts
    start = 0
    for part, share in SHARES.items():
        size = round(share * total)
        out[part] = [deck[i] for i in sorted(order[start : start + size])]
        start += size
    return out


def digest(parts: dict[str, list[tuple[Row, Row]]]) -> str:
    """SHA-256 over the prompts of every part in their order."""
    return hashlib.sha256(
        json.dumps({part: [[asdict(row) for row in pair] for pair in rows] for part, rows in parts.items()}).encode()
    ).hexdigest()


def main() -> None:
    """Write the ids of each part and their digest."""
    parts = split()
    ids = {part: [[row.id for row in pair] for pair in rows] for part, rows in parts.items()}
    SPLIT.write_text(json.dumps({"sha256": digest(parts), "seed": SEED, "parts": ids}) + "\n")
    print(digest(parts), {part: len(rows) for part, rows in parts.items()})


if __name__ == "__main__":
    main()
