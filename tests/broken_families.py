"""Families that are wrong in one way each, and the sound one that they are made from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image

from steerkit.models import (
    Architecture,
    Family,
    Inputs,
    PromptFormat,
    Sample,
    architecture_of,
    family_for,
    load_processor,
)


class Sound(PromptFormat):
    """Does what the prompts of a family do."""

    family: ClassVar[str] = "llava"
    types: ClassVar[tuple[str, ...]] = ("llava", "qwen2_vl")
    changes: ClassVar[dict[str, Any]] = {}

    @classmethod
    def record(cls) -> Family:
        return replace(family_for(cls.family), types=cls.types)

    @classmethod
    def architecture(cls, model: torch.nn.Module, family: Family) -> Architecture:
        return replace(architecture_of(model, family), **cls.changes)

    @classmethod
    def load(cls, source: str, family: Family, **options: Any) -> Any:
        return load_processor(source, family, **options)


class Narrow(Sound):
    changes: ClassVar[dict[str, Any]] = {"hidden_size": 32}


class Tower(Sound):
    """Takes the blocks of the vision tower for those of the language model."""

    changes: ClassVar[dict[str, Any]] = {
        "layers": "model.vision_tower.encoder.layers",
        "layer_count": 3,
        "hidden_size": 32,
    }


class Marked(Sound):
    user_marker = "HUMAN:"


class Unplaced(Sound):
    """The line break behind an image stays."""

    placeholder = "(?:<image>)+"

    def _without(self, prompt: str, written: str) -> str:
        return prompt.replace("<image>\n", "")


class Mistaken(Sound):
    """Takes the token that begins every text for the image's."""

    changes: ClassVar[dict[str, Any]] = {"image_token_ids": frozenset({1})}


class Overmarked(Sound):
    """Takes both for the image's."""

    changes: ClassVar[dict[str, Any]] = {"image_token_ids": frozenset({1, 3})}
    image_token = "<image>"


class Fronting(Sound):
    """Puts every image in front of the first user turn."""

    def render(self, sample: Sample, image_count: int, video_count: int = 0) -> str:
        return super().render(replace(sample, text=sample.turns, images=()), image_count)


class Closing(Sound):
    """Opens another turn behind the assistant's."""

    def render(self, sample: Sample, image_count: int, video_count: int = 0) -> str:
        return super().render(sample, image_count) + (" ASSISTANT:" if sample.continues else "")


class Unheeding(Sound):
    """Tells the template nothing."""

    def render(self, sample: Sample, image_count: int, video_count: int = 0) -> str:
        return super().render(replace(sample, chat_template_kwargs={}), image_count)


class Talkative(Sound):
    """Says more where there is an image."""

    def render(self, sample: Sample, image_count: int, video_count: int = 0) -> str:
        prompt = super().render(sample, image_count)
        return prompt.replace("ASSISTANT:", "Look! ASSISTANT:") if image_count else prompt


