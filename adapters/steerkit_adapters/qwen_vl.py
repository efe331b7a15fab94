"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, dense and mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from steerkit.models import Architecture, Inputs, ModelAdapter, Sample
from steerkit_adapters import shared

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

_PLACEHOLDER = (
    r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>"
    r"|(?:<\d+(?:\.\d+)? seconds>)?<\|vision_start\|>(?:<\|video_pad\|>)+<\|vision_end\|>"
)
"""An image, or a video (of Qwen3-VL: each of its frames, after its time)."""


@final
class QwenVLAdapter(ModelAdapter):
    """The Qwen vision-language family: images at their own resolution, positions in three parts."""

    name = "qwen_vl"
    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")

    def architecture(self, model: nn.Module) -> Architecture:
        """Qwen3.5 mixes tokens by linear attention in most of its blocks, under another name."""
        config: Any = model.config
        text = config.text_config
        attention: str | tuple[str, ...] = "self_attn"
        if config.model_type.startswith("qwen3_5"):
            attention = tuple("linear_attn" if kind == "linear_attention" else "self_attn" for kind in text.layer_types)
        declared = shared.checked(
            Architecture(
                layers="model.language_model.layers",
                layer_count=text.num_hidden_layers,
                hidden_size=text.hidden_size,
                image_token_ids=shared.visual_tokens(config),
                placeholder=_PLACEHOLDER,
                user_marker="<|im_start|>user",
                attention=attention,
                # The offset between tokens and positions of the last prompt with an image, which the next call reuses.
                transient=("model.rope_deltas",),
            ),
            model,
        )
        sight = config.vision_config
        tower = shared.vision_tower(
            model,
            ("model.visual.blocks",),
            layer_count=sight.depth,
            hidden_size=sight.embed_dim if config.model_type == "qwen2_vl" else sight.hidden_size,
            attention="attn",
        )
        return replace(declared, heads=shared.equal_heads(declared, model, text), vision=tower)

    def load_processor(self, source: str, **options: Any) -> Any:
        """AutoProcessor, or its parts without the video part where torchvision is missing."""
        return shared.load_processor(source, options)

    def render(self, processor: Any, sample: Sample, image_count: int) -> str:
        """The model's template, with its default system turn where it has one."""
        return shared.render_chat(processor, sample, image_count, _PLACEHOLDER)

    def encode(self, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Inputs:
        """The processor repeats the image token for every merged patch."""
        return shared.encode_chat(processor, texts, images)

    def image_sizes(self, processor: Any, inputs: Mapping[str, Tensor]) -> list[list[tuple[int, int]]]:
        """The grid of patches times the side of a patch: a size that needs no resizing."""
        return [shared.row_sizes(inputs["image_grid_thw"][:, 1:], processor.image_processor.patch_size)]
