"""The prompts on which a model is measured, shared by `compare` and `calibrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit.evaluation import Suite


@dataclass(frozen=True)
class Prompts:
    """A suite of prompts and how it is judged.

    Attributes:
        prompts (FILE): Prompts, .jsonl: {"text", "image", "label": "harmful", "harmless" or "utility", "answer"} on
            each line. A demo model brings its own.
        count: Prompts of each kind, of a demo model.
        refusal: A phrase by which a refusal is told. Default: common ones.
        max_new_tokens: Length of the answers. Default: 64.
    """

    prompts: Path | None = None
    count: int | None = None
    refusal: list[str] | None = None
    max_new_tokens: int | None = None

    def check(self, model: str, own: Mapping[str, object]) -> None:
        """Refuse what would be ignored: with a demo model what is of a model of one's own, and the other way round.

        Raises:
            OptionError: Something of it was given.
        """
        if is_demo(model):
            answers = {"--refusal": self.refusal, "--max-new-tokens": self.max_new_tokens}
            given = {**own, "--prompts": self.prompts, **answers}
            refuse_given(given, f"the demo model {model!r}", "leave it out, or name a folder or a repository as MODEL")
        else:
            refuse_given({"--count": self.count}, "a model of your own", "leave it out: all prompts are used")

    def suite(self, model: str) -> Suite:
        """The suite of the file.

        Raises:
            OptionError: None is named, or a label is none of the three, or a row's answer is not a text.
            SampleError: The file can't be read, or a row is bad.
        """
        from steerkit.demo import MODELS
        from steerkit.evaluation import load_suite

        if self.prompts is None:
            raise OptionError(
                f"{model!r} is measured without prompts", expected="--prompts, or a demo model: " + ", ".join(MODELS)
            )
        return load_suite(self.prompts, refusals=self.refusal or None, max_new_tokens=self.max_new_tokens)


def is_demo(model: str) -> bool:
    """Whether this is the name of a demo model, and no folder."""
    from steerkit.demo import MODELS

    return model in MODELS and not Path(model).exists()


def refuse_given(given: Mapping[str, object], where: str, fix: str) -> None:
    """Refuse what was given and would be ignored; None, or an empty list, is what was not given.

    Raises:
        OptionError: Something was given.
    """
    names = [name for name, value in given.items() if value is not None and value != []]
    if names:
        raise OptionError(f"{', '.join(names)} with {where}", expected="only what has an effect there", fix=fix)


def refuse_repeated(names: Sequence[str]) -> None:
    """Refuse a name that occurs twice: one row would take the other's place.

    Raises:
        OptionError: One does.
    """
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise OptionError(
            "given twice: " + ", ".join(map(repr, repeated)),
            expected="a name of its own for each method and each pack",
            fix="rename the file, or choose the methods with --method",
        )
