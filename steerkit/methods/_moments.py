"""Running statistics of hidden states: the memory of one batch and of the sums, whatever the size of the anchor set.

Sums are kept in float64, so statistics of parts merge into those of the whole (equal up to the rounding of float64;
`State` merges in one order whoever measured what, and so to the last bit).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import CheckpointError, NonFiniteError

LARGE = 2**24
"""Bytes from which a tensor leaves the memory for the disk, and rows are no longer joined."""


@dataclass(eq=False)
class Moments:
    """Count, sum and, where asked for, second moments of rows `[hidden]`, and the rows themselves.

    Second moments are kept as the rows themselves while there are fewer than `hidden` of them, and as the
    `[hidden, hidden]` sum of outer products from then on: whichever is smaller.

    Attributes:
        count: Number of rows.
        total: `[hidden]`, their sum.
        rows: `[count, hidden]`, or None.
        outer: `[hidden, hidden]`, or None.
        kept: All rows in order, as they were captured, `[part, hidden]` each; empty where the plan needs none.
    """

    count: int
    total: Float[Tensor, "hidden"]
    rows: Float[Tensor, "count hidden"] | None
    outer: Float[Tensor, "hidden hidden"] | None
    kept: tuple[Float[Tensor, "part hidden"], ...] = ()

    @classmethod
    def of(cls, rows: Float[Tensor, "count hidden"], *, second: bool, keep: bool = False) -> Moments:
        """The statistics of some rows."""
        here = rows.detach().cpu()
        wide = here.double()
        # float32 holds whatever a model computes in, short of float64
        kept = (here if here.dtype == torch.float64 else here.float(),) if keep else ()
        return cls(wide.shape[0], wide.sum(0), wide if second else None, None, kept)._compact()

    def merge(self, other: Moments) -> Moments:
        """The statistics of both sets of rows together, those of `other` behind."""
        rows = outer = None
        if self.rows is not None and other.rows is not None:
            rows = torch.cat([self.rows, other.rows])
        elif self._second and other._second:
            outer = self._outer() + other._outer()
        kept = _joined(self.kept + other.kept)
        return Moments(self.count + other.count, self.total + other.total, rows, outer, kept)._compact()

    def on_disk(self) -> Moments:
        """The same, its large tensors in temporary files that are mapped into memory and have no name any more.

        Raises:
            CheckpointError: The folder for temporary files is full.
        """
        return Moments(self.count, self.total, _mapped(self.rows), _mapped(self.outer), tuple(map(_kept, self.kept)))

    @property
    def mean(self) -> Float[Tensor, "hidden"]:
        """The mean row, float64."""
        return self.total / self.count

    def principal(self, *, center: bool) -> tuple[Float[Tensor, "hidden"], float]:
        """The first principal component and its standard deviation.

        Args:
            center: Subtract the mean first. Without, the component is the direction of greatest second moment, which
                contains the common shift.

        Returns:
            The unit vector, its sign such that the mean row has a non-negative component along it, and the root mean
            square of the (centred) rows along it.
        """
        if self.rows is not None:
            rows = self.rows - self.mean if center else self.rows
            _, values, right = torch.linalg.svd(rows, full_matrices=False)
            direction, spread = right[0], values[0] / self.count**0.5
        else:
            moment = self._outer() / self.count
            if center:
                moment = moment - torch.outer(self.mean, self.mean)
            values, vectors = torch.linalg.eigh(moment)
            direction, spread = vectors[:, -1], values[-1].clamp_min(0.0).sqrt()
        sign = -1.0 if float(direction @ self.mean) < 0 else 1.0
        return sign * direction, float(spread)

    def variance(self, direction: Float[Tensor, "hidden"]) -> float:
        """The variance of the rows along a direction, whatever its length; needs second moments."""
        unit = direction.double() / direction.double().norm()
        if self.rows is not None:
            square = float((self.rows @ unit).square().mean())
        else:
            square = float(unit @ self._outer() @ unit) / self.count
        return max(square - float(self.mean @ unit) ** 2, 0.0)

    def second_moment(self) -> Float[Tensor, "hidden hidden"]:
        """The mean outer product of the rows, float64; needs second moments."""
        return self._outer() / self.count

    @property
    def _second(self) -> bool:
        return self.rows is not None or self.outer is not None

    def _outer(self) -> Tensor:
        return self.outer if self.outer is not None else self.rows.T @ self.rows  # type: ignore[union-attr]

    def _compact(self) -> Moments:
        if self.rows is not None and self.count >= self.rows.shape[1]:
            self.rows, self.outer = None, self._outer()
        return self


def _joined(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Neighbouring parts as one, as long as it is not large: where they are cut depends on their sizes alone."""
    joined: list[Tensor] = []
    for part in parts:
        if joined and joined[-1].nbytes + part.nbytes < LARGE:
            joined[-1] = torch.cat([joined[-1], part])
        else:
            joined.append(part)
    return tuple(joined)


