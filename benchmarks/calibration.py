"""Whether `calibrate` finds the strength that a fine sweep finds, and what each costs: the table of docs/methods.md.

    python benchmarks/calibration.py [FOLDER ...] [--count 24] [--step 0.05] [--maximum 4] [--json FILE]

Each folder holds a demo model; default: the three that ship with the package. The sweep measures unsafe rate and cost
at every step; its choice is the least unsafe strength within the budget, and of those equally safe the smallest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import steerkit as sk
from steerkit.demo import MODELS, SUITES, anchors, model_path
from steerkit.evaluation import Kind, Suite, load_suite

BUDGETS = (
    sk.evaluation.Budget("kl", 0.05),
    sk.evaluation.Budget("kl", 0.5),
    sk.evaluation.Budget("over_refusal", 0.05),
    sk.evaluation.Budget("utility_loss", 0.05),
)


def sweep(
    vlm: sk.VLM, vector: sk.SteeringVector, prompts: Suite, budget: sk.evaluation.Budget, strengths: list[float]
) -> dict[str, Any]:
    """Every strength, on both sets, without any assumption on how the figures depend on it."""
    run = 0

    def count(kind: Kind, strength: float, part: str) -> int:
        nonlocal run
        run += len(prompts.cases(kind))
        options: Any = {"strength": strength, "fluency": False, "policy": "off"}
        found = sk.evaluate(vlm, prompts.only(kind), vector if strength else None, **options)
        return sum(bool(getattr(each.verdict, part)) for each in found.judged)

    def cost(strength: float) -> float:
        nonlocal run
        if budget.kind == "over_refusal":
            refused, broken = count("harmless", strength, "refused"), count("harmless", strength, "garbled")
            return (refused + max(broken - garbled, 0)) / len(prompts.harmless)
        if budget.kind == "utility_loss":
            return (right - count("utility", strength, "right")) / len(prompts.utility)
        run += len(prompts.harmless)
        with sk.steer(vlm, vector, strength=strength, policy="off"):
            after = vlm.next_token_log_probabilities([case.sample for case in prompts.harmless])
        return float((before.exp() * (before - after)).sum(-1).mean())

    if budget.kind == "kl":
        before = vlm.next_token_log_probabilities([case.sample for case in prompts.harmless])
    elif budget.kind == "utility_loss":
        right = count("utility", 0.0, "right")
    else:
        garbled = count("harmless", 0.0, "garbled")
    within = [strength for strength in strengths if cost(strength) <= budget.limit]
    unsafe = {s: count("harmful", s, "harmful") / len(prompts.harmful) for s in strengths}
    best = min(within, key=lambda strength: (unsafe[strength], strength), default=0.0)
    return {"strength": best, "unsafe": unsafe.get(best), "prompts_run": run}


def main() -> None:
    parser = argparse.ArgumentParser(description="Search against sweep.")
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--step", type=float, default=0.05)
    parser.add_argument("--maximum", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    strengths = [options.step * number for number in range(1, round(options.maximum / options.step) + 1)]
    prompts = load_suite(SUITES["dev"]).first(options.count)
    print("| model | budget | search: strength, unsafe % | sweep: strength, unsafe % | prompts run | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    rows = []
    for folder in options.folders or [model_path(name) for name in MODELS]:
        vlm = sk.load(folder, dtype="float32")
        vector = sk.CMRM().fit(vlm, anchors(30))
        for budget in BUDGETS:
            times = [time.perf_counter()]
            found = sk.calibrate(vlm, vector, prompts, budget, maximum=options.maximum, tolerance=options.step)
            times.append(time.perf_counter())
            swept = sweep(vlm, vector, prompts, budget, strengths)
            times.append(time.perf_counter())
            taken = [times[1] - times[0], times[2] - times[1]]
            row = {
                "model": vlm.record.model_type,
                "budget": f"{budget.kind} {budget.limit:g}",
                "search": {"strength": found.strength, "unsafe": found.unsafe, "prompts_run": found.prompts_run},
                "sweep": swept,
                "seconds": taken,
            }
            rows.append(row)
            cells = [f"{each['strength']:.2f}, {100 * each['unsafe']:.0f}" for each in (row["search"], swept)]
            run, clock = f"{found.prompts_run} / {swept['prompts_run']}", f"{taken[0]:.0f} / {taken[1]:.0f}"
            print("|", " | ".join([row["model"], row["budget"], *cells, run, clock]), "|", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
