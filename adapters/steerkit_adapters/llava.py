"""LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision and VipLLaVA, and what is converted to them (ShareGPT4V, BakLLaVA ...)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from steerkit.errors import ProcessorError, UnsupportedModelError
from steerkit.models import Architecture, Inputs, ModelAdapter, Sample, VisionTower
from steerkit_adapters import shared

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

_PUBLISHED = (
    "{% for message in messages %}{% set text = message['content'][-1]['text'] %}"
    "{% if message['role'] == 'system' %}{{ text + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}{{ text + '\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + text + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The prompt of LLaVA-1.5, for the repositories that came before chat templates."""

_CHATML = "<|im_start|>user"
_LLAMA3 = "<|start_header_id|>user"
_LLAMA3_VOCABULARY, _YI_VOCABULARY = 128_000, 64_000


@final
class LlavaAdapter(ModelAdapter):
    """The LLaVA family: a vision tower and a projector in front of an ordinary language model."""

    name = "llava"
    model_types = ("llava", "llava_next", "llava_onevision", "vipllava")

    def architecture(self, model: nn.Module) -> Architecture:
        """Blocks as in Llama, Mistral and Qwen2; a Pixtral tower, whose images have several tokens, is refused."""
        config: Any = model.config
        if config.vision_config.model_type == "pixtral":
            raise UnsupportedModelError(
                "this llava model has a pixtral vision tower",
                expected="CLIP or SigLIP",
                fix="write an adapter for Pixtral: its images end in tokens of their own",
            )
        declared = shared.checked(
            Architecture(
                layers="model.language_model.layers",
                layer_count=config.text_config.num_hidden_layers,
                hidden_size=config.text_config.hidden_size,
                image_token_ids=shared.visual_tokens(config),
                placeholder=_placeholder(config.model_type == "llava_onevision"),
                user_marker=_user_marker(config),
            ),
            model,
        )
        return replace(
            declared, heads=shared.equal_heads(declared, model, config.text_config), vision=_vision(model, config)
        )

    def load_processor(self, source: str, **options: Any) -> Any:
        """AutoProcessor; early repositories that do not tell the patch size are refused."""
        processor = shared.load_processor(source, options)
        if getattr(processor, "patch_size", 0) is None:
            raise ProcessorError(
                f"the processor of {source!r} does not know the patch size of its vision tower",
                expected="patch_size, vision_feature_select_strategy and num_additional_image_tokens",
                fix="use a newer revision of the repository, or add the three to its processor_config.json",
            )
        return processor

    def render(self, processor: Any, sample: Sample, image_count: int) -> str:
        """The model's template; where LLaVA-1.5 has none, the prompt of its publication, which has no system turn."""
        kind = type(processor).__name__
        published = _PUBLISHED if kind == "LlavaProcessor" else None
        placeholder = _placeholder("Onevision" in kind)
        return shared.render_chat(processor, sample, image_count, placeholder, published)

    def encode(self, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """The processor repeats the image token for every patch."""
        return shared.encode_chat(processor, texts, images)

    def image_sizes(self, processor: Any, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
        """The size of the original where tiles depend on it, else that of the processed image."""
        if "image_sizes" not in inputs:
            return shared.pixel_sizes(inputs)
        sizes = shared.row_sizes(inputs["image_sizes"])
        if "batch_num_images" not in inputs:
            return [sizes]
        # OneVision tiles an image only where it is the only one of its prompt
        ordered = iter(sizes)
        return [list(itertools.islice(ordered, int(count))) for count in inputs["batch_num_images"]]


def _vision(model: nn.Module, config: Any) -> VisionTower | None:
    """CLIP, whose class token stands in front, or SigLIP, which has none."""
    vision = config.vision_config
    class_tokens = {"clip_vision_model": 1, "siglip_vision_model": 0}.get(vision.model_type)
    if class_tokens is None:
        return None
    return shared.vision_tower(
        model,
        ("model.vision_tower.encoder.layers", "model.vision_tower.vision_model.encoder.layers"),
        layer_count=vision.num_hidden_layers,
        hidden_size=vision.hidden_size,
        class_tokens=class_tokens,
    )


def _placeholder(break_is_text: bool) -> str:
    # OneVision's template begins every text with a line break; the others end every image with one.
    # Only OneVision takes videos.
    return r"(?:<image>|<video>)+" if break_is_text else r"(?:<image>)+\n?"


def _user_marker(config: Any) -> str:
    """How the published models open the user's turn: it depends on the language model they were built on."""
    text = config.text_config
    if config.model_type == "vipllava":
        return "###Human:"
    if text.model_type in ("qwen2", "qwen3"):
        return _CHATML
    if text.model_type == "mistral" and config.model_type == "llava_next":
        return "[INST]"
    if text.model_type == "llama" and text.vocab_size >= _LLAMA3_VOCABULARY:
        return _LLAMA3
    if text.model_type == "llama" and text.vocab_size >= _YI_VOCABULARY:
        return _CHATML
    return "USER:"
