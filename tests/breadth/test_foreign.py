"""Configurations that differ from the tiny defaults of their types in what a block does with its neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import steerkit as sk
from breadth import checks, configs, levels, pairs, text_models
from steerkit.errors import UnsupportedModelError
from steerkit.models import as_tested

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


@pytest.mark.parametrize("name", BIASED)
def test_a_switch_that_differs_is_not_as_tested(name: str) -> None:
    same, other = (CONFIG_MAPPING[name].from_dict(text_models.document(name, each)) for each in ({}, BIASED[name]))
    assert as_tested(same) or name == "lfm2_moe"  # by default it lists no layers at all
    assert not as_tested(other)


@pytest.mark.parametrize(
    ("name", "changes", "same"),
    [
        ("llava", {}, True),
        ("llava", {"text_config.hidden_size": 64, "vision_feature_layer": -1}, True),
        ("llava", _text("qwen3"), False),
        ("gemma3", {"text_config.sliding_window": 3}, True),
        ("gemma3", {"text_config.layer_types": ["full_attention"] * 3}, False),
        ("qwen2_vl", {"text_config.use_sliding_window": True}, False),
        ("qwen2_vl", {"text_config.tie_word_embeddings": True, "text_config.use_cache": False}, True),
    ],
)
def test_what_differs_in_more_than_numbers_is_not_as_tested(name: str, changes: dict[str, Any], same: bool) -> None:
    config = configs.tiny(name, lambda document: configs.override(document, changes))
    assert as_tested(config) == same


def test_a_tested_type_around_another_language_model_is_tried() -> None:
    """Its block reads padding; what is as tested is believed."""
    for changes, tried in (({}, False), (_text("qwen3"), True)):
        model, processor = pairs.pair("llava", changes)
        attention = model.model.language_model.layers[0].self_attn
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
        )
        if not tried:
            sk.wrap(model, processor)
        with pytest.raises(UnsupportedModelError, match="padding changes the state behind block 0"):
            sk.wrap(model, processor, check=None if tried else True)
