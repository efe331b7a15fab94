"""The first step of an evaluation: let a model answer a suite, and keep every answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

from steerkit._internal.files import user_path
from steerkit._internal.plugins import versions
from steerkit._internal.validation import PATH, expect, expect_each, expect_one_of, expect_whole
from steerkit._text import quoted
from steerkit.errors import ModelMismatchError, OptionError, RecordsError
from steerkit.evaluation._journal import Journal
from steerkit.evaluation._records import Answer, as_told
from steerkit.evaluation._suites import KINDS, Suite, check_suite
from steerkit.interventions import View, is_finite
from steerkit.methods import SteeringMethod
from steerkit.models import Sample
from steerkit.policy import Policy, enforce
from steerkit.steering import check_applied, steer
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM, check_vlm

Work = tuple[list["Condition"], list[list[Answer]]]
"""Conditions that are answered in one call, and for each prompt the records that they lack."""


class Workers(Protocol):
    """Processes that fit and answer in place of this one, such as those of `steerkit.scale.cluster`."""

    def holds(self, vlm: VLM) -> bool:
        """Whether a model has the weights that the workers have; another is asked in this process."""
        ...

    def fit(
        self,
        method: SteeringMethod,
        anchors: Sequence[Sample],
        *,
        folder: str | Path,
        batch_size: int = 8,
        anchor_name: str = "",
    ) -> SteeringVector:
        """What `method.fit` makes; what was measured is kept in a folder, which all of them share."""
        ...

    def answer(self, vlm: VLM, suite: Suite, work: Sequence[Work], batch_size: int) -> Iterator[list[Answer]]:
        """Fill in the records that lack answers, a batch at a time, in any order."""
        ...


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
        return self.vector is None or all(part.at_the_end and part.rows is None for part in self.vector.interventions)

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
    cluster: Workers | None = None,
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
        cluster: Who answers in place of this process, such as `steerkit.scale.cluster`.

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
    with Journal(None if path is None else user_path(path), Answer) as journal:
        known = {answer.key: answer for answer in journal.records}
        for blank in (blank for each in asked for blank in each):
            other = known.get(blank.key, blank)
            if (other.prompt, other.run) != (blank.prompt, blank.run):
                raise RecordsError(
                    f"{quoted(str(path), 300)} has an answer of another run to {blank.row!r}, {blank.condition!r}",
                    expected="answers of the same model, vector, prompts and max_new_tokens",
                    fix="name another file for this run, or the condition differently",
                )
        work: list[Work] = []
        for group in _groups(conditions):
            rows: dict[tuple[int, ...], list[int]] = {}
            for row in range(suite.size):
                if lacking := tuple(each for each in group if asked[each][row].key not in known):
                    rows.setdefault(lacking, []).append(row)
            work += [
                ([conditions[each] for each in lacking], [[asked[each][row] for each in lacking] for row in numbers])
                for lacking, numbers in rows.items()
            ]
        left = sum(len(some) * len(rows) for some, rows in work)
        most = batch_size * max((len(some) for some, _ in work), default=0)
        # a batch comes whole; its room on the disk is there before it begins
        workers = holding(cluster, vlm)
        made = (answered if workers is None else workers.answer)(vlm, suite, work, batch_size)
        while left:
            journal.reserve(min(left, most) * (RECORD + suite.max_new_tokens * TOKEN))
            for answer in (batch := next(made)):
                journal.append(answer)
                known[answer.key] = answer
            journal.sync()
            left -= len(batch)
            if progress is not None:
                progress(total - left, total)
    return [known[blank.key] for each in asked for blank in each]


def holding(cluster: Workers | None, vlm: VLM) -> Workers | None:
    """The workers, where there are some that have this model; None where it is asked in this process."""
    return cluster if cluster is not None and cluster.holds(vlm) else None


def _groups(conditions: Sequence[Condition]) -> list[list[int]]:
    """Conditions, by number, that are answered in one call: of one view, and alike up to the prompt's last token."""
    groups: dict[object, list[list[int]]] = {}
    for number, each in enumerate(conditions):
        group = groups.setdefault(each.images if each.at_the_end else number, [[]])
        if len(group[-1]) == TOGETHER:
            group.append([])
        group[-1].append(number)
    return [group for found in groups.values() for group in found]


def answered(vlm: VLM, suite: Suite, work: Sequence[Work], batch_size: int) -> Iterator[list[Answer]]:
    """The answers that are lacking, a batch at a time, from this process."""
    for conditions, rows in work:
        parts = batches(vlm, suite, (conditions, rows), batch_size)
        for batch in [[row for part in parts for row in part]] if len(conditions) == 1 else parts:
            yield from _answered(vlm, suite, conditions, batch, batch_size)


def batches(vlm: VLM, suite: Suite, work: Work, batch_size: int) -> list[list[list[Answer]]]:
    """The rows of some work as they are answered: of about one length together, with an image or without."""
    conditions, rows = work
    size = batch_size if len(conditions) == 1 else min(batch_size, LONGEST // len(conditions))
    size = 1 if vlm.architecture.alone else size

    def sample(row: list[Answer]) -> Sample:
        return suite.named[row[0].kind, row[0].row].sample

    def shown(row: list[Answer]) -> bool:
        return bool(sample(row).images) and conditions[0].images not in ("text", "caption")

    rows = sorted(rows, key=lambda row: -sum(len(text) for _, text in sample(row).turns))
    kinds = [[row for row in rows if shown(row) is with_image] for with_image in (True, False)]
    return [kind[start : start + size] for kind in kinds for start in range(0, len(kind), size)]


def _answered(
    vlm: VLM, suite: Suite, conditions: Sequence[Condition], rows: list[list[Answer]], batch_size: int
) -> Iterator[list[Answer]]:
    copies, finished = len(conditions), 0
    batch: list[Answer] = []
    told = [0] * len(rows)

    def note(done: int, total: int) -> None:
        nonlocal finished
        finished = copies * done

    with _together(vlm, conditions, len(rows)):
        made = vlm.answers(
            [suite.named[row[0].kind, row[0].row].sample for row in rows],
            images=conditions[0].images,
            batch_size=batch_size,
            copies=copies,
            progress=note,
            max_new_tokens=suite.max_new_tokens,
            do_sample=False,
        )
        count = 0
        for each in made:
            blank = rows[each.number][told[each.number]]
            told[each.number] += 1
            batch.append(
                blank.model_copy(
                    update={"answer": as_told(each.text), "tokens": each.tokens, "truncated": not each.ended}
                )
            )
            count += 1
            if count == finished:
                yield batch
                batch = []


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
            versions=versions(),
        )
        for kind in KINDS
        for case in suite.cases(kind)
    ]


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
