"""LLaVA, LLaVA-NeXT, LLaVA-OneVision and VipLLaVA at toy size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as _transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from steerkit.testing.tiny import text
from steerkit.testing.tiny.waived import without_video

transformers: Any = _transformers  # configs take more than their signatures say

_SIDE, _PATCH, _TOKENS = 32, 8, 16
_GRID = [[32, 64], [64, 32], [64, 64]]
_SQUARE = {"height": _SIDE, "width": _SIDE}
_NORMALISE: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": _PATCH,
}


def _text_config(kind: type[Any], tokenizer: Any, layers: int) -> Any:
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        head_dim=12,
    )


def _clip() -> Any:
    return transformers.CLIPVisionConfig(**_VISION, projection_dim=32)


def _clip_images() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=_SQUARE, **_NORMALISE)


def _processor(kind: type[Any], images: Any, tokenizer: Any, template: str) -> Any:
    return kind(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: CLIP, a projector, Llama."""
    tokenizer = text.llama()
    config = transformers.LlavaConfig(
        vision_config=_clip(),
        text_config=_text_config(transformers.LlamaConfig, tokenizer, 4),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=_TOKENS,
        vision_feature_layer=-2,
    )
    processor = _processor(transformers.LlavaProcessor, _clip_images(), tokenizer, text.VICUNA)
    return transformers.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: tiles of the image at its own resolution, Mistral."""
    tokenizer = text.llama()
    config = transformers.LlavaNextConfig(
        vision_config=_clip(),
        text_config=_text_config(transformers.MistralConfig, tokenizer, 3),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=_TOKENS,
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-2,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": _SIDE}, crop_size=_SQUARE, image_grid_pinpoints=_GRID, **_NORMALISE
    )
    processor = _processor(transformers.LlavaNextProcessor, images, tokenizer, text.MISTRAL)
    return transformers.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: SigLIP, tiles, Qwen2."""
    tokenizer = text.qwen("<image>", "<video>")
    number = tokenizer.convert_tokens_to_ids
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=_text_config(transformers.Qwen2Config, tokenizer, 3),
        image_token_index=number("<image>"),
        video_token_index=number("<video>"),
        image_grid_pinpoints=_GRID,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = LlavaOnevisionImageProcessorPil(size=_SQUARE, image_grid_pinpoints=_GRID, **_NORMALISE)
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        num_image_tokens=_TOKENS,
        vision_feature_select_strategy="full",
        chat_template=text.ONEVISION,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def vipllava() -> tuple[Any, Any]:
    """VipLLaVA: several layers of CLIP at once, Llama."""
    tokenizer = text.llama()
    config = transformers.VipLlavaConfig(
        vision_config=_clip(),
        text_config=_text_config(transformers.LlamaConfig, tokenizer, 2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=_TOKENS,
        vision_feature_layers=[-1, -2],
    )
    processor = _processor(transformers.LlavaProcessor, _clip_images(), tokenizer, text.VIP)
    return transformers.VipLlavaForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "vipllava": vipllava,
}
