"""A vision-language model, its processor and its adapter, as one object: `load`, `wrap` and `VLM`."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from steerkit._internal.text import one_line
from steerkit._internal.validation import PATH, as_layers, expect, expect_each, expect_one_of, expect_whole
from steerkit.analysis import fingerprint
from steerkit.engines import hooks
from steerkit.engines.calls import CallTracker
from steerkit.errors import (
    LayerRangeError,
    MissingImageError,
    OptionError,
    ProcessorError,
    SampleError,
    UnsupportedModelError,
)
from steerkit.interventions import Pool, Site, Tower, View
from steerkit.models import (
    Architecture,
    Images,
    Inputs,
    ModelAdapter,
    Sample,
    adapter_for,
    as_samples,
    hides_images,
    named,
    open_image,
    prompt_of,
    shown,
    tokenizer_of,
    view,
)
from steerkit.vectors import Fingerprint, ModelRecord

Progress = Callable[[int, int], None]
"""Called with (done, total) samples after each batch."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """Samples of which some are the prompts of a call, how they are shown, and the inputs that were made of them."""

    vlm: VLM
    samples: Sequence[Sample]
    batch: Sequence[int]
    images: Images
    inputs: Inputs

    def by(self, vlm: VLM, given: Mapping[str, Any]) -> bool:
        """Whether a call of this VLM is about them: it may read an answer behind each prompt, too."""
        own, ids = self.inputs["input_ids"], given.get("input_ids")
        if vlm is not self.vlm or not isinstance(ids, Tensor) or ids.shape[0] != own.shape[0]:
            return False
        return ids is own or torch.equal(ids[:, : own.shape[1]], own)


_asked: ContextVar[_Asked | None] = ContextVar("asked", default=None)
"""What a call that is under way is about."""


class VLM:
    """A loaded model that methods can measure and that answers samples.

    Build one with `steerkit.load` or `steerkit.wrap`. `revision` is the commit of the hub that a model came from, where
    the model's config does not say so: since transformers 5.24, none does.

    Attributes:
        model: The Hugging Face model, untouched; of a PEFT model, the one inside, whose layers hold the adapters.
        processor: Its processor; None where only raw inputs will be used.
        adapter: The family's adapter.
        architecture: Where the model's blocks are.
        record: What the model is, as written into packs.
    """

    def __init__(self, model: nn.Module, processor: Any, adapter: ModelAdapter, *, revision: str | None = None) -> None:
        expect(ModelAdapter, "the family's adapter", "sk.wrap(model, processor) finds it", adapter=adapter)
        self.model = model = _hugging_face(model)
        self.processor = processor
        self.adapter = adapter
        self.architecture: Architecture = adapter.architecture(model)
        self.record: ModelRecord = _record(model, processor, self.architecture, revision)
        self._traced = threading.local()

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embeddings."""
        embeddings = cast("Any", self.model).get_input_embeddings()
        device = next(embeddings.parameters()).device
        # accelerate keeps offloaded weights elsewhere, and moves them here for a pass
        return torch.device(embeddings._hf_hook.execution_device) if device.type == "meta" else device

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
        processor = self.require_processor("building inputs")
        if not len(as_samples(samples)):
            raise SampleError("there are no samples", expected="at least one")
        posed: list[Sample] = []
        texts: list[str] = []
        for index, sample in enumerate(samples):
            with named(index, sample):
                posed.append(shown(sample, images, seed))
                texts.append(self.adapter.render(processor, posed[-1], len(posed[-1].images)))
        if len({bool(sample.images) for sample in posed}) > 1:
            without = next(index for index, sample in enumerate(posed) if not sample.images)
            raise MissingImageError(
                f"sample {without} of the batch has no image and others have",
                expected="images in every sample of a batch, or in none",
                fix="pass the samples without images separately, or images=False",
            )
        encoded = self.adapter.encode(processor, texts, [list(map(open_image, sample.images)) for sample in posed])
        return {key: self._placed(value) for key, value in encoded.items()}

    def generate(
        self,
        samples: Sequence[Sample],
        *,
        images: Images = True,
        batch_size: int = 8,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[str]:
        """Answer samples, in batches of left-padded prompts.

        Args:
            samples: The samples, with images or without; both kinds may be mixed.
            images: As for `inputs`.
            batch_size: Prompts per call of the model.
            progress: Called with (done, total) after each batch.
            **options: What `model.generate` takes, such as `max_new_tokens`.

        Returns:
            One text per sample, in order, without the prompt and without special tokens.

        Raises:
            SampleError: A sample can't be a prompt of this model; found before the model runs, as all of these are.
            MissingImageError: An image file is missing, or is not an image.
            OptionError: An option has an impossible value.
            ProcessorError: The VLM was wrapped without a processor.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise OptionError(
                "num_return_sequences is not 1", expected="one answer per sample", fix="repeat the sample"
            )
        if options.get("return_dict_in_generate"):
            raise OptionError(
                "return_dict_in_generate is set",
                expected="options under which generate returns ids",
                fix="for scores call model.generate(**vlm.inputs(samples), ...)",
            )
        expect(Callable | None, "a function of (done, total)", progress=progress)
        if options.get("max_new_tokens") is not None:
            expect_whole(max_new_tokens=options["max_new_tokens"])
        tokenizer = tokenizer_of(self.require_processor("generate"))
        texts: list[str | None] = [None] * len(as_samples(samples))
        done = 0
        for batch in self._batches(samples, images, batch_size):
            inputs = self.inputs([samples[index] for index in batch], images)
            self.reset()
            with torch.no_grad(), self._asking(samples, batch, images, inputs):
                output = self._generate(inputs, options)
            length = inputs["input_ids"].shape[1]
            answers = output if self.architecture.encoder_decoder else output[:, length:]
            for index, text in zip(batch, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
                texts[index] = text.strip()
            done += len(batch)
            if progress is not None:
                progress(done, len(samples))
        return cast("list[str]", texts)

    def capture(
        self,
        samples: Sequence[Sample],
        *,
        images: Images = True,
        layers: Sequence[int] | None = None,
        site: Site = "resid_post",
        tower: Tower = "language",
        pool: Pool = "last",
        batch_size: int = 8,
        engine: Literal["nnsight", "hooks"] = "nnsight",
        seed: int = 0,
    ) -> dict[int, Tensor]:
        """The hidden state that stands for each sample: that of its last prompt token, unless `pool` says otherwise.

        Args:
            samples: The samples.
            images: As for `inputs`.
            layers: 0-based blocks; default: all.
            site: Where in the block.
            tower: The decoder, or the vision tower: there the mean over all tokens of the sample's images is read, in
                one pass for each sample.
            pool: `last` token of the prompt, or the `mean` over its tokens.
            batch_size: Prompts per forward pass.
            engine: `nnsight` traces the model; `hooks` is the one to use from several threads. Both give equal numbers.
            seed: Seed of noise images.

        Returns:
            `{layer: [batch, hidden]}` on the model's device, in the model's type; a mean in float32.

        Raises:
            OptionError: A site, tower, pool or engine is unknown, or an argument is of another type.
            LayerRangeError: A layer lies outside the model.
            EngineError: The model has no such site or tower.
            SampleError: There are no samples, or one can't be a prompt of this model; found before the model runs.
            MissingImageError: An image file is missing, or is not an image; found before the model runs.
        """
        expect_one_of(get_args(Site), site=site)
        expect_one_of(get_args(Tower), tower=tower)
        expect_one_of(get_args(Pool), pool=pool)
        expect_one_of(("nnsight", "hooks"), engine=engine)
        self.architecture.check_site(site, tower)
        wanted = self.check_layers(layers, tower)
        if tower == "vision":
            batch_size = 1  # where patches are packed, their images can't be told apart
            self._check_seen(samples, images)
        if not len(as_samples(samples)):
            raise SampleError("there are no samples", expected="at least one")
        if engine == "nnsight":
            from steerkit.engines import nnsight

            read = nnsight.capture
        else:
            read = hooks.capture
        parts: list[tuple[list[int], dict[int, Tensor]]] = []
        for batch in self._batches(samples, images, batch_size):
            inputs = self.inputs([samples[index] for index in batch], images, seed=seed)
            self.reset()
            parts.append((batch, read(self.model, inputs, self.architecture, wanted, site, tower, pool)))
        order = torch.tensor([index for batch, _ in parts for index in batch]).argsort()
        return {
            layer: torch.cat([found[layer] for _, found in parts])[order.to(parts[0][1][layer].device)]
            for layer in wanted
        }

    def fingerprint(self) -> Fingerprint:
        """How the model responds, unsteered, to a few fixed prompts: three short passes, once until it changes.

        Raises:
            ProcessorError: The VLM was wrapped without a processor.
            OptionError: The model has no weights, or is in training mode.
            NonFiniteError: The hidden states hold NaN or infinity.
        """
        return fingerprint(self)

    def weights_digest(self) -> str:
        """Digest of the type and of a few values of every weight.

        It differs for a model that was trained further, or loaded in another type. Weights that are offloaded, or kept
        in a format of their own, count by their type alone.
        """
        state = hashlib.sha256()
        for name, tensor in self.model.named_parameters():
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            if type(tensor) is nn.Parameter and not tensor.is_meta and tensor.numel():
                few = tensor.detach().flatten()[:: max(tensor.numel() // 16, 1)]
                state.update(few.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return state.hexdigest()

    def log_likelihood(
        self,
        samples: Sequence[Sample],
        answers: Sequence[str],
        *,
        images: Images = True,
        batch_size: int = 8,
    ) -> list[Tensor]:
        """How likely the model finds given answers.

        An answer is tokenised by itself, without special tokens, and follows the prompt directly. Whether a model
        begins its answers with a space depends on its template, and `generate` strips it: the likelier is taken.

        Args:
            samples: The samples.
            answers: One text each.
            images: As for `inputs`.
            batch_size: Prompts per forward pass.

        Returns:
            For each sample `[tokens]`: the natural logarithm of the probability of each token of its answer given the
            prompt and the tokens before it; float32, on the CPU; empty for an empty answer.

        Raises:
            OptionError: There are not as many answers as samples, or one is no text.
            SampleError: A sample can't be a prompt of this model; found before the model runs.
            ProcessorError: The VLM was wrapped without a processor.
        """
        expect_each(str, "a list of texts, one for each sample", answers=answers)
        tokenizer = tokenizer_of(self.require_processor("the likelihood of an answer"))
        if len(answers) != len(as_samples(samples)):
            raise OptionError(f"{len(answers)} answers for {len(samples)} samples", expected="one for each")
        begun = [
            [tokenizer(start + answer if answer else "", add_special_tokens=False)["input_ids"] for answer in answers]
            for start in ("", " ")
        ]
        found: list[Tensor] = [torch.empty(0)] * len(answers)
        for batch in self._batches(samples, images, batch_size):
            inputs = self.inputs([samples[index] for index in batch], images)
            both = []
            for ids in begun:
                self.reset()
                with self._asking(samples, batch, images, inputs):
                    answered = [ids[index] for index in batch]
                    both.append(hooks.answer_log_likelihood(self.model, inputs, answered, self.architecture))
            for index, one, other in zip(batch, *both, strict=True):
                found[index] = max(one, other, key=lambda values: float(values.sum()))
        self.reset()
        return found

    def next_token_log_probabilities(
        self, samples: Sequence[Sample], *, images: Images = True, batch_size: int = 8
    ) -> Tensor:
        """The distribution of the first token of the answer to each sample.

        Args:
            samples: The samples.
            images: As for `inputs`.
            batch_size: Prompts per forward pass.

        Returns:
            `[samples, vocabulary]`, natural logarithms, float32, on the CPU.

        Raises:
            SampleError: There are no samples, or one can't be a prompt of this model; found before the model runs.
            ProcessorError: The VLM was wrapped without a processor.
        """
        self.require_processor("the distribution of the next token")
        rows: dict[int, Tensor] = {}
        for batch in self._batches(as_samples(samples), images, batch_size):
            inputs = self.inputs([samples[index] for index in batch], images)
            self.reset()
            with torch.no_grad(), self._asking(samples, batch, images, inputs):
                target = hooks.call_target(self.model, inputs, self.architecture)
                logits = target(**hooks.forward_inputs(self.model, inputs, self.architecture)).logits
            # prompts are padded on the left; a decoder of an encoder's has one position
            for index, row in zip(batch, logits[:, -1].float().log_softmax(-1).cpu(), strict=True):
                rows[index] = row
        self.reset()
        if not rows:
            raise SampleError("there are no samples", expected="at least one")
        return torch.stack([rows[index] for index in range(len(samples))])

    def check_prompt(self, sample: Sample, images: Images = True) -> None:
        """Build the prompt of a sample as text, without opening its images.

        Args:
            sample: The sample.
            images: As for `inputs`.

        Raises:
            SampleError: A text contains the image token, or there are more images than the model takes.
            ProcessorError: There is no processor, or it has no chat template that places the images.
        """
        as_samples([sample])
        prompt = prompt_of(sample, images)
        self.adapter.render(self.require_processor("building a prompt"), prompt, len(prompt.images))

    def _check_seen(self, samples: Sequence[Sample], images: Images) -> None:
        for index in range(len(samples)):
            if hides_images(images) or not samples[index].images:
                raise MissingImageError(
                    f"sample {index} is shown without an image, and the vision tower is read",
                    expected="an image in every sample, and a view that shows it",
                )

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
                    f"layer {layer} is outside the model", expected=f"0 to {count - 1} for {self.record.architecture}"
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
        """Passes of this thread inside are nobody's: no steering, receipt, trace or later call notices them."""
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
        """Let `generate` of this thread run through another engine's function of the inputs."""
        outer = getattr(self._traced, "generate", None)
        self._traced.generate = generate
        try:
            yield
        finally:
            self._traced.generate = outer

    @contextmanager
    def _asking(
        self, samples: Sequence[Sample], batch: Sequence[int], images: Images, inputs: Inputs
    ) -> Iterator[None]:
        """While some of the samples are the prompts of a call."""
        token = _asked.set(_Asked(self, samples, batch, images, inputs))
        try:
            yield
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
            return view(name, given, self.adapter, self.architecture, self.processor, seed)
        if name == "original" or asked.images == name:
            return asked.inputs
        if name == "caption":
            for index in range(len(asked.samples)):
                if asked.samples[index].images:
                    self._check(index, asked.samples[index], name)
        elif hides_images(asked.images):
            return asked.inputs
        return self.inputs([asked.samples[index] for index in asked.batch], name, seed=seed)

    def _generate(self, inputs: Inputs, options: dict[str, Any]) -> Tensor:
        target = hooks.call_target(self.model, inputs, self.architecture)
        run = getattr(self._traced, "generate", None)
        if run is not None:
            return run(target, inputs, options)
        return cast("Any", target).generate(**inputs, **options)

    def _transients(self) -> list[tuple[nn.Module, str]]:
        paths = [path.rpartition(".") for path in self.architecture.transient]
        return [(self.model.get_submodule(owner), name) for owner, _, name in paths]

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)

    def _batches(self, samples: Sequence[Sample], images: Images, size: int) -> list[list[int]]:
        """Batches of indices, samples with images apart from those without; bad samples are found here."""
        expect_whole(batch_size=size)
        hidden = hides_images(images)
        groups: dict[bool, list[int]] = {True: [], False: []}
        for index in range(len(samples)):
            groups[bool(samples[index].images) and not hidden].append(index)
        batches = [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
        if len(batches) > 1:  # a single batch is built whole before the model runs
            for index in range(len(samples)):
                self._check(index, samples[index], images)
        return batches

    def _check(self, index: int, sample: Sample, images: Images) -> None:
        with named(index, sample):
            if not hides_images(images):
                sample.check_images()
            self.check_prompt(sample, images)

    def __repr__(self) -> str:
        """Class and sizes of the model."""
        return one_line(
            f"VLM({self.record.architecture}, {self.record.layer_count} layers of {self.record.hidden_size})"
        )


def load(source: str, **options: Any) -> VLM:
    """Load a model with its processor, from the Hugging Face hub or a folder.

    Args:
        source: Repository id or folder.
        **options: What `from_pretrained` takes: `dtype`, `device_map`, `revision`, `token`, `cache_dir` ...

    Returns:
        The model in evaluation mode.

    Raises:
        UnsupportedModelError: There is no model, or no adapter serves its type; raised before any weight is read.
        ProcessorError: The processor can't be built.
        OptionError: The source is no text, or torch has no such dtype.

    Example:
        >>> vlm = sk.load("llava-hf/llava-1.5-7b-hf", device_map="auto", dtype="bfloat16")
    """
    import transformers

    expect(PATH, "a repository id or a folder", source=source)
    for name in {"dtype", "torch_dtype"} & options.keys():
        _check_dtype(name, options[name])
    shared = {k: v for k, v in options.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
    adapter = adapter_of(source, **shared)
    if (commit := _commit(source, shared)) is not None:  # all the rest is of the same one, should a branch move on
        shared["revision"] = options["revision"] = commit
    processor = adapter.load_processor(str(source), **shared)
    model = getattr(transformers, adapter.auto_class).from_pretrained(source, **options)
    return VLM(model.eval(), processor, adapter, revision=commit)


def _check_dtype(name: str, dtype: object) -> None:
    """Refuse a type that torch does not have; a mapping gives parts of the model types of their own."""
    for one in dtype.values() if isinstance(dtype, Mapping) else [dtype]:
        known = getattr(torch, one, None) if isinstance(one, str) else one
        if one not in (None, "auto") and not isinstance(known, torch.dtype):
            raise OptionError(f"{name} is {one!r:.80}", expected="'auto' or a type of torch, such as 'bfloat16'")


def _commit(source: str, options: Mapping[str, Any]) -> str | None:
    """The commit that a repository's config was just read from; None for a folder."""
    if Path(source).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        source, "config.json", cache_dir=options.get("cache_dir"), revision=options.get("revision")
    )
    return Path(found).parent.name if isinstance(found, str) else None


def adapter_of(source: str, **options: Any) -> ModelAdapter:
    """The adapter of the model in a repository or folder, from its config alone: none of the repository's code is run.

    Args:
        source: Repository id or folder.
        **options: What `from_pretrained` takes: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        UnsupportedModelError: There is no config, or no adapter serves its model type.
    """
    from transformers import PretrainedConfig

    try:
        # AutoConfig refuses the types that it does not know, or asks whether to run what the repository brings
        config, _ = PretrainedConfig.get_config_dict(source, **options)
        if not config:
            raise OSError("there is no config.json")
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"{str(source)!r} has no model config that can be read ({str(error).strip().splitlines()[0]})",
            expected="a folder with a config.json, or a repository id of the Hugging Face hub that you have access to",
            fix="check the name and the revision; `hf auth login` for a gated repository",
        ) from error
    return adapter_for(str(config.get("model_type", "")))


