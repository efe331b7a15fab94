"""InstructBLIP with a Llama and with a T5 language model, at toy size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as _transformers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from steerkit.testing.tiny import text

transformers: Any = _transformers  # configs take more than their signatures say

_SIDE, _QUERIES = 32, 6
_TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _assemble(tokenizer: Any, text_config: Any) -> tuple[Any, Any]:
    reader = text.bert()
    processor = transformers.InstructBlipProcessor(
        image_processor=BlipImageProcessorPil(
            size={"height": _SIDE, "width": _SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        qformer_tokenizer=reader,
        num_query_tokens=_QUERIES,
    )
    qformer = transformers.InstructBlipQFormerConfig(
        **_TOWER,
        vocab_size=len(reader),
        encoder_hidden_size=32,
        cross_attention_frequency=1,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=reader.pad_token_id,
    )
    config = transformers.InstructBlipConfig(
        vision_config=transformers.InstructBlipVisionConfig(**_TOWER, image_size=_SIDE, patch_size=8).to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text_config.to_dict(),
        num_query_tokens=_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return transformers.InstructBlipForConditionalGeneration(config), processor


def llama() -> tuple[Any, Any]:
    """InstructBLIP with Llama (Vicuna)."""
    tokenizer = text.llama()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _assemble(tokenizer, config)


def t5() -> tuple[Any, Any]:
    """InstructBLIP with (Flan-)T5: the prompt goes to an encoder."""
    tokenizer = text.t5()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return _assemble(tokenizer, config)


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {"instructblip-llama": llama, "instructblip-t5": t5}
