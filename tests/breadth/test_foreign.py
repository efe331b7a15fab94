"""Configurations that differ from the tiny defaults of their types in what a block does with its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steerkit as sk
from breadth import text_models

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