def wrap(model: nn.Module, processor: Any = None) -> VLM:
    """Use a model that is already loaded.

    Args:
        model: The Hugging Face model, or a PEFT model around it; it is neither copied nor changed.
        processor: Its processor (of a language model, its tokenizer). Without one, only raw inputs can be used:
            `steer(model, vector)` and `model.generate(**inputs)`.

    Raises:
        UnsupportedModelError: No adapter serves this model type, or PEFT puts tokens of its own in front of prompts.
    """
    if isinstance(model, VLM):
        raise OptionError("a VLM is wrapped again", expected="the Hugging Face model", fix="use the VLM as it is")
    return VLM(model, processor, adapter_for(cast("Any", _hugging_face(model)).config.model_type))


def check_vlm(given: object) -> None:
    """Refuse what is no VLM, where a model is needed with its processor.

    Raises:
        OptionError: It is something else.
    """
    expect(VLM, "a VLM: a model with its processor", "sk.wrap(model, processor), or what sk.load returns", vlm=given)


def _hugging_face(model: nn.Module) -> nn.Module:
    """The model, unwrapped, once it is known to be one that says its type."""
    model = unwrapped(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or not isinstance(model_type, str):
        raise OptionError(
            f"{type(model).__name__} is not a Hugging Face model",
            expected="a model with a config",
            fix="pass what from_pretrained returned; of what holds it, the model inside: pipe.model of a pipeline",
        )
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT model, or the model itself.

    PEFT changes the layers of that model in place and calls it, so whatever is done to it is done to both.

    Raises:
        UnsupportedModelError: An adapter puts tokens of its own in front of the prompt, at positions that no selector
            knows.
    """
    peft: Any = sys.modules.get("peft")  # whoever holds a PEFT model has imported it
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    wrapper = cast("Any", model)
    if prompting := sorted(name for name, config in wrapper.peft_config.items() if config.is_prompt_learning):
        raise UnsupportedModelError(
            f"the PEFT adapters {prompting} put tokens of their own in front of the prompt",
            expected="adapters that change layers, such as LoRA",
            fix="steer the model without them: model.get_base_model()",
        )
    return wrapper.get_base_model()


def _record(model: nn.Module, processor: Any, architecture: Architecture, revision: str | None) -> ModelRecord:
    config = cast("Any", model).config
    tokenizer = None if processor is None else tokenizer_of(processor)
    try:
        vocabulary = None if tokenizer is None else tokenizer.get_vocab()
    except AttributeError as error:
        raise ProcessorError(
            f"the processor is {processor!r:.80} of type {type(processor).__name__}",
            expected="a processor with a tokenizer, or a tokenizer",
            fix="AutoProcessor.from_pretrained(name); of a language model, AutoTokenizer",
        ) from error
    images = getattr(processor, "image_processor", None)
    return ModelRecord(
        id=str(config.name_or_path or ""),
        revision=revision or getattr(config, "_commit_hash", None),
        architecture=type(model).__name__,
        model_type=config.model_type,
        hidden_size=architecture.hidden_size,
        layer_count=architecture.layer_count,
        head_count=None if architecture.heads is None else architecture.heads.count,
        head_size=None if architecture.heads is None else architecture.heads.size,
        vision_hidden_size=None if architecture.vision is None else architecture.vision.hidden_size,
        vision_layer_count=None if architecture.vision is None else architecture.vision.layer_count,
        config_sha256=_digest(_stable(config.to_dict())),
        tokenizer_sha256=None
        if tokenizer is None
        else _digest({"vocabulary": vocabulary, "template": getattr(processor, "chat_template", None)}),
        processor_sha256=None if images is None else _digest(_stable(images.to_dict())),
    )


def _stable(settings: Any) -> Any:
    """Settings without what changes from one library version or loading option to the next."""
    volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation", "_commit_hash"}
    volatile |= {"quantization_config"}
    if isinstance(settings, dict):
        return {str(key): _stable(value) for key, value in settings.items() if key not in volatile}
    return settings


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
