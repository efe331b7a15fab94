"""The engine on nnsight tracing: for research, where traces of one's own run around the steered model.

Every traced `with` block of the library is in this module: nnsight runs such a block from its source. Wrapping a model
with nnsight replaces the `forward` of its modules, for good, by one that computes the same; torch hooks are not used,
and run after nnsight has seen a module's output.

nnsight is not thread safe. One lock for each model guards every trace that this module runs (`capture`, and a steered
`VLM.generate`). It does not guard the traces that are opened on `receipt.nnsight` or on wrappers of one's own, nor
calls of the raw model: while any trace runs, no other thread may run the same model. For threads, use the hooks engine.
"""

from __future__ import annotations

import copy
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steerkit.engines import capturing, hooks
from steerkit.engines.application import Application
from steerkit.engines.blocks import Block
from steerkit.engines.calls import CallTracker
from steerkit.engines.prompts import Prompt
from steerkit.engines.steps import Place
from steerkit.engines.vision import pass_at
from steerkit.errors import EngineError
from steerkit.interventions import OPERATIONS, Pool, Site, Tower
from steerkit.models import Architecture, Inputs, LoadedModel, tokenizer_of

try:
    import nnsight
    from nnsight.intervention.interleaver import Mediator, OutOfOrderError
    from nnsight.intervention.source import STATE

    from steerkit.engines import replaying
except ImportError as error:
    raise EngineError(
        f"nnsight can't be imported ({error})", expected="nnsight 0.8", fix="install it, or pass engine='hooks'"
    ) from error


class _Wrapped:
    """The wrapper of one model, shared by all traces of this module, and the lock that they take."""

    _known: ClassVar[weakref.WeakKeyDictionary[nn.Module, _Wrapped]] = weakref.WeakKeyDictionary()
    _guard = threading.Lock()

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.thread = threading.local()
        self._root: Any = None

    @classmethod
    def of(cls, model: nn.Module) -> _Wrapped:
        """The model's; it lives as long as the model, and does not keep it alive."""
        with cls._guard:
            found = cls._known.get(model)
            if found is None:
                found = cls._known[model] = cls()
            return found

    @property
    def programs(self) -> list[_Program]:
        """What the open steering blocks of this thread apply, the outermost first."""
        if not hasattr(self.thread, "programs"):
            self.thread.programs = []
        return self.thread.programs

    def root(self, model: nn.Module, paths: Sequence[str]) -> Any:
        """The wrapper, made anew if one of the modules has been replaced since; call it under the lock."""
        root = self._root
        if root is None or any(root.get(path)._module is not model.get_submodule(path) for path in paths):
            root = self._root = _quietly(nnsight.NNsight, model)
            vars(root)["_module"] = weakref.proxy(model)  # a strong reference would keep the key of `_known` alive
        return root


