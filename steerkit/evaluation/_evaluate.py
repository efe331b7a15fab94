"""What steering does to a model's answers: safe, willing, right and fluent, and what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerkit._internal.files import user_path
from steerkit._internal.validation import PATH, expect
from steerkit.evaluation._generate import (
    Condition,
    Progress,
    Workers,
    check_measurable,
    check_vectors,
    generate,
    steered,
)
from steerkit.evaluation._judges import Judge, compares
from steerkit.evaluation._judging import judge, surprise
from steerkit.evaluation._outcome import Outcome, tabulate
from steerkit.evaluation._statistics import Estimate, bootstrap
from steerkit.evaluation._suites import Suite
from steerkit.policy import Policy
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

ANSWERS, VERDICTS = "answers.jsonl", "verdicts.jsonl"
"""The files of a folder in which an evaluation is kept."""


def evaluate(
    vlm: VLM,
    suite: Suite,
    vector: SteeringVector | None = None,
    *,
    strength: float = 1.0,
    name: str | None = None,
    folder: str | Path | None = None,
    batch_size: int = 16,
    fluency: bool = True,
    progress: Progress | None = None,
    policy: Policy = "strict",
    cluster: Workers | None = None,
) -> Outcome:
    """Let a model answer a suite, steered or not, and judge the answers: `generate`, `judge` and `tabulate` in one.

    Args:
        vlm: The model.
        suite: The prompts and the judge.
        vector: What steers; None for nothing.
        strength: As for `steer`.
        name: What to call this condition in the records. Default: `unsteered` or `steered`.
        folder: Where `answers.jsonl` and `verdicts.jsonl` go; what is there already is not done again. None keeps
            nothing but the outcome.
        batch_size: Prompts per call of the model.
        fluency: Whether to measure how likely the unsteered model finds the answers, in one more pass for each.
        progress: Called with (done, total) prompts after each batch.
        policy: As for `steer`; the dose is not judged.
        cluster: As for `generate`.

    Raises:
        OptionError: An argument is of another type.
        RecordsError: As for `generate` and `judge`.
        JudgeError: As for `judge`.
        SteerKitError: As `steer` and `VLM.generate` do.
    """
    check_measurable(vlm, suite)
    expect(PATH | None, "a folder, new or old", folder=folder)
    check_vectors(vlm, [] if vector is None else [vector], policy)
    condition = Condition(name or ("unsteered" if vector is None else "steered"), vector, strength)
    (outcome,) = outcomes(
        vlm,
        suite,
        [condition],
        folder=folder,
        batch_size=batch_size,
        fluency=fluency,
        progress=progress,
        cluster=cluster,
    ).values()
    return outcome


def outcomes(
    vlm: VLM,
    suite: Suite,
    conditions: Sequence[Condition],
    *,
    folder: str | Path | None = None,
    judges: Sequence[Judge] = (),
    workers: int = 1,
    fluency: bool = False,
    batch_size: int = 16,
    progress: Progress | None = None,
    cluster: Workers | None = None,
) -> dict[tuple[str, float], Outcome]:
    """Answers under several conditions, judged and counted, by name and strength; the vectors are checked already.

    Args:
        vlm: The model.
        suite: The prompts.
        conditions: Under what they are answered; those that can share what is before the prompt's last token.
        folder: As for `evaluate`.
        judges: Who judges requests; the first counts, the others' verdicts are kept. Default: the suite's judge. The
            first that compares is asked about questions with a reference, and about nothing else.
        workers: As for `judge`.
        fluency: As for `evaluate`.
        batch_size: As for `generate`.
        progress: As for `generate`.
        cluster: As for `generate`.
    """
    answers, verdicts = (None if folder is None else user_path(folder) / file for file in (ANSWERS, VERDICTS))
    options: Any = {"batch_size": batch_size, "progress": progress, "policy": "off", "cluster": cluster}
    found = generate(vlm, suite, conditions, path=answers, **options)
    asked = [each for each in judges if not compares(each)] or [suite.judge]
    said, *_ = [judge(suite, found, judge=each, path=verdicts, workers=workers) for each in asked]
    if fluency:
        said += surprise(vlm, suite, found, path=verdicts, batch_size=batch_size)
    counted = tabulate(found, said, suite=suite, identity=asked[0].identity)
    for each in [each for each in judges if compares(each)][:1]:
        questions = [at for at in found if at.kind == "utility" and suite.named[at.kind, at.row].parser == "reference"]
        scored = {at.answer: at for at in judge(suite, questions, judge=each, path=verdicts, workers=workers)}
        counted = {key: replace(one, compared=scored) for key, one in counted.items()}
    return counted


def cost_per_token(
    vlm: VLM, suite: Suite, vector: SteeringVector | None, *, tokens: int = 16, rounds: int = 10
) -> tuple[Estimate, Estimate]:
    """What one generated token of one prompt costs, its share of the prompt included.

    Each run generates exactly `tokens` for up to four prompts, harmless ones where there are some, in one batch. A
    round is one run without and one with steering, the first of them in turns, so that whatever else the machine does
    falls on both alike. The first round, uncounted, warms up.

    Returns:
        Seconds, steered; and the ratio to those without steering, the geometric mean of the rounds'.
    """
    samples = [case.sample for case in (suite.harmless or suite.harmful or suite.utility)[:4]]
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def taken(block: AbstractContextManager[object]) -> float:
        with block:
            start = time.perf_counter()
            vlm.generate(samples, batch_size=4, **options)
            return (time.perf_counter() - start) / tokens / len(samples)

    plain, block = nullcontext(), steered(vlm, vector, 1.0)
    seconds, ratios = [], []
    for number in range(rounds + 1):
        if vector is None:
            before = after = taken(plain)
        elif number % 2:
            before, after = taken(plain), taken(block)
        else:
            after, before = taken(block), taken(plain)
        if number:
            seconds.append(after)
            ratios.append(math.log(after / before))
    ratio = bootstrap(ratios)
    return bootstrap(seconds), Estimate(math.exp(ratio.value), math.exp(ratio.low), math.exp(ratio.high))
