"""From samples to the inputs of a model: each prompt is prepared once, before the model runs.

What other libraries raise on the way (a chat template, a tokenizer, an image processor) becomes an error of ours that
says which sample it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from os import PathLike
from typing import Any

from steerkit._text import described
from steerkit.errors import MissingImageError, SampleError, SteerKitError
from steerkit.models._architecture import Images, Inputs
from steerkit.models._format import PromptFormat
from steerkit.models._images import image_name, open_image
from steerkit.models._rendering import hides_images, shown
from steerkit.models._samples import Sample

KEPT = 2**30
"""Bytes of prepared inputs that wait for the model; what is beyond is checked, dropped, and prepared again."""

_first: ContextVar[int] = ContextVar("steerkit_first_sample", default=0)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The prompts of one call of a model.

    Attributes:
        indices: Which of the samples they are.
        samples: The samples as the view shows them.
        texts: The same, rendered.
        inputs: What the model takes, left padded, on the CPU.
    """

    indices: Sequence[int]
    samples: Sequence[Sample]
    texts: Sequence[str]
    inputs: Inputs


@contextmanager
def numbered_from(first: int) -> Iterator[None]:
    """Let errors inside count samples from here on: those that are handed on are a part of a longer list."""
    token = _first.set(_first.get() + first)
    try:
        yield
    finally:
        _first.reset(token)


@contextmanager
def named(index: int, sample: Sample) -> Iterator[None]:
    """Let an error about a sample inside say which one it is, also one of another library.

    Raises:
        SampleError: Something else than an error of ours came out.
        SteerKitError: One of ours, of its own type.
    """
    try:
        yield
    except (SampleError, MissingImageError) as error:
        problem = f"{_label(index, sample)}: {error.problem}"
        raise type(error)(problem, expected=error.expected, fix=error.fix) from error
    except SteerKitError:
        raise
    except Exception as error:
        raise SampleError(
            f"{_label(index, sample)}{_files(sample)} can't be made a prompt of this model: {described(error)}",
            expected="a prompt that the model's chat template, tokenizer and image processor take",
            fix="change the sample, or leave it out; the traceback above is that of the library that refused it",
        ) from error


def numbers(indices: Sequence[int]) -> str:
    """Which samples, as their numbers in the list that the caller gave."""
    first = _first.get()
    listed = sorted(index + first for index in indices)
    if len(listed) == 1:
        return f"sample {listed[0]}"
    together = listed == list(range(listed[0], listed[-1] + 1))
    return f"samples {listed[0]} to {listed[-1]}" if together else "samples " + ", ".join(map(str, listed))


