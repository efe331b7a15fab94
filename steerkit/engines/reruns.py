"""Steering where a backward pass runs blocks again: gradient checkpointing.

A checkpointed block keeps its input alone. When gradients come to it, torch runs it once more, perhaps after the
steering block has ended, and perhaps in a thread of autograd's own. What steered it then has to do the same again. So
each pass of the model that gradients can flow through notes which hooks acted in it. As soon as gradients arrive at one
of its outputs, those hooks stand ready on their modules, each for one more run, until the backward pass ends.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.engines.attached import Attached
from steerkit.engines.passes import Pass

_lock = threading.RLock()
waiting: dict[int, dict[Attached, list[Any]]] = {}
"""By the number of a backward pass: for each hook the passes of the model that it steers again, in that order."""
_held: dict[int, list[Attached]] = {}
_threads: dict[int, int] = {}


class Rerun:
    """What acted in one pass of the model."""

    def __init__(self) -> None:
        self._pass: Any = None
        self._acted: list[tuple[Attached, nn.Module, Any]] = []
        self._served: set[int] = set()
        weakref.finalize(self, _end, self._served)

    @classmethod
    def of(cls, now: Any) -> Rerun:
        """That of a pass; the vision tower's is also the first decoder pass's of its prompt."""
        memo = now.prompt.memo
        found: Rerun | None = memo.get(cls)
        if found is None or found._pass not in (None, now if isinstance(now, Pass) else None):
            found = memo[cls] = cls()
        if isinstance(now, Pass):
            found._pass = now
        return found

    def note(self, hook: Attached, module: nn.Module, now: Any) -> None:
        """A hook has acted on a module, in a pass."""
        self._acted.append((hook, module, now))

    def follow(self, output: Any) -> None:
        """Get ready when gradients arrive at any of the tensors in an output."""
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._get_ready)

    def _get_ready(self, grad: Tensor) -> None:
        number = torch._C._current_graph_task_id()
        with _lock:
            if number in self._served:
                return
            self._served.add(number)
            if number not in waiting:
                waiting[number], _held[number], _threads[number] = {}, [], threading.get_ident()
                torch.autograd.Variable._execution_engine.queue_callback(lambda: _end((number,)))  # type: ignore[attr-defined]
            for hook, module, now in reversed(self._acted):  # what ran last is run again first
                hook.hold(module)
                _held[number].append(hook)
                waiting[number].setdefault(hook, []).append(now)


def cut(memo: dict[Any, Any]) -> None:
    """Part what was read in a pass that is over from its graph, which would hold itself in memory by it for ever."""
    for key, value in memo.items():
        if isinstance(value, Tensor):
            memo[key] = _parted(value)
        elif isinstance(value, tuple):
            memo[key] = tuple(_parted(each) if isinstance(each, Tensor) else each for each in value)


def _parted(value: Tensor) -> Tensor:
    # what is run again has to keep as many tensors as before, and so to ask for gradients here too
    return value if value.is_leaf else value.detach().requires_grad_(value.requires_grad)


def _end(numbers: Collection[int]) -> None:
    with _lock:
        for number in numbers:
            waiting.pop(number, None)
            _threads.pop(number, None)
            for hook in _held.pop(number, ()):
                hook.let_go()


def again(hook: Attached) -> Any:
    """The pass that a hook is to steer again now, or None."""
    if not waiting:
        return None
    number = torch._C._current_graph_task_id()
    if number < 0:  # a backward pass that failed did not say so; but this thread is in none any more
        thread = threading.get_ident()
        _end([number for number, owner in tuple(_threads.items()) if owner == thread])
        return None
    passes = waiting.get(number, {}).get(hook)
    return passes.pop(0) if passes else None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from chain.from_iterable(map(_tensors, output.values()))
    elif isinstance(output, (tuple, list)):
        yield from chain.from_iterable(map(_tensors, output))
