"""How much faster a study is than its conditions one after another.

    python benchmarks/study.py [MODEL] [--count N] [--suite DEV TEST --anchors FILE]

The same conditions, prompts and tokens three times: by `study`; by `compare`, once for each condition, as `steerkit
compare` would be asked; and by `generate`, once for each condition, with vectors that are fitted already, which is the
least that one could do. The answers are compared. Times are of the processor, which other work does not touch; the
study's fits and hidden states are in its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import steerkit as sk
from steerkit.demo import ANCHORS, SUITES, bundled
from steerkit.evaluation import Condition, Suite, generate, load_suite, random_like, study

ALPHAS = (0.5, 1.0, 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="llava")
    parser.add_argument("--count", type=int, default=24, help="prompts of each kind, on dev and on test")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--anchors", type=Path, default=ANCHORS)
    parser.add_argument("--anchor-count", type=int, default=40)
    parser.add_argument("--suite", nargs=2, default=(SUITES["dev"], SUITES["test"]), metavar=("DEV", "TEST"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vlm = sk.load(bundled(given.model), dtype=given.dtype)
    dev, test = (load_suite(each, max_new_tokens=given.tokens).first(given.count) for each in given.suite)
    anchors = [each for each in sk.read_samples(given.anchors) if each.label in ("harmful", "harmless")]
    anchors = anchors[:: max(1, len(anchors) // given.anchor_count)][: given.anchor_count]
    size = given.batch_size
    generate(vlm, dev.first(1), [Condition("warm")], batch_size=size)

    with TemporaryDirectory() as folder:
        start = time.process_time()
        found = study(vlm, [test], [anchors], [dev], alphas=ALPHAS, folder=folder, batch_size=size)
        whole = time.process_time() - start
        kept = {
            (line.suite, line.condition, line.strength, line.kind, line.row): line.answer
            for line in sk.evaluation.read_records(Path(folder, "answers.jsonl"), sk.evaluation.Answer)
        }
    half = vlm.record.layer_count // 2
    layers = {"all layers": None, "lower half": range(half), "upper half": range(half, 2 * half)}
    options: dict[str, Any] = {"batch_size": size}
    asked: list[tuple[Suite, str, float, sk.methods.SteeringMethod]] = [
        (
            dev if cell.stage == "dev" else test,
            cell.condition,
            cell.strength,
            sk.CMRM(level=cell.method.split()[0], layers=layers[cell.layers], alpha=cell.strength),  # type: ignore[arg-type]
        )
        for cell in found.cells
        if cell.strength and cell.condition != "random"
    ]
    vectors = [(*each[:3], each[3].fit(vlm, anchors, batch_size=size)) for each in asked]
    random = next(each for each in found.cells if each.condition == "random")
    first = next(each[3] for each in vectors if each[0] is test)
    vectors.append((test, "random", random.strength, random_like(first, 0)))
    views: list[tuple[Suite, Condition]] = [
        (each, Condition(name, images=view))  # type: ignore[arg-type]
        for each in (dev, test)
        for name, view in (("text only", "text"), ("image", "original"))
    ]

    def alone() -> list[sk.evaluation.Answer]:
        steered = [(each, Condition(name, vector)) for each, name, _, vector in vectors]
        return [line for each, condition in (*views, *steered) for line in generate(vlm, each, [condition], **options)]

    def compared() -> None:
        for each, name, _, method in asked:
            sk.compare(vlm, {name: method}, each, anchors, **options)
        sk.compare(vlm, {"random": vectors[-1][3]}, test, policy="off", **options)
        for each in (dev, test):
            generate(vlm, each, [Condition("text only", images="text")], **options)

    start = time.process_time()
    answers = alone()
    apart = time.process_time() - start
    same = total = 0
    at = iter(answers)
    for each, name, strength in [*((s, c.name, 0.0) for s, c in views), *(v[:3] for v in vectors)]:
        for _ in range(each.size):
            line = next(at)
            same += kept[each.name, name, strength, line.kind, line.row] == line.answer
            total += 1
    one_by_one = _timed(compared)
    print(f"{given.model}: {len(views) + len(vectors)} conditions, {total} answers, of which {same} are equal")
    print(f"study {whole:.1f} s; by compare {one_by_one:.1f} s, ratio {one_by_one / whole:.1f}")
    print(f"by generate, without fits, figures and hidden states {apart:.1f} s, ratio {apart / whole:.1f}")


def _timed(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
