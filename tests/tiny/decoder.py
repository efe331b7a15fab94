"""Language models without images at toy size, with their tokenizers, whether they have a chat template or not."""

from __future__ import annotations

from functools import partial
from typing import Any

from steerkit.testing.tiny import seeded
from steerkit.testing.tiny.decoder import CHATS, KINDS, make

__all__ = ["CHATS", "KINDS", "build"]


def build(kind: str, layers: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer; the same weights at every call."""
    model, tokenizer = seeded(partial(make, kind, layers), seed)
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    return model, tokenizer
