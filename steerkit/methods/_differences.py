"""Anchors of two labels as pairs: neighbours that belong together, or all with all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steerkit.errors import EmptyAnchorSetError
from steerkit.methods._moments import Moments
from steerkit.models import Sample


def require_neighbours(anchors: Sequence[Sample]) -> None:
    """For `plan`, after `require_labels`: refuse anchors that are not pairs of one label each, next to each other."""
    labels = [anchors[index].label for index in range(len(anchors))]
    unpaired = next((i for i in range(0, len(labels), 2) if len(set(labels[i : i + 2])) != 2), None)
    if unpaired is not None:
        raise EmptyAnchorSetError(
            f"anchor {unpaired} begins a pair labelled {labels[unpaired : unpaired + 2]}",
            expected="pairs of neighbours of different labels",
            fix="put the two samples of each pair next to each other, and leave out what has no partner",
        )


def neighbour_differences(batch: Sequence[Sample], captured: Mapping[int, Tensor], positive: str) -> dict[int, Tensor]:
    """`{layer: [pairs, hidden]}`: the positive's row less that of its neighbour, float32."""
    signs = torch.tensor([1.0 if sample.label == positive else -1.0 for sample in batch[::2]], device="cpu")
    return {
        layer: signs.to(rows.device)[:, None] * (rows[::2].float() - rows[1::2].float())
        for layer, rows in captured.items()
    }


def difference_components(positive: Moments, negative: Moments, count: int = 1) -> Tensor:
    """`[count, hidden]`: the leading components of the differences of all rows of one set with all of the other.

    Uncentred, of length 1, each with its sign along the mean difference; needs second moments of both.
    """
    mean = positive.mean - negative.mean
    if positive.rows is not None and negative.rows is not None:
        # their mean outer product is that of these rows, of which there are fewer than there are dimensions
        centred = [(part.rows - part.mean) / part.count**0.5 for part in (positive, negative)]  # type: ignore[operator]
        return _signed(_leading_rows(torch.cat([*centred, mean[None]]), count), mean)
    cross = torch.outer(positive.mean, negative.mean)
    moment = positive.second_moment() + negative.second_moment() - cross - cross.T
    return _signed(_leading_moment(moment, count), mean)


def pair_components(differences: Moments, count: int = 1) -> Tensor:
    """`[count, hidden]`: the same of the differences of pairs."""
    if differences.rows is not None:
        return _signed(_leading_rows(differences.rows, count), differences.mean)
    return _signed(_leading_moment(differences.second_moment(), count), differences.mean)


def _leading_rows(rows: Tensor, count: int) -> Tensor:
    # of the small triangle in place of the wide rows: as exact, and several times faster
    basis, triangle = torch.linalg.qr(rows.T)
    return torch.linalg.svd(triangle.T, full_matrices=False)[2][:count] @ basis.T


def _leading_moment(moment: Tensor, count: int) -> Tensor:
    return torch.linalg.eigh(moment).eigenvectors[:, -count:].flip(1).T


def require_shift(mean: Tensor) -> None:
    """For `solve`: refuse two groups of the same mean, whose difference points nowhere.

    Raises:
        EmptyAnchorSetError: It is so.
    """
    if not mean.any():
        raise EmptyAnchorSetError(
            "two groups of anchors have the same mean state, so that their difference has no direction",
            expected="groups of different prompts",
            fix="look for anchors that stand in both groups",
        )


def _signed(found: Tensor, mean: Tensor) -> Tensor:
    require_shift(mean)
    return torch.where(found @ mean < 0, -1.0, 1.0)[:, None] * found
