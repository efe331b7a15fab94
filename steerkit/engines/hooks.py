"""The engine on torch forward hooks: for raw `generate`, for several threads, and for speed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.engines import compiled
from steerkit.engines.application import Application
from steerkit.engines.attached import Attached
from steerkit.engines.attachments import Attachments, shared
from steerkit.engines.blocks import Block
from steerkit.engines.calls import CallTracker
from steerkit.engines.model_inputs import prompt_length
from steerkit.engines.passes import Observed
from steerkit.engines.reruns import Rerun, again, cut, waiting
from steerkit.engines.steps import Place
from steerkit.engines.vision import pass_at
from steerkit.errors import EngineError
from steerkit.interventions import Pool, Site, Tower, last_positions
from steerkit.models import Architecture, Inputs, is_shown, merged, start_token


def hidden(output: Any) -> Tensor:
    """The hidden state in a module's output, which some families wrap in a tuple or a list."""
    return output[0] if isinstance(output, (tuple, list)) else output


def with_hidden(output: Any, h: Tensor) -> Any:
    """The same output around another hidden state."""
    if isinstance(output, list):
        return [h, *output[1:]]
    return (h, *output[1:]) if isinstance(output, tuple) else h


@contextmanager
def applied(model: nn.Module, tracker: CallTracker, application: Application, block: Block) -> Iterator[None]:
    """Steer a model by hooks on the places that the application names.

    Args:
        model: The Hugging Face model.
        tracker: The tracker installed on it.
        application: What to apply.
        block: Steer the calls that belong to it.

    Raises:
        EngineError: One module stands at several places; for what happens inside, see `Attachments.of`.
    """
    architecture = tracker.architecture
    for place in {place[1:]: place for place in application.places}.values():
        check_distinct(model, architecture, place.site, place.tower)
    turn = _Turn(tracker, application, block)
    with ExitStack() as stack:
        stack.callback(setattr, application, "closed", True)
        hooks: list[Attached] = []
        for place in application.places:
            slot = compiled.acquire(model, place)
            stack.callback(compiled.release, slot)
            slot.steer = _traced(turn, place)
            hooks.append(_Steering(turn, place, slot.number))
        outlets = {architecture.site(layer, "resid_post", tower) for layer, _, tower in application.places}
        outlets = {*outlets, architecture.decoder} - {hook.path for hook in hooks}
        hooks += [_Outlet(path, tracker) for path in sorted(outlets)]
        stack.enter_context(Attachments.of(model, hooks, _owners(architecture, application), turn.refuse))
        yield


def _owners(architecture: Architecture, application: Application) -> list[str]:
    """Paths of the modules whose passes are followed."""
    owners = [architecture.decoder]
    if architecture.vision is not None and any(place.tower == "vision" for place in application.places):
        owners.append(architecture.vision.layers.rpartition(".")[0])
    return [*owners, architecture.text_module] if architecture.text_module else owners


def check_distinct(model: nn.Module, architecture: Architecture, site: Site, tower: Tower) -> None:
    """Refuse a model that runs one module at several places.

    Raises:
        EngineError: It does.
    """
    taken: dict[nn.Module, str] = {}
    for layer in range(architecture.count(tower)):
        path = architecture.site(layer, site, tower)
        try:
            module = model.get_submodule(path)
        except AttributeError:  # blocks may differ in what they have inside
            continue
        if taken.setdefault(module, path) != path:
            raise shared(taken[module], path)


