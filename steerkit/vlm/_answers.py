"""What a model answers: its own answers to samples, and how likely it finds given ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from steerkit._internal.validation import expect, expect_each, expect_whole
from steerkit.engines import capturing
from steerkit.engines.calls import CallTracker
from steerkit.engines.likelihood import answer_log_likelihood
from steerkit.engines.model_inputs import prompt_length
from steerkit.errors import OptionError, SampleError, UnsupportedModelError
from steerkit.models import (
    Images,
    Inputs,
    Prepared,
    Sample,
    all_prepared,
    as_samples,
    check_one_answer,
    check_room,
    generation_settings,
    tokenizer_of,
    unshared,
)
from steerkit.vlm._options import options_refused
from steerkit.vlm._prompted import PromptedModel

_TEXT, _GRIDS = ("input_ids", "attention_mask"), ("mm_token_type_ids", "image_grid_thw")
"""Inputs of a prompt by token; and those of which positions in images are made, the first of them by token as well."""

Progress = Callable[[int, int], None]
"""Called with (done, total) samples after each batch."""


class Generated(NamedTuple):
    """One answer.

    Attributes:
        number: Of the sample.
        text: Without the prompt and without special tokens.
        tokens: Its length; its end-of-sequence token counts.
        ended: Whether the model ended it; if not, it was cut where the options say.
        prompt: Tokens of its prompt, those of images included.
    """

    number: int
    text: str
    tokens: int
    ended: bool
    prompt: int


class AnsweringModel(PromptedModel):
    """A model with its processor, as far as it answers."""

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
            **options: What `model.generate` takes, such as `max_new_tokens` or a `generation_config`; and
                `chat_template_kwargs`, options of the chat template for samples that do not set them.

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
        return [finished[number] for number in sorted(finished)]  # `progress` may have changed the list

    def answers(
        self,
        samples: Sequence[Sample],
        *,
        images: Images = True,
        batch_size: int = 8,
        copies: int = 1,
        progress: Progress | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Iterator[Generated]:
        """The same as `generate`, one batch after the other, so that answers can be kept as they come.

        Args:
            samples: The samples.
            images: As for `inputs`.
            batch_size: Prompts per call of the model.
            copies: How often each prompt is answered in one call, in rows that follow each other: an open block may
                steer them differently, by `Intervention.rows`. What is before the prompt's last token is read once for
                all of them, where the model's KV cache allows that, and nothing that is open acts there.
            progress: Called with (done, total) after each batch, before its answers are given.
            chat_template_kwargs: Options of the chat template, for samples that do not set them.
            **options: What `model.generate` takes.

        Returns:
            The answers, in the order in which they are finished: samples with images first. Every prompt is prepared
            when the first is asked for.

        Raises:
            OptionError: As for `generate`, at once; its other errors come when the first answer is asked for.
        """
        expect_whole(batch_size=batch_size, copies=copies)
        expect(Callable | None, "a function of (done, total)", progress=progress)
        tokenizer = self._require_answers("generate")
        as_samples(samples)
        if chat_template_kwargs:
            samples = [sample.with_template_options(chat_template_kwargs) for sample in samples]
        self._check_settings(options)
        return self._answers(samples, images, batch_size, copies, progress, options, tokenizer)

    def _answers(
        self,
        samples: Sequence[Sample],
        images: Images,
        batch_size: int,
        copies: int,
        progress: Progress | None,
        options: Any,
        tokenizer: Any,
    ) -> Iterator[Generated]:
        def prepared(batch: Sequence[int]) -> Prepared:
            made = self._prepared(samples, batch, images)
            target: Any = capturing.call_target(self.model, made.inputs, self.architecture)
            settings = self._check_settings(options, target)
            if settings.stop_strings:  # generate finds them in texts, and knows no tokenizer by itself
                options.setdefault("tokenizer", unshared(tokenizer))
            if not self.architecture.encoder_decoder:
                check_room(settings, options, target.generation_config, made)
            return made

        done = 0
        for once in all_prepared(prepared, self._batches(samples, images, batch_size)):
            rows = [index for index in once.indices for _ in range(copies)]
            shares = copies > 1 and self._shares(once.inputs)
            made = once if shares or copies == 1 else prepared(rows)
            with self._asking(samples, images, made) as inputs, torch.no_grad():
                if shares:
                    inputs = self._begun(inputs, copies)
                with options_refused(made.indices):
                    output = self._generate(inputs, options)
                answers = output[:, prompt_length(inputs, self.architecture) :]
                texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
                target = capturing.call_target(self.model, inputs, self.architecture)
                ends = self._check_settings(options, target).eos_token_id
                lengths = [_length(row, ends) for row in answers]
                begun = inputs.get("decoder_input_ids")
                prompts = inputs["attention_mask"].sum(1).tolist() if begun is None else [begun.shape[1]] * len(begun)
                ready = [  # custom_generate may return anything
                    Generated(index, text.strip(), *length, prompt)
                    for index, text, length, prompt in zip(rows, texts, lengths, prompts, strict=True)
                ]
            done += len(once.indices)
            if progress is not None:
                progress(done, len(samples))
            yield from ready

    def _shares(self, inputs: Inputs) -> bool:
        """Whether prompts can be read up to their last token once, and answered several times from there."""
        from transformers import DynamicCache, GenerationMixin
        from transformers.cache_utils import DynamicLayer

        model, usual = cast("Any", self.model), cast("Any", GenerationMixin)
        plain = type(model).generate is usual.generate and self._route() is None
        plain &= "position_ids" in inspect.signature(model.base_model.forward).parameters
        if not plain or self.architecture.encoder_decoder or self.architecture.transient:
            return False
        # a model with grids of images has positions of its own; other inputs may be needed after the prompt as well
        grids = (
            _GRIDS
            if type(model)._prepare_position_ids_for_generation is not usual._prepare_position_ids_for_generation
            else ()
        )
        if inputs.keys() - {*_TEXT, "pixel_values", *grids} or inputs["input_ids"].shape[1] < 2:
            return False
        with CallTracker.of(model, self.architecture) as tracker:
            call = tracker.prompt()
            if call is not None and not all(block.at_the_end for block in call.owners):
                return False
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        return all(type(layer) is DynamicLayer for layer in cache.layers)

    def _begun(self, inputs: Inputs, copies: int) -> dict[str, Any]:
        """Inputs of `generate` for copies of prompts that have been read, unsteered, up to their last token."""
        target: Any = capturing.call_target(self.model, inputs, self.architecture)
        given = {key: value for key, value in inputs.items() if key != "input_ids"}
        positions = target._prepare_position_ids_for_generation(inputs["input_ids"], given)
        first = {key: value[:, :-1] if key in (*_TEXT, *_GRIDS[:1]) else value for key, value in inputs.items()}
        with self.unnoticed():
            output = target.base_model(**first, position_ids=positions[..., :-1], use_cache=True)
        name = next(key for key in ("cache", "past_key_values") if output.get(key) is not None)
        output[name].batch_repeat_interleave(copies)
        kept = {key: inputs[key].repeat_interleave(copies, 0) for key in _TEXT}
        return kept | {
            "position_ids": positions.repeat_interleave(copies, positions.ndim - 2),
            name: output[name],
        }

    def _check_settings(self, options: Mapping[str, Any], target: nn.Module | None = None) -> Any:
        settings = generation_settings(self.model if target is None else target, options)
        check_one_answer(settings, options)
        return settings

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
        tokenizer = unshared(self._require_answers("the likelihood of an answer"))
        if len(answers) != len(as_samples(samples)):
            raise OptionError(f"{len(answers)} answers for {len(samples)} samples", expected="one for each")
        begun = [
            [tokenizer(start + answer if answer else "", add_special_tokens=False)["input_ids"] for answer in answers]
            for start in ("", " ")
        ]
        found: list[Tensor] = [torch.empty(0, device="cpu")] * len(answers)
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
        self._require_answers("the distribution of the next token")
        rows: dict[int, Tensor] = {}
        for made in self._all(as_samples(samples), images, batch_size):
            with torch.no_grad(), self._asking(samples, images, made) as inputs:
                target = capturing.call_target(self.model, inputs, self.architecture)
                logits = target(**capturing.forward_inputs(self.model, inputs, self.architecture)).logits
            # prompts are padded on the left; a decoder of an encoder's has one position
            for index, row in zip(made.indices, logits[:, -1].float().log_softmax(-1).cpu(), strict=True):
                rows[index] = row
        self.reset()
        if not rows:
            raise SampleError("there are no samples", expected="at least one")
        return torch.stack([rows[index] for index in range(len(samples))])

    def _generate(self, inputs: Inputs, options: dict[str, Any]) -> Tensor:
        target = capturing.call_target(self.model, inputs, self.architecture)
        run = self._route()
        if run is not None:
            return run(target, inputs, options)
        return cast("Any", target).generate(**inputs, **options)

    def _require_answers(self, purpose: str) -> Any:
        """The tokenizer of a model that has a head for tokens.

        Raises:
            ProcessorError: The VLM was made from a model alone.
            UnsupportedModelError: The model has no such head.
        """
        processor = self.require_processor(purpose)
        if not cast("Any", self.model).can_generate():
            raise UnsupportedModelError(
                f"{purpose} needs a model that writes tokens, and {type(self.model).__name__} does not",
                expected="a model with a language modelling head",
                fix="sk.load(name), or a class such as AutoModelForCausalLM; capture and steer work without a head",
            )
        return tokenizer_of(processor)


def _length(answer: Tensor, ends: int | Sequence[int] | None) -> tuple[int, bool]:
    """How many tokens an answer has, what fills the batch up left out, and whether the last of them ends it."""
    if ends is None:
        return len(answer), False
    found = torch.isin(answer, torch.as_tensor(ends, device=answer.device)).nonzero()
    return (len(answer), False) if not len(found) else (int(found[0]) + 1, True)
