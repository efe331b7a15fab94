"""`steerkit judge-check`: a judge against people."""

from __future__ import annotations

from pathlib import Path

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import table
from steerkit.errors import OptionError


def judge_check(
    labels: Path,
    *,
    refusal: list[str] | None = None,
    columns: list[str] | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
    output: Path | None = None,
    workers: int = 1,
    show: int = 10,
) -> Result:
    """Compare a judge with people.

    Cohen's kappa with its interval of 95 %, over all answers and by condition: steering changes how refusals are
    worded. Below 0.8, the head of the table says so, and the exit code is 1.

    Args:
        labels: A CSV file of request, answer, refused, harmful or garbled (true or false) and, perhaps, condition.
        refusal: A phrase by which a refusal is told. Default: common ones.
        columns (OLD=NEW): Rename a column of the file.
        judge_url (URL): An OpenAI-compatible endpoint that judges, in place of the phrases.
        judge_model (NAME): The model's name there; the key is read from OPENAI_API_KEY.
        output (FILE): Keep the verdicts, .jsonl: a check that was interrupted goes on where it was.
        workers: How many answers the judge is asked about at once.
        show: How many of the answers to show on which they differ.
    """
    renamed = {new: old for old, new in opt.pairs(columns, "--columns").items()}
    judge: sk.evaluation.Judge | None = opt.endpoint(judge_url, judge_model)
    if judge is None:
        judge = sk.evaluation.PhraseJudge(tuple(refusal or sk.evaluation.REFUSALS))
    elif refusal:
        raise OptionError("--refusal and --judge-url are given", expected="one of them")
    check = sk.evaluation.judge_check(judge, labels, columns=renamed, path=output, workers=workers)
    rows = [
        (each.condition, *(_said(side) for side in (each.first, each.second)), each.answer) for each in check.differing
    ]
    heads = ("condition", check.first, check.second, f"answer (first {min(show, len(rows))} of {len(rows)})")
    parts = [check.table(), *([table(heads, rows[:show], title="what differs")] if rows else [])]
    return Result(check.as_json(), parts, code=0 if check.good else 1)


def _said(judgement: sk.evaluation.Judgement) -> str:
    parts = {name: getattr(judgement, name) for name in ("refused", "harmful", "garbled")}
    return ", ".join(name if said else f"not {name}" for name, said in parts.items() if said is not None)
