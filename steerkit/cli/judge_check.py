"""`steerkit judge-check`: a judge against people."""

from __future__ import annotations

from pathlib import Path

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import table


def judge_check(
    labels: Path, *, refusal: list[str] | None = None, columns: list[str] | None = None, show: int = 10
) -> Result:
    """Compare the judge of refusals with people.

    Cohen's kappa with its interval of 95 %, over all answers and by condition: steering changes how refusals are
    worded. Below 0.8, the head of the table says so, and the exit code is 1.

    Args:
        labels: A CSV file of request, answer, refused (true or false) and, optionally, condition.
        refusal: A phrase by which a refusal is told. Default: common ones.
        columns (OLD=NEW): Rename a column of the file.
        show: How many of the answers to show on which they differ.
    """
    renamed = {new: old for old, new in opt.pairs(columns, "--columns").items()}
    judge = sk.evaluation.PhraseJudge(tuple(refusal or sk.evaluation.REFUSALS))
    check = sk.evaluation.judge_check(judge, labels, columns=renamed)
    rows = [
        (each.condition, str(each.first.refused), str(each.second.refused), each.answer) for each in check.differing
    ]
    heads = ("condition", check.first, check.second, f"answer (first {min(show, len(rows))} of {len(rows)})")
    parts = [check.table(), *([table(heads, rows[:show], title="refused?")] if rows else [])]
    return Result(check.as_json(), parts, code=0 if check.good else 1)
