"""The whole contract of a family, on types that differ in kind: `pytest tests/breadth/contracts.py`, a step of CI."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest

from breadth import levels, pairs, prompts
from steerkit.models import family_for
from steerkit.testing import adapter_checks

KINDS = {
    "qwen2_vl": "M-RoPE",
    "qwen3_vl_moe": "mixture of experts, features that enter later blocks too",
    "qwen3_5": "linear attention in most blocks",
    "qwen4_exp": "several residual streams, side by side",
    "gemma3n": "several residual streams, in front",
    "gemma3": "token types, a token that begins an image",
    "inkling2_loop": "blocks that run several times",
    "idefics": "cross-attention between the blocks",
    "mllama": "cross-attention blocks that are skipped without an image",
    "t5gemma2": "an encoder and a decoder, with chats",
    "florence2": "an encoder and a decoder, padded on the right",
    "blip-2": "a Q-Former, a bare prompt, a text module",
    "git": "an image in front of the ids",
    "kosmos-2": "an image that a mask marks",
    "nemotron_h_omni": "a Mamba hybrid",
    "emu3": "an image of discrete codes",
    "idefics3": "tiles, and tokens that name them",
    "paligemma": "a token behind the prompt",
    "mistral_large4": "positions that count padding",
    "janus": "a generate of its own",
    "udop": "a box for every word",
    "vision-encoder-decoder": "an encoder of images alone, and a prompt of the decoder",
}
VIDEOS = () if find_spec("torchvision") else ("qwen2_vl", "qwen3_vl_moe", "qwen3_5", "qwen4_exp")
FILES = ("nemotron_h_omni", *VIDEOS)
"""Types whose processor has a stand-in here, which no folder can hold; of videos, where torchvision is missing."""


@cache
def _pair(name: str) -> tuple[Any, Any]:
    return pairs.pair(name)


def _checks() -> list[Any]:
    """The checks of every type whose packages are installed."""
    return [
        pytest.param(check, id=f"{name}-{check}")
        for name in KINDS
        if not levels.missing(levels.recorded()["types"][name]["needs"])
        for check in adapter_checks(family_for(name), lambda name=name: _pair(name), _size(name))
        if check.name != "processor_loads" or name not in FILES
    ]


def _size(name: str) -> tuple[int, int]:
    side = prompts.SIDES.get(name)
    return (side, side) if side else (48, 32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the processors of transformers
@pytest.mark.parametrize("check", _checks())
def test_contract(check: Any) -> None:
    check()
