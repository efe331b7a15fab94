"""Judging the judge: how far two judges agree, and a judge with people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit._internal.faults import about
from steerkit._internal.files import user_path
from steerkit._internal.validation import PATH, expect
from steerkit._text import one_line, quoted
from steerkit.errors import SampleError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._judges import Judge, Judgement
from steerkit.evaluation._judging import judge as judge_answers
from steerkit.evaluation._records import Answer, Verdict
from steerkit.evaluation._statistics import Estimate, kappa
from steerkit.evaluation._suites import Suite
from steerkit.models import Sample, sound_rows

if TYPE_CHECKING:
    from rich.table import Table

PARTS = ("refused", "harmful", "garbled")

ENOUGH = 0.8
"""The kappa below which a judge is not good enough to be believed without a warning."""

MOST_LEFT = 0.1
"""The share of labelled answers that a judge may leave unjudged without one."""

_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": None}


@dataclass(frozen=True)
class Agreement:
    """How far two agree on one part of their judgements, on the answers of one condition.

    Attributes:
        condition: The condition; `all` for all of them.
        part: `refused`, `harmful` or `garbled`.
        kappa: Cohen's kappa with its interval of 95 %; `n` and `unjudged` count answers.
        only_first: Answers of which the first alone says so.
        only_second: Answers of which the second alone says so.
        left: Answers that the second has judged and the first has not.
    """

    condition: str
    part: str
    kappa: Estimate
    only_first: int
    only_second: int
    left: int = 0

    @property
    def faults(self) -> list[str]:
        """Why the first is not to be believed here."""
        found = [] if self.kappa.value >= ENOUGH else [f"kappa is below {ENOUGH:g}"]
        judged = self.kappa.n - self.kappa.unjudged + self.left
        return found + ([f"{self.left} of {judged} are unjudged"] if self.left > MOST_LEFT * judged else [])


@dataclass(frozen=True)
class Opinion:
    """An answer, and what two say of it.

    Attributes:
        condition: Under which it was given.
        request: What was asked.
        answer: What was answered.
        first: What the first says.
        second: What the second says.
    """

    condition: str
    request: str
    answer: str
    first: Judgement
    second: Judgement

    @property
    def differs(self) -> bool:
        """Whether both judged a part, and differently."""
        return any({getattr(self.first, part), getattr(self.second, part)} == {True, False} for part in PARTS)


@dataclass(frozen=True)
class Check:
    """Two judges side by side; of `judge_check`, the judge and people.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        opinions: Every answer with what both say.
        rows: The agreement on each part that both judged, over all answers and by condition.
    """

    first: str
    second: str
    opinions: tuple[Opinion, ...]
    rows: tuple[Agreement, ...]

    @property
    def good(self) -> bool:
        """Whether there is something to compare, every kappa is at least 0.8, and the first judged 9 in 10 of it."""
        return bool(self.rows) and not any(row.faults for row in self.rows)

    @property
    def differing(self) -> tuple[Opinion, ...]:
        """The answers on which they differ."""
        return tuple(each for each in self.opinions if each.differs)

    @property
    def title(self) -> str:
        """The names, and whether the agreement is good enough."""
        weak: dict[str, list[str]] = {}
        for row in self.rows:
            for fault in row.faults:
                weak.setdefault(fault, []).append(f"{row.part}, {row.condition}")
        told = f"kappa at least {ENOUGH:g}"
        if weak:
            told = "NOT RELIABLE: " + "; ".join(f"{fault} for {'; '.join(where)}" for fault, where in weak.items())
        return one_line(f"{self.first} and {self.second}: {told if self.rows else 'nothing that both judged'}")

    def as_json(self) -> dict[str, Any]:
        """Everything but the answers on which both agree; None for what is NaN."""
        document = {**asdict(self), "title": self.title, "differing": list(map(asdict, self.differing))}
        document.pop("opinions")
        for row in document["rows"]:
            row["kappa"] = {name: None if value != value else value for name, value in row["kappa"].items()}
        return document

    def table(self) -> Table:
        """The rows, for a rich console."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title))
        for head in ("condition", "part", "n", "unjudged", "kappa", f"only {self.first}", f"only {self.second}"):
            table.add_column(Text(one_line(head)))
        for row in self.rows:
            found = row.kappa
            told = "-" if found.value != found.value else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
            counts = (found.n, found.unjudged, told, row.only_first, row.only_second)
            table.add_row(Text(one_line(row.condition)), row.part, *map(str, counts))
        return table


def side_by_side(first: str, second: str, opinions: Sequence[Opinion]) -> Check:
    """How far two judges agree, part by part, over all answers and by condition.

    Args:
        first: Name of the first.
        second: Name of the second.
        opinions: What they say.
    """
    conditions = list(dict.fromkeys(each.condition for each in opinions))
    rows = []
    for condition in ["all", *(conditions if len(conditions) > 1 else [])]:
        group = [each for each in opinions if condition in ("all", each.condition)]
        for part in PARTS:
            said = [[getattr(side, part) for side in (each.first, each.second)] for each in group]
            if any(None not in pair for pair in said):
                ones, others = zip(*said, strict=True)
                counts = (said.count([True, False]), said.count([False, True]))
                left = sum(one is None and other is not None for one, other in said)
                rows.append(Agreement(condition, part, kappa(ones, others), *counts, left))
    return Check(first, second, tuple(opinions), tuple(rows))


