"""Tiny real models of three families, with real processors.

Each is the unmodified class of transformers at toy size: a vision tower of two layers, a connector, and a Llama or Qwen
decoder of eight layers. One family per module; this one is their list.
"""

from __future__ import annotations

from demo_training.family import DemoFamily, Size
from demo_training.instructblip import InstructBlipDemo
from demo_training.llava import LlavaDemo
from demo_training.qwen import QwenDemo

FAMILIES: dict[str, type[LlavaDemo] | type[QwenDemo] | type[InstructBlipDemo]] = {
    "llava": LlavaDemo,
    "qwen2_5_vl": QwenDemo,
    "instructblip": InstructBlipDemo,
}

__all__ = ["FAMILIES", "DemoFamily", "InstructBlipDemo", "LlavaDemo", "QwenDemo", "Size"]
