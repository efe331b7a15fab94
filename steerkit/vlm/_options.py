"""Whether an exception of `generate` is about its options or about the model."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from steerkit._text import described
from steerkit.errors import OptionError, SteerKitError
from steerkit.models import numbers

_OF_OPTIONS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, ImportError, OSError)
"""What wrong options lead to; memory and devices fail by other errors."""


@contextmanager
def options_refused(indices: Sequence[int]) -> Iterator[None]:
    """While `generate` runs: what comes out of no module, and is what wrong options lead to, is told from the rest.

    Args:
        indices: The samples that it answers.

    Raises:
        OptionError: There is such an exception.
    """
    try:
        yield
    except _OF_OPTIONS as error:
        if isinstance(error, ValueError) and "`model_kwargs` are not used" in str(error):  # before the first pass
            raise OptionError(
                f"generate does not take these options ({described(error)})",
                expected="options of transformers' generate",
                fix="check the spelling; options of the chat template are given as chat_template_kwargs={...}",
            ) from error
        module = nn.Module._call_impl.__code__
        inside = any(frame.f_code is module for frame, _ in traceback.walk_tb(error.__traceback__))
        if inside or isinstance(error, SteerKitError):
            raise
        raise OptionError(
            f"generate failed outside of the model, on {numbers(indices)}: {described(error)}",
            expected="options that generate can work with",
            fix="the traceback above says which; answers that were finished before are in error.finished",
        ) from error
