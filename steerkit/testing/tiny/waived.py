"""Processors without their video part, which can't be built where torchvision is missing."""

from __future__ import annotations

from typing import Any


def without_video(kind: type[Any]) -> type[Any]:
    """The processor class, asking for an image processor and a tokenizer only."""
    parts = classmethod(lambda cls: ["image_processor", "tokenizer"])
    return type(kind.__name__, (kind,), {"get_attributes": parts, "__module__": kind.__module__})