class Flat(Sound):
    """Forgets the groups."""

    def image_sizes(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        return [size for group in super().image_sizes(inputs) for size in group]


class Short(Sound):
    """Tells the size of the first image alone."""

    def image_sizes(self, inputs: Mapping[str, torch.Tensor]) -> list[list[tuple[int, int]]]:
        return [super().image_sizes(inputs)[0][:1]]


class Exchanged(Sound):
    """Height and width the wrong way round."""

    family = "qwen2_vl"

    def image_sizes(self, inputs: Mapping[str, torch.Tensor]) -> list[list[tuple[int, int]]]:
        found = super().image_sizes(inputs)
        return [[(width // 2, height) for height, width in group] for group in found]


class Sorting(Sound):
    """Shows images by their size, whatever their order."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        return super().encode(texts, [sorted(own, key=lambda image: image.size) for own in images])


class Right(Sound):
    """Pads on the right."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        inputs = super().encode(texts, images)
        for row, kept in enumerate(inputs["attention_mask"].sum(1).tolist()):
            for key in ("input_ids", "attention_mask"):
                inputs[key][row] = inputs[key][row].roll(kept - inputs[key].shape[1])
        return inputs


class Setting(Sound):
    """Sets the tokenizer's side for good."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        self.processor.tokenizer.padding_side = "left"
        return super().encode(texts, images)


class Unmasked(Sound):
    """Lets the model attend to padding."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        inputs = super().encode(texts, images)
        return inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}


class Reusing(Sound):
    """Answers every batch with the first of its size."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        made: dict[int, Inputs] = self.__dict__.setdefault("made", {})
        return made.setdefault(len(texts), super().encode(texts, images))


class Parted(Sound):
    """Loads a processor without its template."""

    @classmethod
    def load(cls, source: str, family: Family, **options: Any) -> Any:
        processor = super().load(source, family, **options)
        processor.chat_template = re.sub("ASSISTANT", "BOT", processor.chat_template)
        return processor


class Typed(Sound):
    """Passes on what the model does not take."""

    def encode(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]] = ()
    ) -> Inputs:
        inputs = super().encode(texts, images)
        return inputs | {"qformer_input_ids": inputs["input_ids"]}


class Dead(Sound):
    """An attention that is not the one whose output is used."""

    changes: ClassVar[dict[str, Any]] = {"attention": ("self_attn.q_proj",) * 4}

    @classmethod
    def architecture(cls, model: torch.nn.Module, family: Family) -> Architecture:
        declared = super().architecture(model, family)
        return Deaf(**{name: getattr(declared, name) for name in Architecture.__dataclass_fields__})


class Deaf(Architecture):
    """Names the block once, and its norm from then on."""

    def site(self, layer: int, site: Any, tower: Any = "language") -> str:
        return f"{self.layers}.{layer}.input_layernorm" if _asked_by_steer() else super().site(layer, site, tower)


def _asked_by_steer() -> bool:
    import sys

    frame = sys._getframe(2)
    return frame.f_globals["__name__"] == "steerkit.engines.hooks" and frame.f_code.co_name == "__init__"


class Switching(Sound):
    """Calls a setting of the model transient."""

    changes: ClassVar[dict[str, Any]] = {"transient": ("model.language_model.gradient_checkpointing",)}


class Hooking(Sound):
    """Leaves a hook on the model."""

    @classmethod
    def architecture(cls, model: torch.nn.Module, family: Family) -> Architecture:
        model.register_forward_hook(lambda *_: None)
        return super().architecture(model, family)


class Templating(Sound):
    """Changes the processor."""

    def render(self, sample: Sample, image_count: int, video_count: int = 0) -> str:
        self.processor.last_text = str(sample.text)
        return super().render(sample, image_count)


BROKEN: list[tuple[type[Sound], str, str]] = [
    (Narrow, "capture_reads_the_decoder_blocks", "32"),
    (Tower, "capture_reads_the_decoder_blocks", "block 0 and the model's own"),
    (Marked, "user_marker_opens_the_users_turn", "'HUMAN:' does not open"),
    (Fronting, "every_part_of_a_chat_counts", "an image of a later turn stands in the first"),
    (Closing, "every_part_of_a_chat_counts", "does not go on in"),
    (Unheeding, "every_part_of_a_chat_counts", "an option that no template reads is ignored"),
    (Talkative, "only_the_image_differs", "without its placeholder the prompt is"),
    (Unplaced, "only_the_image_differs", "without its placeholder the prompt is"),
    (Mistaken, "image_tokens_hold_the_image", "the image token of this LlavaProcessor is '<image>'"),
    (Overmarked, "image_tokens_hold_the_image", "no image enters at the tokens 1"),
    (Flat, "image_sizes_keep_the_shapes", "image_sizes gives [("),
    (Short, "image_sizes_keep_the_shapes", "tells 1 sizes of 3 images"),
    (Exchanged, "image_sizes_keep_the_shapes", "of such images has shape"),
    (Sorting, "several_images_work_or_are_refused", "exchanging the two images changes nothing"),
    (Right, "batch_answers_as_its_prompts_alone", "prompt 0 in a batch and alone"),
    (Setting, "model_is_restored", "settings are changed"),
    (Unmasked, "batch_answers_as_its_prompts_alone", "prompt 0 in a batch and alone"),
    (Reusing, "calls_are_independent", "after another prompt, the logits of an answer differ"),
    (Parted, "processor_loads", "encodes prompts differently"),
    (Typed, "answers_are_generated", "ValueError"),
    (Dead, "steering_is_that_of_plain_hooks", "steering at"),
    (Switching, "model_is_restored", "are left on ['model.language_model']"),
    (Hooking, "model_is_restored", "are left on ['']"),
    (Templating, "model_is_restored", "settings are changed"),
]
"""Each of them, the check that must find it, and words of its explanation."""
