"""One hook of the hooks engine, which torch calls ahead of everybody else's.

torch calls the forward hooks of a module in the order of one dictionary, global hooks before those of the module, and
whoever registers last with `prepend=True` first of all. transformers leaves recorders of hidden states on the blocks
for good. Whoever reads there must read what the next block is given.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from steerkit.errors import EngineError

Registry: TypeAlias = "OrderedDict[int, Any]"
"""The hooks of a module, or of all, by number, in the order in which torch calls them."""

lock = threading.RLock()
"""Taken by whoever moves hooks."""


class Attached(ABC):
    """One hook of the hooks engine; a subclass says what it does.

    Args:
        path: Where its module is in the model.
        on_input: Whether it changes what the module is given, and not what it returns.
    """

    def __init__(self, path: str, *, on_input: bool) -> None:
        self.path = path
        self.on_input = on_input
        self.module: nn.Module | None = None
        self.handle: RemovableHandle | None = None
        self.leads = False
        """Whether no other hook of ours comes before it."""
        self._number = -1
        self._of_all = registry_of_all(on_input=on_input)
        self._early: set[int] = set()
        self._holders = 0

    @abstractmethod
    def run(self, module: nn.Module, value: Any) -> Any:
        """What becomes of the output, or of the positional arguments; None for no change."""

    def check_turn(self, module: nn.Module) -> None:
        """Make sure that the module is the one that the hook is on, and that no other hook has run before it.

        Raises:
            EngineError: It is a copy, or somebody came first after the pass had begun.
        """
        if module is not self.module:
            raise EngineError(
                f"a copy of {self.path} runs that shares the hooks of the steered module, as torch.nn.DataParallel and "
                "copy.copy make them",
                expected="the steered model itself",
                fix="leave torch.nn.DataParallel, or steer in one process for each device",
            )
        if not self.leads:
            return
        # asked of every block for every token, hence without a call; read in one step, because other threads may
        # register their hooks meanwhile
        first, *_ = module._forward_pre_hooks if self.on_input else module._forward_hooks
        if first != self._number or (self._of_all and threading.get_ident() not in self._early):
            raise EngineError(
                f"a hook was put in front of the steering of {self.path} while a pass was running",
                expected="hooks that are registered between two calls of the model, or without prepend=True",
                fix="register it before the call",
            )

    def run_early(self, module: nn.Module, value: Any) -> Any:
        """The same, called ahead of the module's own hooks; the next call among them does nothing."""
        self._early.add(threading.get_ident())
        return self.run(module, value)

    def attach(self, module: nn.Module) -> None:
        """Register the hook on a module, and nowhere else."""
        if self.handle is not None:
            self.handle.remove()
        if self.on_input:
            self.handle = module.register_forward_pre_hook(self._before)
        else:
            self.handle = module.register_forward_hook(self._after)
        self.module, self._number = module, self.handle.id
        self.purge(module)

    def purge(self, module: nn.Module) -> None:
        """Remove what a quantiser has copied from the module that it replaced: it takes hooks along."""
        hooks = registry_of(module, on_input=self.on_input)
        for number, function in tuple(hooks.items()):
            if getattr(function, "__self__", None) is self and (self.handle is None or number != self.handle.id):
                del hooks[number]

    def hold(self, module: nn.Module) -> None:
        """Be on the module, ahead of all others, until everybody who holds the hook has let go."""
        with lock:
            self._holders += 1
            if self.handle is None:
                self.attach(module)
            put_first(registry_of(module, on_input=self.on_input), [cast("RemovableHandle", self.handle).id])

    def let_go(self) -> None:
        """Leave the module with the last that holds the hook."""
        with lock:
            self._holders -= 1
            if self._holders == 0 and self.handle is not None:
                self.handle.remove()
                self.handle = self.module = None
                self._early.clear()

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return None if self._early and self._ran_early() else self.run(module, output)

    def _before(self, module: nn.Module, args: Any) -> Any:
        return None if self._early and self._ran_early() else self.run(module, args)

    def _ran_early(self) -> bool:
        thread = threading.get_ident()
        ran = thread in self._early
        self._early.discard(thread)
        return ran

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a steered module would share the hooks of the original.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            f"a model is copied or pickled while it is steered at {self.path}",
            expected="a model that nothing is attached to",
            fix="copy it outside the steering block; state_dict() and save_pretrained() work inside",
        )


def registry_of(module: nn.Module, *, on_input: bool) -> Registry:
    """The hooks of a module."""
    return cast("Registry", module._forward_pre_hooks if on_input else module._forward_hooks)


def registry_of_all(*, on_input: bool) -> Registry:
    """The hooks that torch calls for every module."""
    return cast("Registry", torch_module._global_forward_pre_hooks if on_input else torch_module._global_forward_hooks)


def put_first(hooks: Registry, ours: Sequence[int]) -> None:
    """Move hooks to the front, in their order."""
    for number in reversed(ours):
        hooks.move_to_end(number, last=False)


# -- ahead of the hooks that torch calls for every module --------------------------------------------------------------

_early: dict[object, dict[tuple[nn.Module, bool], list[Attached]]] = {}
_handles: dict[bool, RemovableHandle] = {}


def put_early(owner: object, hooks: Sequence[Attached]) -> None:
    """While there are global hooks of others, run ours from a global one in front of them."""
    _early.pop(owner, None)
    if hooks:
        by_module: dict[tuple[nn.Module, bool], list[Attached]] = {}
        for hook in hooks:
            by_module.setdefault((cast("nn.Module", hook.module), hook.on_input), []).append(hook)
        _early[owner] = by_module
    if not _early:
        for handle in _handles.values():
            handle.remove()
        _handles.clear()
        return
    if not _handles:
        _handles[True] = torch_module.register_module_forward_pre_hook(_early_before)
        _handles[False] = torch_module.register_module_forward_hook(_early_after)
    for on_input, handle in _handles.items():
        registry_of_all(on_input=on_input).move_to_end(handle.id, last=False)


def _early_before(module: nn.Module, args: Any) -> Any:
    return _run_early(module, args, on_input=True)


def _early_after(module: nn.Module, args: Any, output: Any) -> Any:
    return _run_early(module, output, on_input=False)


def _run_early(module: nn.Module, value: Any, *, on_input: bool) -> Any:
    if torch.compiler.is_compiling():
        return None
    result = None
    for by_module in tuple(_early.values()):
        for hook in by_module.get((module, on_input), ()):
            changed = hook.run_early(module, value)
            if changed is not None:
                value = result = changed
    return result
