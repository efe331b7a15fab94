"""How a sample is shown to a model: with its own images, with meaningless ones, as text, or as text with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steerkit._text import quoted
from steerkit.errors import MissingImageError, OptionError, SampleError
from steerkit.interventions import View
from steerkit.models._architecture import Images
from steerkit.models._chat import Turn
from steerkit.models._images import open_image
from steerkit.models._samples import Sample
from steerkit.models._views import meaningless_image


def shown(sample: Sample, images: Images, seed: int) -> Sample:
    """The sample as a view shows it, with its images opened.

    Raises:
        SampleError: The view shows a caption and there is none.
        MissingImageError: An image can't be read, or a function gives no list, or another number of them.
    """
    if hides_images(images):
        return prompt_of(sample, images)
    if images is True or images == "original":
        return sample.loaded()
    if sample.videos:
        raise SampleError(
            "a view of other images is asked of a sample with a video",
            expected="images alone, for what is blank, noise or made by a function",
            fix="use the view 'text', or 'caption'",
        )
    if callable(images):
        made = images(sample)
        if isinstance(made, str) or not isinstance(made, Sequence):
            raise MissingImageError(
                f"the function gave {quoted(made)} of type {type(made).__name__}",
                expected="a list of as many images as the sample has",
            )
        if len(made) != len(sample.images):
            raise MissingImageError(
                f"the function gave {len(made)} images for a sample with {len(sample.images)}", expected="as many"
            )
        return replace(sample, images=tuple(made)).loaded()
    opened = map(open_image, sample.images)
    made = [meaningless_image((image.height, image.width), None if images == "blank" else seed) for image in opened]
    return replace(sample, images=tuple(made))


def prompt_of(sample: Sample, images: Images) -> Sample:
    """The sample with the text and as many images as a view shows; they are not opened.

    Raises:
        SampleError: The view shows a caption and there is none.
    """
    if not hides_images(images):
        return sample
    return _captioned(sample) if images == "caption" else replace(sample, images=(), videos=())


def hides_images(images: Images) -> bool:
    """Whether a view is text alone.

    Raises:
        OptionError: It is no view.
    """
    if not callable(images) and images not in (True, False, *View.__args__):
        raise OptionError(
            f"images is {quoted(images)}",
            expected="True, False, " + ", ".join(View.__args__) + " or a function",
            fix="images themselves are given with their text: sk.Sample(text, images=[...])",
        )
    return images in (False, "text", "caption")


def _captioned(sample: Sample) -> Sample:
    if sample.caption is None:
        raise SampleError("it has no caption", expected="a caption for the view 'caption'")
    turns: list[Turn] = [("user", sample.text)] if isinstance(sample.text, str) else list(sample.text)
    first = next(index for index, (role, _) in enumerate(turns) if role == "user")
    for index, (role, content) in enumerate(turns):
        parts = [content] if isinstance(content, str) else [part for part in content if isinstance(part, str)]
        if index == first:
            parts[:1] = ["\n".join([sample.caption, *parts[:1]])]
        turns[index] = (role, tuple(parts) or "")
    return replace(sample, text=tuple(turns), images=(), videos=())
