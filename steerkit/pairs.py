"""Anchors of two labels as pairs: neighbours that belong together, or all with all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError
from steerkit.samples import Sample
from steerkit.statistics import Moments


def require_neighbours(anchors: Sequence[Sample]) -> None:
    """For `plan`, after `require_labels`: refuse anchors that are not pairs of one label each, next to each other."""
    labels = [anchors[index].label for index in range(len(anchors))]
    lonely = next((i for i in range(0, len(labels), 2) if len(set(labels[i : i + 2])) != 2), None)
    if lonely is not None:
        raise EmptyAnchorSetError(
            f"anchor {lonely} begins a pair labelled {labels[lonely : lonely + 2]}",
            expected="pairs of neighbours, one of each label",
            fix="put the two samples of each pair next to each other, and leave out what has no partner",
        )


def neighbour_differences(batch: Sequence[Sample], captured: Mapping[int, Tensor], positive: str) -> dict[int, Tensor]:
    """`{layer: [pairs, hidden]}`: the positive's row less that of its neighbour, float32."""
    signs = torch.tensor([1.0 if sample.label == positive else -1.0 for sample in batch[::2]])
    return {
        layer: signs.to(rows.device)[:, None] * (rows[::2].float() - rows[1::2].float())
        for layer, rows in captured.items()
    }


def difference_moment(positive: Moments, negative: Moments) -> Tensor:
    """`[hidden, hidden]`: the mean outer product of all differences between two sets of rows, float64."""
    cross = torch.outer(positive.mean, negative.mean)
    return positive.second_moment() + negative.second_moment() - cross - cross.T


def components(moment: Tensor, mean: Tensor, count: int = 1) -> Tensor:
    """`[count, hidden]`: the leading eigenvectors of a second moment, each with its sign along the mean."""
    found = torch.linalg.eigh(moment).eigenvectors[:, -count:].flip(1).T
    signs = torch.where(found @ mean < 0, -1.0, 1.0)
    return signs[:, None] * found
