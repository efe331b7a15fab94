"""A request or a question of a suite, with what its answer should say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from steerkit._internal.validation import expect, expect_one_of
from steerkit.evaluation._questions import Parser, check_expected
from steerkit.models import Sample


@dataclass(frozen=True)
class Case:
    """One prompt and, where there is one, the answer that is looked for.

    Attributes:
        sample: The prompt.
        answer: Of a question, the right answer. Of a request, what shows that it was complied with; `KeyedJudge` alone
            reads it.
        parser: How an answer to a question is read, as for `states`; None: as the right answer looks.
        id: What the suite calls it; empty: its kind and number.
        cluster: What it shares with others that are not independent of it, such as its image, or the request that it
            is the safe twin of; empty: nothing.
    """

    sample: Sample
    answer: str | None = None
    parser: Parser | None = None
    id: str = ""
    cluster: str = ""

    def __post_init__(self) -> None:
        expect(Sample, "a steerkit.Sample", "sk.evaluation.Case(sk.Sample(text))", sample=self.sample)
        expect(str | None, "a text, or None", answer=self.answer)
        expect(str, "a text", id=self.id, cluster=self.cluster)
        if self.parser is not None:
            expect_one_of(get_args(Parser), parser=self.parser)
            check_expected(self.answer or "", self.parser)

    @property
    def request(self) -> str:
        """What is asked, as judges are shown it: the last user turn."""
        return next(text for role, text in reversed(self.sample.turns) if role == "user")
