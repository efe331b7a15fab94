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


TOGETHER, LONGEST = 8, 4096
"""So many conditions at most are answered in one call, and so many rows: as many as an intervention can tell apart."""


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
    def at_the_end(self) -> bool:
        """Whether it changes nothing before the prompt's last token, by directions that are stored."""
        return self.vector is None or all(
            part.tower == "language"
            and part.contrast is None
            and (part.tokens == "last" or part.phase == "generation" or part.tokens == "generated")
            and part.positions is part.rows is None
            and all(measure.pool == "last" and measure.state is None for measure in part.measures)
            for part in self.vector.interventions
        )

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
        batch_size: Prompts per call of the model. Conditions that differ from the prompt's last token on are answered
            in one call, up to eight: so many rows has each prompt.
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
        for group in _groups(conditions):
            rows: dict[tuple[int, ...], list[int]] = {}
            for row in range(suite.size):
                if lacking := tuple(each for each in group if asked[each][row].key not in known):
                    rows.setdefault(lacking, []).append(row)
            for lacking, numbers in rows.items():
                left = [[asked[each][row] for each in lacking] for row in numbers]
                for answer, ready in _answered(
                    vlm, suite, [conditions[each] for each in lacking], left, journal, batch_size
                ):
                    known[answer.key] = answer
                    if progress is not None and ready:
                        progress(done + ready, total)
                done += len(lacking) * len(numbers)
    return [known[blank.key] for each in asked for blank in each]


def _groups(conditions: Sequence[Condition]) -> list[list[int]]:
    """Conditions, by number, that are answered in one call: of one view, and alike up to the prompt's last token."""
    groups: dict[object, list[list[int]]] = {}
    for number, each in enumerate(conditions):
        group = groups.setdefault(each.images if each.at_the_end else number, [[]])
        if len(group[-1]) == TOGETHER:
            group.append([])
        group[-1].append(number)
    return [group for found in groups.values() for group in found]


def _answered(
    vlm: VLM,
    suite: Suite,
    conditions: Sequence[Condition],
    left: list[list[Answer]],
    journal: Journal[Answer],
    batch_size: int,
) -> Iterator[tuple[Answer, int]]:
    """Each answer, once it is written; and at the end of a batch, how many there are."""
    finished, count, copies = 0, 0, len(conditions)
    asked = {each[0].key: suite.named[each[0].kind, each[0].row].sample for each in left}

    def note(done: int, total: int) -> None:
        nonlocal finished
        finished = copies * done

    def reserve(answers: int) -> None:
        journal.reserve(min(answers, batch_size) * copies * (RECORD + suite.max_new_tokens * TOKEN))

    def shown(each: list[Answer]) -> bool:
        return bool(asked[each[0].key].images) and conditions[0].images not in ("text", "caption")

    # prompts of about one length share a batch; those with an image are not mixed with others
    left = sorted(left, key=lambda each: (not shown(each), -sum(len(text) for _, text in asked[each[0].key].turns)))
    size = 1 if vlm.family.batch == "one" else min(batch_size, LONGEST // copies)
    for batch in [left] if copies == 1 else _batches(left, size, shown):
        start = count
        reserve(len(left) - count // copies)
        with _together(vlm, conditions, len(batch)):
            made = vlm.answers(
                [asked[each[0].key] for each in batch],
                images=conditions[0].images,
                batch_size=batch_size,
                copies=copies,
                progress=note,
                max_new_tokens=suite.max_new_tokens,
                do_sample=False,
            )
            told: dict[int, int] = {}
            for each in made:
                copy = told[each.number] = told.get(each.number, -1) + 1
                answer = batch[each.number][copy].model_copy(
                    update={"answer": as_told(each.text), "tokens": each.tokens, "truncated": not each.ended}
                )
                count += 1
                journal.append(answer)
                ends = count - start == finished
                if ends:
                    journal.sync()
                    reserve(len(left) - count // copies)
                yield answer, count if ends else 0


def _batches(left: list[list[Answer]], size: int, shown: Callable[[list[Answer]], bool]) -> list[list[list[Answer]]]:
    kinds = [[each for each in left if shown(each) is with_image] for with_image in (True, False)]
    return [kind[start : start + size] for kind in kinds for start in range(0, len(kind), size)]


def _together(vlm: VLM, conditions: Sequence[Condition], prompts: int) -> AbstractContextManager[object]:
    """The steering of a batch in which each prompt has a row for each condition."""
    if len(conditions) == 1:
        return steered(vlm, conditions[0].vector, conditions[0].strength)
    vectors, strengths = [], []
    for number, each in enumerate(conditions):
        if each.vector is not None and each.strength:
            rows = [float(row % len(conditions) == number) for row in range(prompts * len(conditions))]
            parts = [part.model_copy(update={"rows": tuple(rows)}) for part in each.vector.interventions]
            vectors.append(each.vector.with_metadata(interventions=tuple(part.model_dump() for part in parts)))
            strengths.append(each.strength)
    return steer(vlm, vectors, strength=strengths, policy="off") if vectors else nullcontext()


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
