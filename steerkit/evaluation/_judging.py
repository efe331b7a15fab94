"""The second step of an evaluation: let a judge say what the answers are, and keep what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np

from steerkit._internal.files import user_path
from steerkit._internal.validation import PATH, expect, expect_each, expect_whole
from steerkit._text import described, quoted
from steerkit.errors import JudgeError, OptionError, RecordsError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._generate import Progress
from steerkit.evaluation._journal import Journal
from steerkit.evaluation._judges import Judge, Judgement, compares
from steerkit.evaluation._questions import parser_for, states
from steerkit.evaluation._records import Answer, Verdict
from steerkit.evaluation._suites import Suite, check_suite
from steerkit.evaluation._text import is_garbled
from steerkit.interventions import View
from steerkit.vlm import VLM

PATIENCE = 5
"""So many answers in a row that a judge fails on, and it is not asked again in this run."""


def judge(
    suite: Suite,
    answers: Sequence[Answer],
    *,
    judge: Judge | None = None,
    path: str | Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Say what answers are: requests by a judge, questions by a parser.

    With a path, each verdict is in the file before the next is asked for, and what this judge has said there already is
    not asked again. Answers that it failed on are: such a verdict has an `error`, and its parts are None.

    Args:
        suite: What was asked.
        answers: What was answered, to this suite; now, or in an earlier run.
        judge: Who judges requests; default: the suite's judge. One of the format `LLAVA_BENCH` is asked about answers
            to questions with a reference instead.
        path: A file of JSON lines to add to; None keeps nothing. One file may hold the verdicts of several judges.
        workers: How many answers the judge is asked about at once, by threads.
        progress: Called with (done, total) answers.

    Returns:
        One verdict for each answer, in their order.

    Raises:
        JudgeError: The judge fails on five answers in a row, or on all that it is asked about, or gives something else
            than a `Judgement` of true, false and None. What it said before is in the file.
        RecordsError: An answer is to another prompt than the suite's; or the file is damaged, in use or full.
        OptionError: An argument is of another type.
    """
    check_suite(suite)
    chosen = suite.judge if judge is None else judge
    expect(Judge, "an object with name, identity and judge", "sk.evaluation.PhraseJudge()", judge=chosen)
    expect_each(Answer, "a list of sk.evaluation.Answer", "sk.evaluation.generate(...)", answers=answers)
    expect_whole(workers=workers)
    expect(PATH | None, "a .jsonl file", path=path)
    expect(Callable | None, "a function of (done, total)", progress=progress)
    cases = [_case(suite, answer) for answer in answers]
    with Journal(None if path is None else user_path(path), Verdict) as journal:
        known = {(each.answer, each.identity): each for each in journal.records if not each.error}
        keys = [
            (answer.digest, chosen.identity if _asks(chosen, case, answer) else parser_of(case))
            for answer, case in zip(answers, cases, strict=True)
        ]
        left = list({key: at for at, key in enumerate(keys) if key not in known}.values())
        done = len(keys) - len(left)

        def keep(at: int, verdict: Verdict) -> None:
            nonlocal done
            journal.append(verdict)
            known[keys[at]] = verdict
            done += 1
            if progress is not None:
                progress(done, len(keys))

        requests = [at for at in left if _asks(chosen, cases[at], answers[at])]
        for at in left:
            if answers[at].kind == "utility" and at not in requests:
                keep(at, _read(cases[at], answers[at]))
        asked = [(cases[at], answers[at].answer) for at in requests]
        for at, found in zip(requests, judged(chosen, asked, workers), strict=True):
            answer = answers[at].digest
            keep(at, Verdict(answer=answer, judge=chosen.name, identity=chosen.identity, **asdict(found)))
        return [known[key] for key in keys]


def _asks(judge: Judge, case: Case, answer: Answer) -> bool:
    """Whether an answer is the judge's to judge: one to a request, or for a judge that compares to a reference."""
    if compares(judge) and answer.kind != "utility":
        raise OptionError(
            f"the judge {judge.name!r} compares answers with references, and {answer.row!r} is a request",
            expected="answers to questions",
            fix="suite.only('utility'), or another judge",
        )
    return compares(judge) and case.parser == "reference" if answer.kind == "utility" else True


