"""Follows a model through its calls, so that an intervention knows which token it is looking at.

Inside a decoder block a hidden state is only a tensor. What is padding, image or prompt, and how far generation has
come, is known where the call begins. `CallTracker` notes it there: at `generate`, at a forward pass of the model or of
a part of it, and at each pass of the decoder. It changes nothing that the model computes, and every trace of it goes
with its last user.

Which steering blocks a call belongs to is asked once, when it begins (`blocks`). Which calls run in a thread is noted
in `call_stack`, and where a pass stands in its prompt and answer is told by `reading`.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steerkit.engines import compiled, model_inputs
from steerkit.engines.blocks import Block, carried_and_ended, owners, warn_unsteered
from steerkit.engines.caches import kv_cache, past_length, remember
from steerkit.engines.call_stack import CallStack, CallStacks, Entered
from steerkit.engines.packed import Managers, is_packed, is_paged
from steerkit.engines.passes import Pass
from steerkit.engines.prompts import Facts, Prompt
from steerkit.engines.reading import read_pass
from steerkit.engines.suspension import runs
from steerkit.errors import EngineError, SteerKitError
from steerkit.models import Architecture


class CallTracker:
    """Notes which prompt a model is working on, for whom, and where its decoder stands.

    Obtain one with `CallTracker.of`; it is installed while anybody holds it and leaves the model as it found it.
    """

    _trackers: ClassVar[weakref.WeakKeyDictionary[nn.Module, CallTracker]] = weakref.WeakKeyDictionary()
    _lock = threading.RLock()

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self._model = weakref.ref(model)
        self.facts = Facts(architecture)
        self.stacks = CallStacks()
        self._blocks: tuple[Block, ...] = ()
        self._users = 0
        self._undo: list[Callable[[], None]] = []
        self._managers = Managers()

    @classmethod
    @contextmanager
    def of(cls, model: nn.Module, architecture: Architecture) -> Iterator[CallTracker]:
        """The tracker of a model, installed for the time of the context."""
        with cls._lock:
            tracker = cls._trackers.get(model)
            if tracker is None:
                tracker = cls._trackers[model] = cls(model, architecture)
            tracker._users += 1
            if tracker._users == 1:
                tracker._install(model)
        try:
            yield tracker
        finally:
            with cls._lock:
                tracker._users -= 1
                if tracker._users == 0:
                    tracker._uninstall()
                    cls._trackers.pop(model, None)

    @property
    def thread(self) -> CallStack:
        """The calls that run in this thread."""
        return self.stacks.here

    @property
    def architecture(self) -> Architecture:
        """The model's."""
        return self.facts.architecture

    @contextmanager
    def follow(self, block: Block) -> Iterator[None]:
        """Let calls belong to a block, those of its context or of all."""
        with self._lock:
            self._blocks = (*self._blocks, block)
        try:
            yield
        finally:
            with self._lock:
                self._blocks = tuple(each for each in self._blocks if each is not block)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a steered model would be bound to the original.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            "a model is copied or pickled while it is steered",
            expected="a model that nothing is attached to",
            fix="copy it outside the steering block",
        )

    @property
    def current(self) -> Pass | None:
        """The decoder pass that this thread is in, or None where nothing is to be observed."""
        return self.thread.current

    def prompt(self) -> Prompt | None:
        """The call that this thread is in, or would begin; None where it belongs to nobody."""
        if self.thread.unobserved:
            return None
        calls = self.thread.calls
        call = calls[-1] if calls else Prompt({}, None, False, self.facts, owners(self._blocks))
        return call if call.owners else None

    def in_graph(self, place: Hashable, user: object) -> Pass | None:
        """The pass that a compiled graph is in, as it visits a place; None where nothing is to be observed.

        Raises:
            EngineError: What was compiled hides where the pass begins, or one graph serves several places.
        """
        thread = self.thread
        if thread.unobserved:
            return None
        if thread.current is None:
            if thread.entered is None:
                if not owners(self._blocks):
                    return None
                raise EngineError(
                    f"a compiled graph of {self._name} runs, and hides where its call begins",
                    expected="generate(..., cache_implementation='static'), which compiles by itself, or a model whose "
                    "forward pass alone is compiled",
                    fix="model.forward = torch.compile(model.forward) inside the block, not model.compile() or "
                    "torch.compile(model)",
                )
            entered, thread.entered = thread.entered, None
            if not thread.calls[-1].owners:
                return None
            thread.current = read_pass(self._managers, thread.calls[-1], entered, entered.given, entered.held)
        now = thread.current
        if (place, id(user)) in now.visited:
            raise EngineError(
                f"one compiled graph of {self._name} serves several blocks",
                expected="blocks that are not compiled each on their own",
                fix="model.forward = torch.compile(model.forward) inside the block",
            )
        now.visited.add((place, id(user)))
        return now

    @property
    def _name(self) -> str:
        return type(self._model()).__name__

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Passes of this thread inside belong to no call: they are neither steered nor counted."""
        with self.thread.hidden():
            yield

    # -- installation ------------------------------------------------------------------------------------------------

    def _install(self, model: nn.Module) -> None:
        decoder = model.get_submodule(self.architecture.decoder)

        def install(name: object, handle: RemovableHandle) -> None:
            self._undo.append(compiled.numbered(model, name, handle).remove)

        for at, entry in enumerate(model_inputs.entries(model, self.architecture)):
            signature = _signature(type(entry).forward)
            install(("begin", at), entry.register_forward_pre_hook(self._begin_forward(signature), with_kwargs=True))
            install(("end", at), entry.register_forward_hook(self._end_forward, always_call=True))
            # asked for by copy and pickle; a copy's `generate` would be the original's
            self._undo.append(_set(entry, "__getstate__", self.__reduce__))
            for name, observed in (
                ("generate", self._observed_generate),
                ("init_continuous_batching", self._observed_manager),
                ("get_compiled_call", functools.partial(self._steered_graph, model, signature)),
            ):
                if callable(getattr(type(entry), name, None)):
                    self._undo.append(_set(entry, name, observed(entry)))
        signature = _signature(type(decoder).forward)
        install("begin pass", decoder.register_forward_pre_hook(self._begin_pass(signature), with_kwargs=True))
        install("end pass", decoder.register_forward_hook(self._end_pass, always_call=True))
        embedding = model_inputs.embedding(model)
        if embedding is not None:
            install("embedded", embedding.register_forward_hook(self._embedded))

    def _uninstall(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _observed_generate(self, entry: nn.Module) -> Callable[..., Any]:
        inner: Callable[..., Any] = cast("Any", entry).generate
        loops = model_inputs.loops(type(entry))

        @functools.wraps(inner)
        def generate(*args: Any, **kwargs: Any) -> Any:
            thread, frame = self.thread, sys._getframe(1)
            if thread.unobserved or thread.is_part(frame):
                return inner(*args, **kwargs)
            if not self._undo:  # taken from the model inside a block that has ended since
                if carried_and_ended():
                    warn_unsteered("generate is called by a thread whose steering block has ended: it is not steered")
                return inner(*args, **kwargs)
            mine = self._owners()
            given = model_inputs.of_generate(entry, args, kwargs) if mine else {}
            custom = kwargs.get("custom_generate")
            prompt = Prompt(given, None, True, self.facts, mine, entry, loops=loops, custom=custom)
            if mine:
                prompt.past = past_length(given) if model_inputs.is_part(given) else 0
                length = model_inputs.prompt_length(given, self.architecture)
                prompt.length = None if length is None else prompt.past + length
            with thread.running(prompt, sys._getframe()):
                output = inner(*args, **kwargs)
            self._note_pictured(prompt, output)
            return output

        return generate

    def _observed_manager(self, entry: nn.Module) -> Callable[..., Any]:
        inner: Callable[..., Any] = cast("Any", entry).init_continuous_batching

        @functools.wraps(inner)
        def init_continuous_batching(*args: Any, **kwargs: Any) -> Any:
            if self._undo and owners(self._blocks):
                return self._managers.make(entry, inner, *args, **kwargs)
            return inner(*args, **kwargs)

        return init_continuous_batching

    def _steered_graph(self, model: nn.Module, signature: inspect.Signature, entry: nn.Module) -> Callable[..., Any]:
        """What transformers asks for the compiled forward pass of a decoding step."""
        inner = cast("Any", entry).get_compiled_call
        begin = self._begin_forward(signature, graph=True)

        def get_compiled_call(compile_config: Any) -> Callable[..., Any]:
            call = self.thread.innermost()
            if not (owners(self._blocks) if call is None else call.owners):
                return inner(compile_config)
            config = compile_config or cast("Any", entry)._default_compile_config()
            graph = compiled.call(model, entry, config.to_dict())

            def run(*args: Any, **kwargs: Any) -> Any:
                begin(entry, args, kwargs)
                output = None
                try:
                    output = graph(entry, args, kwargs)
                finally:
                    self._end_forward(entry, args, output)
                return output

            return run

        return get_compiled_call

    def _owners(self) -> tuple[Block, ...]:
        """The blocks that a call which begins here belongs to; says so where there are others alone."""
        opened = self._blocks
        mine = owners(opened)
        if not mine:
            for block in opened:
                if not block.ended:
                    block.overlook()
        return mine

    # -- what the hooks do -------------------------------------------------------------------------------------------

    def _begin_forward(self, signature: inspect.Signature, *, graph: bool = False) -> Callable[..., None]:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            thread = self.thread
            if thread.unobserved:
                return
            frame = sys._getframe(1)
            outer = thread.entered
            if outer is not None and outer.module is not module and runs(outer.frame):
                return  # the model calls a part of itself
            given = model_inputs.bound(signature, module, args, kwargs)
            thread.entered = None
            if thread.is_pass(given, frame.f_back):
                thread.current = None
            else:
                self._begin_call(module, given, frame)
            held = past_length(given) if (graph or compiled.is_compiled(module)) and thread.calls[-1].owners else 0
            thread.entered = Entered(module, given, frame, held)

        return begin

    def _begin_call(self, module: nn.Module, given: Mapping[str, Any], frame: FrameType) -> Prompt:
        mine = self._owners()
        call = Prompt(given if mine else {}, None, False, self.facts, mine, module)
        if mine:
            model_inputs.check_whole(module, given)
            cache = kv_cache(given)
            call.past = 0 if is_paged(cache) else past_length(given)
            model_inputs.check_loop(given, call.past, frame.f_back, self._name)
            if not is_packed(given):
                call.inputs = model_inputs.with_mask(given, self._model())
        self.thread.push(call, frame, begins=not is_packed(given))
        return call

    def _end_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        thread = self.thread
        if thread.unobserved:  # a contrast is measured while the pass that it belongs to begins
            return
        call = thread.calls[-1] if thread.calls else None
        failure = sys.exc_info()[1]  # this hook is called for exceptions as well
        if call is not None and isinstance(failure, SteerKitError) and is_paged(kv_cache(call.inputs)):
            for block in call.owners:  # the thread of a manager logs what is raised in it, and goes on
                block.failure = block.failure or failure
        unseen = thread.entered is not None and thread.entered.module is module
        owned = call is not None and bool(call.owners)
        if unseen:
            thread.entered = None
        if thread.ends(module):
            thread.pop()
        if unseen and owned and output is not None:
            raise EngineError(
                f"{type(module).__name__} ran a graph that was compiled without steering",
                expected="a graph that was compiled inside a block that steers the same places, by hooks",
                fix="torch.compiler.reset() before the block, and compile inside it; or run the model eagerly",
            )

    def _embedded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note the ids of a forward pass whose beginning was not seen, as that of `model.forward(...)`."""
        if torch.compiler.is_compiling() or self.thread.unobserved or self.thread.entered is not None:
            return
        if args and isinstance(args[0], Tensor) and args[0].dim() == 2 and isinstance(output, Tensor):
            self.thread.embedded = args[0], output.detach()

    def _begin_pass(self, signature: inspect.Signature) -> Callable[..., None]:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            thread = self.thread
            if thread.unobserved:
                return
            given = kwargs if not args else model_inputs.bound(signature, module, args, kwargs)
            entered = thread.entered
            frame = sys._getframe(1)
            # the loop of `generate` ends its passes whatever happens, and is spared the walk up the stack
            loops = bool(thread.calls) and thread.calls[-1].generating
            if entered is None or not (loops or runs(entered.frame)):
                entered = Entered(module, given, frame, 0)
                if not thread.is_pass(given, frame.f_back):
                    embedded, thread.embedded = thread.embedded, None
                    images = self.architecture.image_token_ids
                    self._begin_call(module, model_inputs.with_ids(given, embedded, images), frame)
            thread.entered = thread.embedded = None
            call = thread.calls[-1]
            thread.current = read_pass(self._managers, call, entered, given) if call.owners else None

        return begin

    def _end_pass(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self.thread.unobserved:
            return
        thread = self.thread
        now, thread.current = thread.current, None
        if now is not None and not now.prompt.generating:
            self._note_pictured(now.prompt, output)
        if thread.ends(module):
            thread.pop()

    def _note_pictured(self, prompt: Prompt, output: Any) -> None:
        """Remember for a KV cache that a call gives back what somebody asked of its prompts."""
        cache = kv_cache(output) if isinstance(output, Mapping) else None
        if cache is not None and "pictured" in prompt.memo:
            remember(cache, prompt.memo["pictured"])


_signature = functools.lru_cache(inspect.signature)


def _set(entry: nn.Module, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Put a method on one model, in front of its class's; returns what puts back what was there."""
    own = vars(entry).get(name)
    vars(entry)[name] = method

    def undo() -> None:
        if vars(entry).get(name) is not method:  # somebody has put another one in front
            return
        if own is None:
            vars(entry).pop(name, None)
        else:
            vars(entry)[name] = own

    return undo
