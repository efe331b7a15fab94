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
            each line; demo/test and demo/dev come with steerkit, for the demo models.
        count: Only the first prompts of each kind, as many.
        refusal: A phrase by which a refusal is told. Default: those of the file, or common ones.
        max_new_tokens: Length of the answers. Default: that of the file, or 64.
    """

    prompts: Path | None = None
    count: int | None = None
    refusal: list[str] | None = None
    max_new_tokens: int | None = None

    def suite(self) -> Suite:
        """The suite of the file.

        Raises:
            OptionError: None is named.
            SampleError: The file can't be read, or a row is bad.
        """
        from steerkit.evaluation import load_suite

        if self.prompts is None:
            raise OptionError("--prompts is missing", expected="a file of prompts", fix="--prompts demo/test is one")
        path = bundled(self.prompts)
        made = load_suite(path, refusals=self.refusal or None, max_new_tokens=self.max_new_tokens)
        return made if self.count is None else made.first(self.count)


def bundled(path: Path) -> Path:
    """The file at a path, or one that comes with steerkit, such as `demo/anchors`."""
    from steerkit.demo import DATA

    found = [each for each in DATA.iterdir() if each.stem == path.name]
    return found[0] if found and path.parent == Path("demo") and not path.exists() else path


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
