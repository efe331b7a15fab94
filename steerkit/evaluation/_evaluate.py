"""What steering does to a model's answers: safe, willing, right and fluent, and what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steerkit._internal.validation import expect, expect_whole
from steerkit.errors import ModelMismatchError
from steerkit.evaluation._judges import Judgement, judgements, rightness
from steerkit.evaluation._statistics import Estimate, bootstrap, rate
from steerkit.evaluation._suites import KINDS, Case, Suite
from steerkit.policy import Policy, enforce
from steerkit.steering import check_applied, steer
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM, check_vlm

Progress = Callable[[int, int], None]
"""Called with (done, total) prompts."""


@dataclass(frozen=True)
class Outcome:
    """What one condition measured, prompt by prompt.

    Attributes:
        harmful: What the judge says of the answers to harmful requests.
        harmless: The same of harmless requests.
        right: Whether the questions are answered rightly.
        surprise: Mean negative log-likelihood per token, in nats, of each answer (of all three sets) that is not empty,
            under the model as it is without steering.
    """

    harmful: tuple[Judgement, ...]
    harmless: tuple[Judgement, ...]
    right: tuple[bool, ...]
    surprise: tuple[float, ...]

    @property
    def unsafe(self) -> Estimate:
        """Harmful requests complied with; where the judge can't tell, those neither refused nor garbled."""
        return rate(each.complied for each in self.harmful)

    @property
    def over_refusal(self) -> Estimate:
        """Harmless requests refused."""
        return rate(bool(each.refused) for each in self.harmless)

    @property
    def garbled(self) -> Estimate:
        """Requests of both kinds whose answer answers nothing."""
        return rate(bool(each.garbled) for each in (*self.harmful, *self.harmless))

    @property
    def utility(self) -> Estimate:
        """Questions answered rightly."""
        return rate(self.right)

    @property
    def fluency(self) -> Estimate:
        """Mean of `surprise`; lower is more fluent, in the eyes of the unsteered model. NaN if it was not measured."""
        return bootstrap(self.surprise)


def answers(vlm: VLM, cases: Sequence[Case], suite: Suite, batch_size: int = 16) -> list[str]:
    """What the model answers greedily, under whatever steers it."""
    return vlm.generate(
        [case.sample for case in cases],
        batch_size=batch_size,
        max_new_tokens=suite.max_new_tokens,
        do_sample=False,
    )


def evaluate(
    vlm: VLM,
    suite: Suite,
    vector: SteeringVector | None = None,
    *,
    strength: float = 1.0,
    batch_size: int = 16,
    fluency: bool = True,
    progress: Progress | None = None,
    policy: Policy = "strict",
) -> Outcome:
    """Let a model answer a suite, steered or not, and judge the answers.

    Args:
        vlm: The model.
        suite: The prompts and the judge.
        vector: What steers; None for nothing.
        strength: As for `steer`.
        batch_size: Prompts per call of the model.
        fluency: Whether to measure how likely the unsteered model finds the answers, in one more pass for each.
        progress: Called after each set.
        policy: As for `steer`; the dose is not judged.

    Raises:
        OptionError: An argument is of another type.
        SteerKitError: As `steer` and `VLM.generate` do.
    """
    check_measurable(vlm, suite)
    expect(Callable | None, "a function of (done, total)", progress=progress)
    expect_whole(batch_size=batch_size)
    check_vectors(vlm, [] if vector is None else [vector], policy)
    found: dict[str, list[str]] = {}
    done = 0
    for kind in KINDS:
        with steered(vlm, vector, strength):
            found[kind] = answers(vlm, suite.cases(kind), suite, batch_size)
        done += len(found[kind])
        if progress is not None:
            progress(done, suite.size)
    likely: list[Tensor] = []
    if fluency:
        every = [case.sample for kind in KINDS for case in suite.cases(kind)]
        likely = vlm.log_likelihood(every, [text for kind in KINDS for text in found[kind]], batch_size=batch_size)
    return Outcome(
        harmful=judgements(suite.judge, suite.harmful, found["harmful"]),
        harmless=judgements(suite.judge, suite.harmless, found["harmless"]),
        right=rightness(suite.judge, suite.utility, found["utility"]),
        surprise=tuple(-float(values.mean()) for values in likely if len(values)),
    )


def check_measurable(vlm: object, suite: object) -> None:
    """Refuse what is not a VLM, or not a suite.

    Raises:
        OptionError: One of them is something else.
    """
    check_vlm(vlm)
    expect(
        Suite,
        "a Suite: prompts and a judge",
        "sk.evaluation.load_suite(file), or sk.evaluation.Suite(name, harmful, harmless, utility, judge)",
        suite=suite,
    )


def check_vectors(vlm: VLM, vectors: Sequence[SteeringVector], policy: Policy) -> None:
    """Refuse vectors that `steer` refuses on this model, once, before `steered` runs them many times.

    The dose is not judged: a sweep goes beyond a sensible one on purpose.

    Raises:
        SteerKitError: As `steer` does.
    """
    checks = []
    for vector in vectors:
        steer(vlm, vector, policy=policy)  # class, sizes, and whether the interventions can be applied at all
        checks += [check for check in check_applied([vector], [1.0], vlm) if check.name != "dose"]
    enforce(checks, policy, ModelMismatchError, stacklevel=3)


def cost_per_token(
    vlm: VLM, suite: Suite, vector: SteeringVector | None, *, tokens: int = 16, rounds: int = 10
) -> tuple[Estimate, Estimate]:
    """What one generated token of one prompt costs, its share of the prompt included.

    Each run generates exactly `tokens` for up to four harmless prompts in one batch. A round is one run without and one
    with steering, the first of them in turns, so that whatever else the machine does falls on both alike. The first
    round, uncounted, warms up.

    Returns:
        Seconds, steered; and the ratio to those without steering, the geometric mean of the rounds'.
    """
    samples = [case.sample for case in suite.harmless[:4]]
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


def steered(vlm: VLM, vector: SteeringVector | None, strength: float) -> AbstractContextManager[object]:
    """`steer` without its checks, which are those of `check_vectors`; or nothing at all without a vector."""
    return nullcontext() if vector is None else steer(vlm, vector, strength=strength, policy="off")
