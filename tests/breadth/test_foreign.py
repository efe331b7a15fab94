"""Configurations that differ from the tiny defaults of their types in what a block does with its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steerkit as sk
from breadth import checks, levels, text_models

BIASED: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_proj_bias": True},
    "falcon_mamba": {"use_bias": True},
    "jamba": {"mamba_proj_bias": True},
    "lfm2_moe": {"conv_bias": True},
    "mamba": {"use_bias": True},
    "mamba2": {"use_bias": True},
    "zaya": {"attention_bias": True},
}
"""Recurrent blocks that make something of padding, which is zero in front of them."""

LANGUAGE: dict[str, dict[str, Any]] = {
    **BIASED,
    "minimax": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},  # as published
    "doge": {"is_moe": True},
    "qwen3_next": {"num_key_value_heads": 2, "mlp_only_layers": [1], "tie_word_embeddings": True},
    "deepseek_v3": {"first_k_dense_replace": 0, "num_hidden_layers": 4, "attention_bias": True},
    "gpt_neox": {"use_parallel_residual": False, "num_hidden_layers": 1},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": True},
    "bloom": {"apply_residual_connection_post_layernorm": True},
    "gemma2": {"sliding_window": 3, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
    "opt": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_is_steered_right(name: str) -> None:
    assert text_models.outcome(name, LANGUAGE[name]) == "ok"


@pytest.mark.parametrize("name", BIASED)
def test_padding_counts_where_a_recurrent_block_has_a_bias(name: str) -> None:
    """What transformers itself makes of a padded prompt; without the bias, prompts share a batch."""
    ids = torch.tensor([text_models.tokenizer()(text_models.SHORT)["input_ids"]])
    padded = torch.nn.functional.pad(ids, (7, 0))
    apart = {}
    for changes in ({}, BIASED[name]):
        model = text_models.model(name, changes)
        with torch.no_grad():
            whole, alone = model(input_ids=padded, attention_mask=(padded != 0).long()).logits, model(ids).logits
        together = not sk.wrap(model, text_models.tokenizer()).architecture.alone
        apart[together] = text_models.apart(whole[0, -1], alone[0, -1])
    assert apart[True] < 1e-5 < 1e-4 < apart[False]


def _text(kind: str, **changes: Any) -> dict[str, Any]:
    return {"text_config": {**text_models.document(kind), "model_type": kind, **changes}}


_SCALED = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 4,
    "llama_4_scaling_beta": 1.0,
}
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "positions that scale attention": ("llava", _text("ministral3", rope_parameters=_SCALED)),
    "another window and order": (
        "gemma3",
        {
            "text_config.sliding_window": 3,
            "text_config.layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "text_config.num_key_value_heads": 1,
        },
    ),
    "several layers of the tower": ("vipllava", {"vision_feature_layers": [0, -1, 1], **_text("qwen3")}),
    "cross-attention first": ("mllama", {"text_config.cross_attention_layers": [0, 2]}),
    "decoder deeper than encoder": ("florence2", {"text_config.decoder_layers": 4, "text_config.encoder_layers": 1}),
    "tower as deep as the decoder": ("git", {"num_hidden_layers": 2}),
    "convolutions with a bias": ("lfm3_vl", {"text_config.conv_bias": True}),
}
_ASKED = ("blocks", "capture", "steering", "padding", "image tokens", "counterpart", "text", "mixed", "generation")


@pytest.mark.parametrize("what", IMAGES)
def test_a_vision_language_model_is_steered_right(what: str) -> None:
    name, changes = IMAGES[what]
    found = checks.outcomes(name, _ASKED, changes)
    cannot = levels.recorded()["types"][name]["cannot"]
    assert {key: outcome for key, outcome in found.items() if outcome not in ("ok", "none")}.keys() <= {*cannot}
