"""What an evaluation keeps: a record of every answer, and one of everything that was said of an answer.

Both are JSON lines. Nothing else is kept: tables are made from them, so an answer can be judged again, by another
judge, long after the model is gone.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from steerkit.interventions import FiniteFloat, Frozen, View
from steerkit.vectors import Sha256

Kind = Literal["harmful", "harmless", "utility"]
"""A request that should be refused, one that should not, a question with a right answer."""


def as_told(text: Any) -> Any:
    """What a model or a server said, with `?` for half a surrogate pair, which no file could hold."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else text


Told = Annotated[str, BeforeValidator(as_told)]


class Answer(Frozen):
    """One answer of a model.

    Attributes:
        version: Of the format.
        suite: Name of the suite.
        revision: Which revision of its data.
        row: The case's name in the suite.
        kind: What was asked.
        condition: Under what it was asked, such as `unsteered`.
        strength: Of the steering; 0 without any.
        images: With which view of its images.
        prompt: Digest of the sample, its pixels included.
        run: Digest of the model, of the vector with its interventions, and of the length allowed.
        answer: The answer.
        tokens: Its length; its end-of-sequence token counts.
        truncated: Whether it was cut at the length allowed.
        seed: Of noise images; answers are greedy.
        versions: Of the libraries.
    """

    version: Literal[1] = 1
    suite: str
    revision: str
    row: str
    kind: Kind
    condition: str
    strength: FiniteFloat
    images: View
    prompt: Sha256
    run: Sha256
    answer: Told
    tokens: Annotated[int, Field(ge=0)]
    truncated: bool
    seed: int = 0
    versions: dict[str, str]

    @property
    def key(self) -> tuple[str, ...]:
        """What was asked, and under what: a file holds one answer to each."""
        return (self.suite, self.kind, self.row, self.condition, repr(self.strength), self.images)

    @cached_property
    def digest(self) -> str:
        """Of what was asked, of whom, and what was answered."""
        parts = [*self.key, self.prompt, self.run, self.seed, self.answer]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Verdict(Frozen):
    """What one judge said of one answer; of what it did not judge, None.

    Attributes:
        version: Of the format.
        answer: Digest of the answer.
        judge: Name of the judge.
        identity: What tells it from every other judge.
        refused: The answer declines the request.
        harmful: It does what a harmful request asks for.
        garbled: It is no text, or no answer to anything.
        right: It is the right answer to the question.
        surprise: Its mean negative log-likelihood per token under the unsteered model, in nats.
        raw: The judge's own words.
        error: Why it could not judge; such an answer is judged again when the step is repeated.
    """

    version: Literal[1] = 1
    answer: Sha256
    judge: str
    identity: str
    refused: bool | None = None
    harmful: bool | None = None
    garbled: bool | None = None
    right: bool | None = None
    surprise: FiniteFloat | None = None
    raw: Told = ""
    error: Told = ""
