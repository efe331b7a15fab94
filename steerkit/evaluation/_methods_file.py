"""Which methods are compared, as a file: each with its options, and how many of the anchors it is fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from steerkit._internal.faults import faults, refused_as
from steerkit._internal.files import read_bounded, user_path
from steerkit._internal.json import json_object
from steerkit._internal.validation import PATH, expect
from steerkit._text import quoted
from steerkit.errors import OptionError
from steerkit.interventions import Frozen
from steerkit.methods import SteeringMethod, get_method
from steerkit.models import Sample, as_samples

LARGEST = 2**20
"""Bytes of such a file."""


class MethodSettings(Frozen):
    """One row of a comparison.

    Attributes:
        method: Name of the method.
        options: Its options.
        per_label: Fit it on the first anchors of each label, as many; None: on all.
        alternate: Take the labels in turn, for methods that pair neighbours.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    per_label: Annotated[int, Field(ge=1)] | None = None
    alternate: bool = False

    def entry(self, anchors: Sequence[Sample], **options: Any) -> tuple[SteeringMethod, Sequence[Sample]]:
        """The method and its anchors, for `compare`; `options` are set on top of its own.

        Raises:
            UnknownNameError: There is no such method.
            OptionError: It has no such option, or not of this value.
        """
        chosen = as_samples(anchors)
        if self.per_label or self.alternate:
            labels = dict.fromkeys(sample.label for sample in chosen)
            groups = [[s for s in chosen if s.label == label][: self.per_label] for label in labels]
            turns = zip(*groups, strict=False) if self.alternate else groups
            chosen = [sample for turn in turns for sample in turn]
        return get_method(self.method)(**(self.options | options)), chosen


def read_methods(path: str | Path) -> dict[str, MethodSettings]:
    """The methods of a settings file, by the names of their rows.

    A JSON object of `{name: {"method": ..., "options": {...}, "per_label": ..., "alternate": ...}}`, all of them
    optional: without `method`, the row's name is that of its method.

    Raises:
        OptionError: The file can't be read, or says something else.

    Example:
        >>> rows = sk.evaluation.read_methods("methods.json")
        >>> sk.compare(vlm, {name: each.entry(anchors) for name, each in rows.items()}, suite)
    """
    expect(PATH, "a .json file", path=path)
    what = f"the file of methods {quoted(str(path), 200)}"
    with refused_as(OptionError, what, expected="a JSON file"):
        document = json_object(read_bounded(user_path(path), LARGEST), what, error=OptionError)
    rows: dict[str, MethodSettings] = {}
    for name, given in document.items():
        try:
            rows[name] = MethodSettings.model_validate({"method": name, **given})
        except (ValidationError, TypeError) as error:
            why = faults(error) if isinstance(error, ValidationError) else f"it is {quoted(given)}"
            fields = ", ".join(MethodSettings.model_fields)
            raise OptionError(f"{what}, {quoted(name)}: {why}", expected=f"an object with any of {fields}") from error
    if not rows:
        raise OptionError(f"{what} names no method", expected="at least one")
    return rows
