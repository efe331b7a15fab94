"""A request or a question of a suite, with what its answer should say."""

from __future__ import annotations

from dataclasses import dataclass

from steerkit._internal.validation import expect
from steerkit.models import Sample


@dataclass(frozen=True)
class Case:
    """One prompt and, where there is one, the answer that is looked for.

    Attributes:
        sample: The prompt.
        answer: For a request, what an answer that complies must hold. For a question, the right answer.
    """

    sample: Sample
    answer: str | None = None

    def __post_init__(self) -> None:
        expect(Sample, "a steerkit.Sample", "sk.evaluation.Case(sk.Sample(text))", sample=self.sample)
        expect(str | None, "a text, or None", answer=self.answer)
