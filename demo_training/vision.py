"""Stage V: teach a vision tower what a scene shows, which stands for the pre-training of a real one."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_training import world
from demo_training.family import PATCHES_PER_SIDE, DemoFamily

_COLORS = list(world.COLORS)
_CLASSES = [len(_COLORS), len(world.SHAPES), len(world.SIZES), len(world.PLACES)]


def _attributes(scenes: list[world.Scene]) -> Tensor:
    """Colour, shape, size and place of each scene, as class numbers."""
    rows = [
        (_COLORS.index(s.color), world.SHAPES.index(s.shape), world.SIZES.index(s.size), world.PLACES.index(s.place))
        for s in scenes
    ]
    return torch.tensor(rows)


def _patch_quarters() -> Tensor:
    """The quarter of the image that each patch lies in."""
    half = PATCHES_PER_SIDE // 2
    return torch.tensor([(i // PATCHES_PER_SIDE) // half * 2 + i % PATCHES_PER_SIDE // half for i in range(16)])


def _patch_loss(head: nn.Linear, features: Tensor, attributes: Tensor) -> tuple[Tensor, float]:
    """Each patch tells what its quarter holds, or that it holds nothing: colour, shape, size and, if asked, place."""
    occupied = _patch_quarters()[None] == attributes[:, 3:]
    losses: list[Tensor] = []
    rights: list[float] = []
    widths = [count + 1 for count in _CLASSES]
    widths = widths if sum(widths) == head.out_features else widths[:3]
    for j, logits in enumerate(head(features).split(widths, dim=-1)):
        target = torch.where(occupied, attributes[:, j : j + 1] + 1, 0)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        losses.append((loss * torch.where(occupied.flatten(), 3.0, 1.0)).mean())
        rights.append((logits.argmax(-1) == target)[occupied].float().mean().item())
    return torch.stack(losses).sum(), min(rights)


def _query_loss(head: nn.Linear, features: Tensor, attributes: Tensor) -> tuple[Tensor, float]:
    """Query i tells attribute i modulo four of the scene."""
    losses: list[Tensor] = []
    rights: list[float] = []
    for j, logits in enumerate(head(features).split(_CLASSES, dim=-1)):
        mine = logits[:, j::4]
        target = attributes[:, j : j + 1].expand(-1, mine.shape[1])
        losses.append(F.cross_entropy(mine.flatten(0, 1), target.flatten()))
        rights.append((mine.argmax(-1) == target).float().mean().item())
    return torch.stack(losses).sum(), min(rights)


def pretrain(family: DemoFamily, rng: random.Random, steps: int, batch: int, rate: float) -> list[dict[str, float]]:
    """Train the tower, and a Q-Former, on rendered scenes; return the loss and the worst attribute's accuracy."""
    probe = [world.empty_image(rng)]
    asked = _CLASSES if family.patches_know_their_place else _CLASSES[:3]
    patch_head = nn.Linear(family.patch_features(probe).shape[-1], sum(asked) + len(asked))
    parameters = [*family.vision_parameters(), *patch_head.parameters()]
    queries = family.query_features(probe)
    query_head = None if queries is None else nn.Linear(queries.shape[-1], sum(_CLASSES))
    if query_head is not None:
        parameters += query_head.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    history: list[dict[str, float]] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = rate * min(1.0, (step + 1) / 30) * (0.05 + 0.95 * cosine)
        scenes = [world.scene(rng) for _ in range(batch)]
        images = [world.render(rng, shown) for shown in scenes]
        loss, right = _patch_loss(patch_head, family.patch_features(images), _attributes(scenes))
        entry = {"step": step + 1, "patch_accuracy": round(right, 4)}
        queries = family.query_features(images)
        if query_head is not None and queries is not None:
            query_loss, right = _query_loss(query_head, queries, _attributes(scenes))
            entry["query_accuracy"] = round(right, 4)
            loss = loss + query_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            history.append(entry | {"loss": round(loss.item(), 4)})
    return history
