"""What processors of single types need to be told, as data."""

from __future__ import annotations

from typing import Any

from breadth.sizes import PINPOINTS

KINDS = {
    "cosmos3_omni": "Qwen3VLProcessor",
    "fast_vlm": "LlavaProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
    "vision-encoder-decoder": "TrOCRProcessor",
}
"""Processors of types that transformers maps to none."""

SIBLINGS = {
    "diffusion_gemma": "gemma4",
    "fast_vlm": "llava",
    "glm4v_moe": "glm4v",
    "glm_ocr": "glm46v",
    "instructblipvideo": "instructblip",
    "qwen2_5_omni_thinker": "qwen2_vl",
    "qwen3_omni_moe_thinker": "qwen2_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "vision-encoder-decoder": "trocr",
}
"""Whose image processor a type takes that is mapped to none."""

_LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_QUERIES = {"num_query_tokens": 32}

OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llava", "vipllava", "llava_next", "llava_next_video"), _LLAVA),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), _QUERIES),
    **{key: {"patch_size": 8, "spatial_merge_size": 2} for key in ("mistral3", "mistral_large4")},
    "fast_vlm": {"patch_size": 32, "vision_feature_select_strategy": "full"},
    "llava_onevision": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    "granite4_vision": {"patch_size": 16, "vision_feature_select_strategy": "full", "downsample_rate": "3/6"},
    **{key: {"image_seq_length": 16} for key in ("gemma3", "shieldgemma2", "t5gemma2", "internvl", "qianfan_ocr")},
    **{key: {"image_seq_len": 16} for key in ("idefics3", "smolvlm")},
    "aria": {"size_conversion": {490: 8, 980: 16}},
    "chameleon": {"image_seq_length": 16},
    "deepseek_vl": {"num_image_tokens": 16},
    "gemma3n": {"image_seq_length": 49},
    "kosmos-2.5": {"num_image_tokens": 24},
    "perception_lm": {"patch_size": 14, "pooling_ratio": 1},
}


def _square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


_CROP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
_SPLIT = {"max_image_size": {"longest_edge": 112}, "size": {"longest_edge": 224}}
_GRID = {**_CROP, "image_grid_pinpoints": PINPOINTS}
_PATCH_16 = (
    "cohere_compass cosmos3_omni qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe qwen3_omni_moe_thinker qwen4_exp lfm3_vl"
).split()

IMAGES: dict[str, dict[str, Any]] = {
    **{key: {"patch_size": 16} for key in _PATCH_16},
    **dict.fromkeys(("llava", "vipllava"), _CROP),
    **dict.fromkeys(("llava_next", "llava_next_video"), _GRID),
    **dict.fromkeys(("gemma3", "shieldgemma2", "t5gemma2"), _square(56)),
    **dict.fromkeys(("idefics3", "smolvlm"), _SPLIT),
    **{key: {"patch_size": 16} for key in ("mistral3", "mistral_large4")},
    **{name: _square(364) for name in ("aya_vision",)},
    **{name: _square(112) for name in ("internvl", "qianfan_ocr", "mllama", "vision-encoder-decoder")},
    **{name: _square(224) for name in ("blip-2", "instructblip", "ovis2")},
    "emu3": {"min_pixels": 64 * 64, "max_pixels": 128 * 128},
    "florence2": {"image_seq_length": 50},
    "fast_vlm": {"size": {"shortest_edge": 320}, "crop_size": {"height": 320, "width": 320}},
    "got_ocr2": _square(1024),
    "aria": {"max_image_size": 490},
    "chameleon": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    "deepseek_vl": _square(64),
    "kosmos-2.5": {"max_patches": 64},
    "llava_onevision": {**_square(56), "image_grid_pinpoints": PINPOINTS},
    "paligemma": {**_square(56), "image_seq_length": 16},
    "pix2struct": {"max_patches": 64},
    "granite4_vision": {
        "image_grid_pinpoints": [[192, 384], [384, 192], [384, 384]],
        "size": {"shortest_edge": 192},
        "crop_size": {"height": 192, "width": 192},
    },
    "udop": {"apply_ocr": False},
    "perception_lm": {"tile_size": 112, "max_num_tiles": 2},
    "dots3_note": {"temporal_patch_size": 1},
}

VIDEOS: dict[str, dict[str, Any]] = {
    "dots3_note": {"temporal_patch_size": 1, "patch_size": 14},
    "ernie4_5_vl_moe": {"draw_on_frames": False},  # else it writes on them with a font that the hub has
    "nemotron_h_omni": {"norm_mean": [0.5] * 3, "norm_std": [0.5] * 3, "video_target_num_patches": 16},
    "perception_lm": _square(112),
}
_WHISPER = ("WhisperFeatureExtractor", {"feature_size": 128})
SOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), _WHISPER),
    "nemotron_h_omni": ("ParakeetFeatureExtractor", {}),
}
"""The feature extractors of types that transformers maps to none."""

_GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_GEMMA4 = {
    "image_token": "<|image|>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio_bos|>",
    "eoa_token": "<|audio_eos|>",
}
NAMED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("gemma3", "shieldgemma2", "t5gemma2"), _GEMMA),
    **dict.fromkeys(("gemma4", "gemma4_unified", "diffusion_gemma"), _GEMMA4),
    "gemma3n": {**_GEMMA, "audio_token": "<audio_soft_token>"},
    "cohere_compass": {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"},
    "hunyuan_vl": {"image_token": "<image>", "image_start_token": "<img>", "image_end_token": "</img>"},
}
"""Tokens by the names of their attributes, where a processor relies on what they are called."""

TOKENIZERS: dict[str, dict[str, Any]] = {
    **{key: {"plain": True} for key in ("blip-2", "instructblip", "instructblipvideo")},
    "minimax_m3_vl": {"texts": ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")},
    "pp_chart2table": {"texts": ("<img>", "</img>", "<imgpad>")},
}
"""Further options of a type's tokenizer."""
