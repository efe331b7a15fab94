"""The hooks of open blocks: on the modules that stand at the steered places, and ahead of everybody else's hooks.

torch calls the forward hooks of a module in the order of one dictionary, global hooks before those of the module, and
whoever registers last with `prepend=True` first of all. transformers leaves recorders of hidden states on the blocks
for good. Whoever reads there must read what the next block is given. So the order is made when a block opens, and
looked after whenever a pass begins; as is what stands at each place, because quantisers and PEFT replace modules while
the model is in use: the hooks go to what has come there.
"""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from typing import Any, ClassVar, cast

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from steerkit.errors import EngineError

_Registry = OrderedDict[int, Any]

Refuse = Callable[[nn.Module], None]

_lock = threading.RLock()


class Attached:
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
        self._early: set[int] = set()
        self._holders = 0

    def run(self, module: nn.Module, value: Any) -> Any:
        """What becomes of the output, or of the positional arguments; None for no change."""
        raise NotImplementedError

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
        late = _of_all(on_input=self.on_input) and threading.get_ident() not in self._early
        if self.leads and (
            late or next(iter(_of(module, on_input=self.on_input))) != cast("RemovableHandle", self.handle).id
        ):
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
        self.module = module
        self.purge(module)

    def purge(self, module: nn.Module) -> None:
        """Remove what a quantiser has copied from the module that it replaced: it takes hooks along."""
        hooks = _of(module, on_input=self.on_input)
        for number, function in tuple(hooks.items()):
            if getattr(function, "__self__", None) is self and (self.handle is None or number != self.handle.id):
                del hooks[number]

    def hold(self, module: nn.Module) -> None:
        """Be on the module, ahead of all others, until everybody who holds the hook has let go."""
        with _lock:
            self._holders += 1
            if self.handle is None:
                self.attach(module)
            _put_first(_of(module, on_input=self.on_input), [cast("RemovableHandle", self.handle).id])

    def let_go(self) -> None:
        """Leave the module with the last that holds the hook."""
        with _lock:
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


def _of(module: nn.Module, *, on_input: bool) -> _Registry:
    return cast("_Registry", module._forward_pre_hooks if on_input else module._forward_hooks)


def _of_all(*, on_input: bool) -> _Registry:
    return cast("_Registry", torch_module._global_forward_pre_hooks if on_input else torch_module._global_forward_hooks)


