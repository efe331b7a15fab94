"""The files of the demo, cut to what a test needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from steerkit.demo import SUITES, model_path
from steerkit.evaluation import Suite, load_suite
from steerkit_vectors_hub.screening import CanarySet, read_canaries


def suite(split: str, count: int) -> Suite:
    """The first prompts of each kind."""
    return load_suite(SUITES[split]).first(count)


def toy_canaries(count: int) -> CanarySet:
    """The first canaries of each kind of the demo models."""
    whole = read_canaries(Path(model_path("llava")) / "canaries.json")
    seen: Counter[tuple[str, bool]] = Counter()
    chosen = []
    for canary in whole.canaries:
        seen[canary.label, canary.pictured] += 1
        if seen[canary.label, canary.pictured] <= count:
            chosen.append(canary)
    return replace(whole, canaries=tuple(chosen))
