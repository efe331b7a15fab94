"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, dense and mixture of experts: all is declared in transformers."""

from __future__ import annotations

from steerkit.models import Family

FAMILY = Family(types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"))
