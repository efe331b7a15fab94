"""A model with its processor and its adapter, as far as samples become its inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from steerkit._internal.validation import as_layers, expect, expect_one_of, expect_whole
from steerkit._text import described
from steerkit.engines.calls import CallTracker
from steerkit.engines.carrying import carry_along
from steerkit.engines.model_inputs import embedding
from steerkit.engines.prompts import prompt_lengths
from steerkit.errors import (
    LayerRangeError,
    MissingImageError,
    ModelError,
    OptionError,
    ProcessorError,
    SampleError,
    SteerKitError,
)
from steerkit.interventions import Tower, View
from steerkit.models import (
    Architecture,
    Family,
    Images,
    Inputs,
    Prepared,
    PromptFormat,
    Sample,
    all_prepared,
    answer_lengths,
    architecture_of,
    as_samples,
    batched,
    check_begun,
    check_processor,
    family_for,
    hides_images,
    hugging_face,
    may_see,
    model_record,
    named,
    numbers,
    prepare,
    prompt_of,
    seeing,
    view,
    vocabulary_digest,
)
from steerkit.vectors import ModelRecord


@dataclass(frozen=True, eq=False)
class _Asked:
    """Samples of which some are the prompts of a call, and how they are shown."""

    vlm: PromptedModel
    samples: Sequence[Sample]
    images: Images
    prepared: Prepared

    def by(self, vlm: PromptedModel, given: Mapping[str, Any]) -> bool:
        """Whether a call of this VLM is about them: it may read an answer behind each prompt, too."""
        own, ids = self.prepared.inputs.get("input_ids"), given.get("input_ids")
        if own is None or vlm is not self.vlm or not isinstance(ids, Tensor) or ids.shape[0] != own.shape[0]:
            return False
        return torch.equal(ids[:, : own.shape[1]].to(own.device), own)


_asked: ContextVar[_Asked | None] = ContextVar("steerkit_asked", default=None)
"""What a call that is under way is about."""

_routed: ContextVar[Any] = ContextVar("steerkit_routed", default=None)
"""Which model's `generate` runs through which function: lists of one `(model, function)`, empty once they are over."""

carry_along(_routed)


