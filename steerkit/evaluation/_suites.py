"""Suites: prompts with their labels and answers, the judge, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from steerkit._internal.faults import faults
from steerkit._internal.files import read_bounded
from steerkit._internal.json import json_object
from steerkit._internal.validation import PATH, expect, expect_each, expect_whole
from steerkit._text import quoted
from steerkit.errors import EmptyAnchorSetError, SampleError, SteerKitError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._judges import Judge, PhraseJudge
from steerkit.evaluation._text import REFUSALS
from steerkit.interventions import Frozen
from steerkit.models import read_samples

KINDS = ("harmful", "harmless", "utility")

LARGEST = 2**28
"""Bytes of a suite file, images in it included."""


@dataclass(frozen=True)
class Suite:
    """Three prompt sets and a judge.

    Attributes:
        name: What to call it.
        harmful: Requests that should be refused.
        harmless: Requests that should not.
        utility: Questions with a right answer.
        judge: Who decides.
        max_new_tokens: Length of the answers.
    """

    name: str
    harmful: tuple[Case, ...]
    harmless: tuple[Case, ...]
    utility: tuple[Case, ...]
    judge: Judge
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        expect(str, "a text", name=self.name)
        expect(Judge, "an object with name, judge and right", "sk.evaluation.PhraseJudge() is one", judge=self.judge)
        expect_whole(max_new_tokens=self.max_new_tokens)
        for name in KINDS:
            expect_each(Case, "a list of sk.evaluation.Case", **{name: getattr(self, name)})
            if not getattr(self, name):
                raise EmptyAnchorSetError(f"the suite {self.name!r} has no {name} prompts", expected="at least one")
        missing = [index for index, case in enumerate(self.utility) if case.answer is None]
        if missing:
            raise EmptyAnchorSetError(
                f"question {missing[0]} of the suite {self.name!r} has no answer", expected="the right one"
            )

    @property
    def size(self) -> int:
        """Number of prompts."""
        return sum(len(self.cases(kind)) for kind in KINDS)

    def cases(self, kind: str) -> tuple[Case, ...]:
        """The prompts of one kind: `harmful`, `harmless` or `utility`."""
        return getattr(self, kind)

    def first(self, count: int) -> Suite:
        """The first `count` prompts of each kind.

        Raises:
            OptionError: The count is no whole number from 1.
        """
        expect_whole(count=count)
        return replace(self, **{kind: self.cases(kind)[:count] for kind in KINDS})

    def without_images(self) -> Suite:
        """The same prompts as text alone."""

        def bare(cases: Sequence[Case]) -> tuple[Case, ...]:
            return tuple(replace(case, sample=replace(case.sample, images=())) for case in cases)

        return replace(self, name=f"{self.name}, text only", **{kind: bare(self.cases(kind)) for kind in KINDS})


class _Settings(Frozen):
    """The optional first line of a suite file."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    judge: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    refusals: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    exact: bool = False
    max_new_tokens: Annotated[int, Field(ge=1)] = 64


def load_suite(path: str | Path, *, refusals: Sequence[str] | None = None, max_new_tokens: int | None = None) -> Suite:
    """Read a suite from a JSONL file.

    Each line is a sample as `steerkit.read_samples` takes it, with a `label` of `harmful`, `harmless` or `utility` and
    perhaps an `answer`; see `Case`. The first line may be `{"suite": {...}}` with any of `name`, `judge` (its name),
    `refusals` (phrases), `exact` (see `PhraseJudge`) and `max_new_tokens`.

    Args:
        path: The file. Image paths are relative to its folder.
        refusals: Phrases by which a refusal is known, in place of those of the file. Default: `REFUSALS`.
        max_new_tokens: Length of the answers, in place of that of the file. Default: 64.

    Raises:
        SampleError: The file can't be read, or a row is malformed; the message names the line.
        EmptyAnchorSetError: A kind has no prompts, or a question has no answer.
        OptionError: An argument is impossible.

    Example:
        >>> suite = sk.evaluation.load_suite("prompts.jsonl")
        >>> sk.compare(vlm, {"cmrm": sk.CMRM()}, suite, anchors)
    """
    expect(PATH, "a .jsonl file", path=path)
    path = Path(path)
    try:
        lines = read_bounded(path, LARGEST).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SampleError(
            f"the prompts {quoted(str(path), 200)} can't be read ({why})", expected="JSON lines in UTF-8"
        ) from error
    settings = _Settings()
    groups: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    begun = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_object(line, "the line", error=SampleError)
            if not begun and set(row) == {"suite"}:
                settings = _settings(row["suite"])
            else:
                case = _case(row, path.parent)
                groups[case.sample.label or ""].append(case)
        except SampleError as error:
            raise SampleError(
                f"{path}, line {number}: {error.problem}", expected=error.expected, fix=error.fix
            ) from error
        begun = True
    judge = PhraseJudge(tuple(refusals or settings.refusals or REFUSALS), settings.exact, settings.judge or "phrases")
    return Suite(
        settings.name or path.stem,
        *(tuple(groups[kind]) for kind in KINDS),
        judge=judge,
        max_new_tokens=settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
    )


def _settings(given: Any) -> _Settings:
    try:
        return _Settings.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise SampleError(
            f"the settings of the suite are malformed ({faults(error)})",
            expected="an object of name, judge, refusals, exact and max_new_tokens",
        ) from error


def _case(row: dict[str, Any], root: Path) -> Case:
    answer = row.pop("answer", None)
    if not (answer is None or isinstance(answer, str)):
        raise SampleError(f"the answer is {quoted(answer)}", expected="a text, or nothing")
    try:
        (sample,) = read_samples([row], image_root=root)
    except SampleError as error:  # whose message names the row of a list of one
        cause = error.__cause__ if isinstance(error.__cause__, SteerKitError) else error
        raise SampleError(cause.problem, expected=cause.expected, fix=cause.fix) from error
    if sample.label not in KINDS:
        raise SampleError(f"the label is {quoted(sample.label)}", expected=" or ".join(map(repr, KINDS)))
    return Case(sample, answer)
