"""Which positions are changed: hidden states of unsteered and steered passes, compared by a plain torch hook.

The intervention is at block 0, and what enters block 1 is looked at: there only the steered positions differ, because
the answers are forced to be the same. Of the vision tower it is the same with its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from golden_support import answer, can_be_told, samples_of, tiny_vlm, vector
from torch import Tensor, nn

import steerkit as sk
from steerkit.testing import tiny

TOKENS = ("last", "all", "image", "text", "system", "after_image", "generated")
# Written by hand, and not asked of steerkit.
BLOCK = {"instructblip-llama": "language_model.model.layers.1", "instructblip-t5": "language_model.decoder.block.1"}
VISION_BLOCK = {"llava": "model.vision_tower.encoder.layers.1", "qwen2_vl": "model.visual.blocks.1"}

SAME, DIFFERENT = 1e-5, 1e-2
"""A change between the two would be one that nobody can tell from rounding."""


def block_of(family: str) -> str:
    if family in tiny.TEXT_FAMILIES:
        return "model.layers.1"
    return BLOCK.get(family, "model.language_model.layers.1")


def _intervention(**fields: Any) -> dict[str, Any]:
    return {"operation": {"kind": "add"}, "layers": (0,), **fields}


_ALL_FAMILIES = (*tiny.FAMILIES, *tiny.TEXT_FAMILIES)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {}
for _family in _ALL_FAMILIES:
    for _tokens in (each for each in TOKENS if can_be_told(each, _family)):
        CASES[f"{_family} {_tokens}"] = (_family, _intervention(tokens=_tokens, phase="both"), "hooks")
for _tokens in ("last", "all", "generated"):
    for _phase in ("prompt", "generation"):
        if (_tokens, _phase) != ("generated", "prompt"):
            _fields = _intervention(tokens=_tokens, phase=_phase)
            CASES[f"llava {_tokens} in {_phase}"] = ("llava", _fields, "hooks")
            CASES[f"qwen2_vl {_tokens} in {_phase}"] = ("qwen2_vl", _fields, "hooks")
for _prompts in ("with_image", "without_image"):
    for _tokens in ("last", "all", "text", "generated"):
        CASES[f"llava {_tokens} of {_prompts}"] = ("llava", _intervention(tokens=_tokens, prompts=_prompts), "hooks")
for _site in ("mlp_out", "attn_out", "head_out"):
    for _tokens in ("last", "image", "after_image"):
        CASES[f"llava {_tokens} at {_site}"] = ("llava", _intervention(tokens=_tokens, site=_site), "hooks")
for _tokens in ("all", "image"):
    for _family in VISION_BLOCK:
        _fields = _intervention(tokens=_tokens, tower="vision")
        CASES[f"{_family} {_tokens} in the tower"] = (_family, _fields, "hooks")
for _tokens in TOKENS:
    for _family in ("llava", "qwen2_vl"):
        CASES[f"{_family} {_tokens} traced"] = (_family, _intervention(tokens=_tokens), "nnsight")


def _watch(module: nn.Module) -> tuple[list[Tensor], Any]:
    states: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        h = args[0] if args else kwargs["hidden_states"]
        h = h.detach().clone()
        states.append(h[None] if h.dim() == 2 else h)

    return states, module.register_forward_pre_hook(note, with_kwargs=True)


def _states(vlm: sk.VLM, path: str, samples: Sequence[sk.Sample], steering: Any = None) -> list[Tensor]:
    if steering is None:
        states, handle = _watch(vlm.model.get_submodule(path))
        try:
            answer(vlm, samples)
        finally:
            handle.remove()
        return states
    with steering:
        return _states(vlm, path, samples)


def found(family: str, intervention: dict[str, Any], engine: Any) -> Any:
    """`[pass][row]`: the changed positions of the pass; or the name of the error with which it is refused."""
    vlm, samples = tiny_vlm(family), samples_of(family)
    vision = intervention.get("tower") == "vision"
    path = VISION_BLOCK[family] if vision else block_of(family)
    plain = _states(vlm, path, samples)
    try:
        steering = sk.steer(vlm, vector(vlm, [intervention], scale=3.0), policy="off", engine=engine)
        steered = _states(vlm, path, samples, steering)
    except sk.SteerKitError as error:
        return {"refused": type(error).__name__}
    assert [h.shape for h in plain] == [h.shape for h in steered]
    passes = []
    for before, after in zip(plain, steered, strict=True):
        size = (after.double() - before.double()).abs().amax(-1)
        assert bool(((size < SAME) | (size > DIFFERENT)).all()), f"a change of {size}"
        passes.append([torch.nonzero(row > DIFFERENT).flatten().tolist() for row in size])
    return {"shapes": [list(h.shape[:2]) for h in plain], "changed": passes}
