"""`steer`: apply steering vectors to a model for the time of a context."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from steerkit import ops
from steerkit.adapter import tokenizer_of
from steerkit.arguments import as_strengths, as_vectors
from steerkit.composition import orthogonalized
from steerkit.engines import compiled, hooks
from steerkit.engines.application import Application, Contrasts
from steerkit.engines.calls import CallTracker, Prompt
from steerkit.errors import EngineError, ModelMismatchError, NothingSteeredError, OptionError
from steerkit.intervention import MeasuredContrast, Site
from steerkit.receipt import Receipt
from steerkit.vector import SteeringVector
from steerkit.views import system_lengths, view
from steerkit.vlm import VLM, wrap

if TYPE_CHECKING:
    from steerkit.adapter import Architecture

Engine = Literal["hooks", "nnsight"]


class _Opened(threading.local):
    """The blocks that a thread has opened with one and the same `steer` object."""

    def __init__(self) -> None:
        self.blocks: list[tuple[ExitStack, Receipt]] = []


class steer:
    """Steer a model inside a `with` block.

    Every call of the model inside the block is steered: `generate`, a pipeline, a bare forward pass. Blocks nest, and
    compose in the order in which they were opened. On any exit the model is what it was before.

    Vectors that are given together are applied in their order at each place. Additions of stored directions commute,
    and those that follow each other on the same tokens are made in one step.

    Args:
        model: The Hugging Face model, a PEFT model around one, or a `VLM`. A vector that is measured on each prompt
            (sample-level CMRM) needs the VLM, because building the views of a prompt needs the processor.
        vector: One vector, or several that are applied in order.
        strength: A factor for all of them, or one for each. 1 is the dose that the method intends.
        engine: `hooks` steers the raw model and is the fast one. `nnsight` steers `VLM.generate`, and the traces that
            are opened on `receipt.nnsight`.
        threads: `current`: calls from the thread that opened the block, so that threads may steer one model differently
            at once. `all`: calls from any thread, as when a streamer runs `generate` in a thread of its own.
        match: `architecture`: the vector must come from the same model class with the same sizes. `shape`: the sizes
            are enough, as for a vector that was extracted on a relative of the model.
        orthogonalize: Apply `orthogonalized(vectors)`: a later vector loses what lies in the span of the earlier ones.

    Raises:
        ModelMismatchError: The vector belongs to a model of another class or shape.
        EngineError: The engine can't run an intervention on this model.
        NothingSteeredError: The block ended without having steered anything; raised only if no other exception passes.

    Example:
        >>> with sk.steer(model, vector, strength=1.0) as receipt:
        ...     output = model.generate(**inputs)
        >>> print(receipt)
    """

    def __init__(
        self,
        model: nn.Module | VLM,
        vector: SteeringVector | Sequence[SteeringVector],
        *,
        strength: float | Sequence[float] = 1.0,
        engine: Engine = "hooks",
        threads: Literal["current", "all"] = "current",
        match: Literal["architecture", "shape"] = "architecture",
        orthogonalize: bool = False,
    ) -> None:
        for name, value, allowed in (
            ("engine", engine, ("hooks", "nnsight")),
            ("threads", threads, ("current", "all")),
            ("match", match, ("architecture", "shape")),
        ):
            if value not in allowed:
                raise OptionError(f"{name} is {value!r}", expected=" or ".join(map(repr, allowed)))
        if engine == "nnsight" and threads == "all":
            raise OptionError(
                "engine='nnsight' with threads='all'", expected="one thread: nnsight traces are not thread safe"
            )
        self._vlm = model if isinstance(model, VLM) else wrap(model, processor=None)
        self._vectors = as_vectors(vector)
        self._strengths = as_strengths(strength, len(self._vectors))
        _check_eager(self._vlm.model)
        for each in self._vectors:
            check_match(each, self._vlm, shape_only=match == "shape")
        if orthogonalize:
            self._vectors = orthogonalized(self._vectors)
        self._engine = engine
        self._any_thread = threads == "all"
        self._open = _Opened()
        self._compile(Receipt())

    def _compile(self, receipt: Receipt) -> Application:
        vlm = self._vlm
        _check_kept(vlm.model)

        def measure(prompt: Prompt, contrast: MeasuredContrast, layers: Sequence[int], site: Site) -> Contrasts:
            return measure_contrast(vlm, prompt, contrast, layers, site)

        application = Application(self._vectors, self._strengths, vlm.architecture, receipt, measure)
        if application.contrasts:
            vlm.require_processor("a vector that is measured on each prompt")
        return application

    def __enter__(self) -> Receipt:
        """Install the steering; returns the receipt that is being filled in."""
        receipt = Receipt()
        application = self._compile(receipt)
        vlm = self._vlm
        with ExitStack() as stack:
            tracker = stack.enter_context(CallTracker.of(vlm.model, vlm.architecture))
            if vlm.processor is not None:
                tracker.system_lengths = _system_lengths(vlm.architecture, vlm.processor)
            stack.callback(tracker.listen(self._begin(application)))
            if self._engine == "hooks":
                stack.enter_context(hooks.applied(vlm.model, tracker, application, any_thread=self._any_thread))
            else:
                from steerkit.engines import nnsight

                receipt.nnsight = stack.enter_context(nnsight.applied(vlm, tracker, application))
            self._open.blocks.append((stack.pop_all(), receipt))
        return receipt

    def _begin(self, application: Application) -> Callable[[Prompt], None]:
        owner = None if self._any_thread else threading.get_ident()

        def begin(prompt: Prompt) -> None:
            if owner is None or threading.get_ident() == owner:
                application.begin(prompt)

        return begin

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model; complain if nothing was steered."""
        stack, receipt = self._open.blocks.pop()
        stack.close()
        if kind is None and receipt.empty and not receipt.shipped:
            raise NothingSteeredError(
                f"{self._vlm.record.architecture} was not steered once",
                expected="a call of this very model inside the block, with tokens that the interventions select",
                fix="call the model that was given to steer; for calls from other threads pass threads='all'; for "
                "engine='nnsight' use VLM.generate or traces of receipt.nnsight",
            )


