"""The calls of one model that run in a thread, innermost last, and the pass that the thread is in.

A call runs in one thread from its beginning to its end. A logits processor, a stopping criterion or a hook may call the
model again: such a call is one of its own, unless it is a pass of the loop of a running `generate`. That it is, shows
by who makes it (the decoding loops of transformers), or, in a loop of the caller's own (`custom_generate`), by the KV
cache.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import Tensor, nn

from steerkit.engines import model_inputs
from steerkit.engines.caches import kv_cache, past_length
from steerkit.engines.passes import Pass
from steerkit.engines.prompts import Prompt, told
from steerkit.engines.suspension import runs
from steerkit.errors import EngineError


class Entered:
    """A forward pass that has begun, until its decoder has been seen to run."""

    __slots__ = ("frame", "given", "held", "module")

    def __init__(self, module: nn.Module, given: Mapping[str, Any], frame: FrameType, held: int) -> None:
        self.module = module
        self.given = given
        self.frame = frame
        self.held = held
        """How much its KV cache held then, where a graph will run: inside, the cache may have grown already."""


class CallStacks(threading.local):
    """The stack of each thread; of greenlets (gevent's too), which switch in the middle of a call, each has its own."""

    def __init__(self) -> None:
        self._own = CallStack()
        self._of_greenlets: weakref.WeakKeyDictionary[Any, CallStack] = weakref.WeakKeyDictionary()

    @property
    def here(self) -> CallStack:
        """That of the running code."""
        switching = sys.modules.get("greenlet")
        return self._own if switching is None else self._of(switching.getcurrent())

    def adopt(self) -> None:
        """Let the running greenlet work inside the calls of the one that has started it, as nnsight's do."""
        now = sys.modules["greenlet"].getcurrent()
        if now.parent is not None:
            self._of_greenlets[now] = self._of(now.parent)

    def _of(self, greenlet: Any) -> CallStack:
        if greenlet.parent is None:
            return self._own
        found = self._of_greenlets.get(greenlet)
        if found is None:
            found = self._of_greenlets[greenlet] = CallStack()
        return found


class CallStack:
    """The running calls of a thread.

    Attributes:
        calls: The calls, innermost last.
        current: The decoder pass that the thread is in, or None where nothing is to be observed.
        unobserved: How many contexts ask that nothing be observed.
        entered: The forward pass that has begun.
        embedded: Ids and what the model made of them, outside of any forward pass that was seen to begin.
    """

    def __init__(self) -> None:
        self.calls: list[Prompt] = []
        self.current: Pass | None = None
        self.unobserved = 0
        self.entered: Entered | None = None
        self.embedded: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Passes inside belong to no call."""
        outer, self.current = self.current, None
        entered, self.entered = self.entered, None
        self.unobserved += 1
        try:
            yield
        finally:
            self.unobserved -= 1
            self.current, self.entered = outer, entered

    @contextmanager
    def running(self, call: Prompt, frame: FrameType) -> Iterator[None]:
        """While a call runs: `generate`, which ends whatever happens."""
        try:
            self.push(call, frame)
            yield
        finally:
            while call in self.calls:
                self.pop()
            self.entered = None

    def push(self, call: Prompt, frame: FrameType, *, begins: bool = True) -> None:
        """Begin a call in a frame; the blocks that it belongs to stay open until it ends.

        Args:
            call: The call.
            frame: Where it runs.
            begins: Whether the blocks are told; not where a call holds several prompts, each with a beginning.
        """
        self.innermost()
        call.frame, call.interrupted, self.current = frame, self.current, None
        call.owners = tuple(block for block in call.owners if block.hold())
        self.calls.append(call)
        if begins:
            for block in call.owners:
                block.begin(call)

    def pop(self) -> None:
        """End the innermost call: the one around it goes on in the pass that it was in."""
        call = self.calls.pop()
        self.current, call.frame, call.interrupted = call.interrupted, None, None
        for block in call.owners:
            block.release()

    def innermost(self) -> Prompt | None:
        """The call that runs; an interrupt skips the hooks that end one."""
        calls = self.calls
        while calls and calls[-1].frame is not None and not runs(calls[-1].frame):
            self.pop()
        return calls[-1] if calls else None

    def ends(self, module: nn.Module) -> bool:
        """Whether the forward pass of a module is the innermost call."""
        return bool(self.calls) and self.calls[-1].entry is module and not self.calls[-1].generating

    def is_pass(self, given: Mapping[str, Any], frame: FrameType | None) -> bool:
        """Whether what a frame calls is a pass of the running `generate`, and no call of its own."""
        return self.is_part(frame) or self._continues(given) or self._reads_again(given, frame)

    def is_part(self, frame: FrameType | None) -> bool:
        """Whether a frame that calls belongs to the loop of the running `generate`."""
        if not self.calls or not self.calls[-1].generating:
            return False
        return model_inputs.caller(frame) in self.calls[-1].loops

    def _reads_again(self, given: Mapping[str, Any], frame: FrameType | None) -> bool:
        """Whether the caller's own loop reads the prompt and its answer so far anew, without a KV cache.

        Raises:
            EngineError: Somebody else does, who may be a part of the loop, or ask about the sequence.
        """
        call = self.calls[-1] if self.calls else None
        if call is None or call.custom is None or kv_cache(given) is not None or told() is not None:
            return False
        if not call.owners or not model_inputs.extends(given, call.inputs):
            return False
        if model_inputs.is_loop(frame, call.custom):
            return True
        if model_inputs.extent(given)[1] == call.length:
            return False  # the prompt alone, whoever reads it
        raise EngineError(
            "inside custom_generate, and outside of its function, the model reads the prompt and what was generated "
            "without a KV cache: whether that is a step of the loop, or a question about the sequence, is not known",
            expected="passes that are made by the function itself, or with the KV cache of the loop",
            fix="call the model in the function that is given as custom_generate, or say with sk.prompt_lengths where "
            "the prompt ends",
        )

    def _continues(self, given: Mapping[str, Any]) -> bool:
        cache = kv_cache(given)
        if not self.calls or not self.calls[-1].generating or cache is None:
            return False
        call = self.calls[-1]
        if call.cache is None and call.owners and model_inputs.begins(given, call.inputs, past_length(given)):
            call.cache = cache
        return call.cache is cache
