"""`steer`: apply steering vectors to a model for the time of a context."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn

from steerkit._internal.validation import expect, expect_one_of
from steerkit.analysis import (
    check_dose,
    check_fingerprint,
    check_template_options,
    needs_norms,
    orthogonalized,
    responses_or_reason,
    state_norms,
    state_of,
    stored_norms,
)
from steerkit.engines import capturing, compiled, hooks
from steerkit.engines.application import Application, Contrasts
from steerkit.engines.blocks import Block, UnsteeredCallWarning as UnsteeredCallWarning, warn_unsteered
from steerkit.engines.calls import CallTracker
from steerkit.engines.carrying import carried
from steerkit.engines.prompts import Prompt
from steerkit.engines.receipt import Receipt
from steerkit.errors import EngineError, ModelMismatchError, NothingSteeredError, OptionError, SteerKitError
from steerkit.interventions import MeasuredContrast, Site, _arithmetic as ops, site_label
from steerkit.models import PromptFormat, is_shown, system_lengths
from steerkit.policy import Check, Policy, enforce
from steerkit.vectors import SteeringVector, as_strengths, as_vectors
from steerkit.vlm import VLM, wrap

if TYPE_CHECKING:
    from steerkit.vectors import ModelRecord

Engine = Literal["hooks", "nnsight"]
Scope = Literal["context", "all"]


class _Opened:
    """The blocks that are open with one and the same `steer` object, perhaps in several contexts."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Block, Application]] = []
        self._lock = threading.Lock()

    def push(self, block: Block, application: Application) -> None:
        """Note a block that has been opened."""
        with self._lock:
            self._blocks.append((block, application))

    def pop(self) -> tuple[Block, Application]:
        """The newest block of this context; of any, if it has none, as where a generator is closed by another.

        Raises:
            EngineError: No block is open.
        """
        with self._lock:
            if not self._blocks:
                raise EngineError("a steering block is closed that is not open", expected="one exit for each entry")
            mine = [opened for opened in self._blocks if opened[0].is_mine()]
            newest = (mine or self._blocks)[-1]
            self._blocks.remove(newest)
        return newest


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
        scope: Whose calls are steered. `context`: those of the code inside the block, and of the threads and tasks that
            it starts, so that concurrent requests may steer one model differently. `all`: calls from every context, as
            where a server opens one block at its start; but not those of a context with such a block of its own.
        orthogonalize: Apply `orthogonalized(vectors)`: a later vector loses what lies in the span of the earlier ones.
        policy: What becomes of doubts about whether the vector belongs to this model and how large its dose is.
            `strict`: what can't be right is an error, what somebody should look at is a `TrustWarning`. `warn`: both
            are warnings, as for a vector that was extracted on a relative of the model. `off`: nothing is said. The
            sizes must fit in any case. What was found is in `receipt.checks`.

    Raises:
        ModelMismatchError: The vector belongs to a model of another shape; under `strict`, also of another class or
            with another fingerprint, or its dose is out of all proportion.
        EngineError: The engine can't run an intervention on this model.
        NonFiniteError: What is to be added holds NaN or infinity, or overflows at this strength.
        NothingSteeredError: The block ended and nothing was steered, nor was a prompt seen that was to be left alone;
            raised only if no other exception passes.

    A call of the model from a context that no block is for warns (`UnsteeredCallWarning`), once for each block. Calls,
    threads and tasks that began inside are steered to their end, and the model is put back when the last is done.

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
        scope: Scope = "context",
        orthogonalize: bool = False,
        policy: Policy = "strict",
    ) -> None:
        expect_one_of(get_args(Engine), engine=engine)
        expect_one_of(get_args(Scope), scope=scope)
        expect_one_of(get_args(Policy), policy=policy)
        if engine == "nnsight" and scope == "all":
            raise OptionError(
                "engine='nnsight' with scope='all'", expected="one thread: nnsight traces are not thread safe"
            )
        self._vlm = model if isinstance(model, VLM) else wrap(model, processor=None)
        self._vectors = as_vectors(vector)
        self._strengths = as_strengths(strength, len(self._vectors))
        compiled.check_eager(self._vlm.model)
        for each in self._vectors:
            check_match(each, self._vlm, policy)
        expect(bool, "True or False", orthogonalize=orthogonalize)
        self._vectors = orthogonalized(self._vectors) if orthogonalize else self._vectors
        self._policy: Policy = policy
        self._measured = _measured(self._vectors)
        self._checked: tuple[Any, tuple[Check, ...]] | None = None
        self._engine = engine
        self._everywhere = scope == "all"
        self._open = _Opened()
        self._ready: tuple[Application, Any] = self._compile(), _written(self._vectors)

    def _application(self) -> Application:
        """A new one; for the first block that which was made to check the arguments, unless they have changed since."""
        ready, written = vars(self).pop("_ready", (None, None))
        if ready is None or written is None or written != _written(self._vectors):
            return self._compile()
        ready.check_fits(self._vlm.dtype)
        return ready

    def _compile(self) -> Application:
        vlm = self._vlm

        def measure(prompt: Prompt, contrast: MeasuredContrast, layers: Sequence[int], site: Site) -> Contrasts:
            return measure_contrast(vlm, prompt, contrast, layers, site)

        application = Application(self._vectors, self._strengths, vlm.architecture, Receipt(), measure, vlm.dtype)
        if application.contrasts:
            vlm.require_processor("a vector that is measured on each prompt")
        return application

    def __enter__(self) -> Receipt:
        """Check that vector and model belong together and install the steering; returns the receipt to be filled in."""
        checks, application, vlm = self._check(), self._application(), self._vlm
        receipt = application.receipt
        receipt.checks = checks
        with ExitStack() as stack:
            tracker = stack.enter_context(CallTracker.of(vlm.model, vlm.architecture))
            if vlm.format is not None:
                tracker.facts.system_lengths = _system_lengths(vlm.format)
            stack.enter_context(carried())
            block = Block(
                application.begin,
                everywhere=self._everywhere,
                overlooked=receipt.overlook,
                at_the_end=all(part.at_the_end for each in self._vectors for part in each.interventions),
                name=" and ".join(each.metadata.method.name for each in self._vectors),
            )
            if self._engine == "hooks":
                stack.enter_context(hooks.applied(vlm.model, tracker, application, block))
            else:
                from steerkit.engines import nnsight

                receipt.nnsight = stack.enter_context(nnsight.applied(vlm, tracker, application, block))
            stack.enter_context(tracker.follow(block))
            block.close = functools.partial(self._close, stack.pop_all(), block, receipt)
        block.enter()
        self._open.push(block, application)
        return receipt

    def _check(self) -> tuple[Check, ...]:
        """What is checked when a block opens; not again while the model has not changed.

        Raises:
            ModelMismatchError: See the class.
        """
        state = state_of(self._vlm) if self._vlm.processor is not None and self._measured else None
        if self._checked is None or self._checked[0] != state:
            checks = check_applied(self._vectors, self._strengths, self._vlm)
            said = checks if self._policy == "off" else _unsaid(checks, self._vectors, self._vlm)
            enforce(said, self._policy, ModelMismatchError, stacklevel=3)
            self._checked = (state, checks)
        return self._checked[1]

    def _close(self, stack: ExitStack, block: Block, receipt: Receipt, *passing: Any) -> None:
        """Restore the model; if the block has been left before its work was done, nobody else complains."""
        stack.__exit__(*(passing or (None, None, None)))
        if block.left and not _did_something(receipt):
            warn_unsteered(
                f"{self._vlm.record.architecture} was not steered once: a steering block was left while work that was "
                "started in it went on, which did not call the model, or with no token that the interventions select"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy would steer a copy of the model, or none at all.

        Raises:
            EngineError: Always.
        """
        raise EngineError(
            "a steering context is copied or pickled: it belongs to one model in one process",
            expected="sk.steer(...) where the model is",
            fix="save the vectors, and call sk.steer with them there",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model, once the calls that run have ended; complain if nothing was steered."""
        block, application = self._open.pop()
        block.end(kind, error, trace)
        if kind is None and block.failure is not None:
            raise block.failure
        if kind is None and application.lost:
            raise NothingSteeredError(
                "no hidden state changed: what the vectors add is lost to rounding next to what it is added to",
                expected="directions, times their strength, of about the size of the hidden states",
                fix="use a higher strength, or vector.normalized()",
            )
        if kind is None and not block.left and not _did_something(application.receipt):
            raise NothingSteeredError(
                f"{self._vlm.record.architecture} was not steered once",
                expected="a call of this very model inside the block, with tokens that the interventions select",
                fix="call the model that was given to steer, in the block or in threads and tasks that it starts; for "
                "calls from elsewhere pass scope='all'; for engine='nnsight' use VLM.generate or traces of "
                "receipt.nnsight",
            )


def _did_something(receipt: Receipt) -> bool:
    return not receipt.empty or receipt.shipped or receipt.spared


def _written(vectors: Sequence[SteeringVector]) -> list[tuple[int, bool]] | None:
    """What differs once a direction has been written to; None where torch does not count that."""
    tensors = [tensor for vector in vectors for tensor in vector.tensors.values()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return [(tensor._version, tensor.requires_grad) for tensor in tensors]


def check_model(vector: SteeringVector, vlm: VLM) -> Check:
    """Whether a vector is for a model of this class and these sizes."""
    theirs, ours = vector.metadata.model, vlm.record
    problems = size_problems(vector, ours)
    if theirs.architecture != ours.architecture:
        problems.append(f"architecture {theirs.architecture}, and the model is {ours.architecture}")
    if problems:
        return Check(
            "model",
            "fail",
            f"the vector ({theirs.id or theirs.architecture}) is for " + "; for ".join(problems),
            "load the vector of this model, or extract one",
        )
    return Check("model", "pass", f"{ours.architecture}, {ours.layer_count} layers of {ours.hidden_size}")


def check_applied(vectors: Sequence[SteeringVector], strengths: Sequence[float], vlm: VLM) -> tuple[Check, ...]:
    """What `steer` checks: class and sizes and fingerprint of each vector, and the dose of all together.

    Args:
        vectors: The vectors.
        strengths: The strength of each.
        vlm: The model. Its responses to the probes are measured if a vector has a fingerprint to compare them with, or
            a dose to judge by them; where they can't be, the dose is judged by the norms in the fingerprints.
    """
    if any(size_problems(vector, vlm.record) for vector in vectors):
        return tuple(check_model(vector, vlm) for vector in vectors)  # nothing else can be compared
    # what is remembered of a raw model is there for fingerprints: without one, chance would decide on the dose
    carried = any(vector.metadata.fingerprint is not None for vector in vectors)
    ours = responses_or_reason(vlm, remembered=carried) if _measured(vectors) else {}
    checks: list[Check] = []
    for vector in vectors:
        checks.append(check_model(vector, vlm))
        checks.append(check_fingerprint(vector.metadata.fingerprint, ours))
        if vlm.processor is not None:
            checks += check_template_options(vector.metadata.anchors, vlm.chat_template_kwargs)
    if isinstance(ours, SteerKitError):
        dose = check_dose(vectors, strengths, stored_norms(vectors), ours.problem, ours.fix or "")
    else:
        dose = check_dose(vectors, strengths, state_norms(ours) if ours else None)
    return (*checks, dose)


_said: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()
"""Of which fingerprints it was said that they can't be compared with a model that was given without its processor."""


def _unsaid(checks: Sequence[Check], vectors: Sequence[SteeringVector], vlm: VLM) -> list[Check]:
    """The checks without that warning where it was given before: steering a raw model is a fair thing to do."""
    blind = [check for check in checks if (check.name, check.status) == ("fingerprint", "warn") and not check.details]
    if not blind:
        return list(checks)
    said = _said.setdefault(vlm.model, set())
    carried = {hash(vector.metadata.fingerprint) for vector in vectors}
    repeated = carried <= said
    said |= carried
    return [check for check in checks if not (repeated and check in blind)]


def _measured(vectors: Sequence[SteeringVector]) -> bool:
    """Whether the model's responses say anything about the vectors."""
    return needs_norms(vectors) or any(vector.metadata.fingerprint is not None for vector in vectors)


def check_match(vector: SteeringVector, vlm: VLM, policy: Policy) -> None:
    """Refuse a vector that belongs to a model of another shape or, as the policy says, class.

    Raises:
        ModelMismatchError: See `steer`.
    """
    check = check_model(vector, vlm)
    if check.status == "fail" and (policy == "strict" or size_problems(vector, vlm.record)):
        raise ModelMismatchError(
            check.message,
            expected=f"a vector for {vlm.record.architecture} ({vlm.record.layer_count} layers of "
            f"{vlm.record.hidden_size})",
            fix=check.fix + "; policy='warn' waives the class, never the sizes",
        )


def size_problems(vector: SteeringVector, ours: ModelRecord) -> list[str]:
    """What of a vector's sizes is not the model's, in words."""
    theirs = vector.metadata.model
    problems: list[str] = []
    if theirs.hidden_size != ours.hidden_size:
        problems.append(f"hidden size {theirs.hidden_size}, and the model has {ours.hidden_size}")
    if theirs.layer_count != ours.layer_count:
        problems.append(f"{theirs.layer_count} layers, and the model has {ours.layer_count}")
    for site, tower in sorted(vector.places):
        sizes = [(record.count(tower), record.width(site, tower)) for record in (theirs, ours)]
        if (site == "head_out" or tower == "vision") and all(map(all, sizes)) and sizes[0] != sizes[1]:
            problems.append(f"{sizes[0]} layers and width at {site_label(site, tower)}, and the model has {sizes[1]}")
    return problems


def measure_contrast(
    vlm: VLM, prompt: Prompt, contrast: MeasuredContrast, layers: Sequence[int], site: Site
) -> Contrasts:
    """`{layer: [batch, hidden]}`: the contrast of a prompt, from passes that are neither steered nor counted.

    The two views are read in a pass each: in one batch, the shorter text would be padded to the length of the image.

    Raises:
        EngineError: The call was not seen with its images.
    """
    architecture, model = vlm.architecture, vlm.model
    if prompt.pictured() is not False and not is_shown(prompt.inputs):
        raise EngineError(
            "a contrast is measured on a prompt, and the images of the prompt were not seen",
            expected="generate(**inputs), model(**inputs), or a call of its body: the decoder alone, and the forward "
            "method of the body, are not given images",
            fix="call the model itself",
        )
    captured: list[dict[int, Tensor]] = []
    with vlm.unnoticed():
        for name in filter(None, (contrast.positive, contrast.negative)):
            inputs = vlm.view(name, prompt.inputs, contrast.seed)
            vlm.reset()
            captured.append(capturing.capture(model, inputs, architecture, layers, site))
    if contrast.negative is None:
        return {layer: captured[0][layer].float() for layer in layers}
    positive, negative = captured
    difference = {layer: positive[layer].float() - negative[layer].float() for layer in layers}
    return ops.increments(difference) if contrast.form == "increments" else difference


def _system_lengths(format: PromptFormat) -> Callable[[Tensor, Tensor], Tensor]:
    def lengths(ids: Tensor, real: Tensor) -> Tensor:
        return system_lengths(ids, real, format)

    return lengths