def check_match(vector: SteeringVector, vlm: VLM, *, shape_only: bool) -> None:
    """Refuse a vector that belongs to another model.

    Raises:
        ModelMismatchError: See `steer`.
    """
    theirs, ours = vector.metadata.model, vlm.record
    problems: list[str] = []
    if not shape_only and theirs.architecture != ours.architecture:
        problems.append(f"architecture {theirs.architecture}, and the model is {ours.architecture}")
    if theirs.hidden_size != ours.hidden_size:
        problems.append(f"hidden size {theirs.hidden_size}, and the model has {ours.hidden_size}")
    if theirs.layer_count != ours.layer_count:
        problems.append(f"{theirs.layer_count} layers, and the model has {ours.layer_count}")
    if problems:
        raise ModelMismatchError(
            f"the vector ({theirs.id or theirs.architecture}) is for " + "; for ".join(problems),
            expected=f"a vector for {ours.architecture} ({ours.layer_count} layers of {ours.hidden_size})",
            fix="load the vector of this model, or extract one; match='shape' waives the class, never the sizes",
        )


def _check_eager(model: nn.Module) -> None:
    """Refuse a model that was compiled outside: its graph does not see hooks that are added later.

    Raises:
        EngineError: The model or one of its modules has been compiled.
    """
    for name, module in model.named_modules():
        if compiled.is_compiled(module) or name == "_orig_mod":
            raise EngineError(
                f"{name or type(model).__name__} has been compiled with torch.compile before the block",
                expected="a model that runs eagerly, or is compiled inside the block",
                fix="steer the model as it was before it was compiled; inside the block, generate(..., "
                "cache_implementation='static') compiles by itself, or model.forward = torch.compile(model.forward)",
            )


def _check_kept(model: nn.Module) -> None:
    """Refuse gradient checkpointing: its backward pass runs blocks again, outside of any call that could be followed.

    Raises:
        EngineError: The model would run blocks again.
    """
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise EngineError(
            f"{type(model).__name__} is trained with gradient checkpointing",
            expected="a model that keeps its activations: steering would be missing where blocks are run again",
            fix="model.gradient_checkpointing_disable(), or model.eval()",
        )


def measure_contrast(
    vlm: VLM, prompt: Prompt, contrast: MeasuredContrast, layers: Sequence[int], site: Site
) -> Contrasts:
    """`{layer: [batch, hidden]}`: the contrast of a prompt, from passes that are neither steered nor counted.

    The two views are read in a pass each: in one batch, the shorter text would be padded to the length of the image.
    """
    architecture, model = vlm.architecture, vlm.model
    captured: list[dict[int, Tensor]] = []
    with CallTracker.of(model, architecture) as tracker, tracker.unobserved(), vlm.transient_kept(), _untraced(vlm):
        for name in (contrast.positive, contrast.negative):
            inputs = view(name, prompt.inputs, vlm.adapter, architecture, vlm.processor, contrast.seed)
            vlm.reset()
            captured.append(hooks.capture(model, inputs, architecture, layers, site))
    positive, negative = captured
    difference = {layer: positive[layer].float() - negative[layer].float() for layer in layers}
    return ops.increments(difference) if contrast.form == "increments" else difference


def _untraced(vlm: VLM) -> AbstractContextManager[None]:
    """Hide passes from nnsight traces around them, if nnsight is in use at all."""
    if "nnsight" not in sys.modules:
        return nullcontext()
    from steerkit.engines import nnsight

    return nnsight.aside(vlm.model, vlm.architecture)


def _system_lengths(architecture: Architecture, processor: Any) -> Any:
    def lengths(ids: Tensor, real: Tensor) -> Tensor:
        return system_lengths(ids, real, architecture, tokenizer_of(processor))

    return lengths
