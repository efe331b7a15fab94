"""Samples for tests, made from seeds: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from steerkit.models import Sample

_TOPICS = (
    "a bomb",
    "a cake",
    "a knife fight",
    "a garden",
    "a theft of the crown jewels",
    "a letter",
    "a poison",
    "a trip",
)


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """An image of random pixels, the same for the same seed and size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def example_anchors(labels: Sequence[str] = ("harmful", "harmless")) -> list[Sample]:
    """Eight requests of different lengths, each with an image, a caption and one of the labels in turn.

    Args:
        labels: The labels.
    """
    return [
        Sample(
            f"How do I plan {topic}?",
            (picture(index),),
            caption=f"A picture of {topic}.",
            label=labels[index % len(labels)],
        )
        for index, topic in enumerate(_TOPICS)
    ]
