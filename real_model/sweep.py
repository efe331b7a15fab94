"""Ask the model everything under every condition of the tables, and keep the answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from real_model import recipes
from real_model.bench import Bench

SUITES = ("unsafe", "safe", "visual")
PARTS = Path(__file__).parent / "parts.safetensors"


def conditions(anchors: recipes.Groups, part: str) -> dict[str, tuple[recipes.Change, float]]:
    """The conditions of a part and their strengths: what dev was searched by, and what was frozen for test."""
    dataset, sample, gate = recipes.dataset(anchors), recipes.sample(), recipes.spared(anchors)
    found: dict[str, tuple[recipes.Change, float]] = {
        "cmrm dataset 1": (dataset, 1.0),
        "cmrm sample 1, spared": (recipes.gated(sample, gate), 1.0),
        "cmrm sample 1": (sample, 1.0),
        "random 1": (recipes.random_like(dataset), 1.0),
        "cmrm dataset 1, spared": (recipes.gated(dataset, gate), 1.0),
    }
    if part == "test":
        return found
    harm = recipes.probe(anchors, ("unsafe",), ("safe", "visual"), 4, ridge=0.1)
    return found | {
        "cmrm dataset 1.5": (recipes.times(dataset, 1.5), 1.5),
        "cmrm dataset 2": (recipes.times(dataset, 2.0), 2.0),
        "unsafe anchors 1": (recipes.dataset(anchors, ("unsafe",)), 1.0),
        "refusal 1": (recipes.refusal(anchors), 1.0),
        "cmrm dataset 1.5, gate task": (recipes.gated(recipes.times(dataset, 1.5), gate), 1.5),
        "cmrm sample 1.5, gate task": (recipes.gated(recipes.times(sample, 1.5), gate), 1.5),
        "cmrm dataset 1.5, gate harm": (recipes.gated(recipes.times(dataset, 1.5), harm), 1.5),
    }


def main() -> None:
    """Run both parts, about a minute and a half of a core for each condition."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--parts", type=Path, default=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of answers, appended to")
    arguments = parser.parse_args()
    bench = Bench(arguments.base, arguments.parts)
    anchors = {suite: bench.read("anchors", suite, ["text", "image"]).states for suite in SUITES}
    for part, length in (("dev", 12), ("test", 24)):
        tokens = {"unsafe": length, "safe": length, "visual": 14}
        requests = {suite: length for suite in ("unsafe", "safe")}
        print(bench.measure(part, "image", None, log=arguments.out, tokens=tokens))
        print(bench.measure(part, "text", None, log=arguments.out, tokens=requests, view="text"))
        for suite in SUITES:
            bench.read(part, suite, ["text", "image"])
        for name, (change, strength) in conditions(anchors, part).items():
            print(bench.measure(part, name, change, log=arguments.out, tokens=tokens, strength=strength), flush=True)


if __name__ == "__main__":
    main()