class _Turn:
    """Whose turn it is: which calls an application steers."""

    def __init__(self, tracker: CallTracker, application: Application, block: Block) -> None:
        self.tracker = tracker
        self.application = application
        self.block = block

    def now(self, place: Place, h: Tensor) -> Observed | None:
        """The pass that a hidden state belongs to; None if the application has nothing to do with it."""
        if self.application.closed:
            return None
        now = pass_at(self.tracker, place, h)
        if now is None:
            self._check_alone(place)
        return now if now is not None and self.block in now.prompt.owners else None

    def _check_alone(self, place: Place) -> None:
        """Refuse to leave a block alone of whose pass nothing is known; backward passes may run any block again.

        Raises:
            EngineError: The block runs outside of every pass of the decoder.
        """
        if torch._C._current_graph_task_id() >= 0:
            return
        prompt = self.tracker.prompt()
        if prompt is not None and self.block in prompt.owners:
            architecture = self.tracker.architecture
            raise EngineError(
                f"{architecture.site(*place)} runs inside the steering block, but outside of a call of "
                f"{architecture.decoder or 'the model'}: whose tokens are not known",
                expected="a call of the model, or of what its decoder is inside of, not of its forward() alone or of "
                "single blocks",
                fix="call the module itself, as model(...) or model.model(...), and blocks outside of `steer`",
            )

    def refuse(self, module: nn.Module, inside: str) -> None:
        """Refuse a pass that will be run again as a whole, when nothing of ours is there to steer it, or to stop it.

        Raises:
            EngineError: The pass is this application's.
        """
        prompt = self.tracker.prompt()
        if prompt is not None and self.block in prompt.owners and not self.application.closed:
            raise EngineError(
                f"{type(module).__name__} runs inside {inside} while it is steered",
                expected="a pass that is run once; checkpoints may be around its blocks, or inside them",
                fix="model.gradient_checkpointing_enable() for training; trace and capture outside the steering block",
            )


class _Steering(Attached):
    """What one application does at one place."""

    def __init__(self, turn: _Turn, place: Place, slot: int) -> None:
        super().__init__(turn.tracker.architecture.site(*place), on_input=place.site == "head_out")
        self._turn = turn
        self._place = place
        self._tracker = turn.tracker if place.tower == "language" else None
        self._slot = slot
        self._follows = turn.application.follows(place)
        self._apply = functools.partial(turn.application.apply, place)
        self._apply_again = functools.partial(turn.application.apply_again, place)

    def run(self, module: nn.Module, value: Any) -> Any:
        """See `Attached`."""
        h = hidden(value)
        if torch.compiler.is_compiling():
            return with_hidden(value, compiled.steered(h, self._slot))
        turn = self._turn
        now = None if self._tracker is None else self._tracker.current
        if now is not None and now.decodes and not now.graded and turn.block in now.prompt.owners and not waiting:
            # the same as below, with less of what is spent in every block for every token
            if turn.application.closed:
                return None
            self.check_turn(module)
            changed = self._apply(h, now)
            return None if changed is h else with_hidden(value, changed)
        place = self._place
        now = again(self)
        if now is not None:
            changed = now.visit(self._apply_again, h)
            return None if changed is h else with_hidden(value, changed)
        now = turn.now(place, h)
        if now is None:
            return None
        self.check_turn(module)
        if self._follows and now.graded and not torch.is_grad_enabled():
            raise EngineError(
                f"the strength at {self.path} follows what is read in another layer, and reentrant gradient "
                "checkpointing would cut the gradient between the two",
                expected="checkpointing that is not reentrant, or a strength that is read where it is used",
                fix="model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})",
            )
        changed = now.visit(self._apply, h)
        if now.graded:
            rerun = Rerun.of(now)
            rerun.note(self, module, now)
            if place.site == "resid_post":
                rerun.follow(changed)
        return None if changed is h else with_hidden(value, changed)


