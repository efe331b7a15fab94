"""Train a small CLIP vision tower on rendered scenes; it stands for the pre-training of a real one."""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from real_model import world

KINDS = ("nothing", *world.SHAPES, *world.DIGITS, *world.WORDS)
COLORS = ("nothing", *world.COLORS)
PATCH = 12
MEAN, STD = 0.5, 0.5
"""How pixels are normalised: the same for the three channels."""


def config() -> CLIPVisionConfig:
    """Six by six patches of twelve pixels."""
    return CLIPVisionConfig(
        image_size=world.SIDE,
        patch_size=PATCH,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
    )


def pixels(images: list[Image.Image]) -> Tensor:
    """Pictures as `[images, 3, side, side]`, as the image processor of the model makes them."""
    array = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
    return torch.from_numpy((array - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def targets(scenes: list[world.Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Kind and colour of what each patch shows, and how many things the whole picture shows."""
    side, per_cell = world.SIDE // PATCH, world.CELL // PATCH
    kinds = torch.zeros(len(scenes), side, side, dtype=torch.long)
    colors = torch.zeros_like(kinds)
    for i, shown in enumerate(scenes):
        for item in shown.items:
            row, column = item.cell // 3 * per_cell, item.cell % 3 * per_cell
            across = slice(0, side) if shown.subject == "word" else slice(column, column + per_cell)
            kinds[i, row : row + per_cell, across] = KINDS.index(item.kind)
            colors[i, row : row + per_cell, across] = COLORS.index(item.color)
    counts = torch.tensor([len(shown.items) for shown in scenes])
    return kinds.flatten(1), colors.flatten(1), counts


def train(seed: int, steps: int, batch: int = 64, rate: float = 2e-3) -> CLIPVisionModel:
    """Each patch learns to tell what it shows and how many things there are."""
    torch.manual_seed(seed)
    rng = random.Random(f"tower/{seed}")
    tower = CLIPVisionModel(config())
    head = nn.Linear(tower.config.hidden_size, len(KINDS) + len(COLORS) + len(world.NUMBERS))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        scenes = [world.scene(rng, most=4) for _ in range(batch)]
        features = tower(pixel_values=pixels([world.render(rng, s) for s in scenes])).last_hidden_state[:, 1:]
        logits = head(features).split((len(KINDS), len(COLORS), len(world.NUMBERS)), dim=-1)
        kinds, colors, counts = targets(scenes)
        weight = torch.where(kinds > 0, 1.0, 0.2).flatten()
        wanted = (kinds, colors, counts[:, None].expand_as(kinds))
        parts = [
            (F.cross_entropy(mine.flatten(0, 1), target.flatten(), reduction="none") * w).sum() / w.sum()
            for mine, target, w in zip(logits, wanted, (weight, weight, torch.ones_like(weight)), strict=True)
        ]
        optimizer.zero_grad()
        torch.stack(parts).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            shown = kinds > 0
            right = [((m.argmax(-1) == t)[shown]).float().mean().item() for m, t in zip(logits, wanted, strict=True)]
            print(step + 1, [round(p.item(), 3) for p in parts], [round(r, 3) for r in right], flush=True)
    return tower.eval()


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2400)
    arguments = parser.parse_args()
    tower = train(arguments.seed, arguments.steps)
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in tower.state_dict().items()}
    save_file({name: value for name, value in state.items() if value.dtype == torch.bfloat16}, arguments.out)


if __name__ == "__main__":
    main()