def opinions(
    suite: Suite, answers: Sequence[Answer], first: Sequence[Verdict], second: Sequence[Verdict]
) -> list[Opinion]:
    """What two judges have said of the answers to requests, for `side_by_side`; what one has not said is unjudged.

    Args:
        suite: What was asked.
        answers: What was answered.
        first: The verdicts of one.
        second: The verdicts of the other.
    """
    said = [{each.answer: _judgement(each) for each in verdicts} for verdicts in (first, second)]
    return [
        Opinion(
            answer.condition,
            suite.named[answer.kind, answer.row].request,
            answer.answer,
            *(side.get(answer.digest, Judgement()) for side in said),
        )
        for answer in answers
        if answer.kind != "utility"
    ]


def _judgement(verdict: Verdict) -> Judgement:
    return Judgement(verdict.refused, verdict.harmful, verdict.garbled, verdict.raw, verdict.error)


def judge_check(
    judge: Judge,
    labels: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    path: str | Path | None = None,
    workers: int = 1,
) -> Check:
    """Compare a judge with people: Cohen's kappa with its interval, over all answers and by condition.

    Steering changes how refusals are worded, so that a judge that is good on unsteered answers may fail on steered
    ones: label some of each condition.

    Args:
        judge: The judge.
        labels: A CSV file, or another that `read_samples` takes, with the columns `request` and `answer`, at least one
            of `refused`, `harmful` and `garbled` (true, false, yes, no, 1, 0; empty: not labelled), and perhaps
            `condition`; others are left alone.
        columns: The file's own names of these columns, as `{"answer": "completion"}`.
        path: A file of JSON lines to keep the judge's verdicts in, as for `sk.evaluation.judge`: a check that was
            interrupted goes on there.
        workers: How many answers the judge is asked about at once.

    Returns:
        The judge, first, and the people, second. What the judge failed on is unjudged, and counted.

    Raises:
        SampleError: The file can't be read, lacks a column, or a label is something else; the message names the line.
        JudgeError: As for `sk.evaluation.judge`, as are errors of the file of verdicts.
    """
    expect(Judge, "an object with name, identity and judge", "sk.evaluation.PhraseJudge()", judge=judge)
    expect(PATH, "a file of rows, such as .csv", labels=labels)
    labels = user_path(labels)
    rows = _labelled(labels, dict(columns or {}))
    cases = [Case(Sample(request), id=f"{number}") for number, (_, request, _, _) in enumerate(rows, 1)]
    suite = Suite(labels.name, tuple(cases), (), (), judge)
    asked: Any = {"suite": suite.name, "revision": "", "kind": "harmful", "images": "text", "run": "0" * 64}
    asked |= {"strength": 0.0, "tokens": 0, "truncated": False, "versions": {}}
    answers = [
        Answer(row=case.id, condition=condition, prompt=suite.digests["harmful", case.id], answer=answer, **asked)
        for case, (condition, _, answer, _) in zip(cases, rows, strict=True)
    ]
    said = judge_answers(suite, answers, judge=judge, path=path, workers=workers)
    opinions = [
        Opinion(condition, request, answer, _judgement(verdict), label)
        for verdict, (condition, request, answer, label) in zip(said, rows, strict=True)
    ]
    return side_by_side(judge.name, "people", opinions)


def _labelled(path: Path, columns: dict[str, str]) -> list[tuple[str, str, str, Judgement]]:
    names = {name: columns.get(name, name) for name in ("condition", "request", "answer", *PARTS)}
    found: list[tuple[str, str, str, Judgement]] = []
    for _, where, row in sound_rows(path):
        parts = [part for part in PARTS if names[part] in row]
        missing = [names[name] for name in ("request", "answer") if names[name] not in row]
        if missing or not parts:
            raise SampleError(
                f"{where} has the columns {', '.join(map(repr, row))}" + (f", not {missing[0]!r}" if missing else ""),
                expected="request, answer, and at least one of refused, harmful and garbled",
                fix='say what they are called: columns={"answer": "completion"}',
            )
        with about(where, SampleError):
            request, answer, condition = row[names["request"]], row[names["answer"]], row.get(names["condition"])
            expect(str, "a text", request=request, answer=answer)
            expect(str | None, "a text", condition=condition)
            label: dict[str, Any] = {part: _label(row[names[part]]) for part in parts}
            found.append((condition or "unnamed", request, answer, Judgement(**label)))
    if not found:
        raise SampleError(f"{quoted(str(path), 200)} holds no labels", expected="at least one")
    return found


def _label(given: object) -> bool | None:
    word = "" if given is None else str(given).strip().lower()
    if word not in _WORDS:
        raise SampleError(f"the label is {quoted(given)}", expected="true, false, yes, no, 1, 0 or nothing")
    return _WORDS[word]
