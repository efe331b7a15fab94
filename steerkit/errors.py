"""Every error that steerkit raises on purpose.

Each names the value at fault, what was expected instead and how to mend it. All derive from `SteerKitError`; those that
are also a familiar built-in kind of error derive from that as well, so `except ValueError` keeps working.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from steerkit._text import one_line


class SteerKitError(Exception):
    """Base of every error raised by steerkit.

    Its parts quote packs, sample files, servers and other libraries. Whatever those say stays on one line and without
    control characters, so that it steers no terminal and passes for no line of ours.

    Args:
        problem: What is wrong, with the value at fault.
        expected: What would have been right.
        fix: What the caller can do about it.

    Attributes:
        finished: The answers that were finished when it interrupted `VLM.generate`, by the number of the sample.
    """

    finished: Mapping[int, str] = MappingProxyType({})

    def __init__(self, problem: str, *, expected: str | None = None, fix: str | None = None) -> None:
        self.problem = one_line(problem)
        self.expected = None if expected is None else one_line(expected)
        self.fix = None if fix is None else one_line(fix)
        parts = [self.problem, self.expected and f"Expected: {self.expected}", self.fix and f"Fix: {self.fix}"]
        super().__init__(" ".join(part if part.endswith("?") else part.rstrip(".") + "." for part in parts if part))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the three parts, and what is beside them, when an error crosses a process boundary."""
        beside = {name: value for name, value in vars(self).items() if name not in ("problem", "expected", "fix")}
        return _rebuild, (type(self), self.problem, self.expected, self.fix), beside


def _rebuild(cls: type[SteerKitError], problem: str, expected: str | None, fix: str | None) -> SteerKitError:
    return cls(problem, expected=expected, fix=fix)


class SampleError(SteerKitError, ValueError):
    """A sample or a row of a sample file is malformed; the message carries the row number."""


class EmptyAnchorSetError(SteerKitError, ValueError):
    """A method was asked to fit on no samples, or on none that carry a label it needs."""


class LabelError(EmptyAnchorSetError):
    """Anchors lack a label that the method needs, or carry another one.

    Attributes:
        labels: Those that the method needs.
    """

    def __init__(
        self, problem: str, *, labels: tuple[str, ...] = (), expected: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(problem, expected=expected, fix=fix)
        self.labels = labels


class MissingImageError(SteerKitError, ValueError):
    """A sample has no image where the method or the model needs one, or its image can't be read."""


class PackFormatError(SteerKitError, ValueError):
    """A file is not a steerkit pack, or is truncated, forged or out of bounds."""


class NonFiniteError(SteerKitError, ValueError):
    """NaN or infinite values where only finite ones can be right."""


class ModelMismatchError(SteerKitError, ValueError):
    """A vector does not belong to the model it is being applied to."""


class UnsupportedModelError(SteerKitError, ValueError):
    """There is no model, or no adapter knows it."""


class ProcessorError(SteerKitError, ValueError):
    """A processor is missing or lacks something that the operation needs."""


class UnknownNameError(SteerKitError, LookupError):
    """A method, adapter or engine of this name is not registered."""


class PluginError(SteerKitError, ImportError):
    """An entry point of another distribution could not be loaded; the message names the distribution."""


class LayerRangeError(SteerKitError, IndexError):
    """A layer index lies outside the model, or a vector holds no direction there."""


class OptionError(SteerKitError, ValueError):
    """An option has an impossible value, or two options conflict."""


class EngineError(SteerKitError, RuntimeError):
    """An engine can't run what it was asked to run; raised before it runs anything."""


class ModelError(SteerKitError, RuntimeError):
    """The model itself failed while it ran, as when memory is short; `__cause__` is what it raised."""


class NothingSteeredError(SteerKitError, RuntimeError):
    """A steering context ended without having changed a single tensor."""


class FileWriteError(SteerKitError, OSError):
    """A file can't be written, as on a full disk; `__cause__` is the system's error."""


class CheckpointError(SteerKitError, ValueError):
    """An extraction checkpoint belongs to another extraction or is damaged."""


class RecordsError(SteerKitError, ValueError):
    """A file of answers or judgements is damaged, belongs to another run, or can't be written.

    Attributes:
        records: All that there are where they can't be written, those that are in the file first.
    """

    records: tuple[object, ...] = ()


class JudgeError(SteerKitError, RuntimeError):
    """A judge fails on one answer after the other, or gives what is no judgement; answers and verdicts are kept."""


class ContractError(SteerKitError, AssertionError):
    """A method or an adapter does not do what all of its kind must; raised by `steerkit.testing`."""
