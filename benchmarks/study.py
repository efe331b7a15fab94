"""How much faster the conditions of a study are answered together than one after another.

    python benchmarks/study.py [MODEL] [--count N]

The same prompts and vectors, three times: by `generate`, all of them at once, as `study` does; by `generate`, one
condition after another; and by `compare`, which measures fluency and cost as well. The answers must be the same.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import steerkit as sk
from steerkit.demo import SUITES, anchors, bundled
from steerkit.evaluation import Condition, generate, load_suite, random_like


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="llava")
    parser.add_argument("--count", type=int, default=48, help="prompts of each kind")
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vlm = sk.load(bundled(given.model), dtype="float32")
    suite = load_suite(SUITES["test"]).first(given.count)
    vector = sk.CMRM().fit(vlm, anchors(50))
    vectors = {f"cmrm {alpha:g}": _at(vector, alpha) for alpha in (0.5, 1.0, 1.5)}
    vectors |= {f"random {alpha:g}": _at(random_like(vector), alpha) for alpha in (1.0, 1.5)}
    conditions = [Condition("unsteered"), *(Condition(name, each) for name, each in vectors.items())]
    options: dict[str, Any] = {"batch_size": given.batch_size, "policy": "off"}
    generate(vlm, suite.first(2), conditions, **options)  # warm

    start = time.perf_counter()
    together = generate(vlm, suite, conditions, **options)
    once = time.perf_counter() - start
    start = time.perf_counter()
    apart = [answer for each in conditions for answer in generate(vlm, suite, [each], **options)]
    alone = time.perf_counter() - start
    same = sum(one.answer == other.answer for one, other in zip(apart, together, strict=True))
    print(f"{given.model}: {len(conditions)} conditions x {suite.size} prompts, answers equal: {same} of {len(apart)}")
    print(f"together {once:.1f} s; one after another {alone:.1f} s, ratio {alone / once:.1f}", flush=True)
    start = time.perf_counter()
    sk.compare(vlm, vectors, suite, **options)
    compared = time.perf_counter() - start
    print(f"by compare {compared:.1f} s, ratio {compared / once:.1f}")


def _at(vector: sk.SteeringVector, alpha: float) -> sk.SteeringVector:
    return vector.with_metadata(interventions=tuple(each.dosed(alpha).model_dump() for each in vector.interventions))


if __name__ == "__main__":
    main()