def _kept(rows: Tensor) -> Tensor:
    # half of what is large: a part that can't be joined with its like any more
    return rows if rows.nbytes < LARGE // 2 else _on_disk(rows)


def _mapped(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.nbytes < LARGE else _on_disk(tensor)


def _on_disk(tensor: Tensor) -> Tensor:
    if tensor.untyped_storage().filename is not None:
        return tensor  # it is there already
    path = None
    try:
        with tempfile.NamedTemporaryFile(prefix="steerkit-", delete=False) as file:
            path = Path(file.name)
            file.write(tensor.contiguous().numpy().tobytes())
        mapped = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
    except OSError as error:
        raise CheckpointError(
            f"statistics of {tensor.nbytes} bytes don't fit into the folder for temporary files ({error})",
            expected="space on its disk",
            fix="set TMPDIR to a folder on a larger disk, or restrict `layers`",
        ) from error
    finally:
        if path is not None:
            path.unlink(missing_ok=True)  # the mapping holds the data as long as it is needed
    return mapped.view(tensor.shape)


Groups = dict[str, dict[int, Moments]]
"""`{group: {layer: Moments}}`."""

Observations = Mapping[str, Mapping[int, Tensor]]
"""`{group: {layer: [rows, hidden]}}`: what one batch of samples contributes."""


def groups_of(observed: Observations, *, second: bool, keep: bool) -> Groups:
    """The statistics of what one batch of samples contributes; see `Moments.of`.

    Raises:
        NonFiniteError: The model produced NaN or infinity.
    """
    groups: Groups = {}
    for name, by_layer in observed.items():
        for layer, rows in by_layer.items():
            if not torch.isfinite(rows).all():
                raise NonFiniteError(
                    f"the model's hidden states at layer {layer} hold NaN or infinity ({name})",
                    expected="finite values",
                    fix="load the model in bfloat16 or float32: float16 may overflow",
                )
            if rows.shape[0]:
                groups.setdefault(name, {})[layer] = Moments.of(rows, second=second, keep=keep)
    return groups


def merge_groups(first: Groups, second: Groups) -> Groups:
    """The statistics of two parts of an anchor set together."""
    merged = {name: dict(layers) for name, layers in first.items()}
    for name, layers in second.items():
        mine = merged.setdefault(name, {})
        for layer, moments in layers.items():
            mine[layer] = mine[layer].merge(moments).on_disk() if layer in mine else moments
    return merged


def farthest_apart(one: Mapping[int, Moments], other: Mapping[int, Moments]) -> int:
    """The layer at which two means lie furthest apart, in units of the spread of both groups along their difference."""

    def separation(layer: int) -> float:
        difference = one[layer].mean - other[layer].mean
        spread = one[layer].variance(difference) + other[layer].variance(difference)
        return float(difference.norm()) / max(spread, 1e-12) ** 0.5

    return max(one, key=separation)
