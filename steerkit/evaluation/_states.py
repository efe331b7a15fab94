"""Hidden states of text alone, with the image and steered: a plane through them at each layer, and their distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerkit.evaluation._generate import Condition, steered
from steerkit.evaluation._statistics import Estimate, bootstrap
from steerkit.models import Sample
from steerkit.vlm import VLM


@dataclass(frozen=True)
class Plane:
    """The last prompt token of the same prompts under several conditions, at the output of one layer.

    The plane is spanned by the first two principal components of all of the states, centred; its first axis points from
    text only to the image. Distances are between the means of the conditions, in the whole space and in the plane.
    Their intervals are those of the mean of what each prompt moves along the line between the two means, by bootstrap
    over prompts, or clusters of them: they say nothing of the direction of that line.

    Attributes:
        suite: Name of the suite.
        layer: The layer, 0-based.
        explained: The share of the variance that each of the two components explains.
        points: By condition, the place of each prompt in the plane.
        distances: By condition, how far its mean is from that of text only: in the whole space.
        in_plane: The same, as the picture shows it.
    """

    suite: str
    layer: int
    explained: tuple[float, float]
    points: dict[str, list[tuple[float, float]]]
    distances: dict[str, Estimate]
    in_plane: dict[str, Estimate]


def planes(
    vlm: VLM,
    suite: str,
    samples: Sequence[Sample],
    conditions: Sequence[Condition],
    *,
    clusters: Sequence[object] | None = None,
    batch_size: int = 16,
) -> list[Plane]:
    """Measure the hidden states of prompts under several conditions; see `Plane`.

    Args:
        vlm: The model.
        suite: Name of the suite, for the record.
        samples: The prompts, at least two.
        conditions: Text only, the image, then what steers.
        clusters: What each prompt belongs to, such as its image; as for `bootstrap`. Default: itself.
        batch_size: Prompts per forward pass.
    """
    states: dict[str, dict[int, Tensor]] = {}
    for each in conditions:
        with steered(vlm, each.vector, each.strength):
            states[each.name] = vlm.capture(samples, images=each.images, batch_size=batch_size, engine="hooks")
    layers = next(iter(states.values()))
    return [
        _plane(suite, layer, {name: found[layer].double().cpu() for name, found in states.items()}, clusters)
        for layer in layers
    ]


def _plane(suite: str, layer: int, states: dict[str, Tensor], clusters: Sequence[object] | None) -> Plane:
    whole = torch.cat(list(states.values()))
    centre = whole.mean(0)
    _, sizes, axes = torch.linalg.svd(whole - centre, full_matrices=False)
    axes = axes[:2] * axes.new_ones(2, 1)
    start, shown = list(states.values())[:2]
    axes[0] *= -1.0 if float((shown.mean(0) - start.mean(0)) @ axes[0]) < 0 else 1.0
    axes[1] *= -1.0 if float(axes[1][axes[1].abs().argmax()]) < 0 else 1.0
    variance = (sizes**2 / (sizes**2).sum().clamp_min(1e-30)).tolist()
    return Plane(
        suite,
        layer,
        (variance[0], variance[1]),
        {
            name: [(round(x, 4), round(y, 4)) for x, y in ((found - centre) @ axes.T).tolist()]
            for name, found in states.items()
        },
        {name: _length(found - start, clusters) for name, found in states.items()},
        {name: _length((found - start) @ axes.T, clusters) for name, found in states.items()},
    )


def _length(moves: Tensor, clusters: Sequence[object] | None) -> Estimate:
    """How long the mean of some moves is: the mean of their parts along it."""
    mean = moves.mean(0)
    return bootstrap((moves @ (mean / mean.norm().clamp_min(1e-30))).tolist(), clusters=clusters)
