"""What the generic shrinking of a default configuration can't know of a type, as data.

Paths are dotted. A value that is a text beginning with "@" is read at that path; DROP removes the entry; a path with
"?" in front counts only where the entry is there. Only what a tiny model needs in order to build and run is said here.
"""

from __future__ import annotations

from typing import Any

DROP = object()
VOCABULARY = 1024

_QWEN_VISION = {
    "?vision_config.deepstack_visual_indexes": [0],
    "?vision_config.fullatt_block_indexes": [1],
    "?vision_config.out_hidden_size": "@text_config.hidden_size",
}
_GLM = {
    "text_config.head_dim": 128,
    "text_config.rope_parameters.partial_rotary_factor": 0.5,
    "text_config.rope_parameters.mrope_section": [8, 12, 12],
    "vision_config.out_hidden_size": "@text_config.hidden_size",
}
_SAM = {
    "vision_config.sam_config.global_attn_indexes": [1],
    "vision_config.sam_config.downsample_channels": [32, "@vision_config.encoder_config.hidden_size"],
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [24, 20, 20]}
_QUERIES = {"image_token_index": 1}
_MINICPM = {"insert_layer_id": 0, "vision_config.insert_layer_id": 0, "vision_config.patch_size": 14}
_MUSE = {
    "projector_hidden_size": 64,
    "?text_config.moe_hidden_size": 64,
    "out_hidden_size": ("@vision_config.hidden_size", 4),
}
_LOOP = {"text_config.unpadded_vocab_size": VOCABULARY}
_GEMMA = {"vision_config.image_size": 56, "vision_config.patch_size": 14, "mm_tokens_per_image": 16}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
_QUANTISER = {"base_channels": 32, "num_res_blocks": 1}


def _square(size: int, patch: int) -> dict[str, Any]:
    return {"vision_config.image_size": size, "vision_config.patch_size": patch}


_GRID = {**_square(56, 14), "image_grid_pinpoints": PINPOINTS}
_TILES = {**_square(112, 14), "scale_factor": 2}


def _codes(count: int, name: Any) -> dict[str, int]:
    return {"<image>": 1000, **{name(number): 900 + number for number in range(count)}}


def _chameleon(number: int) -> str:
    return "IMGIMG" + "".join(chr(65 + int(digit)) for digit in str(number)) + "Z"


