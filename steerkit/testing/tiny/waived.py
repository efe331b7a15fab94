"""Processors without their video part, which can't be built where torchvision is missing."""

from __future__ import annotations

from typing import Any

from steerkit.models import NoVideo, waiving_video


def without_video(kind: type[Any]) -> Any:
    """The processor class, asking for an image processor and a tokenizer only."""
    waived = waiving_video(kind)
    return lambda **parts: waived(video_processor=NoVideo(), **parts)