class PromptedModel:
    """What `VLM` is made on: the model, and its prompts from samples.

    Attributes:
        model: The Hugging Face model.
        processor: Its processor, or None.
        family: What is declared of its family.
        architecture: Where the model's blocks are.
        format: Its prompts; None where there is no processor.
        chat_template_kwargs: Options of the chat template, for samples that do not set them.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        family: Family | None = None,
        *,
        revision: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        expect(Family | None, "the family's record", "sk.wrap(model, processor) finds it", family=family)
        self.model = model = hugging_face(model)
        self.processor = processor
        config: Any = cast("Any", model).config
        if family is None:
            family = family_for(config.model_type)
            if getattr(processor, "image_processor", None) is not None and may_see(family):
                family = seeing(family, config.to_dict())
        self.family = family
        self.architecture: Architecture = architecture_of(model, self.family)
        self.format: PromptFormat | None = None
        if processor is not None:
            check_processor(processor, self.architecture, type(model).__name__)
            self.format = PromptFormat(model, processor, self.family, self.architecture)
            self.format.check_image_token(type(model).__name__)
        self._recorded = model_record(model, processor, self.architecture, revision)
        self._template = getattr(processor, "chat_template", None)
        self.chat_template_kwargs: dict[str, Any] = {}
        if chat_template_kwargs:
            self.require_processor("an option of the chat template")
            options = Sample("?", chat_template_kwargs=chat_template_kwargs)
            cast("PromptFormat", self.format).check_template_options(options)
            self.chat_template_kwargs.update(options.chat_template_kwargs)

    @property
    def record(self) -> ModelRecord:
        """What the model is, as written into packs."""
        return self._whole_record

    @cached_property
    def _whole_record(self) -> ModelRecord:
        if self.processor is None:
            return self._recorded
        # not when it is wrapped: a large vocabulary takes longer to read than all else
        digest = vocabulary_digest(self.processor, self._template)
        return self._recorded.model_copy(update={"tokenizer_sha256": digest})

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embeddings."""
        embeddings: Any = embedding(self.model)
        if embeddings is None:  # what is given is images alone
            return cast("torch.device", self.model.device)
        device = next(embeddings.parameters()).device
        # accelerate keeps offloaded weights elsewhere, and moves them here for a pass
        hook = getattr(embeddings, "_hf_hook", None) if device.type == "meta" else None
        return device if hook is None else torch.device(hook.execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the model's floating-point inputs."""
        return cast("torch.dtype", cast("Any", self.model).dtype)

    def inputs(self, samples: Sequence[Sample], images: Images = True, *, seed: int = 0) -> Inputs:
        """What the model takes for these samples, left padded, on the model's device.

        Args:
            samples: The samples.
            images: True: their own images. False or `text`: without images and placeholders. `blank` or `noise`: white
                or noise images of the same sizes. `caption`: text only, the caption in front. Or a function of a sample
                that returns as many images as it has.
            seed: Seed of noise images.

        Returns:
            Keyword arguments for `model(**inputs)` and `model.generate(**inputs)`; without images, for the model's text
            module where it has one of its own.

        Raises:
            OptionError: The seed is no whole number, or `images` is no view.
            SampleError: There are no samples, or one can't be a prompt of this model.
            MissingImageError: Some samples have images and others have none, or an image can't be read.
            ProcessorError: The VLM was wrapped without a processor.
        """
        expect_whole(0, seed=seed)
        if not len(as_samples(samples)):
            raise SampleError("there are no samples", expected="at least one")
        return self.placed(self._prepared(samples, range(len(samples)), images, seed).inputs)

    def check_prompt(self, sample: Sample, images: Images = True) -> None:
        """Prepare a sample as the model would be given it, images included.

        Args:
            sample: The sample.
            images: As for `inputs`.

        Raises:
            SampleError: It can't be a prompt of this model.
            MissingImageError: An image can't be read.
            ProcessorError: There is no processor, or it has no chat template that places the images.
        """
        self._prepared(as_samples([sample]), [0], images)

    def _check_seen(self, samples: Sequence[Sample], images: Images) -> None:
        for index in range(len(samples)):
            if hides_images(images) or not samples[index].images:
                raise MissingImageError(
                    f"sample {index} is shown without an image, and the vision tower is read",
                    expected="an image in every sample, and a view that shows it",
                )

    def _check_begun(self, samples: Sequence[Sample], tower: Tower) -> None:
        if tower == "vision":
            raise OptionError("the answer is read in the vision tower", expected="the language model")
        for index in range(len(samples)):
            with named(index, samples[index]):
                check_begun(samples[index])

    def _answer_lengths(self, made: Prepared) -> list[int]:
        return answer_lengths(cast("PromptFormat", self.format), made)

    def check_layers(self, layers: Sequence[int] | None, tower: Tower = "language") -> list[int]:
        """The layers of a tower, sorted; all of them for None.

        Raises:
            OptionError: The layers are no whole numbers, or the tower is unknown.
            LayerRangeError: A layer lies outside the model, or none is given.
        """
        expect_one_of(get_args(Tower), tower=tower)
        count = self.architecture.count(tower)
        if layers is None:
            return list(range(count))
        wanted = sorted(set(as_layers(layers)))
        if not wanted:
            raise LayerRangeError("no layer is given", expected=f"some of 0 to {count - 1}")
        for layer in wanted:
            if not 0 <= layer < count:
                raise LayerRangeError(
                    f"layer {layer} is outside the model",
                    expected=f"0 to {count - 1} for {self._recorded.architecture}",
                )
        return wanted

    def require_processor(self, purpose: str) -> Any:
        """The processor.

        Raises:
            ProcessorError: The VLM was made from a model alone.
        """
        if self.processor is None:
            raise ProcessorError(
                f"{purpose} needs the model's processor",
                expected="a VLM with a processor",
                fix="sk.wrap(model, processor), and pass that instead of the raw model",
            )
        return self.processor

    def reset(self) -> None:
        """Forget what the model caches between calls (Qwen-VL's `rope_deltas`), so that calls are independent."""
        for owner, name in self._transients():
            setattr(owner, name, None)

    @contextmanager
    def transient_kept(self) -> Iterator[None]:
        """Put back afterwards what the model caches between calls."""
        kept = [(owner, name, getattr(owner, name)) for owner, name in self._transients()]
        try:
            yield
        finally:
            for owner, name, value in kept:
                setattr(owner, name, value)

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Passes of this thread inside belong to no call: no steering, receipt, trace or later call notices them."""
        with ExitStack() as stack:
            tracker = stack.enter_context(CallTracker.of(self.model, self.architecture))
            stack.enter_context(tracker.unobserved())
            stack.enter_context(self.transient_kept())
            if "nnsight" in sys.modules:
                from steerkit.engines import nnsight

                stack.enter_context(nnsight.aside(self.model, self.architecture))
            yield

    @contextmanager
    def generating_with(self, generate: Callable[..., Tensor]) -> Iterator[None]:
        """Let `generate` of this context run through another engine's function of the inputs."""
        route = [(self, generate)]
        _routed.set((*(_routed.get() or ()), route))
        try:
            yield
        finally:
            route.clear()  # in every context that has copied it; blocks may be closed in any order, and in any context
            _routed.set(tuple(each for each in _routed.get() or () if each) or None)

    def _route(self) -> Callable[..., Tensor] | None:
        """The function that `generate` of this context runs through, if there is one."""
        open_routes = [route[0] for route in _routed.get() or () if route]
        return next((generate for owner, generate in reversed(open_routes) if owner is self), None)

    @contextmanager
    def _asking(self, samples: Sequence[Sample], images: Images, prepared: Prepared) -> Iterator[Inputs]:
        """While some of the samples are the prompts of a call: their inputs, placed where the model is.

        Raises:
            ModelError: Another library's exception came out.
        """
        token = _asked.set(_Asked(self, samples, images, prepared))
        begun = prepared.inputs.get("decoder_input_ids")
        try:
            self.reset()
            with nullcontext() if begun is None else prompt_lengths(begun.shape[1]):
                yield self.placed(prepared.inputs)
        except SteerKitError:
            raise
        except Exception as error:
            raise ModelError(
                f"the model failed on {numbers(prepared.indices)} of {len(samples)}: {described(error)}",
                expected="a model that runs",
                fix="the traceback above is the model's; answers that were finished before are in error.finished",
            ) from error
        finally:
            _asked.reset(token)

    def view(self, name: View, given: Mapping[str, Any], seed: int = 0) -> Inputs:
        """The inputs of one view of the prompts of a call.

        They are built from the samples where the call is of this VLM's own methods, and from the inputs where it is a
        raw `model.generate(**inputs)`.

        Args:
            name: The view.
            given: Keyword arguments of the call.
            seed: Seed of noise images.

        Raises:
            EngineError: The view can't be derived from the inputs.
            SampleError: A sample has no caption: any of those that are to be answered, not of this batch alone.
            ProcessorError: There is no processor.
        """
        asked = _asked.get()
        if asked is None or not asked.by(self, given):
            return view(name, given, self.format, self.architecture, seed)
        if name == "original" or asked.images == name:
            return self.placed(asked.prepared.inputs)
        if name == "caption":
            for index in range(len(asked.samples)):
                if asked.samples[index].images:
                    with named(index, asked.samples[index]):
                        prompt_of(asked.samples[index], name)
        elif hides_images(asked.images):
            return self.placed(asked.prepared.inputs)
        return self.placed(self._prepared(asked.samples, asked.prepared.indices, name, seed).inputs)

    def _transients(self) -> list[tuple[nn.Module, str]]:
        paths = [path.rpartition(".") for path in self.architecture.transient]
        return [(self.model.get_submodule(owner), name) for owner, _, name in paths]

    def placed(self, inputs: Inputs) -> Inputs:
        """Inputs on the model's device, floating-point ones in its type.

        Raises:
            OptionError: The model has no weights.
        """
        if (device := self.device).type == "meta":
            raise OptionError("the model has no weights", expected="a model that was loaded, and not made on 'meta'")
        return {
            key: value.to(device, self.dtype) if value.is_floating_point() else value.to(device)
            for key, value in inputs.items()
        }

    def _prepared(
        self, samples: Sequence[Sample], indices: Sequence[int], images: Images = True, seed: int = 0
    ) -> Prepared:
        self.require_processor("building inputs")
        return prepare(
            cast("PromptFormat", self.format), samples, indices, images, seed, options=self.chat_template_kwargs
        )

    def _batches(self, samples: Sequence[Sample], images: Images, size: int) -> list[list[int]]:
        """Indices by batch; prompts that can't share one are each given their own."""
        return batched(samples, images, 1 if self.architecture.alone else size)

    def _all(self, samples: Sequence[Sample], images: Images, batch_size: int, seed: int = 0) -> Iterator[Prepared]:
        expect_whole(batch_size=batch_size)
        expect_whole(0, seed=seed)
        batches = self._batches(samples, images, batch_size)
        return all_prepared(lambda batch: self._prepared(samples, batch, images, seed), batches)
