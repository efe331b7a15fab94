"""Greedy answers of the demo models, unsteered and steered with the bundled packs."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

import steerkit as sk
from demo_training import world
from steerkit.demo import model_path

MARGIN = 0.05
"""Every greedy token leads by so much at least, in logits; rounding moves those by 1e-5."""

PACKS = {
    "llava": "cmrm-llava-demo",
    "qwen2_5_vl": "cmrm-qwen2-5-vl-demo",
    "instructblip": "cmrm-instructblip-demo",
}
# Rows of world.prompts(label, "test", 16), with their image or without; chosen so that no token leads by little.
ROWS: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "llava": (
        ("harmful", 5, True),
        ("harmful", 5, False),
        ("harmful", 6, True),
        ("harmless", 3, False),
        ("harmful", 15, True),
        ("harmless", 2, True),
        ("visual", 2, True),
    ),
    "qwen2_5_vl": (
        ("harmful", 8, True),
        ("harmful", 0, False),
        ("harmful", 7, True),
        ("harmless", 0, False),
        ("harmful", 15, True),
        ("harmless", 7, True),
        ("visual", 3, True),
    ),
    "instructblip": (
        ("harmful", 5, True),
        ("harmful", 5, False),
        ("harmful", 1, True),
        ("harmless", 5, False),
        ("harmful", 3, True),
        ("harmless", 9, True),
        ("visual", 3, True),
    ),
}
STRENGTHS: tuple[float | None, ...] = (None, 0.0, 0.5, 1.0)
CASES = {f"{model} at {strength}": (model, strength) for model in PACKS for strength in STRENGTHS}


@cache
def demo_vlm(model: str) -> sk.VLM:
    return sk.load(model_path(model))


def row_of(label: Any, index: int, pictured: bool) -> sk.Sample:
    row = world.prompts(label, "test", 16)[index]
    return sk.Sample(row.question, images=(row.image,) if pictured else ())


class Watched:
    """A logits processor that changes nothing and notes each step's greedy tokens, and by how much they lead."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.steps: list[list[int | None]] = []
        self.lead = float("inf")
        self._open: Tensor | None = None

    def next_batch(self, *_: object) -> None:
        """For `progress`."""
        self._open = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.ones(len(scores), dtype=torch.bool) if self._open is None else self._open
        best = scores.float().topk(2)
        tokens = best.indices[:, 0]
        if rows.any():
            self.lead = min(self.lead, float((best.values[:, 0] - best.values[:, 1])[rows].min()))
        self.steps.append([int(t) if open_ else None for t, open_ in zip(tokens, rows, strict=True)])
        self._open = rows & (tokens != self.end)
        return scores


def found(model: str, strength: float | None, engine: Any = "hooks") -> tuple[dict[str, Any], float]:
    """Texts, and tokens step by step (None after the end of an answer); and the smallest lead of a token."""
    vlm = demo_vlm(model)
    samples = [row_of(*row) for row in ROWS[model]]
    watched = Watched(vlm.model.generation_config.eos_token_id)  # type: ignore[union-attr,arg-type]
    block: Any = nullcontext()
    if strength is not None:
        block = sk.steer(vlm, sk.load_vector(PACKS[model]), strength=strength, engine=engine)
    with block as receipt:
        texts = vlm.generate(
            samples, batch_size=3, max_new_tokens=24, logits_processor=[watched], progress=watched.next_batch
        )
    result: dict[str, Any] = {"texts": texts, "steps": watched.steps}
    if receipt is not None:
        counts = [receipt.prompt_tokens, receipt.generated_tokens, receipt.left_alone]
        sizes = {str(layer): size for layer, size in receipt.relative_change.items()}
        result |= {"layers": receipt.layers, "counts": counts, "relative_change": sizes}
    return result, watched.lead
