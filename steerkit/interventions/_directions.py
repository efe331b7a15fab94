"""What an operation works along: a direction that the vector stores, or a contrast that is measured on the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerkit._internal.faults import refused_as
from steerkit._internal.validation import plain
from steerkit.errors import OptionError

View: TypeAlias = Literal["text", "caption", "original", "blank", "noise"]
"""How a sample is shown to the model.

`text`: its image and placeholder removed; `caption`: text only, with the caption in front; `original`: as it is;
`blank`: a white image of the same size; `noise`: uniform RGB noise of the same size, seeded.
"""

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


def is_finite(value: object) -> bool:
    """Whether a value is a number that can serve as a strength: any real one, numpy's scalars among them."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


class Frozen(BaseModel):
    """Base of everything that is serialised: immutable, and unknown keys are errors.

    Whoever writes one in code is refused with an error of ours, and a truth value where a number is asked; numbers and
    arrays of numpy and torch are taken for those of Python. What is parsed from a document is validated by pydantic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    if not TYPE_CHECKING:  # whose signatures are those of the fields

        def __init__(self, /, **fields: Any) -> None:
            expected = "options " + ", ".join(type(self).model_fields)
            with refused_as(OptionError, type(self).__name__, expected=expected, wrong="can't be configured so"):
                given = {name: plain(value) for name, value in fields.items()}
                super().__init__(**given)
                for name, value in given.items():
                    _check_truth(name, value, getattr(self, name))

        __init__.__pydantic_base_init__ = True  # so that documents are parsed without it


def _check_truth(name: str, given: object, made: object) -> None:
    """Refuse truth values that pydantic has taken for numbers, in whatever lists and mappings.

    Raises:
        OptionError: There is one.
    """
    if isinstance(given, bool) and not isinstance(made, bool) and isinstance(made, Real):
        raise OptionError(f"{name} is {given}", expected="a number", fix=f"{int(given)}, if that is meant")
    if isinstance(given, (list, tuple, Set)) and isinstance(made, (list, tuple)):
        for index, pair in enumerate(zip(given, made, strict=False)):
            _check_truth(f"{name}[{index}]", *pair)
    elif isinstance(given, Mapping) and isinstance(made, BaseModel):
        for key, value in given.items():
            _check_truth(f"{name}.{key}", value, getattr(made, str(key), None))
    elif isinstance(given, Mapping) and isinstance(made, Mapping):
        for (key, value), (other, number) in zip(given.items(), made.items(), strict=False):
            _check_truth(f"a key of {name}", key, other)
            _check_truth(f"{name}[{key!r}]", value, number)


class StoredDirection(Frozen):
    """A direction that the vector carries.

    Attributes:
        name: Which of the tensors stored for a layer; empty for the only one.
        layer: Take the tensor stored at this layer, wherever it is applied. None: the one of the layer itself.
    """

    source: Literal["stored"] = "stored"
    name: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$", max_length=64)
    layer: int | None = Field(default=None, ge=0)


class MeasuredContrast(Frozen):
    """`h(positive) - h(negative)`, measured on the prompt itself without steering, at its last token.

    Attributes:
        positive: The view that is moved towards.
        negative: The view that is moved away from; None: none, and what is measured is the state `h(positive)` itself.
        form: `literal`: the contrast of a layer is added at that layer. `increments`: a layer adds only what it
            contributes beyond the steered layer below, so that the additions sum to the measured contrast.
        seed: Seed of a noise view.
    """

    source: Literal["contrast"] = "contrast"
    positive: View = "text"
    negative: View | None = "blank"
    form: Literal["literal", "increments"] = "increments"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _differ(self) -> MeasuredContrast:
        if self.positive == self.negative:
            raise ValueError(f"a contrast of {self.positive!r} with itself is zero")
        if self.negative is None and self.form == "increments":
            raise ValueError("form='increments' of a state: only contrasts have increments, a state is 'literal'")
        return self

    @property
    def bound(self) -> float:
        """How many times the norm of a hidden state its own norm is at most: a difference of two states, or one."""
        return 1.0 if self.negative is None else 2.0


Direction: TypeAlias = Annotated[StoredDirection | MeasuredContrast, Field(discriminator="source")]
