"""Suites: prompts with their labels and answers, and the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

from steerkit._internal.validation import expect, expect_each, expect_whole
from steerkit.errors import EmptyAnchorSetError, SampleError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._judges import Judge
from steerkit.evaluation._records import Kind
from steerkit.models import Sample, anchor_digest

KINDS: tuple[Kind, ...] = get_args(Kind)


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
        licence: On what terms its data may be used.
        citation: What to cite.
    """

    name: str
    harmful: tuple[Case, ...]
    harmless: tuple[Case, ...]
    utility: tuple[Case, ...]
    judge: Judge
    max_new_tokens: int = 64
    revision: str = ""
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        expect(str, "a text", name=self.name, revision=self.revision, licence=self.licence, citation=self.citation)
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

    @cached_property
    def digest(self) -> str:
        """The digest of all samples in order, their pixels included.

        Raises:
            MissingImageError: An image can't be read.
        """
        return anchor_digest(self.digests.values())

    @cached_property
    def clusters(self) -> dict[tuple[Kind, str], str]:
        """What each prompt shares with others: its cluster or else its images' pixels or, of text alone, its text.

        Raises:
            MissingImageError: An image can't be read.
        """
        return {key: case.cluster or _content(case.sample) for key, case in self.named.items()}

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


def _content(sample: Sample) -> str:
    return Sample("images", sample.images).digest() if sample.images else repr(sample.turns)


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
