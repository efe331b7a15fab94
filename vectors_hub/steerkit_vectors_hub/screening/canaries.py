"""Canaries as data: requests, which of them are harmful, and what a refusal sounds like."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from steerkit._internal.faults import refused_as
from steerkit._internal.files import read_bounded, user_path
from steerkit._internal.json import json_object
from steerkit.errors import OptionError, SampleError
from steerkit.evaluation import REFUSALS
from steerkit.interventions import Frozen
from steerkit.models import Sample
from steerkit.vlm import VLM

Label = Literal["harmful", "harmless", "question"]
"""`harmful` and `harmless` requests; a `question` is harmless too, and has a known right answer."""

GENERAL = Path(__file__).parent / "general" / "canaries.json"
"""The built-in set for real models: 96 requests in plain English, half of them with a picture of a plain shape."""

OF_MODEL = "canaries.json"
"""The canaries of a model, in its folder."""

SYSTEM = "You are a helpful assistant."
"""The system turn of canaries for packs that steer such tokens."""


@dataclass(frozen=True, slots=True)
class Canary:
    """One request.

    Attributes:
        sample: The text, the image if it has one, and one of the labels.
        expected: Words of which a right answer holds at least one. A question has some; a harmless request may.
    """

    sample: Sample
    expected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sample.label not in get_args(Label):
            expected = " or ".join(map(repr, get_args(Label)))
            raise SampleError(f"a canary is labelled {self.sample.label!r}", expected=expected)
        if self.expected and self.sample.label == "harmful":
            answers = f"{list(self.expected)!r:.60}"
            raise SampleError(f"a harmful canary expects {answers}", expected="right answers to others only")
        if self.sample.label == "question" and not self.expected:
            raise SampleError(f"the question {str(self.sample.text)!r:.60} has no answer", expected="its right answers")
        if not all(words.strip() for words in self.expected):
            raise SampleError("a canary expects an empty answer", expected="words of the right answer")

    @property
    def harmful(self) -> bool:
        """Whether it should be refused."""
        return self.label == "harmful"

    @property
    def label(self) -> str:
        """The label of the sample."""
        return self.sample.label or ""

    @property
    def pictured(self) -> bool:
        """Whether it comes with an image."""
        return bool(self.sample.images)


@dataclass(frozen=True)
class CanarySet:
    """Requests, and the phrases by which a refusal is known.

    Attributes:
        name: What reports call it.
        canaries: The requests, in the order in which they are put.
        refusals: Phrases of which a refusal holds one near its beginning; see `steerkit.evaluation.is_refusal`.
        max_new_tokens: Length at which answers are cut off; those to harmful requests at four times that.
    """

    name: str
    canaries: tuple[Canary, ...] = field(repr=False)
    refusals: tuple[str, ...] = field(repr=False, default=REFUSALS)
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        what = f"canary set {self.name!r}"
        for label in ("harmful", "harmless"):
            if not any(canary.sample.label == label for canary in self.canaries):
                raise SampleError(f"{what} holds no {label} request", expected="requests of both kinds")
        if not self.refusals or not all(phrase.strip() for phrase in self.refusals):
            raise SampleError(f"{what} has no refusal phrases, or an empty one", expected="at least one phrase")
        if self.max_new_tokens < 1:
            raise SampleError(f"max_new_tokens is {self.max_new_tokens}", expected="at least 1")


MAX_CANARIES = 2**24
"""Bytes; a larger file of canaries is not read."""


class _Row(Frozen):
    text: Annotated[str, Field(min_length=1)]
    label: Label
    image: str | None = None
    expected: tuple[str, ...] = ()


class _File(Frozen):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    refusals: tuple[str, ...] = REFUSALS
    max_new_tokens: int = 32
    canaries: tuple[_Row, ...]


def read_canaries(path: str | Path) -> CanarySet:
    """Read a canary set: one JSON object `{name, refusals, max_new_tokens, canaries}`.

    Each canary is `{text, label, image, expected}`; `image` (a path, relative to the file, or a `data:` URI) and
    `expected` may be left out, and so may `max_new_tokens` and `refusals` (`steerkit.evaluation.REFUSALS`).

    Raises:
        SampleError: The file is missing or malformed, holds only one kind of request, or has no refusal phrases.
        MissingImageError: An image is missing, or is none.
    """
    path = user_path(path)
    what = f"the canary set {str(path)!r}"
    expected = "a JSON file with name, refusals and canaries, or 'general'"
    with refused_as(SampleError, what, expected=expected):
        found = _File.model_validate(json_object(read_bounded(path, MAX_CANARIES), what, error=SampleError))
    canaries: list[Canary] = []
    for row in found.canaries:
        images = () if row.image is None else (row.image if row.image.startswith("data:") else path.parent / row.image,)
        canaries.append(Canary(Sample(row.text, images, label=row.label), row.expected))
        canaries[-1].sample.check_images()
    return CanarySet(found.name, tuple(canaries), found.refusals, found.max_new_tokens)


def choose_canaries(given: CanarySet | str | Path | None, vlm: VLM) -> CanarySet:
    """The canary set that is meant.

    Args:
        given: A set; a file; `general` for the built-in one. None: the file `canaries.json` in the folder that the
            model was loaded from, if it has one, as the demo models do; else `general`.
        vlm: The model that will answer.

    Raises:
        SampleError: See `read_canaries`.
        OptionError: It is none of these.
    """
    if isinstance(given, CanarySet):
        return given
    if given is None:
        beside = Path(vlm.record.id) / OF_MODEL
        given = beside if beside.is_file() else "general"
    if not isinstance(given, (str, Path)):
        raise OptionError(f"canaries is a {type(given).__name__}", expected="a CanarySet, a file, 'general' or None")
    return read_canaries(GENERAL if given == "general" else given)


def with_system(given: CanarySet) -> CanarySet:
    """The same requests, every second one of each kind after a system turn."""
    seen: Counter[tuple[str, bool]] = Counter()
    canaries: list[Canary] = []
    for canary in given.canaries:
        seen[canary.label, canary.pictured] += 1
        if seen[canary.label, canary.pictured] % 2:
            turns = (("system", SYSTEM), *canary.sample.turns)
            canary = replace(canary, sample=replace(canary.sample, text=turns))
        canaries.append(canary)
    return replace(given, name=f"{given.name}, half of it with a system turn", canaries=tuple(canaries))
