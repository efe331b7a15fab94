"""Follows a model through its calls, so that an intervention knows which token it is looking at.

Inside a decoder block a hidden state is only a tensor. What is padding, image or prompt, and how far generation has
come, is known where the call begins. `CallTracker` notes it there, per thread: at `generate`, at a bare forward pass,
and at each pass of the decoder. It changes nothing that the model computes, and every trace of it goes with its last
user.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steerkit.engines import compiled
from steerkit.engines.caches import kv_cache, past_length, recall, remember
from steerkit.errors import EngineError
from steerkit.interventions import Prompts, Selector, TokenRole, Tokens, last_positions, select
from steerkit.models import Architecture, visual_rows


@dataclass(slots=True, eq=False)
class Prompt:
    """One call of the model from outside, until it returns.

    Attributes:
        inputs: The keyword arguments of the call.
        length: Number of prompt positions, padding included; None until the decoder has seen it.
        generating: Whether the call is `generate`.
        entry: The module whose forward pass is the call, where it is not `generate`.
        past: Positions that a KV cache of the caller's held when the call began, and that its ids do not repeat.
        memo: What engines remember of this prompt, by key.
        reached: The position after the last one that the decoder has seen.
    """

    inputs: Mapping[str, Any]
    length: int | None
    generating: bool
    entry: nn.Module | None = None
    past: int = 0
    memo: dict[Any, Any] = field(default_factory=dict)
    reached: int = 0
    graded: bool = field(default_factory=torch.is_grad_enabled)
    """Whether gradients can flow through it."""

    @property
    def input_ids(self) -> Tensor | None:
        """`[batch, prompt]` ids, where the caller gave ids."""
        return self.inputs.get("input_ids")

    @property
    def count(self) -> int | None:
        """Number of prompts in the batch, where the caller gave ids or embeddings."""
        for key in ("input_ids", "inputs_embeds"):
            given = self.inputs.get(key)
            if isinstance(given, Tensor):
                return int(given.shape[0])
        return None

    @property
    def continues(self) -> bool:
        """Whether the call goes on from a filled KV cache without the ids of what is in it."""
        return self.past > 0

    @property
    def attention_mask(self) -> Tensor | None:
        """`[batch, prompt]`, where the caller gave a two-dimensional mask."""
        mask = self.inputs.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


@dataclass(slots=True, eq=False)
class Selection:
    """Tokens of one pass: either one column of every row, or pairs of row and column."""

    column: int | None
    rows: Tensor | None = None
    columns: Tensor | None = None

    def read(self, h: Tensor) -> Tensor:
        """`[n, hidden]` from `[rows, tokens, hidden]`."""
        if self.column is not None:
            return h[:, self.column]
        return h[self.rows, self.columns]

    def write(self, h: Tensor, values: Tensor) -> Tensor:
        """A new tensor with the selected tokens replaced."""
        if self.column is not None and h.shape[1] == 1:
            return values.unsqueeze(1)
        changed = h.clone()
        if self.column is not None:
            changed[:, self.column] = values
        else:
            changed[self.rows, self.columns] = values
        return changed

    def per_row(self, values: Tensor) -> Tensor:
        """Spread one value per row of the pass over the selected tokens."""
        return values if self.column is not None else values[self.rows]

    def among(self, chosen: Tensor) -> Selection:
        """Those of the tokens that are chosen, `[n]` boolean."""
        if self.rows is None or self.columns is None:
            rows = chosen.nonzero()[:, 0]
            return Selection(None, rows, torch.full_like(rows, cast("int", self.column)))
        return Selection(None, self.rows[chosen], self.columns[chosen])

    def count(self, rows: int) -> int:
        """Number of selected tokens."""
        return rows if self.column is not None else int(self.rows.shape[0])  # type: ignore[union-attr]


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass of the decoder: `length` positions from absolute position `start`.

    `redone` is the number of generated positions from `start` on that an earlier pass has seen: what an assistant model
    proposed there was rejected.
    """

    prompt: Prompt
    tracker: CallTracker
    rows: int
    start: int
    length: int
    prompt_length: int
    redone: int = 0
    graded: bool = field(default_factory=torch.is_grad_enabled)
    visited: set[Any] = field(default_factory=set)
    selections: dict[Selector, Selection | None] = field(default_factory=dict)

    @property
    def reads_prompt(self) -> bool:
        """Whether any position of this pass belongs to the prompt."""
        return self.start < self.prompt_length

    @property
    def decodes(self) -> bool:
        """Whether it reads one generated token of each row."""
        return self.length == 1 and self.start >= self.prompt_length

    def select(self, selector: Selector, device: torch.device) -> Selection | None:
        """The tokens of this pass that a selector means, or None if there are none."""
        if selector not in self.selections:
            chosen = self.chosen(selector.prompts)
            selection = self._select(selector, device) if chosen is not False else None
            for rows in (chosen, True if selector.rows is None else self.each_row(torch.tensor(selector.rows))):
                if selection is not None and isinstance(rows, Tensor):
                    selection = selection.among(selection.per_row(rows.to(device)))
            self.selections[selector] = selection if selection is None or selection.count(self.rows) else None
        return self.selections[selector]

    def each_row(self, values: Tensor) -> Tensor:
        """One value for each prompt of the call, as one for each row of the pass: beams and answers repeat their own.

        Raises:
            EngineError: The call has another number of prompts, or does not say how many.
        """
        prompts = self.prompt.count
        if prompts is None or prompts != len(values) or self.rows % prompts:
            said = "an unknown number of" if prompts is None else prompts
            raise EngineError(
                f"an intervention has factors for {len(values)} rows, and the call has {said} prompts",
                expected="a call with as many prompts, in the same order",
                fix="give rows one factor for each prompt of the batch, or leave rows out",
            )
        return values.repeat_interleave(self.rows // prompts)

    def chosen(self, prompts: Prompts) -> Tensor | bool:
        """Which rows belong to such prompts: `[rows]` boolean, or one word for all of them.

        Raises:
            EngineError: The call does not say whether its prompts hold an image.
        """
        if prompts == "all":
            return True
        held = self.tracker.pictured(self.prompt)
        if isinstance(held, bool):
            return held is (prompts == "with_image")
        chosen = held if prompts == "with_image" else ~held
        return chosen.repeat_interleave(self.rows // chosen.shape[0])  # beams and several answers repeat each row

    def _select(self, selector: Selector, device: torch.device) -> Selection | None:
        tokens = selector.tokens
        if selector.counts_answers:
            self.check_counted()
        if self.decodes and (decoded := selector.answers_at(self.start - self.prompt_length)) is not None:
            return Selection(0) if decoded else None
        roles = self.tracker.roles(self.prompt, self.prompt_length, device, tokens)
        if roles.shape[0] != self.rows:
            roles = roles.repeat_interleave(self.rows // roles.shape[0], dim=0)
        whole = self.reads_prompt and self.start + self.length <= self.prompt_length
        if tokens == "last" and whole and not selector.counts:
            column = self._common_last(roles) if selector.phase != "generation" else None
            if column is not None:
                return Selection(column)
        mask = select(selector, roles, self.start, self.length)
        rows, columns = mask.nonzero(as_tuple=True)
        return Selection(None, rows, columns) if rows.numel() else None

    def check_counted(self) -> None:
        """Refuse to count the tokens of an answer whose beginning is not known.

        Raises:
            EngineError: The pass goes on from a KV cache in a call of its own.
        """
        if self.start and not self.prompt.generating:
            raise EngineError(
                "an intervention counts generated tokens, in a forward pass that continues from a KV cache",
                expected="generate(), which says where the answer begins",
                fix="generate with it, or leave positions and steps of generated tokens out",
            )

    def _common_last(self, roles: Tensor) -> int | None:
        """The column of the last prompt token if it is the same in every row and in this pass (left padding)."""
        last = last_positions(roles)
        first = int(last[0])
        inside = self.start <= first < self.start + self.length
        return first - self.start if inside and bool((last == first).all()) else None


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.current: Pass | None = None
        self.unobserved = 0
        self.entered: dict[str, Any] | None = None
        """Arguments of the model's forward pass that is running, until its decoder has been seen to run."""
        self.entered_at = 0
        """How much its KV cache held then, where a graph will run: inside, the cache may have grown already."""


class CallTracker:
    """Notes, per thread, which prompt a model is working on and where its decoder stands.

    Obtain one with `CallTracker.of`; it is installed while anybody holds it and leaves the model as it found it.
    """

    _trackers: ClassVar[weakref.WeakKeyDictionary[nn.Module, CallTracker]] = weakref.WeakKeyDictionary()
    _lock = threading.RLock()

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self._model = weakref.ref(model)
        self.architecture = architecture
        self.thread = _PerThread()
        self._users = 0
        self._undo: list[Callable[[], None]] = []
        self._listeners: list[Callable[[Prompt], None]] = []
        self.system_lengths: Callable[[Tensor, Tensor], Tensor] | None = None

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

    def listen(self, listener: Callable[[Prompt], None]) -> Callable[[], None]:
        """Call a function at the start of every call from outside; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

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
                raise EngineError(
                    f"a compiled graph of {self._name} runs, and hides where its call begins",
                    expected="generate(..., cache_implementation='static'), which compiles by itself, or a model whose "
                    "forward pass alone is compiled",
                    fix="model.forward = torch.compile(model.forward) inside the block, not model.compile() or "
                    "torch.compile(model)",
                )
            thread.current = self._pass(thread.entered, thread.entered_at)
            thread.entered = None
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
        """Passes of this thread inside are nobody's: they are neither steered nor counted."""
        outer, self.thread.current = self.thread.current, None
        self.thread.unobserved += 1
        try:
            yield
        finally:
            self.thread.unobserved -= 1
            self.thread.current = outer

    def pictured(self, prompt: Prompt) -> Tensor | bool:
        """Which rows of a call hold an image: `[batch]` boolean on the CPU, or one word for all of them.

        Raises:
            EngineError: The call does not say.
        """
        if "pictured" not in prompt.memo:
            prompt.memo["pictured"] = self._pictured(prompt)
        return prompt.memo["pictured"]

    def _pictured(self, prompt: Prompt) -> Tensor | bool:
        if not self.architecture.image_token_ids:
            return False
        ids = prompt.input_ids
        if ids is None:
            raise EngineError(
                "an intervention is for prompts by whether they hold an image, and the call has no input_ids",
                expected="generate(**inputs), or a forward pass with input_ids",
                fix="pass input_ids beside inputs_embeds, or set prompts='all' in the intervention",
            )
        held = visual_rows(prompt.inputs, self.architecture)
        if prompt.continues:
            before = recall(kv_cache(prompt.inputs))
            if before is None:
                raise EngineError(
                    "an intervention is for prompts by whether they hold an image, and a call goes on from a KV cache "
                    "of which that is not known",
                    expected="the ids of the whole conversation, or a KV cache that a call inside a block with such an "
                    "intervention has filled, and nobody has changed or copied since",
                    fix="pass all ids to generate, which leaves out what the cache holds; or set prompts='all' in the "
                    "intervention",
                )
            held = held | before
        return bool(held[0]) if bool((held == held[0]).all()) else held

    def roles(self, prompt: Prompt, length: int, device: torch.device, tokens: Tokens) -> Tensor:
        """`[batch, prompt]` roles of the prompt's tokens.

        Raises:
            EngineError: The selector needs token ids (or a tokenizer, for `system`) and the caller gave none.
        """
        key = ("roles", tokens in ("system", "text"), tokens in ("image", "after_image"), device)
        if key not in prompt.memo:
            prompt.memo[key] = self._roles(prompt, length, device, tokens)
        return prompt.memo[key]

    def _roles(self, prompt: Prompt, length: int, device: torch.device, tokens: Tokens) -> Tensor:
        by_content = tokens in ("image", "text", "system", "after_image")
        ids, mask = prompt.input_ids, prompt.attention_mask
        if self.architecture.encoder_decoder:
            if by_content:
                raise EngineError(
                    f"tokens={tokens!r} in an encoder-decoder model",
                    expected="last, all or generated: its decoder sees neither image nor text tokens",
                )
            return torch.full((1, length), int(TokenRole.TEXT), device=device)
        if mask is not None and mask.shape[1] >= length:
            real = mask[:, :length].to(device) != 0
        else:  # ids alone: a pass that continues from a KV cache has only its own
            real = torch.ones((1 if ids is None else ids.shape[0], length), dtype=torch.bool, device=device)
        roles = torch.where(real, int(TokenRole.TEXT), int(TokenRole.PAD))
        if not by_content:
            return roles
        if ids is None or ids.shape[1] < length:
            raise EngineError(
                f"tokens={tokens!r} in a call without the input_ids of the whole prompt",
                expected="generate(**inputs), or a forward pass over the whole prompt",
            )
        if tokens != "system" and self.architecture.image_token_ids:
            visual_rows(prompt.inputs, self.architecture)  # refuses what is neither text nor known to be visual
        ids = ids[:, :length].to(device)
        for token in self.architecture.image_token_ids:
            roles = torch.where(real & (ids == token), int(TokenRole.IMAGE), roles)
        if tokens in ("system", "text") and self.architecture.user_marker is not None:
            if self.system_lengths is None:
                raise EngineError(
                    f"tokens={tokens!r} needs the tokenizer, to tell the system's turn from the user's",
                    expected="a model that was loaded or wrapped with its processor",
                    fix="pass the VLM instead of the raw model: sk.steer(sk.wrap(model, processor), ...)",
                )
            lengths = self.system_lengths(ids, real).to(device)
            system = torch.arange(length, device=device) < lengths[:, None]
            roles = torch.where(system & (roles == int(TokenRole.TEXT)), int(TokenRole.SYSTEM), roles)
        return roles

    # -- installation ------------------------------------------------------------------------------------------------

    def _install(self, model: nn.Module) -> None:
        decoder = model.get_submodule(self.architecture.decoder)
        entries = [model]
        if self.architecture.text_module:
            entries.append(model.get_submodule(self.architecture.text_module))

        def install(name: object, handle: RemovableHandle) -> None:
            self._undo.append(compiled.numbered(model, name, handle).remove)

        for at, entry in enumerate(entries):
            signature = inspect.signature(type(entry).forward)
            begin = self._begin_forward(signature, outermost=at == 0)
            install(("begin", at), entry.register_forward_pre_hook(begin, with_kwargs=True))
            install(("end", at), entry.register_forward_hook(self._end_forward, always_call=True))
            if callable(getattr(type(entry), "generate", None)):
                self._undo.append(_set(entry, "generate", self._observed_generate(entry)))
                self._undo.append(_set(entry, "get_compiled_call", self._steered_graph(model, entry, signature)))
        signature = inspect.signature(type(decoder).forward)
        install("begin pass", decoder.register_forward_pre_hook(self._begin_pass(signature), with_kwargs=True))
        install("end pass", decoder.register_forward_hook(self._end_pass, always_call=True))

    def _uninstall(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _observed_generate(self, entry: nn.Module) -> Callable[..., Any]:
        inner: Callable[..., Any] = cast("Any", entry).generate

        @functools.wraps(inner)
        def generate(*args: Any, **kwargs: Any) -> Any:
            thread = self.thread
            if thread.unobserved or (thread.prompts and thread.prompts[-1].generating):
                return inner(*args, **kwargs)
            thread.prompts.clear()  # no forward pass calls generate: what is left here was interrupted
            given = dict(kwargs)
            if args and isinstance(args[0], Tensor):
                given.setdefault("input_ids" if not args[0].is_floating_point() else "pixel_values", args[0])
            if isinstance(given.get("inputs"), Tensor):
                given.setdefault("input_ids", given["inputs"])
            config = cast("Any", entry).generation_config
            _check_one_sequence(given, config)
            _infer_mask(given, config)
            past = past_length(given) if _is_part(given) else 0
            length = self._prompt_length(given)
            prompt = Prompt(given, None if length is None else past + length, generating=True, past=past)
            with self._prompt(prompt):
                output = inner(*args, **kwargs)
            self._note_pictured(prompt, output)
            return output

        return generate

    def _steered_graph(self, model: nn.Module, entry: nn.Module, signature: inspect.Signature) -> Callable[..., Any]:
        """What transformers asks for the compiled forward pass of a decoding step."""
        begin = self._begin_forward(signature, outermost=entry is model, graph=True)

        def get_compiled_call(compile_config: Any) -> Callable[..., Any]:
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

    @contextmanager
    def _prompt(self, prompt: Prompt) -> Iterator[None]:
        prompts = self.thread.prompts
        prompts.append(prompt)
        try:
            for listener in tuple(self._listeners):
                listener(prompt)
            yield
        finally:
            prompts.remove(prompt)

    def _prompt_length(self, given: Mapping[str, Any]) -> int | None:
        if self.architecture.encoder_decoder:
            start = given.get("decoder_input_ids")
            return start.shape[1] if isinstance(start, Tensor) else 1
        for key in ("input_ids", "inputs_embeds"):
            if isinstance(given.get(key), Tensor):
                return int(given[key].shape[1])
        return None

    # -- what the hooks do -------------------------------------------------------------------------------------------

    def _begin_forward(
        self, signature: inspect.Signature, *, outermost: bool, graph: bool = False
    ) -> Callable[..., None]:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            thread = self.thread
            if thread.unobserved:
                return
            # no model calls itself, nor does its text module call it: an interrupt skipped the hook that ends a pass
            last = thread.prompts[-1] if thread.prompts else None
            if last is not None and not last.generating and (outermost or last.entry is module):
                thread.prompts.clear()
            thread.current = None
            thread.entered = given = _bound(signature, module, args, kwargs)
            if graph or compiled.is_compiled(module):
                thread.entered_at = past_length(given)
            if thread.prompts:
                return
            prompt = Prompt(given, None, generating=False, entry=module, past=past_length(given))
            thread.prompts.append(prompt)
            for listener in tuple(self._listeners):
                listener(prompt)

        return begin

    def _end_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        thread = self.thread
        if thread.unobserved:  # a contrast is measured while the pass that it belongs to begins
            return
        if thread.prompts and thread.prompts[-1].entry is module:
            thread.prompts.pop()
        unseen, thread.entered, thread.current = thread.entered, None, None
        if unseen is not None and output is not None:
            raise EngineError(
                f"{type(module).__name__} ran a graph that was compiled without steering",
                expected="a graph that was compiled inside a block that steers the same places, by hooks",
                fix="torch.compiler.reset() before the block, and compile inside it; or run the model eagerly",
            )

    def _begin_pass(self, signature: inspect.Signature) -> Callable[..., None]:
        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            thread = self.thread
            if thread.unobserved:
                return
            thread.entered = None
            thread.current = self._pass(kwargs if not args else _bound(signature, module, args, kwargs))

        return begin

    def _pass(self, given: Mapping[str, Any], start: int | None = None) -> Pass:
        prompts = self.thread.prompts
        tokens = given.get("inputs_embeds")
        if tokens is None:
            tokens = given["input_ids"]
        rows, length = int(tokens.shape[0]), int(tokens.shape[1])
        start = past_length(given) if start is None else start
        prompt = prompts[-1] if prompts else Prompt(given, None, generating=False)
        if prompt.length is not None:
            prompt_length = prompt.length
        elif start == 0 or length > 1:
            prompt_length = start + length
        else:
            prompt_length = start
        rejected = prompt.generating and start >= prompt_length
        redone = max(0, prompt.reached - start) if rejected else 0
        prompt.reached = start + length
        return Pass(prompt, self, rows, start, length, prompt_length, redone)

    def _end_pass(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self.thread.unobserved:
            return
        now, self.thread.current = self.thread.current, None
        if now is not None and not now.prompt.generating:
            self._note_pictured(now.prompt, output)

    def _note_pictured(self, prompt: Prompt, output: Any) -> None:
        """Remember for a KV cache that a call gives back what somebody asked of its prompts."""
        cache = kv_cache(output) if isinstance(output, Mapping) else None
        if cache is not None and "pictured" in prompt.memo:
            remember(cache, prompt.memo["pictured"])


def _set(entry: nn.Module, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Put a method on one model, in front of its class's; returns what puts back what was there."""
    own = vars(entry).get(name)
    vars(entry)[name] = method

    def undo() -> None:
        if own is None:
            vars(entry).pop(name, None)
        else:
            vars(entry)[name] = own

    return undo


def _is_part(given: Mapping[str, Any]) -> bool:
    """Whether the ids given to `generate` are those behind a KV cache alone; the mask is always of the whole."""
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    return isinstance(ids, Tensor) and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > ids.shape[1]


def _check_one_sequence(given: Mapping[str, Any], config: Any) -> None:
    """Refuse guidance without a classifier, which reads a second sequence between the passes over the first.

    Raises:
        EngineError: It is asked for.
    """
    config = given.get("generation_config") or config
    scale = given.get("guidance_scale", getattr(config, "guidance_scale", None))
    if scale is not None and scale != 1:
        raise EngineError(
            f"generate with guidance_scale={scale!r} while the model is steered: its two sequences can't be told apart",
            expected="one sequence for each prompt",
            fix="leave guidance_scale out, or steer without it",
        )


def _infer_mask(given: dict[str, Any], config: Any) -> None:
    """Take padding for padding where the caller gave no mask, as `generate` itself does."""
    config = given.get("generation_config") or config
    ids, ends = given.get("input_ids"), given.get("eos_token_id", config.eos_token_id)
    pad = given.get("pad_token_id", config.pad_token_id)
    if not isinstance(ids, Tensor) or given.get("attention_mask") is not None or pad is None:
        return
    if pad not in (ends if isinstance(ends, list) else [ends]) and bool((ids == pad).any()):
        given["attention_mask"] = (ids != pad).long()


def _bound(
    signature: inspect.Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Positional arguments by their names, together with the keyword arguments."""
    if not args:
        return dict(kwargs)
    named = dict(signature.bind_partial(module, *args).arguments)
    named.pop("self", None)
    return {**named, **kwargs}