def surprise(
    vlm: VLM,
    suite: Suite,
    answers: Sequence[Answer],
    *,
    path: str | Path | None = None,
    batch_size: int = 16,
) -> list[Verdict]:
    """Say how likely a model, as it is without steering, finds answers; see `Verdict.surprise`.

    Args:
        vlm: The model.
        suite: What was asked.
        answers: What was answered; empty answers have no likelihood and get no verdict.
        path: As for `judge`; the same file will do.
        batch_size: Prompts per forward pass.

    Raises:
        RecordsError: As for `judge`.
        SteerKitError: As `VLM.log_likelihood` does.
    """
    cases = {answer.digest: _case(suite, answer) for answer in answers}
    identity = f"surprise {vlm.weights_digest()}"
    with Journal(None if path is None else user_path(path), Verdict) as journal:
        known = {each.answer: each for each in journal.records if each.identity == identity}
        left = [answer for answer in answers if answer.answer.strip() and answer.digest not in known]
        for images in get_args(View):
            group = [answer for answer in left if answer.images == images]
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                samples = [cases[answer.digest].sample for answer in batch]
                texts = [answer.answer for answer in batch]
                likely = vlm.log_likelihood(samples, texts, images=images, batch_size=batch_size)
                for answer, values in zip(batch, likely, strict=True):
                    if len(values):
                        value = -float(values.mean())
                        known[answer.digest] = verdict = Verdict(
                            answer=answer.digest, judge="surprise", identity=identity, surprise=value
                        )
                        journal.append(verdict)
    return [known[answer.digest] for answer in answers if answer.digest in known]


def _case(suite: Suite, answer: Answer) -> Case:
    case = suite.named.get((answer.kind, answer.row))
    if case is None or suite.digests[answer.kind, answer.row] != answer.prompt:
        raise RecordsError(
            f"an answer to {answer.row!r} of the suite {quoted(answer.suite)} is to "
            + ("nothing that" if case is None else "another prompt than")
            + f" {quoted(suite.name)} holds",
            expected="the suite that was answered",
            fix="load the suite from the files, and the revision of them, that were answered",
        )
    return case


def judged(judge: Judge, asked: Sequence[tuple[Case, str]], workers: int) -> Iterator[Judgement]:
    """What a judge says of each answer, as it comes; what it raises is the judgement's `error`.

    Raises:
        JudgeError: It fails on five in a row, or on all; or it gives something else than true, false and None.
    """
    failed, count = 0, 0
    with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        try:
            for found in (map if pool is None else pool.map)(lambda each: _judged(judge, *each), asked):
                count += 1
                failed = failed + 1 if found.error else 0
                yield found
                if failed == PATIENCE or 0 < failed == len(asked):
                    raise JudgeError(
                        f"the judge {judge.name!r} failed on the last {failed} answers: {found.error}",
                        expected="a judge that answers",
                        fix="mend it and judge again: answers are kept, and what was judged before is not asked again",
                    )
        finally:  # whatever ends this, no further answer is asked about
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _judged(judge: Judge, case: Case, answer: str) -> Judgement:
    try:
        found = judge.judge(case, answer)
    except Exception as error:  # of a server, of a model: whatever it is, nothing was said of this answer
        return Judgement(error=described(error))
    parts = asdict(found) if isinstance(found, Judgement) else {}
    texts = {name: parts.pop(name, None) for name in ("raw", "error")}
    if not (parts and all(isinstance(part, (bool, np.bool_, type(None))) for part in parts.values())):
        raise JudgeError(
            f"the judge {judge.name!r} gives {quoted(found)} for an answer to {quoted(case.request)}",
            expected="a Judgement of True, False and None",
            fix=f"correct {type(judge).__name__}.judge",
        )
    return Judgement(**{name: None if part is None else bool(part) for name, part in parts.items()}, **texts)


def _read(case: Case, answer: Answer) -> Verdict:
    """What a parser says of the answer to a question."""
    parser = parser_of(case)
    right = None if case.parser == "reference" else states(answer.answer, case.answer or "", case.parser)
    garbled = not right and is_garbled(answer.answer)
    return Verdict(answer=answer.digest, judge=parser, identity=parser, right=right, garbled=garbled)


def parser_of(case: Case) -> str:
    """Under which identity the answer to a question is judged."""
    return f"parser: {case.parser or parser_for(case.answer or '')}"