class Attachments:
    """All hooks of the hooks engine on one model, in the order in which their blocks were opened."""

    _known: ClassVar[weakref.WeakKeyDictionary[nn.Module, Attachments]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._hooks: list[Attached] = []
        self._stale = False
        self._links: list[tuple[Any, str, nn.Module]] = []
        self._order: list[tuple[_Registry, tuple[int, ...]]] = []
        self._refusals: list[Refuse] = []
        self._owners: dict[str, nn.Module] = {}
        self._undo = [model.register_forward_pre_hook(self._begin).remove]
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
            refuse: Called with an owner that `torch.utils.checkpoint` runs as a whole, as its pass begins.

        Raises:
            EngineError: Within, as a pass begins: what stands at a place now can't be steered, or an owner was
                replaced. At the end: the latter, so that calls may have been made that were not steered.
        """
        with _lock:
            known = cls._known.get(model)
            if known is None:
                known = cls._known[model] = cls(model)
            known._hooks += hooks
            known._refusals.append(refuse)
        try:
            with _lock:
                known._follow(model, owners)
                known._arrange()
            yield
            known._check_owners()
        finally:
            with _lock:
                known._close(hooks, refuse)

    def _follow(self, model: nn.Module, owners: Sequence[str]) -> None:
        for path in owners:
            if path not in self._owners:
                owner = self._owners[path] = model.get_submodule(path)
                self._undo.append(owner.register_forward_pre_hook(self._begin_owner).remove)

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
        for undo in (*self._undo, *self._unmark.values()):
            undo()
        _put_early(self, ())
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
        if not torch.is_inference_mode_enabled() and _is_checkpointed(sys._getframe()):
            for refuse in tuple(self._refusals):
                refuse(module)
        self._begin(module, args)

    def _begin(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self._stale or any(container.get(name) is not expected for container, name, expected in self._links):
            with _lock:
                self._check_owners()
                self._arrange()
        for hooks, ours in self._order:
            if next(iter(hooks), None) != ours[0] or (len(ours) > 1 and tuple(islice(hooks, len(ours))) != ours):
                _put_first(hooks, ours)
        if _of_all(on_input=False) or _of_all(on_input=True):
            with _lock:
                _put_early(self, self._hooks)

    def _check_owners(self) -> None:
        model = cast("nn.Module", self._model())
        for path, owner in self._owners.items():
            if _there(model, path) is not owner:
                raise EngineError(
                    f"{path} was replaced inside the steering block, so that calls since may not have been steered",
                    expected="what is around the steered blocks to stay; they and what is in them may be replaced",
                    fix="replace it before the block opens",
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
            elif module is not hook.module:
                hook.attach(module)
        ordered: dict[int, tuple[_Registry, list[int]]] = {}
        for hook in self._hooks:
            hooks = _of(cast("nn.Module", hook.module), on_input=hook.on_input)
            ours = ordered.setdefault(id(hooks), (hooks, []))[1]
            hook.leads = not ours
            ours.append(cast("RemovableHandle", hook.handle).id)
        self._links = list(links.values())
        self._order = [(hooks, tuple(ours)) for hooks, ours in ordered.values()]
        for hooks, ours in self._order:
            _put_first(hooks, ours)
        for module in [module for module in self._unmark if module not in taken]:
            self._unmark.pop(module)()
        self._unmark |= {module: _mark(module) for module in taken if module not in self._unmark}


def _is_checkpointed(frame: FrameType | None) -> bool:
    """Whether a frame runs inside a function that was given to `torch.utils.checkpoint`."""
    inside = torch.utils.checkpoint.__file__
    while frame is not None:
        if frame.f_code.co_filename == inside:
            return True
        frame = frame.f_back
    return False


def shared(one: str, other: str) -> EngineError:
    """What to raise where one module stands at two places: a hook could not tell which of them runs."""
    return EngineError(
        f"{one} and {other} are one and the same module",
        expected="a module of its own at each place that is steered (weights may be shared)",
    )


def _walk(model: nn.Module, path: str, links: dict[tuple[int, str], tuple[Any, str, nn.Module]]) -> nn.Module:
    """The module at a path; notes by what to see that the path still leads there."""
    module = model
    for name in path.split("."):
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
    for name in path.split("."):
        there = getattr(there, name, None)
    return there


class _Attributes:
    """What a module names without owning it, looked up as in a mapping."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def get(self, name: str) -> Any:
        return getattr(self._module, name, None)


def _put_first(hooks: _Registry, ours: Sequence[int]) -> None:
    for number in reversed(ours):
        hooks.move_to_end(number, last=False)


def _mark(module: nn.Module) -> Callable[[], None]:
    """Let graphs that torch.compile has made of a module be made again; returns what lets them serve again.

    A graph does not notice hooks that are added later. It does notice when one of these methods becomes an attribute of
    the module itself.
    """
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    if dynamo is None or not dynamo.FRAME_COUNTER:  # nothing has been compiled in this process
        return lambda: None
    name = "_call_impl" if "forward" in vars(module) else "forward"
    method = types.MethodType(getattr(type(module), name), module)
    vars(module)[name] = method

    def unmark() -> None:
        if vars(module).get(name) is method:
            del vars(module)[name]

    return unmark


# -- ahead of the hooks that torch calls for every module --------------------------------------------------------------

_early: dict[Attachments, dict[tuple[nn.Module, bool], list[Attached]]] = {}
_handles: dict[bool, RemovableHandle] = {}


def _put_early(owner: Attachments, hooks: Sequence[Attached]) -> None:
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
        _of_all(on_input=on_input).move_to_end(handle.id, last=False)


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
