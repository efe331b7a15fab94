"""A vision-language model and its processor, as one object: `load`, `wrap` and `VLM`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from steerkit._internal.validation import PATH, expect, expect_each, expect_one_of, expect_whole
from steerkit._text import one_line
from steerkit.analysis import fingerprint
from steerkit.engines import hooks
from steerkit.engines.likelihood import answer_log_likelihood
from steerkit.errors import OptionError, SampleError, UnsupportedModelError
from steerkit.interventions import Pool, Site, Tower
from steerkit.models import (
    Images,
    Inputs,
    Prepared,
    Sample,
    all_prepared,
    as_samples,
    check_dtype,
    check_one_answer,
    check_room,
    commit_of,
    family_of,
    generation_settings,
    load_processor,
    tested,
    tokenizer_of,
    weights_digest,
)
from steerkit.vectors import Fingerprint
from steerkit.vlm._prompted import PromptedModel, options_refused
from steerkit.vlm._self_check import check_itself

Progress = Callable[[int, int], None]
"""Called with (done, total) samples after each batch."""


class Generated(NamedTuple):
    """One answer.

    Attributes:
        number: Of the sample.
        text: Without the prompt and without special tokens.
        tokens: Its length; its end-of-sequence token counts.
        ended: Whether the model ended it; if not, it was cut where the options say.
    """

    number: int
    text: str
    tokens: int
    ended: bool


class VLM(PromptedModel):
    """A loaded model that methods can measure and that answers samples.

    Build one with `steerkit.load` or `steerkit.wrap`. `revision` is the commit of the hub that a model came from, where
    the model's config does not say so: since transformers 5.24, none does.

    Attributes:
        model: The Hugging Face model, untouched; of a PEFT model, the one inside, whose layers hold the adapters.
        processor: Its processor; None where only raw inputs will be used.
        family: What is declared of its family.
        architecture: Where the model's blocks are.
        record: What the model is, as written into packs.
    """

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

        All prompts are prepared before the model runs. What interrupts it later does not lose the answers that are
        there: the exception has them as `error.finished`, a dictionary from the sample's number to its answer.

        Args:
            samples: The samples, with images or without; both kinds may be mixed.
            images: As for `inputs`.
            batch_size: Prompts per call of the model.
            progress: Called with (done, total) after each batch.
            **options: What `model.generate` takes, such as `max_new_tokens` or a `generation_config`.

        Returns:
            One text per sample, in order, without the prompt and without special tokens.

        Raises:
            SampleError: A sample can't be a prompt of this model, with its number; found before the model runs, as all
                of these are.
            MissingImageError: An image file is missing, or is not an image.
            OptionError: An option has an impossible value, whether it is given here or by a generation config: at once
                where that can be known, else with the numbers of the batch.
            ProcessorError: The VLM was wrapped without a processor.
            ModelError: The model failed on a batch.

        Example:
            >>> try:
            ...     answers = vlm.generate(samples)
            ... except sk.SteerKitError as error:
            ...     left = [sample for number, sample in enumerate(samples) if number not in error.finished]
        """
        finished: dict[int, str] = {}
        try:
            for made in self.answers(samples, images=images, batch_size=batch_size, progress=progress, **options):
                finished[made.number] = made.text
        except BaseException as error:
            error.finished = finished  # type: ignore[attr-defined]
            raise
        return [finished[number] for number in range(len(samples))]

    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: Images = True,
        batch_size: int = 8,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[Generated]:
        """The same as `generate`, one batch after the other, so that answers can be kept as they come.

        Args:
            samples: The samples.
            images: As for `inputs`.
            batch_size: Prompts per call of the model.
            progress: Called with (done, total) after each batch, before its answers are given.
            **options: What `model.generate` takes.

        Returns:
            The answers, in the order in which they are finished: samples with images first. Every prompt is prepared
            when the first is asked for.

        Raises:
            OptionError: As for `generate`, at once; its other errors come when the first answer is asked for.
        """
        expect_whole(batch_size=batch_size)
        expect(Callable | None, "a function of (done, total)", progress=progress)
        self.require_processor("generate")
        as_samples(samples)
        self._check_settings(options)
        return self._answers(samples, images, batch_size, progress, options)

    def _answers(
        self, samples: Sequence[Sample], images: Images, batch_size: int, progress: Progress | None, options: Any
    ) -> Iterator[Generated]:
        tokenizer = tokenizer_of(self.processor)

        def prepared(batch: Sequence[int]) -> Prepared:
            made = self._prepared(samples, batch, images)
            target: Any = hooks.call_target(self.model, made.inputs, self.architecture)
            settings = self._check_settings(options, target)
            if settings.stop_strings:  # generate finds them in texts, and knows no tokenizer by itself
                options.setdefault("tokenizer", tokenizer)
            if not self.architecture.encoder_decoder:
                check_room(settings, options, target.generation_config, made)
            return made

        done = 0
        for made in all_prepared(prepared, self._batches(samples, images, batch_size)):
            with self._asking(samples, images, made) as inputs, torch.no_grad():
                with options_refused(made.indices):
                    output = self._generate(inputs, options)
                answers = output if self.architecture.encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
                texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
                target = hooks.call_target(self.model, inputs, self.architecture)
                ends = self._check_settings(options, target).eos_token_id
                begun = 1 if self.architecture.encoder_decoder else 0
                lengths = [_length(row[begun:], ends) for row in answers]
                ready = [  # custom_generate may return anything
                    Generated(index, text.strip(), *length)
                    for index, text, length in zip(made.indices, texts, lengths, strict=True)
                ]
            done += len(made.indices)
            if progress is not None:
                progress(done, len(samples))
            yield from ready

    def _check_settings(self, options: Mapping[str, Any], target: nn.Module | None = None) -> Any:
        settings = generation_settings(self.model if target is None else target, options)
        check_one_answer(settings, options)
        return settings

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
        parts: list[tuple[Sequence[int], dict[int, Tensor]]] = []
        for made in self._all(samples, images, batch_size, seed):
            with self._asking(samples, images, made) as inputs:
                parts.append((made.indices, read(self.model, inputs, self.architecture, wanted, site, tower, pool)))
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
        return weights_digest(self.model)

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
        for made in self._all(samples, images, batch_size):
            both = []
            for ids in begun:
                with self._asking(samples, images, made) as inputs:
                    answered = [ids[index] for index in made.indices]
                    both.append(answer_log_likelihood(self.model, inputs, answered, self.architecture))
            for index, one, other in zip(made.indices, *both, strict=True):
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
        for made in self._all(as_samples(samples), images, batch_size):
            with torch.no_grad(), self._asking(samples, images, made) as inputs:
                target = hooks.call_target(self.model, inputs, self.architecture)
                logits = target(**hooks.forward_inputs(self.model, inputs, self.architecture)).logits
            # prompts are padded on the left; a decoder of an encoder's has one position
            for index, row in zip(made.indices, logits[:, -1].float().log_softmax(-1).cpu(), strict=True):
                rows[index] = row
        self.reset()
        if not rows:
            raise SampleError("there are no samples", expected="at least one")
        return torch.stack([rows[index] for index in range(len(samples))])

    def _generate(self, inputs: Inputs, options: dict[str, Any]) -> Tensor:
        target = hooks.call_target(self.model, inputs, self.architecture)
        run = self._route()
        if run is not None:
            return run(target, inputs, options)
        return cast("Any", target).generate(**inputs, **options)

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
        UnsupportedModelError: There is no model, or its type is not served; raised before any weight is read.
        ProcessorError: The processor can't be built.
        OptionError: The source is no text, or torch has no such dtype.

    Example:
        >>> vlm = sk.load("llava-hf/llava-1.5-7b-hf", device_map="auto", dtype="bfloat16")
    """
    import transformers

    expect(PATH, "a repository id or a folder", source=source)
    for name in {"dtype", "torch_dtype"} & options.keys():
        check_dtype(name, options[name])
    shared = {k: v for k, v in options.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
    family = family_of(source, **shared)
    if (commit := commit_of(source, shared)) is not None:  # all the rest is of the same one, should a branch move on
        shared["revision"] = options["revision"] = commit
    processor = load_processor(str(source), family, **shared)
    try:
        model = getattr(transformers, family.auto_class).from_pretrained(source, **options)
    except ImportError as error:  # before any weight is read
        raise UnsupportedModelError(
            f"{str(source)!r} needs what is not installed: {one_line(error).strip()[:200]}",
            expected="the packages that transformers names",
        ) from error
    return _tried(VLM(model.eval(), processor, family, revision=commit))


def wrap(model: nn.Module, processor: Any = None) -> VLM:
    """Use a model that is already loaded.

    Args:
        model: The Hugging Face model, or a PEFT model around it; it is neither copied nor changed.
        processor: Its processor (of a language model, its tokenizer). Without one, only raw inputs can be used:
            `steer(model, vector)` and `model.generate(**inputs)`.

    Raises:
        UnsupportedModelError: This model type is not served, or PEFT puts tokens of its own in front of prompts.
    """
    if isinstance(model, VLM):
        raise OptionError("a VLM is wrapped again", expected="the Hugging Face model", fix="use the VLM as it is")
    return _tried(VLM(model, processor))


def _tried(vlm: VLM) -> VLM:
    """A model, once it has been tried, where its type is in no table of tested ones."""
    known = tested().get(vlm.record.model_type, {}).get("level") in ("images and text", "images")
    if not known and vlm.processor is not None and vlm.architecture.takes_images and vlm.device.type != "meta":
        check_itself(vlm)
    return vlm


def check_vlm(given: object) -> None:
    """Refuse what is no VLM, where a model is needed with its processor.

    Raises:
        OptionError: It is something else.
    """
    expect(VLM, "a VLM: a model with its processor", "sk.wrap(model, processor), or what sk.load returns", vlm=given)


def _length(answer: Tensor, ends: int | Sequence[int] | None) -> tuple[int, bool]:
    """How many tokens an answer has, what fills the batch up left out, and whether the last of them ends it."""
    if ends is None:
        return len(answer), False
    found = torch.isin(answer, torch.as_tensor(ends, device=answer.device)).nonzero()
    return (len(answer), False) if not len(found) else (int(found[0]) + 1, True)