SIZES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        **{f"vision_config.{key}": value for key, value in _QUANTISER.items()},
        "vision_config.codebook_size": 64,
        "vision_config.embed_dim": 32,
        "vision_config.latent_channels": 32,
        "vision_config.channel_multiplier": [1, 1, 1, 1, 2],
        "vision_config.attn_resolutions": [16],
        "audio_config.codebook_size": 64,
        **{f"audio_config.{key}": 32 for key in ("hidden_size", "codebook_dim")},
        **{f"audio_config.decoder_{key}": 32 for key in ("hidden_size", "intermediate_size")},
        "audio_config.num_filters": 4,
        "audio_config.decoder_num_layers": 1,
        "image_token_offset": 700,
        "audio_token_offset": 764,
        "image_token_id": 1020,
        "audio_token_id": 1021,
    },
    "aria": {**_square(980, 70), "projector_patch_to_query_dict": {49: 8, 196: 16}},
    "aya_vision": _square(364, 14),
    "blip-2": _QUERIES,
    "chameleon": {
        **{f"vq_config.{key}": value for key, value in _QUANTISER.items()},
        "vq_config.num_embeddings": 20,
        "vq_config.latent_channels": 32,
        "vq_config.embed_dim": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 1, 2],
        "vocabulary_map": _codes(20, _chameleon),
        "image_token_id": 1000,
    },
    "cohere_compass": {
        "text_config.rope_parameters": {"full_attention": _MROPE, "sliding_attention": _MROPE},
        "text_config.layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "text_config.logit_scale": 0.0625,
        "vision_config.deepstack_visual_indexes": [0],
        "vision_config.out_hidden_size": "@text_config.hidden_size",
    },
    "cosmos3_edge": _QWEN_VISION,
    "cosmos3_omni": _QWEN_VISION,
    "deepseek_ocr2": {
        **_SAM,
        "vision_config.sam_config.output_channels": 32,
        "vision_config.sam_config.mlp_dim": 64,
        "text_config.num_experts_per_tok": 2,
        "text_config.mlp_layer_types": ["dense", "sparse", "sparse"],
    },
    "deepseek_vl": _square(64, 16),
    "deepseek_vl_hybrid": {**_square(384, 16), "high_res_vision_config.global_attn_indexes": [1]},
    "diffusion_gemma": {
        "?text_config.per_layer_config": DROP,
        "?text_config.num_kv_shared_layers": 1,
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "dots3_note": {
        **_QWEN_VISION,
        "?text_config.per_layer_config": DROP,
        "?vision_config.per_layer_config": DROP,
        "?audio_config.per_layer_config": DROP,
        "vision_config.adapter_out_dim": "@text_config.hidden_size",
        "vision_config.adapter_in_dim": "@vision_config.hidden_size",
        "audio_config.adapter_out_dim": "@text_config.hidden_size",
    },
    "emu3": {
        **{f"vq_config.{key}": value for key, value in _QUANTISER.items()},
        "vq_config.codebook_size": 32,
        "vq_config.channel_multiplier": [1, 1, 2, 2],
        "vq_config.hidden_size": 64,
        "vocabulary_map": {**_codes(32, lambda number: f"<|visual token {number:06d}|>"), "<|extra_200|>": 999},
        "image_token_id": 1000,
    },
    "exaone4_5": _QWEN_VISION,
    "fast_vlm": {
        "vision_config.architecture": "fastvit_t8",
        "vision_config.hidden_size": 768,
        "vision_config.model_args": {"inference_mode": True},
    },
    "florence2": {
        "vision_config.depths": [1, 1, 1, 1],
        "vision_config.embed_dim": [16, 32, 32, 64],
        "vision_config.num_heads": [1, 2, 2, 2],
        "vision_config.num_groups": [1, 2, 2, 2],
        "vision_config.projection_dim": "@text_config.d_model",
    },
    "gemma3": _GEMMA,
    "gemma3n": {
        **{f"{part}.vocab_size": 50 for part in ("vision_config", "audio_config")},
        "vision_config.vocab_offset": VOCABULARY - 100,
        "audio_config.vocab_offset": VOCABULARY - 50,
        "vision_config.architecture": "mobilenetv4_conv_small",
        "vision_config.hidden_size": 960,
        "vision_soft_tokens_per_image": 49,
        "text_config.num_hidden_layers": 4,
        "text_config.layer_types": ["sliding_attention", "full_attention"] * 2,
        "text_config.num_kv_shared_layers": 2,
        "text_config.hidden_size_per_layer_input": 16,
        "text_config.vocab_size_per_layer_input": "@text_config.vocab_size",
        "text_config.intermediate_size": [64] * 4,
        "text_config.activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    "gemma4": {
        "?text_config.per_layer_config": DROP,
        "text_config.num_kv_shared_layers": 0,
        "text_config.hidden_size_per_layer_input": 16,
        "text_config.vocab_size_per_layer_input": "@text_config.vocab_size",
    },
    "gemma4_unified": {"?text_config.per_layer_config": DROP, "text_config.num_kv_shared_layers": 0},
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm5_next": _QWEN_VISION,
    "glm_ocr": {"vision_config.out_hidden_size": "@text_config.hidden_size"},
    "glmga": _GLM,
    "granite4_vision": {
        **_square(192, 16),
        "downsample_rate": "3/6",
        "deepstack_layer_map": [[0, 0], [1, 1]],
        "spatial_target_layers": [2, 2, 2, 2],
        "vision_feature_layer": -1,
        "qformer_config.encoder_hidden_size": "@vision_config.hidden_size",
        "qformer_config.hidden_size": "@vision_config.hidden_size",
        "image_grid_pinpoints": [[192, 384], [384, 192], [384, 384]],
    },
    "hunyuan_vl": {
        "text_config.head_dim": 128,
        "text_config.rope_parameters.mrope_section": [16, 16, 16, 16],
        "vision_config.out_hidden_size": "@text_config.hidden_size",
        "vision_config.text_hidden_size": "@text_config.hidden_size",
    },
    "hyperclovax_vision_v2": _QWEN_VISION,
    "idefics3": _TILES,
    "inkling2": _LOOP,
    "inkling2_loop": {
        **_LOOP,
        "text_config.loop_layer_index_start": 1,
        "text_config.loop_layer_index_end": 2,
        "text_config.loop_num_passes": 3,
        "text_config.n_layers_per_attn_res_block": 1,
    },
    "instructblip": _QUERIES,
    "instructblipvideo": {**_QUERIES, "video_token_index": 1, "vision_config.image_size": 384},
    "internvl": {"vision_config.image_size": [112, 112], "image_seq_length": 16},
    "qianfan_ocr": {"vision_config.image_size": [112, 112], "image_seq_length": 16},
    "janus": {
        "vision_config.projection_dim": "@text_config.hidden_size",
        "vq_config.num_embeddings": 32,
        "vq_config.base_channels": 32,
        "vq_config.latent_channels": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 1, 2],
        "vq_config.num_res_blocks": 1,
        "vq_config.projection_dim": "@text_config.hidden_size",
        "vq_config.image_token_embed_dim": "@text_config.hidden_size",
    },
    "kosmos-2.5": {"latent_query_num": 24},
    "lfm3_vl": _QWEN_VISION,
    "llava": _square(56, 14),
    "llava_next": _GRID,
    "llava_next_video": _GRID,
    "llava_onevision": {**_square(56, 14), "image_grid_pinpoints": PINPOINTS, "image_aspect_ratio": "anyres_max_2"},
    "llama4": {
        "vision_config.image_size": 336,
        "vision_config.intermediate_size": ("@vision_config.hidden_size", 4),
        "vision_config.projector_input_dim": 64,
        "vision_config.projector_output_dim": 64,
        "vision_config.vision_output_dim": 64,
    },
    "minicpm_ocr": _MINICPM,
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "mistral3": {"vision_config.patch_size": 8},
    "mistral_large4": {"vision_config.patch_size": 8},
    "mllama": {
        "vision_config.image_size": 112,
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.vision_output_dim": ("@vision_config.hidden_size", 3),
        "text_config.num_hidden_layers": 4,
        "text_config.cross_attention_layers": [1, 3],
    },
    "molmo2": {
        "adapter_config.vision_feature_layer": [1, 0],
        "adapter_config.text_hidden_size": "@text_config.hidden_size",
        "text_config.rope_scaling_layers": None,
        "text_config.additional_vocab_size": 16,
    },
    "muse_glimmer": _MUSE,
    "muse_spark": {
        **_MUSE,
        "audio_config.hidden_sizes": [16, 16, 32, 32],
        "audio_config.depths": [1, 1, 1, 1],
        "audio_config.patch_sizes": [16, 6, 5, 4],
        "audio_config.num_hidden_layers": 4,
        "audio_config.out_hidden_size": "@text_config.hidden_size",
    },
    "paligemma": {**_square(56, 14), "text_config.num_image_tokens": 16},
    "ovis2": {**_square(224, 14), "hidden_size": "@text_config.hidden_size"},
    "perception_lm": {
        "vision_config.architecture": "vit_tiny_patch16_224",
        "vision_config.model_args": {
            "embed_dim": 64,
            "depth": 2,
            "num_heads": 2,
            "img_size": 112,
            "patch_size": 14,
        },
    },
    "pix2struct": {
        "vision_config.seq_len": 64,
        "vision_config.patch_embed_hidden_size": 768,
        "vision_config.hidden_size": 64,
        "vision_config.d_kv": 32,
        "vision_config.num_attention_heads": 2,
        "text_config.hidden_size": 64,
        "text_config.d_kv": 32,
    },
    "pp_formulanet": {
        "vision_config.image_size": 768,
        "text_config.encoder_layers": 2,
        "text_config.decoder_layers": 3,
        "text_config.decoder_start_token_id": 0,
    },
    "qwen2_5_omni_thinker": {**_QWEN_VISION, "vision_start_token_id": 151652},
    "qwen2_5_vl": _QWEN_VISION,
    "qwen2_vl": {
        "vision_config.embed_dim": 64,
        "vision_config.hidden_size": "@text_config.hidden_size",
        "vision_config.num_heads": 2,
    },
    "qwen3_5": _QWEN_VISION,
    "qwen3_5_moe": _QWEN_VISION,
    "qwen3_omni_moe_thinker": {
        **_QWEN_VISION,
        "vision_start_token_id": 151652,
        "text_config.head_dim": 128,
        "text_config.rope_parameters": _MROPE,
        "text_config.hidden_size": 128,
        "vision_config.out_hidden_size": 128,
        "audio_config.output_dim": 128,
    },
    "qwen3_vl": _QWEN_VISION,
    "qwen3_vl_moe": _QWEN_VISION,
    "qwen4_exp": {
        "text_config.indexer_n_heads": 2,
        "text_config.indexer_kv_heads": 1,
        "text_config.indexer_head_dim": 256,
        "text_config.indexer_budget": 64,
        "text_config.indexer_compress_ratio": 4,
        "text_config.linear_num_key_heads": 2,
        "text_config.linear_num_value_heads": 4,
        "text_config.linear_key_head_dim": 16,
        "text_config.linear_value_head_dim": 16,
        "text_config.hc_lowrank": 8,
        "text_config.ple_layer_ids": [1],
        "text_config.ple_embed_dim": 64,
        "text_config.ngram_vocab_size_base": 200,
        "text_config.heads_per_ngram": 4,
        "text_config.split_ngram_parts": 1,
        "text_config.output_gate_type": "sigmoid",
        "text_config.number_of_conv_states": 3,
        "text_config.eos_token_id": 2,
        "text_config.pad_token_id": 0,
        "vision_config.out_hidden_size": "@text_config.hidden_size",
    },
    "shieldgemma2": _GEMMA,
    "smolvlm": _TILES,
    "step3p7": {"text_config.sliding_window": 64},
    "t5gemma2": {
        "encoder.vision_config.image_size": 56,
        "encoder.vision_config.patch_size": 14,
        "encoder.mm_tokens_per_image": 16,
    },
    "unlimited_ocr": _SAM,
    "video_llama_3": {"vision_config.patch_size": 14},
    "vipllava": {**_square(56, 14), "vision_feature_layer": [-1, -2]},
}

