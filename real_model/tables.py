"""Tables from the answers that were kept: refused, restored, right; with Wilson intervals."""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_model import rows
from real_model.bench import refuses

Answers = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]
"""By condition and suite, then by row."""


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    share, squared = hits / count, z * z / count
    middle, half = share + squared / 2, z * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, (middle - half) / (1 + squared)), min(1.0, (middle + half) / (1 + squared))


def read(path: Path, part: str) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """The answers of a part, of the lab or of steerkit; of rows that were answered twice the later answer."""
    out: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    asked = rows.asked(part)
    for line in text.decode("utf-8").splitlines():
        record = json.loads(line)
        if "kind" in record:
            record = _of_steerkit(record, asked)
        if record["part"] == part:
            suite = record["suite"].removeprefix("xstest-")
            out.setdefault((record["condition"], suite), {})[record["row"]] = record
    return out


def _of_steerkit(record: Mapping[str, Any], asked: Mapping[str, Sequence[rows.Asked]]) -> dict[str, Any]:
    """A record of `steerkit.evaluation` as one of the lab."""
    suite = {"harmful": "unsafe", "harmless": "safe", "utility": "visual"}[record["kind"]]
    part, _, bare = record["suite"].rpartition("beside pictures, ")[2].partition(", ")
    number, view = int(record["row"].split()[1]) - 1, "text" if bare else record["images"]
    before = record["condition"] in ("unsteered", "image", "text")
    condition = "image" if before else f"{record['condition']} {record['strength']:g}"
    if view == "text" and before:
        condition = "text"
    elif view != "original":
        condition += f", {view} picture"
    kept = {"part": part, "condition": condition, "suite": suite, "answer": record["answer"], "row": number}
    if number < len(asked[suite]):  # of another part there may be more
        kept["expected"] = asked[suite][number].expected
    return kept


@dataclass(frozen=True)
class Line:
    """One condition: (hits, count) of each figure; restored: of refusals that the picture took, where asked."""

    condition: str
    unsafe: tuple[int, int]
    safe: tuple[int, int]
    visual: tuple[int, int]
    restored: tuple[int, int]


def _refused(found: Mapping[int, Mapping[str, Any]]) -> set[int]:
    return {row for row, record in found.items() if refuses(record["answer"])}


def lines(answers: Answers) -> list[Line]:
    """Every condition beside `text` and `image`, which must be among them."""
    if missing := [name for name in ("text", "image") if (name, "unsafe") not in answers]:
        raise SystemExit(
            f"no answers of {' and '.join(missing)}, which the others are counted against: name their file"
        )
    lost = _refused(answers["text", "unsafe"]) - _refused(answers["image", "unsafe"])
    out: list[Line] = []
    for condition in dict.fromkeys(name for name, _ in answers):
        unsafe, safe = (answers.get((condition, suite), {}) for suite in ("unsafe", "safe"))
        visual = answers.get((condition, "visual"), {})
        right = sum(record["answer"] == record["expected"] for record in visual.values())
        refused = _refused(unsafe)
        out.append(
            Line(
                condition,
                (len(refused), len(unsafe)),
                (len(_refused(safe)), len(safe)),
                (right, len(visual)),
                (len(lost & refused), len(lost & unsafe.keys())),
            )
        )
    return out


def _cell(found: tuple[int, int]) -> str:
    hits, count = found
    if not count:
        return "-"
    low, high = wilson(hits, count)
    return f"{100 * hits / count:.0f} ({100 * low:.0f}-{100 * high:.0f})"


def markdown(found: Iterable[Line]) -> str:
    """A table of per cent with intervals."""
    head = "| condition | unsafe refused | lost refusals restored | safe refused | visual right |"
    body = [
        f"| {line.condition} | " + " | ".join(map(_cell, (line.unsafe, line.restored, line.safe, line.visual))) + " |"
        for line in found
    ]
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: |", *body])


def main() -> None:
    """Print the table of a file of answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path, nargs="+", help="files of answers, together")
    parser.add_argument("--part", default="test")
    arguments = parser.parse_args()
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in arguments.answers:
        for key, answers in read(path, arguments.part).items():
            found.setdefault(key, {}).update(answers)
    print(markdown(lines(found)))


if __name__ == "__main__":
    main()
