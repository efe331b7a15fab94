"""The first step of an evaluation: let a model answer a suite, and keep every answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from steerkit._internal.validation import PATH, expect, expect_each, expect_one_of, expect_whole
from steerkit._text import quoted
from steerkit._version import __version__
from steerkit.errors import ModelMismatchError, OptionError, RecordsError
from steerkit.evaluation._journal import Journal
from steerkit.evaluation._records import Answer, as_told
from steerkit.evaluation._suites import KINDS, Suite, check_suite
from steerkit.interventions import View, is_finite
from steerkit.policy import Policy, enforce
from steerkit.steering import check_applied, steer
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM, check_vlm

Progress = Callable[[int, int], None]
"""Called with (done, total) answers."""

RECORD, TOKEN = 4096, 64
"""Bytes that a record, and each token of its answer, take on the disk; hardly ever more."""


@dataclass(frozen=True)
class Condition:
    """Under what a suite is answered.

    Attributes:
        name: What to call it.
        vector: What steers; None for nothing.
        strength: As for `steer`.
        images: With which view of their images prompts are shown.
    """

    name: str
    vector: SteeringVector | None = None
    strength: float = 1.0
    images: View = "original"

    def __post_init__(self) -> None:
        expect(str, "a text", name=self.name)
        expect(SteeringVector | None, "a SteeringVector, or None", vector=self.vector)
        expect_one_of(get_args(View), images=self.images)
        if not is_finite(self.strength):
            raise OptionError(f"strength is {quoted(self.strength)}", expected="a finite number")

    @property
    def dose(self) -> float:
        """The strength; 0 where nothing steers."""
        return 0.0 if self.vector is None else float(self.strength)


def generate(
    vlm: VLM,
    suite: Suite,
    conditions: Sequence[Condition],
    *,
    path: str | Path | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    policy: Policy = "strict",
) -> list[Answer]:
    """Let a model answer a suite greedily under several conditions.

    With a path, every batch of answers is in the file before the next is begun, and what the file answers already is
    not asked again: a run that was interrupted goes on where it was. The room that a batch needs is taken on the disk
    before it runs, so that a full disk stops the run and loses nothing.

    Args:
        vlm: The model.
        suite: The prompts; its judge is not asked.
        conditions: Under what they are answered.
        path: A file of JSON lines to add to; None keeps nothing.
        batch_size: Prompts per call of the model.
        progress: Called with (done, total) answers after each batch.
        policy: As for `steer`; the dose is not judged.

    Returns:
        The answers to this suite under these conditions, in their order.

    Raises:
        RecordsError: The file is damaged or in use, can't be written, or holds answers of another model, vector or
            length under the name of one of these conditions.
        OptionError: An argument is of another type, or two conditions are called the same.
        SteerKitError: As `steer` and `VLM.generate` do; what was answered before is in the file.
    """
    check_measurable(vlm, suite)
    expect_each(Condition, "a list of sk.evaluation.Condition", conditions=conditions)
    expect_whole(batch_size=batch_size)
    expect(PATH | None, "a .jsonl file", path=path)
    expect(Callable | None, "a function of (done, total)", progress=progress)
    check_vectors(vlm, [each.vector for each in conditions if each.vector is not None], policy)
    model = hashlib.sha256(f"{vlm.record.model_dump_json(exclude={'id', 'revision'})}{vlm.weights_digest()}".encode())
    asked = [_blanks(suite, condition, model.hexdigest()) for condition in conditions]
    total = len(conditions) * suite.size
    if len({blank.key for each in asked for blank in each}) < total:
        raise OptionError("two conditions have one name, strength and view", expected="a name for each")
    with Journal(None if path is None else Path(path), Answer) as journal:
        known = {answer.key: answer for answer in journal.records}
        for blank in (blank for each in asked for blank in each):
            other = known.get(blank.key, blank)
            if (other.prompt, other.run) != (blank.prompt, blank.run):
                raise RecordsError(
                    f"{quoted(str(path), 300)} has an answer of another run to {blank.row!r}, {blank.condition!r}",
                    expected="answers of the same model, vector, prompts and max_new_tokens",
                    fix="name another file for this run, or the condition differently",
                )
        done = sum(blank.key in known for each in asked for blank in each)
        for condition, each in zip(conditions, asked, strict=True):
            left = [blank for blank in each if blank.key not in known]
            for answer, ready in _answered(vlm, suite, condition, left, journal, batch_size):
                known[answer.key] = answer
                if progress is not None and ready:
                    progress(done + ready, total)
            done += len(left)
    return [known[blank.key] for each in asked for blank in each]


def _answered(
    vlm: VLM, suite: Suite, condition: Condition, left: Sequence[Answer], journal: Journal[Answer], batch_size: int
) -> Iterator[tuple[Answer, int]]:
    """Each answer, once it is written; and at the end of a batch, how many there are."""
    if not left:
        return
    finished = 0

    def note(done: int, total: int) -> None:
        nonlocal finished
        finished = done

    def reserve(answers: int) -> None:
        journal.reserve(min(answers, batch_size) * (RECORD + suite.max_new_tokens * TOKEN))

    reserve(len(left))
    with steered(vlm, condition.vector, condition.strength):
        made = vlm.answers(
            [suite.named[blank.kind, blank.row].sample for blank in left],
            images=condition.images,
            batch_size=batch_size,
            progress=note,
            max_new_tokens=suite.max_new_tokens,
            do_sample=False,
        )
        for count, each in enumerate(made, 1):
            answer = left[each.number].model_copy(
                update={"answer": as_told(each.text), "tokens": each.tokens, "truncated": not each.ended}
            )
            journal.append(answer)
            if count == finished:
                journal.sync()
                reserve(len(left) - count)
            yield answer, count if count == finished else 0


def _blanks(suite: Suite, condition: Condition, model: str) -> list[Answer]:
    """The records of what is asked, without the answers."""
    vector = condition.vector
    what = vector and [vector.digest(), [each.model_dump(mode="json") for each in vector.interventions]]
    run = hashlib.sha256(json.dumps([model, what, suite.max_new_tokens]).encode()).hexdigest()
    return [
        Answer(
            suite=suite.name,
            revision=suite.revision,
            row=case.id,
            kind=kind,
            condition=condition.name,
            strength=condition.dose,
            images=condition.images,
            prompt=suite.digests[kind, case.id],
            run=run,
            answer="",
            tokens=0,
            truncated=False,
            versions=_versions(),
        )
        for kind in KINDS
        for case in suite.cases(kind)
    ]


@cache
def _versions() -> dict[str, str]:
    return {"steerkit": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def check_measurable(vlm: object, suite: object) -> None:
    """Refuse what is not a VLM, or not a suite.

    Raises:
        OptionError: One of them is something else.
    """
    check_vlm(vlm)
    check_suite(suite)


def check_vectors(vlm: VLM, vectors: Sequence[SteeringVector], policy: Policy) -> None:
    """Refuse vectors that `steer` refuses on this model, once, before `steered` runs them many times.

    The dose is not judged: a sweep goes beyond a sensible one on purpose.

    Raises:
        SteerKitError: As `steer` does.
    """
    checks = []
    for vector in vectors:
        steer(vlm, vector, policy=policy)  # class, sizes, and whether the interventions can be applied at all
        if policy != "off":
            checks += [check for check in check_applied([vector], [1.0], vlm) if check.name != "dose"]
    enforce(checks, policy, ModelMismatchError, stacklevel=3)


def steered(vlm: VLM, vector: SteeringVector | None, strength: float) -> AbstractContextManager[object]:
    """`steer` without its checks, which are those of `check_vectors`; or nothing at all without a vector."""
    return nullcontext() if vector is None else steer(vlm, vector, strength=strength, policy="off")