_DECODES = {"is_decoder": True, "add_cross_attention": True}
BEGUN_WITH: dict[str, dict[str, Any]] = {
    **{name: {"vision_config": {}, "audio_config": {}} for name in ("gemma4", "gemma4_unified")},
    "vision-encoder-decoder": {
        "encoder": {"model_type": "vit", "image_size": 112},
        # of Donut: an encoder's number of layers is there, and means nothing
        "decoder": {"model_type": "mbart", "encoder_layers": 2, "decoder_layers": 3, "d_model": 64, **_DECODES},
    },
}
"""What a configuration is made with, where its default has no vision tower, or no parts."""

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
_GEMMA4_TEXT = {
    "per_layer_config": DROP,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": "@vocab_size",
}


def _of_text(name: str) -> dict[str, Any]:
    """The row of a vision-language model's decoder."""
    return {
        path.replace("text_config.", ""): value.replace("text_config.", "") if isinstance(value, str) else value
        for path, value in SIZES[name].items()
        if path.removeprefix("?").startswith("text_config.")
    }


TEXT_SIZES: dict[str, dict[str, Any]] = {
    **{key: {"linear_num_heads": 2, "linear_head_dim": 16} for key in ("bailing_hybrid", "kimi_linear")},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "cohere_compass_text": _of_text("cohere_compass"),
    "dbrx": {
        "d_model": 64,
        "n_heads": 2,
        "attn_config.rope_theta": 10000.0,
        "attn_config.kv_n_heads": 1,
        "attn_config.clip_qkv": 8.0,
        "ffn_config.hidden_size": 64,
        "ffn_config.ffn_hidden_size": 64,
        "ffn_config.moe_num_experts": 4,
        "ffn_config.moe_top_k": 2,
    },
    "deepseek_v2": _EXPERTS,
    "dots1": _EXPERTS,
    "dots3_note_text": {"per_layer_config": DROP},
    "gemma3n_text": _of_text("gemma3n"),
    "gemma4_text": _GEMMA4_TEXT,
    "gemma4_unified_text": _GEMMA4_TEXT,
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    **{key: {"head_dim": 128} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{key: {"unpadded_vocab_size": VOCABULARY} for key in ("inkling2_text", "inkling2_loop_text")},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"expert_ffn_hidden_size": 64, "q_lora_rank": 64, "zero_expert_num": 4},
    "mamba2": {"num_heads": 4, "n_groups": 1},
    "mpt": {"d_model": 64, "n_heads": 2},
    "nemotron": {"num_key_value_heads": 1},
    "qwen4_exp_text": _of_text("qwen4_exp"),
    "rwkv": {"hidden_size": 64, "attention_hidden_size": 64},
    "xlm": {"emb_dim": 64, "n_heads": 2},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_blocks": 3},
    "zamba2": {"mamba_headdim": 40, "attention_hidden_size": 320},
}
"""The same for language models."""