def _quietly(wrap: Callable[..., Any], model: nn.Module, **options: Any) -> Any:
    """Wrap a model; BERT's submodules called `output`, of which nnsight warns, are of no interest here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Module '.*' has a submodule named 'output'", category=UserWarning)
        return wrap(model, **options)


def _call(run: Callable[[], Any]) -> Any:
    return run()


def capture(
    model: nn.Module,
    inputs: Inputs,
    architecture: Architecture,
    layers: Sequence[int],
    site: Site,
    tower: Tower = "language",
    pool: Pool | Sequence[int] = "last",
) -> dict[int, Tensor]:
    """`{layer: [batch, hidden]}`: the hidden state that stands for each prompt, from one forward pass.

    The same numbers as `capturing.capture`. The pass ends at the highest layer that is wanted. Where torch hooks are on
    the wanted modules (as within a block steered by hooks), they change the output after nnsight has seen it: it is
    then read by hooks as well.

    Args:
        model: The Hugging Face model.
        inputs: Keyword arguments of its forward pass (or of its text module's, where there is no image).
        architecture: The model's.
        layers: 0-based blocks.
        site: Where in the block.
        tower: As for `capturing.capture`.
        pool: As for `capturing.capture`.
    """
    paths = {layer: architecture.site(layer, site, tower) for layer in sorted(set(layers))}
    modules = [model.get_submodule(path) for path in paths.values()]
    if architecture.runs or architecture.only_with_image:  # a trace waits for every block once
        return capturing.capture(model, inputs, architecture, layers, site, tower, pool)
    if any(module._forward_hooks or (site == "head_out" and module._forward_pre_hooks) for module in modules):
        return capturing.capture(model, inputs, architecture, layers, site, tower, pool)
    read = capturing.reader(inputs, architecture, tower, pool, site)
    stops = not capturing.moves_weights(model)
    target = capturing.call_target(model, inputs, architecture)
    # bound here, not given to the trace: nnsight would send them to the device of the first weight
    run = functools.partial(target, **capturing.forward_inputs(model, inputs, architecture))
    found: dict[int, Tensor] = {}
    wrapped = _Wrapped.of(model)
    with wrapped.lock, torch.no_grad():
        root = wrapped.root(model, list(paths.values()))
        envoys = {layer: root.get(path) for layer, path in paths.items()}
        with root.trace(run, fn=_call) as tracer:
            for layer, envoy in envoys.items():
                h = capturing.hidden(envoy.input if site == "head_out" else envoy.output)
                found[layer] = read(h).detach()
            if stops:
                tracer.stop()
    return {layer: found[layer] for layer in layers}


@contextmanager
def applied(vlm: LoadedModel, tracker: CallTracker, application: Application, block: Block) -> Iterator[Any]:
    """Steer `VLM.generate` of this thread, and yield a steered nnsight model for traces.

    The model is a `TransformersModel` where the VLM has a processor, else an `NNsight`. Traces are steered when opened
    on the model itself, not on one of its submodules: `model.trace(**inputs, fn=submodule.generate)` runs a part. The
    traces see the steered values and may change them further. Once the context has ended it steers no more.

    `trace(..., remote=...)` ships the interventions as plain functions and tensors; those that need the prompt's token
    ids or are measured on it can't be shipped.

    Args:
        vlm: The model.
        tracker: The tracker installed on it.
        application: What to apply.
        block: Steer the calls that belong to it.

    Raises:
        EngineError: In a remote trace: an intervention can't be shipped.
    """
    model = vlm.model
    if tracker.architecture.runs or tracker.architecture.only_with_image:
        raise EngineError(
            f"the blocks of this {type(model).__name__} do not each run once in a pass, as nnsight's traces want them",
            expected="engine='hooks'",
        )
    for place in {place[1:]: place for place in application.places}.values():
        hooks.check_distinct(model, tracker.architecture, place.site, place.tower)
    wrapped = _Wrapped.of(model)
    program = _Program(tracker, application, block)
    begin = block.begin

    def begin_traced(prompt: Prompt) -> None:
        if not _interleaving(model, tracker.architecture):
            raise EngineError(
                f"{type(model).__name__} is called inside a block that steers with nnsight, and outside of its traces",
                expected="VLM.generate, or traces of receipt.nnsight",
                fix="engine='hooks', which steers every call",
            )
        begin(prompt)

    block.begin = begin_traced
    programs = [*wrapped.programs, program]
    with wrapped.lock:
        shared = _edited(wrapped.root(model, program.paths), programs)
        opened = _edited(_opened(vlm), programs)

    def generate(target: nn.Module, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
        with wrapped.lock:
            return shared.interleave(functools.partial(target.generate, **inputs, **options))  # type: ignore[arg-type]

    wrapped.programs.append(program)
    try:
        with vlm.generating_with(generate):
            yield opened
    finally:
        wrapped.programs.remove(program)
        program.close()
        for envoy in (shared, opened):
            envoy.clear_edits()  # of this copy alone


@contextmanager
def aside(model: nn.Module, architecture: Architecture) -> Iterator[None]:
    """Hide the passes inside from the traces that run around them: a trace would take them for its own."""
    running = _interleaving(model, architecture)
    for interleaver in running:
        interleaver.interleaving = False
    try:
        yield
    finally:
        for interleaver in running:
            interleaver.interleaving = True


def _interleaving(model: nn.Module, architecture: Architecture) -> list[Any]:
    """What runs the traces that the model is in now."""
    state = vars(model.get_submodule(architecture.decoder)).get(STATE)
    found = [] if state is None else [route[0]() for route in state.routes]
    return [interleaver for interleaver in found if interleaver is not None and interleaver.interleaving]


def _opened(vlm: LoadedModel) -> Any:
    """A wrapper of the model for traces of the user's own."""
    if vlm.processor is None:
        return _quietly(nnsight.NNsight, vlm.model)
    tokenizer = copy.copy(tokenizer_of(vlm.processor))  # nnsight sets its padding side
    parts: dict[str, Any] = {"task": "text-generation", "tokenizer": tokenizer}
    if tokenizer_of(vlm.processor) is not vlm.processor:
        processor = copy.copy(vlm.processor)
        processor.tokenizer = tokenizer
        parts = {"task": "image-text-to-text", "processor": processor}
    # without it a pipeline moves the model to the first accelerator
    placed = {} if getattr(vlm.model, "hf_device_map", None) is not None else {"device": vlm.model.device}
    return _quietly(nnsight.TransformersModel, vlm.model, **parts, **placed)


def _edited(root: Any, programs: Sequence[_Program]) -> Any:
    """A copy of a wrapper on which the programs run in every trace; edits that it has already stay in front."""
    steered = root
    for program in programs:
        for part in program.parts:
            with steered.edit() as (_, edited):
                # runs at the start of every trace, beside the model
                part(edited)
            steered = edited
    return steered


class _Program:
    """One application, as parts that each follow the model through some of its places."""

    def __init__(self, tracker: CallTracker, application: Application, block: Block) -> None:
        site = tracker.architecture.site
        places = [(place, site(*place)) for place in application.places]
        # One part visits the outputs of a tower's blocks, in the order in which they run. A trace may skip a block, and
        # what is inside it is then not visited: each such place has a part of its own, so that none waits for another.
        towers: tuple[Tower, ...] = ("vision", "language")
        blocks = [[e for e in places if e[0].site == "resid_post" and e[0].tower == tower] for tower in towers]
        groups = [group for group in blocks if group]
        groups += [[entry] for entry in places if entry[0].site != "resid_post"]
        self.paths = [path for _, path in places]
        self.parts = [_Part(tracker, application, block, group) for group in groups]

    def close(self) -> None:
        """Steer nothing from here on, wherever copies of the edits have gone."""
        for part in self.parts:
            part.live = None


class _Part:
    """What one edit does: wait for the output of each of its places in turn, and write it back steered."""

    def __init__(
        self, tracker: CallTracker, application: Application, block: Block, places: Sequence[tuple[Place, str]]
    ) -> None:
        self.live: tuple[CallTracker, Application] | None = (tracker, application)
        self._block = block
        self._places = dict(places)

    def __call__(self, root: Any) -> None:
        if self.live is None:
            return
        tracker, application = self.live
        tracker.stacks.adopt()
        envoys = [(place, root.get(path)) for place, path in self._places.items()]
        _check(root._module, {path: root.get(path)._module for path in self._places.values()})
        mediator = Mediator.current("a steered place")
        served = dict.fromkeys(self._places, -1)
        # nnsight's own step loop warns when the run ends before it; this one ends by itself
        try:
            while True:
                for place, envoy in envoys:
                    heads = place.site == "head_out"
                    location = f"{envoy.path}.{'input' if heads else 'output'}"
                    # the next visit, and where there is one place only, not the one that has just been served
                    mediator.iteration = max(mediator.occurrence(location), served[place] + 1)
                    output = envoy.input if heads else envoy.output
                    served[place] = mediator.occurrence(location)
                    h = capturing.hidden(output)
                    now = pass_at(tracker, place, h)
                    if now is None or self._block not in now.prompt.owners:
                        continue
                    changed = now.visit(functools.partial(application.apply, place), h)
                    if changed is h:
                        continue
                    if heads:
                        envoy.input = changed
                    else:
                        envoy.output = capturing.with_hidden(output, changed)
        except OutOfOrderError:
            return  # thrown in by nnsight: the run is over

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the process as functions and tensors: nothing of steerkit need be installed where it arrives."""
        places, decoder, images, audio = [], "", (), ()
        if self.live is not None:
            tracker, application = self.live
            decoder, images = tracker.architecture.decoder, tuple(tracker.architecture.image_token_ids)
            audio = tuple(tracker.architecture.audio_token_ids)
            places = [(path, application.portable(place)) for place, path in self._places.items()]
            application.receipt.shipped = True
        operations = {each.__module__ for each in OPERATIONS.values()}
        for module in (replaying.__name__, "steerkit.interventions._arithmetic", *operations):
            nnsight.register(module)
        return functools.partial, (replaying.replay, places, decoder, images, audio)


def _check(model: nn.Module, wrapped: Mapping[str, nn.Module]) -> None:
    """Refuse what runs past a trace.

    Raises:
        EngineError: A module was replaced after it had been wrapped; or blocks will be run again, outside of the trace.
    """
    for path, module in wrapped.items():
        if model.get_submodule(path) is not module:
            raise EngineError(
                f"{path} was replaced inside a block that steers with nnsight",
                expected="the modules that were there when the block was opened",
                fix="replace it before the block opens, or use engine='hooks', which follows",
            )
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise EngineError(
            f"{type(model).__name__} is trained with gradient checkpointing, and steered with nnsight",
            expected="engine='hooks': a backward pass runs blocks again, and no trace is there to steer them",
            fix="use engine='hooks', or model.gradient_checkpointing_disable()",
        )
