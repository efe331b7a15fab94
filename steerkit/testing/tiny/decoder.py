"""Language models without images at toy size, with their tokenizers."""

from __future__ import annotations

from typing import Any

import transformers as _transformers

from steerkit.testing.tiny import text
from steerkit.testing.tiny.vision import TEMPLATES

transformers: Any = _transformers  # configs take more than their signatures say

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mixtral", "gpt_neox", "gpt2")
CHATS: dict[str, str] = {kind: TEMPLATES[kind] for kind in ("qwen2", "qwen3")}
"""Those that have a chat template."""


def make(kind: str, layers: int = 3) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    tokenizer = text.qwen() if kind in CHATS else text.llama()
    tokenizer.chat_template = CHATS.get(kind)
    if kind == "gpt2":
        tokenizer.pad_token = None
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2 if kind not in ("gpt2", "gpt_neox") else 4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({} if kind in ("gpt2", "gpt_neox", "phi3", "mixtral") else {"head_dim": 12}),
        **({"num_local_experts": 3} if kind == "mixtral" else {}),
    )
    return transformers.AutoModelForCausalLM.from_config(config), tokenizer
