"""All hooks of open blocks on one model: each on the module that stands at its place, ahead of all others.

That is made so when a block opens, and looked after whenever a pass begins: others register hooks, and quantisers and
PEFT replace modules, while the model is in use. The hooks go to what has come to their place.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, TypeAlias, cast

import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.hooks import RemovableHandle

from steerkit.engines import compiled
from steerkit.engines.attached import (
    Attached,
    Registry,
    lock,
    put_early,
    put_first,
    registry_of,
    registry_of_all,
)
from steerkit.errors import EngineError

Refuse: TypeAlias = Callable[[nn.Module, str], None]
"""Called as the pass of a module begins, with what it runs inside."""


class Attachments:
    """All hooks of the hooks engine on one model, in the order in which their blocks were opened."""

    _known: ClassVar[weakref.WeakKeyDictionary[nn.Module, Attachments]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._hooks: list[Attached] = []
        self._stale = False
        self._links: list[tuple[Any, str, nn.Module]] = []
        self._order: list[tuple[Registry, tuple[int, ...]]] = []
        self._refusals: list[Refuse] = []
        self._owners: dict[str, nn.Module] = {}
        self._watches = [model.register_forward_pre_hook(self._begin)]
        self._unmark: dict[nn.Module, Callable[[], None]] = {}

    @classmethod
    @contextmanager
    def of(
        cls,
        model: nn.Module,
        hooks: Sequence[Attached],
        owners: Sequence[str],
        refuse: Refuse,
    ) -> Iterator[None]:
        """Attach hooks for the time of the context.

        Args:
            model: The model.
            hooks: The hooks, in the order of their places.
            owners: Paths of the modules whose passes are followed. What they own may be replaced in the context; they
                themselves may not.
            refuse: Called as the pass of an owner begins, where what runs it will do so again without the hooks.

        Raises:
            EngineError: Within, as a pass begins: what stands at a place now can't be steered, or an owner was
                replaced. At the end: the latter, so that calls may have been made that were not steered.
        """
        with lock:
            known = cls._known.get(model)
            if known is None:
                known = cls._known[model] = cls(model)
            known._hooks += hooks
            known._refusals.append(refuse)
        try:
            with lock:
                known._follow(model, owners)
                known._arrange()
            yield
            known._check_owners()
        finally:
            with lock:
                known._close(hooks, refuse)

    def _follow(self, model: nn.Module, owners: Sequence[str]) -> None:
        for path in owners:
            if path not in self._owners:
                owner = self._owners[path] = model.get_submodule(path)
                self._watches.append(owner.register_forward_pre_hook(self._begin_owner))

    def _close(self, hooks: Sequence[Attached], refuse: Refuse) -> None:
        model = self._model()
        self._refusals.remove(refuse)
        self._stale = True
        for hook in hooks:
            self._hooks.remove(hook)
            if hook.handle is not None:
                hook.let_go()
            there = _there(model, hook.path)
            if isinstance(there, nn.Module):
                hook.purge(there)
        if self._hooks:
            return
        for watch in self._watches:
            watch.remove()
        for undo in self._unmark.values():
            undo()
        put_early(self, ())
        if model is not None:
            self._known.pop(model, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied with a model, it would look after the original.

        Raises:
            EngineError: Always.
        """
        return self._hooks[0].__reduce__()

    # -- as a pass begins --------------------------------------------------------------------------------------------

    def _begin_owner(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        inside = _kept_by()
        if inside is not None:
            for refuse in tuple(self._refusals):
                refuse(module, inside)
        self._begin(module, args)

    def _begin(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        stale = self._stale
        for container, name, expected in self._links:  # a loop, because this is run for every token
            stale = stale or container.get(name) is not expected
        if stale:
            with lock:
                self._check_owners()
                self._arrange()
        for hooks, ours in self._order:
            now = tuple(hooks)  # in one step: other threads may register hooks meanwhile
            if now[: len(ours)] == ours:
                continue
            if all(number in now for number in ours):
                put_first(hooks, ours)
            else:  # somebody has removed all hooks of the module
                with lock:
                    self._arrange()
                break
        if registry_of_all(on_input=False) or registry_of_all(on_input=True):
            with lock:
                put_early(self, self._hooks)

    def _check_owners(self) -> None:
        model = cast("nn.Module", self._model())
        for path, owner in self._owners.items():
            if _there(model, path) is not owner:
                raise EngineError(
                    f"{path} was replaced inside the steering block, so that calls since may not have been steered",
                    expected="what is around the steered blocks to stay; they and what is in them may be replaced",
                    fix="replace it before the block opens",
                )
        for watch in self._watches:
            hooks = watch.hooks_dict_ref()
            if hooks is not None and watch.id not in hooks:
                raise EngineError(
                    f"all hooks of {type(model).__name__}, or of a part of it, were removed inside the steering block, "
                    "so that calls since may not have been steered",
                    expected="hooks to be removed by whoever registered them, by their handles",
                    fix="remove hooks before the block opens",
                )

    def _arrange(self) -> None:
        """Put every hook on the module that stands at its place, ahead of all others.

        Raises:
            EngineError: There is no module, or one that stands at another place as well.
        """
        model = cast("nn.Module", self._model())
        self._stale = False
        links: dict[tuple[int, str], tuple[Any, str, nn.Module]] = {}
        taken: dict[nn.Module, str] = {}
        for hook in self._hooks:
            module = _walk(model, hook.path, links)
            if taken.setdefault(module, hook.path) != hook.path:
                raise shared(taken[module], hook.path)
            if hook.handle is None:
                hook.hold(module)
            elif module is not hook.module or hook.handle.id not in registry_of(module, on_input=hook.on_input):
                hook.attach(module)
        ordered: dict[int, tuple[Registry, list[int]]] = {}
        for hook in self._hooks:
            hooks = registry_of(cast("nn.Module", hook.module), on_input=hook.on_input)
            ours = ordered.setdefault(id(hooks), (hooks, []))[1]
            hook.leads = not ours
            ours.append(cast("RemovableHandle", hook.handle).id)
        self._links = list(links.values())
        self._order = [(hooks, tuple(ours)) for hooks, ours in ordered.values()]
        for hooks, ours in self._order:
            put_first(hooks, ours)
        for module in [module for module in self._unmark if module not in taken]:
            self._unmark.pop(module)()
        self._unmark |= {module: compiled.outdate(module) for module in taken if module not in self._unmark}


def _kept_by() -> str | None:
    """What keeps the pass that begins, to run it again as it is now; None for nothing."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return "the capture of a CUDA graph"
    if torch.is_inference_mode_enabled():
        return None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == _CHECKPOINT:
            return "torch.utils.checkpoint"
        frame = frame.f_back
    return None


_CHECKPOINT = torch.utils.checkpoint.__file__


def shared(one: str, other: str) -> EngineError:
    """What to raise where one module stands at two places: a hook could not tell which of them runs."""
    return EngineError(
        f"{one} and {other} are one and the same module",
        expected="a module of its own at each place that is steered (weights may be shared)",
    )


def _walk(model: nn.Module, path: str, links: dict[tuple[int, str], tuple[Any, str, nn.Module]]) -> nn.Module:
    """The module at a path; notes by what to see that the path still leads there."""
    module = model
    for name in filter(None, path.split(".")):  # the path of the model itself is empty
        found = getattr(module, name, None)
        if not isinstance(found, nn.Module):
            raise EngineError(
                f"there is no module {path} any more: {type(module).__name__} has no {name!r}",
                expected="what is replaced inside a steering block to have the same modules at the steered places",
                fix="replace it before the block opens",
            )
        container = module._modules if name in module._modules else _Attributes(module)
        links[id(module), name] = (container, name, found)
        module = found
    return module


def _there(model: nn.Module | None, path: str) -> Any:
    """What stands at a path; None for nothing."""
    there: Any = model
    for name in filter(None, path.split(".")):
        there = getattr(there, name, None)
    return there


class _Attributes:
    """What a module names without owning it, looked up as in a mapping."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def get(self, name: str) -> Any:
        return getattr(self._module, name, None)
