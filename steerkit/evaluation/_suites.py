"""Suites: prompts with their labels and answers, the judge, and the file that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from steerkit._internal.faults import faults
from steerkit._internal.files import read_bounded
from steerkit._internal.json import json_object
from steerkit._internal.validation import PATH, expect, expect_each, expect_whole
from steerkit._text import quoted
from steerkit.errors import EmptyAnchorSetError, SampleError, SteerKitError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._judges import Judge, KeyedJudge, PhraseJudge
from steerkit.evaluation._questions import Parser
from steerkit.evaluation._records import Kind
from steerkit.evaluation._text import REFUSALS
from steerkit.interventions import Frozen
from steerkit.models import read_samples

KINDS: tuple[Kind, ...] = get_args(Kind)

LARGEST = 2**28
"""Bytes of a suite file, images in it included."""


@dataclass(frozen=True)
class Suite:
    """Prompt sets, at least one of them with prompts, and a judge.

    Attributes:
        name: What to call it.
        harmful: Requests that should be refused.
        harmless: Requests that should not.
        utility: Questions with a right answer.
        judge: Who decides what the answers to requests are.
        max_new_tokens: Length of the answers.
        revision: Which revision of its data, such as a commit, or the digest of a file.
    """

    name: str
    harmful: tuple[Case, ...]
    harmless: tuple[Case, ...]
    utility: tuple[Case, ...]
    judge: Judge
    max_new_tokens: int = 64
    revision: str = ""

    def __post_init__(self) -> None:
        expect(str, "a text", name=self.name, revision=self.revision)
        expect(Judge, "an object with name, identity and judge", "sk.evaluation.PhraseJudge()", judge=self.judge)
        expect_whole(max_new_tokens=self.max_new_tokens)
        for kind in KINDS:
            expect_each(Case, "a list of sk.evaluation.Case", **{kind: self.cases(kind)})
            cases = tuple(
                case if case.id else replace(case, id=f"{kind} {number}")
                for number, case in enumerate(self.cases(kind), 1)
            )
            object.__setattr__(self, kind, cases)
            if len({case.id for case in cases}) < len(cases):
                raise SampleError(f"two {kind} cases of the suite {self.name!r} have one id", expected="one for each")
        if not self.size:
            raise EmptyAnchorSetError(f"the suite {self.name!r} has no prompts", expected="at least one")
        missing = [index for index, case in enumerate(self.utility) if case.answer is None]
        if missing:
            raise EmptyAnchorSetError(
                f"question {missing[0]} of the suite {self.name!r} has no answer", expected="the right one"
            )

    @property
    def size(self) -> int:
        """Number of prompts."""
        return sum(len(self.cases(kind)) for kind in KINDS)

    def cases(self, kind: Kind) -> tuple[Case, ...]:
        """The prompts of one kind."""
        return getattr(self, kind)

    @cached_property
    def named(self) -> dict[tuple[Kind, str], Case]:
        """The prompts by kind and id."""
        return {(kind, case.id): case for kind in KINDS for case in self.cases(kind)}

    def only(self, kind: Kind) -> Suite:
        """The prompts of one kind alone."""
        return replace(self, **{other: () for other in KINDS if other != kind})

    @cached_property
    def digests(self) -> dict[tuple[Kind, str], str]:
        """The digest of each sample, its pixels included, by kind and id.

        Raises:
            MissingImageError: An image can't be read.
        """
        return {key: case.sample.digest() for key, case in self.named.items()}

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


def check_suite(given: object) -> None:
    """Refuse what is not a suite.

    Raises:
        OptionError: It is something else.
    """
    expect(
        Suite,
        "a Suite: prompts and a judge",
        "sk.evaluation.load_suite(file), or sk.evaluation.Suite(name, harmful, harmless, utility, judge)",
        suite=given,
    )


_Line = Annotated[str, Field(min_length=1, max_length=200)]
_Phrases = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class _PhraseJudge(Frozen):
    kind: Literal["phrases"]
    name: _Line = "phrases"
    refusals: _Phrases = REFUSALS


class _KeyedJudge(Frozen):
    kind: Literal["keyed"]
    name: _Line = "declared words"
    refusals: _Phrases


class _Settings(Frozen):
    """The optional first line of a suite file."""

    name: _Line | None = None
    judge: Annotated[_PhraseJudge | _KeyedJudge, Field(discriminator="kind")] = _PhraseJudge(kind="phrases")
    parser: Parser | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 64


def load_suite(path: str | Path, *, refusals: Sequence[str] | None = None, max_new_tokens: int | None = None) -> Suite:
    """Read a suite from a JSONL file.

    Each line is a sample as `steerkit.read_samples` takes it, with a `label` of `harmful`, `harmless` or `utility` and
    perhaps an `answer`; see `Case`. The first line may be `{"suite": {...}}` with any of `name`, `judge`, `parser` (how
    answers to questions are read; see `states`) and `max_new_tokens`. A judge is an object of `kind`, `name` and
    `refusals`: of the kind `phrases` it is a `PhraseJudge`, of the kind `keyed` a `KeyedJudge`, which reads the
    `answer` of requests.

    Args:
        path: The file. Image paths are relative to its folder.
        refusals: Phrases by which the judge knows a refusal, in place of those of the file. Default: `REFUSALS`.
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
        data = read_bounded(path, LARGEST)
        lines = data.decode("utf-8-sig").split("\n")
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
                case = _case(row, path.parent, settings)
                groups[case.sample.label or ""].append(case)
        except SampleError as error:
            raise SampleError(
                f"{path}, line {number}: {error.problem}", expected=error.expected, fix=error.fix
            ) from error
        begun = True
    kind = KeyedJudge if settings.judge.kind == "keyed" else PhraseJudge
    return Suite(
        settings.name or path.stem,
        *(tuple(groups[kind]) for kind in KINDS),
        judge=kind(tuple(refusals or settings.judge.refusals), settings.judge.name),
        max_new_tokens=settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
        revision=f"sha256:{hashlib.sha256(data).hexdigest()}",
    )


def _settings(given: Any) -> _Settings:
    try:
        return _Settings.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise SampleError(
            f"the settings of the suite are malformed ({faults(error)})",
            expected='an object of name, judge ({"kind": "phrases", "refusals": [...]}), parser and max_new_tokens',
        ) from error


def _case(row: dict[str, Any], root: Path, settings: _Settings) -> Case:
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
    if sample.label == "utility":
        return Case(sample, answer, settings.parser)
    if answer is not None and settings.judge.kind != "keyed":
        raise SampleError(
            f"a {sample.label} request has an answer, and the judge {settings.judge.name!r} does not read it",
            expected="answers of questions alone",
            fix='leave it out, or begin with {"suite": {"judge": {"kind": "keyed", "refusals": [...]}}}',
        )
    return Case(sample, answer)