def prepare(
    format: PromptFormat,
    samples: Sequence[Sample],
    indices: Sequence[int],
    images: Images = True,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Prepared:
    """Render, open and encode some samples as one batch.

    Args:
        format: The prompts of the model.
        samples: Samples.
        indices: Those of the batch.
        images: Which images they are shown with.
        seed: Seed of noise images.
        options: Options of the chat template, for samples that do not set them.

    Raises:
        SampleError: One can't be a prompt of this model.
        MissingImageError: Some show images and others don't, or an image can't be read.
        ProcessorError: The processor can't make prompts.
    """
    posed: list[Sample] = []
    texts: list[str] = []
    for index in indices:
        with named(index, samples[index]):
            posed.append(shown(samples[index].with_template_options(options or {}), images, seed))
            posed[-1].check_images()
            texts.append(format.render(posed[-1], len(posed[-1].images), len(posed[-1].videos)))
    for what in ("image", "video"):
        held = [bool(getattr(sample, f"{what}s")) for sample in posed]
        if any(held) and not all(held):
            raise MissingImageError(
                f"sample {indices[held.index(False)] + _first.get()} of the batch has no {what} and others have",
                expected=f"{what}s in every sample of a batch, or in none",
                fix=f"pass the samples without {what}s separately, or images=False",
            )
    opened = [list(map(open_image, sample.images)) for sample in posed]
    videos = [list(sample.videos) for sample in posed]
    try:
        inputs = format.encode(texts, opened, videos)
    except Exception as error:
        for at, index in enumerate(indices):
            with named(index, samples[index]):
                format.encode(texts[at : at + 1], opened[at : at + 1], videos[at : at + 1])
        if isinstance(error, SteerKitError):
            raise
        raise SampleError(
            f"{numbers(indices)} can't be prompts of one batch: {described(error)}",
            expected="prompts that the processor takes together, as it takes each of them alone",
            fix="use a smaller batch_size",
        ) from error
    return Prepared(tuple(indices), tuple(posed), tuple(texts), inputs)


def answer_lengths(format: PromptFormat, prepared: Prepared) -> list[int]:
    """How many tokens at the end of each prompt are the beginning of its answer.

    A token that the beginning shares with what stands before it belongs to the beginning.

    Raises:
        SampleError: A prompt begins no answer, or the prompts of this model don't end with it.
    """
    opened: list[str] = []
    for index, sample, text in zip(prepared.indices, prepared.samples, prepared.texts, strict=True):
        with named(index, sample):
            check_begun(sample)
            begun = sample.turns[-1][1].strip()
            if not format.ends_open or not text.rstrip().endswith(begun):
                raise SampleError(
                    "the prompts of this model don't end with the beginning of the answer as it is written",
                    expected="a chat template that writes it as one text at the end of the prompt",
                    fix="read the last token, or the mean over the prompt",
                )
            opened.append(text[: text.rindex(begun)])
    images = [list(map(open_image, sample.images)) for sample in prepared.samples]
    before = _rows(format.encode(opened, images, [list(sample.videos) for sample in prepared.samples]))
    lengths: list[int] = []
    for number, (row, other) in enumerate(zip(_rows(prepared.inputs), before, strict=True)):
        apart = next((at for at, pair in enumerate(zip(row, other, strict=False)) if pair[0] != pair[1]), len(other))
        lengths.append(len(row) - apart)
        with named(prepared.indices[number], prepared.samples[number]):
            if lengths[-1] < 1:
                raise SampleError(
                    "the tokenizer leaves nothing of the beginning of the answer",
                    expected="a text that it has tokens for",
                )
    return lengths


def check_begun(sample: Sample) -> None:
    """Refuse a sample that begins no answer.

    Raises:
        SampleError: It ends with the user's turn.
    """
    if not sample.continues:
        raise SampleError(
            "the tokens of the answer's beginning are read, and it has none",
            expected="a chat that ends with ('assistant', beginning of the answer)",
            fix="add that turn, or read the last token of the prompt",
        )


def _rows(inputs: Inputs) -> list[list[int]]:
    """The ids of each prompt, without padding."""
    return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def batched(samples: Sequence[Sample], images: Images, size: int) -> list[list[int]]:
    """Indices by batch: samples that are shown with images, with videos, with both and with neither, each apart."""
    hidden = hides_images(images)
    groups: dict[tuple[bool, bool], list[int]] = {(True, False): [], (True, True): [], (False, True): []}
    for index in range(len(samples)):
        sample = samples[index]
        kind = (bool(sample.images) and not hidden, bool(sample.videos) and not hidden)
        groups.setdefault(kind, []).append(index)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def all_prepared(prepared: Callable[[Sequence[int]], Prepared], batches: Sequence[Sequence[int]]) -> Iterator[Prepared]:
    """Each batch, once all of them have been prepared: a sample that can't be a prompt is found before the model runs.

    Args:
        prepared: Prepares the samples with these indices.
        batches: Indices by batch.
    """
    waiting: list[Prepared | None] = []
    size = 0
    for batch in batches:
        made = prepared(batch)
        size += sum(value.nbytes for value in made.inputs.values())
        waiting.append(made if size <= KEPT else None)
    for at, batch in enumerate(batches):
        made, waiting[at] = waiting[at], None
        yield made if made is not None else prepared(batch)


def _label(index: int, sample: Sample) -> str:
    """Number and text of a sample."""
    return f"sample {index + _first.get()} ({sample.turns[-1][1][:60]!r})"


def _files(sample: Sample) -> str:
    """The files of its images, for an error that does not say which image it is about."""
    files = [image_name(image) for image in sample.images if isinstance(image, (str, PathLike))]
    return f", with the image {', '.join(files)}," if files else ""
