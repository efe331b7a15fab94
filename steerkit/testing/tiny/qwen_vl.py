"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 at toy size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as _transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from steerkit.testing.tiny import text
from steerkit.testing.tiny.waived import without_video

transformers: Any = _transformers  # configs take more than their signatures say

_PATCH, _MERGE = 4, 2
_HIDDEN, _HEADS = 48, 4


def _processor(kind: type[Any], tokenizer: Any, template: str) -> Any:
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        patch_size=_PATCH,
        merge_size=_MERGE,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return without_video(kind)(image_processor=images, tokenizer=tokenizer, chat_template=template)


def _text(tokenizer: Any, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "num_heads": 2,
        "patch_size": _PATCH,
        "spatial_merge_size": _MERGE,
        "temporal_patch_size": 2,
    } | more


def _ids(tokenizer: Any) -> dict[str, int]:
    number = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL."""
    tokenizer = text.qwen()
    config = transformers.Qwen2VLConfig(
        text_config=_text(tokenizer, 3),
        vision_config=_vision(embed_dim=32, hidden_size=_HIDDEN, mlp_ratio=2),
        **_ids(tokenizer),
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    return model, _processor(transformers.Qwen2VLProcessor, tokenizer, text.QWEN2)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: window attention in the tower."""
    tokenizer = text.qwen()
    vision = _vision(
        hidden_size=32, out_hidden_size=_HIDDEN, intermediate_size=64, window_size=32, fullatt_block_indexes=[1]
    )
    config = transformers.Qwen2_5_VLConfig(text_config=_text(tokenizer, 4), vision_config=vision, **_ids(tokenizer))
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return model, _processor(transformers.Qwen2_5_VLProcessor, tokenizer, text.QWEN2)


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: features of the tower also enter the first decoder blocks."""
    tokenizer = text.qwen()
    vision = _vision(
        hidden_size=32,
        out_hidden_size=_HIDDEN,
        intermediate_size=64,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0],
    )
    config = transformers.Qwen3VLConfig(
        text_config=_text(tokenizer, 3, head_dim=_HIDDEN // _HEADS), vision_config=vision, **_ids(tokenizer)
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    return model, _processor(transformers.Qwen3VLProcessor, tokenizer, text.QWEN3)


def qwen3_5() -> tuple[Any, Any]:
    """Qwen3.5: most blocks have linear attention."""
    tokenizer = text.qwen()
    vision = _vision(hidden_size=32, out_hidden_size=_HIDDEN, intermediate_size=64, num_position_embeddings=64)
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
        "partial_rotary_factor": 1.0,
    }
    linear = {f"linear_{part}": 12 for part in ("key_head_dim", "value_head_dim")}
    config = transformers.Qwen3_5Config(
        text_config=_text(
            tokenizer,
            4,
            head_dim=_HIDDEN // _HEADS,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters=rope,
            **linear,
        ),
        vision_config=vision,
        **_ids(tokenizer),
    )
    model = transformers.Qwen3_5ForConditionalGeneration(config)
    return model, _processor(transformers.Qwen3VLProcessor, tokenizer, text.QWEN3)


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
}
