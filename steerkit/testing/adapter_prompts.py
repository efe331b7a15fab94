"""How prompts are built: demands of the kit on a family."""

from __future__ import annotations

import inspect
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from PIL import Image
from torch import Tensor

from steerkit.errors import ContractError, ProcessorError, SampleError, SteerKitError
from steerkit.models import Sample, decode, encode, load_processor
from steerkit.testing.adapter_case import LONG, SHORT, SYSTEM, AdapterCase, chat
from steerkit.testing.reference_hooks import Place, outputs
from steerkit.testing.samples import picture


def only_the_image_differs(case: AdapterCase) -> None:
    """A prompt with an image, decoded and with the placeholder removed, is tokenised as the prompt without."""
    case.needs_images()
    case.needs_text()
    for text in (SHORT, chat(LONG)):
        bare = case.encode(Sample(text))["input_ids"][0].tolist()
        row = case.encode(Sample(text, (picture(3, *case.size),)))["input_ids"][0]
        more = len(row) - len(bare)
        bared = case.family.prompt == "bare"  # the processor puts the image there as ids
        if bared and any([*row[:at].tolist(), *row[at + more :].tolist()] == bare for at in range(len(bare) + 1)):
            continue
        shown = decode(case.tokenizer, row)
        if encode(case.tokenizer, shown) != row.tolist():
            raise ContractError(f"the tokenizer does not read its own text {shown!r} back")
        removed = re.sub(case.format.placeholder, "", shown)
        if encode(case.tokenizer, removed) != bare:
            raise ContractError(
                f"without its placeholder the prompt is {removed!r}, and without an image "
                f"{decode(case.tokenizer, torch.tensor(bare, device='cpu'))!r}",
                fix="render the same text for image_count=0, and let `placeholder` match all that stands for the image",
            )


def image_sizes_keep_the_shapes(case: AdapterCase) -> None:
    """Images of the sizes that `image_sizes` tells are processed to the shapes of the originals."""
    case.needs_images()
    width, height = case.size
    sizes = [case.size, (2 * width, height), (height, width)][: 1 if case.architecture.alone else 3]
    inputs = case.encode(*[Sample(SHORT, (picture(7, *size),)) for size in sizes])
    try:
        groups = case.format.image_sizes(inputs)
    except ProcessorError as error:  # so are the views that need them, where they are used
        raise SkipTest(f"meaningless images are refused: {error.problem}") from error
    try:
        white = [[Image.new("RGB", (width, height)) for height, width in group] for group in groups]
    except TypeError as error:
        raise ContractError(f"image_sizes gives {groups!r}", fix="a list of groups of (height, width)") from error
    if sum(map(len, white)) != len(sizes):
        raise ContractError(f"image_sizes tells {sum(map(len, white))} sizes of {len(sizes)} images")
    for key, value in case.vlm.processor.image_processor(images=white, return_tensors="pt").items():
        if key in inputs and value.shape != inputs[key].shape:
            raise ContractError(f"{key} of such images has shape {tuple(value.shape)}, not {tuple(inputs[key].shape)}")


def several_images_work_or_are_refused(case: AdapterCase) -> None:
    """A prompt with two images runs, or is a SampleError of `render`."""
    case.needs_images()
    two = Sample(SHORT, (picture(8, *case.size), picture(9, *case.size[::-1])))
    try:
        case.format.render(two, 2)
    except SampleError:
        return
    forth = _last_states(case, [two])
    back = _last_states(case, [replace(two, images=two.images[::-1])])
    if torch.allclose(forth, back, atol=1e-3):
        raise ContractError("exchanging the two images changes nothing", fix="raise SampleError in render")


def user_marker_opens_the_users_turn(case: AdapterCase) -> None:
    """The `user_marker`, where there is one, stands between the system's text and the user's."""
    marker = case.format.user_marker
    if marker is None:
        return
    turns = (("system", SYSTEM), ("user", LONG))
    prompt = case.format.render(Sample(turns), int(case.takes_images))
    before, found, after = prompt.partition(marker)
    if not found or SYSTEM not in before or LONG not in after:
        raise ContractError(f"{marker!r} does not open the user's turn of {prompt!r}")


def every_part_of_a_chat_counts(case: AdapterCase) -> None:
    """Where images stand, a begun answer and an option of the template are in the prompt, or a SampleError."""
    earlier = chat(LONG)
    asked, begun = Sample(earlier), Sample((*earlier, ("assistant", SHORT)))
    parts = ({"type": "image"}, {"type": "text", "text": LONG})
    later = Sample((*earlier[:-1], ("user", parts)), (picture(1),)) if case.takes_images else None  # type: ignore[arg-type]

    def prompt_of(sample: Sample, images: int) -> str | None:
        try:
            return case.format.render(sample, images)
        except SteerKitError:
            return None

    prompt = prompt_of(asked, int(case.takes_images))
    if later is not None and prompt is not None and prompt_of(later, 1) == prompt:
        raise ContractError("an image of a later turn stands in the first", fix="render sample.messages(image_count)")
    if (found := prompt_of(begun, 0)) is not None and not found.endswith(SHORT):
        raise ContractError(f"an answer that begins with {SHORT!r} does not go on in {found!r}", fix="sample.continues")
    if prompt_of(replace(asked, chat_template_kwargs={"no_such_option": 1}), 0) is not None:
        raise ContractError("an option that no template reads is ignored", fix="sample.template_options(template)")


def processor_loads(case: AdapterCase) -> None:
    """`load_processor` reads a processor that was saved to a folder, and it encodes as the one that was saved."""
    with tempfile.TemporaryDirectory() as folder:
        case.save(Path(folder))
        processor = load_processor(folder, case.family, local_files_only=True)
    loaded = AdapterCase(case.family, lambda: (case.vlm.model, processor))
    for batch in case.batches:
        found, expected = loaded.encode(*batch), case.encode(*batch)
        if found.keys() != expected.keys() or not all(torch.equal(found[key], expected[key]) for key in found):
            raise ContractError("the loaded processor encodes prompts differently")


def _processed(case: AdapterCase, size: tuple[int, int]) -> int | None:
    """How many image tokens the processor itself makes of an image; None where it takes no rendered prompts."""
    text = case.format.render(Sample(SHORT), 1)
    try:
        made = case.vlm.processor(text=[text], images=[picture(4, *size)], return_tensors="pt")
    except (TypeError, ValueError, SteerKitError):
        return None
    return int(case.image_places(made["input_ids"]).sum())


def _settings(processor: Any) -> dict[str, str]:
    """The plain settings of a processor and its parts."""
    parts = {"": processor, **{name: getattr(processor, name, None) for name in ("tokenizer", "image_processor")}}
    plain = (bool, int, float, str, list, dict, type(None))
    return {
        f"{name}.{key}": repr(value)
        for name, part in parts.items()
        if part is not None and not inspect.isclass(part)
        for key, value in vars(part).items()
        if isinstance(value, plain)
    }


def _last_states(case: AdapterCase, batch: list[Sample]) -> Tensor:
    """`[batch, hidden]`: the output of the last block at the last token."""
    case.vlm.reset()
    last = max(layer for layer in range(case.architecture.layer_count) if case.runs(layer, batch))
    place: Place = (last, "resid_post")
    found, _ = outputs(case.vlm.model, case.encode(*batch), case.architecture, [place])
    return found[place][:, -1]