class _Outlet(Attached):
    """Where the states of a pass leave a block, or the decoder, and where its gradients will come in."""

    def __init__(self, path: str, tracker: CallTracker) -> None:
        super().__init__(path, on_input=False)
        self._tracker = tracker
        self._ends_pass = path == tracker.architecture.decoder

    def run(self, module: nn.Module, value: Any) -> None:
        """See `Attached`."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        prompt = self._tracker.prompt()
        rerun = None if prompt is None else prompt.memo.get(Rerun)
        if prompt is not None and rerun is not None:
            rerun.follow(value)
            if self._ends_pass and not prompt.generating:
                cut(prompt.memo)


def _traced(turn: _Turn, place: Place) -> compiled.Steer:
    """What the hook does where it was traced into a graph."""
    tracker, application = turn.tracker, turn.application
    apply = functools.partial(application.apply, place)

    def steer(h: Tensor) -> Tensor:
        if place.tower == "vision":
            prompt = tracker.prompt()
            if prompt is None or turn.block not in prompt.owners:
                return h
            raise EngineError(
                "the vision tower is steered inside a compiled graph",
                expected="a vision tower that runs eagerly: it does not say which of its blocks a graph serves",
                fix="generate(..., cache_implementation='static') compiles the decoding steps alone",
            )
        now = tracker.in_graph(place, application)
        return h if now is None or turn.block not in now.prompt.owners else now.visit(apply, h)

    return steer


_innermost: ContextVar[object] = ContextVar("steerkit_innermost_capture", default=None)
"""Whose pass runs: a contrast that is measured while a steered pass is captured is a pass of its own."""


class _Reached(Exception):
    """Ends a forward pass at the last module whose output is wanted; never leaves this module."""


def capture(
    model: nn.Module,
    inputs: Inputs,
    architecture: Architecture,
    layers: Sequence[int],
    site: Site,
    tower: Tower = "language",
    pool: Pool = "last",
    whole: Callable[[Any], object] | None = None,
) -> dict[int, Tensor]:
    """`{layer: [batch, hidden]}`: the hidden state that stands for each prompt, from one forward pass.

    The pass ends at the highest layer that is wanted: neither the layers above nor the logits are computed, unless the
    whole is asked for.

    Args:
        model: The Hugging Face model.
        inputs: Keyword arguments of its forward pass (or of its text module's, where there is no image).
        architecture: The model's.
        layers: 0-based blocks.
        site: Where in the block.
        tower: Which tower. In the vision tower the pass must be of one prompt.
        pool: The last token, or the mean; in the vision tower always the mean, over all tokens of all images.
        whole: Called with what the model returns.
    """
    found: dict[int, Tensor] = {}
    ran = {layer: _runs_before(layer, site, tower, inputs, architecture) for layer in layers}
    runs = dict.fromkeys(ran.values(), 0)
    owner = threading.get_ident()
    read = reader(inputs, architecture, tower, pool, site)
    # weights that accelerate moves in for a pass move out only when the pass ends of itself
    last = max(runs) if getattr(model, "hf_device_map", None) is None and whole is None else None

    def hook_at(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any = None) -> None:
            if threading.get_ident() != owner or _innermost.get() is not found:
                return
            runs[layer] += 1
            found[layer] = read(hidden(args if site == "head_out" else output)).detach()
            if layer == last and runs[layer] == (architecture.runs[layer] if architecture.runs else 1):
                raise _Reached

        return hook

    handles = []
    for layer in runs:
        module = model.get_submodule(architecture.site(layer, site, tower))
        register = module.register_forward_pre_hook if site == "head_out" else module.register_forward_hook
        handles.append(register(hook_at(layer)))
    token = _innermost.set(found)
    try:
        with torch.no_grad():
            output = call_target(model, inputs, architecture)(**forward_inputs(model, inputs, architecture))
            if whole is not None:
                whole(output)
    except _Reached:
        pass
    finally:
        _innermost.reset(token)
        for handle in handles:
            handle.remove()
    return {layer: found[ran[layer]] for layer in layers}


def _runs_before(layer: int, site: Site, tower: Tower, inputs: Inputs, architecture: Architecture) -> int:
    """The block whose output is the state behind a layer: the one before, where a block needs an image to run.

    Raises:
        EngineError: What is read is inside a block that does not run.
    """
    if tower == "vision" or layer not in architecture.only_with_image or is_shown(inputs):
        return layer
    if site != "resid_post" or not layer:
        raise EngineError(
            f"{site} of block {layer} is read, which runs for prompts with an image alone",
            expected="resid_post, or a prompt with an image",
        )
    return _runs_before(layer - 1, site, tower, inputs, architecture)


def reader(
    inputs: Inputs, architecture: Architecture, tower: Tower, pool: Pool, site: Site
) -> Callable[[Tensor], Tensor]:
    """What takes the hidden states of a pass to `[batch, hidden]`; see `capture`."""
    if tower == "vision":
        return lambda h: h.flatten(0, -2).float().mean(0, keepdim=True)
    # where the image is put in front of the ids, a state has more positions than they
    width = inputs["input_ids"].shape[1] if architecture.marks == "prefix" else None
    if pool == "last":
        index = last_index(inputs, architecture)

        def last(h: Tensor) -> Tensor:
            h = _one_state(merged(h, architecture), inputs, architecture, site)
            more = 0 if width is None else h.shape[1] - width
            return h[torch.arange(h.shape[0], device=h.device), index.to(h.device) + more]

        return last
    mask = None if architecture.encoder_decoder else inputs.get("attention_mask")

    def mean(h: Tensor) -> Tensor:
        h = _one_state(merged(h, architecture), inputs, architecture, site)
        real = torch.ones(h.shape[:2], device=h.device)
        if mask is not None:
            real[:, -mask.shape[1] :] = (mask != 0).to(h.device).float()
        return torch.einsum("bth,bt->bh", h.float(), real) / real.sum(1, keepdim=True)

    return mean


def _one_state(h: Tensor, inputs: Inputs, architecture: Architecture, site: Site) -> Tensor:
    """The state, once it is known to be one for each position of each prompt.

    Raises:
        EngineError: It is something else, of which the wrong part would be read.
    """
    rows = next(iter(inputs.values())).shape[0]
    told = architecture.marks in ("", "ids") and not architecture.encoder_decoder
    width = inputs["input_ids"].shape[1] if told else None
    wide = architecture.hidden_size if site == "resid_post" else h.shape[-1]
    if h.dim() != 3 or tuple(h.shape) != (rows, width or h.shape[1], wide):
        raise EngineError(
            f"a module gives a state of shape {tuple(h.shape)} for {rows} prompts",
            expected=f"({rows}, {width or 'positions'}, {architecture.hidden_size})",
            fix="read resid_post; or declare `state` in a Family record, where blocks return several streams",
        )
    return h


def call_target(model: nn.Module, inputs: Mapping[str, Any], architecture: Architecture) -> nn.Module:
    """The module that takes these inputs: the model, or its text module where there is no image."""
    return model if is_shown(inputs) else model.get_submodule(architecture.text_module)


def forward_inputs(model: nn.Module, inputs: Inputs, architecture: Architecture) -> dict[str, Any]:
    """Inputs completed for one forward pass that is not going to be continued."""
    completed: dict[str, Any] = {**inputs, "use_cache": False}
    if architecture.encoder_decoder and "decoder_input_ids" not in inputs:
        text = model.get_submodule(architecture.text_module) if architecture.text_module else model
        start = start_token(text)
        first = next(iter(inputs.values()))
        completed["decoder_input_ids"] = torch.full((first.shape[0], 1), start, device=first.device)
    if architecture.counts_padding and "attention_mask" in inputs and not bool(inputs["attention_mask"].all()):
        completed["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)  # as generate does
    return completed


def last_index(inputs: Inputs, architecture: Architecture) -> Tensor:
    """`[batch]` position of the last prompt token in the decoder's sequence."""
    if architecture.encoder_decoder:
        first, begun = next(iter(inputs.values())), prompt_length(inputs, architecture) or 1
        return torch.full((first.shape[0],), begun - 1, device=first.device)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    return last_positions(torch.ones_like(ids) if mask is None else mask)
