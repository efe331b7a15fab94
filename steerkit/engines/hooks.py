"""The engine on torch forward hooks: for raw `generate`, for several threads, and for speed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from steerkit.engines import compiled
from steerkit.engines.application import Application
from steerkit.engines.attached import Attached
from steerkit.engines.attachments import Attachments, shared
from steerkit.engines.blocks import Block
from steerkit.engines.calls import CallTracker
from steerkit.engines.capturing import hidden, with_hidden
from steerkit.engines.passes import Observed
from steerkit.engines.reruns import Rerun, again, cut, waiting
from steerkit.engines.steps import Place
from steerkit.engines.vision import pass_at
from steerkit.errors import EngineError
from steerkit.interventions import Site, Tower
from steerkit.models import Architecture

_LOSES_GRADIENTS = Version(transformers.__version__) < Version("5.23")
"""Whether reentrant checkpointing loses gradients that come to states in the middle of a model: measured with 5.19."""


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
        if now.graded and not torch.is_grad_enabled() and _LOSES_GRADIENTS:
            raise EngineError(
                "reentrant gradient checkpointing would lose gradients of losses on hidden states with transformers "
                f"{transformers.__version__}",
                expected="transformers 5.23 or newer, or checkpointing that is not reentrant",
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
