"""Arithmetic that operations, measures and methods share, as pure functions of tensors.

`h` is `[n, hidden]`: n tokens. Whatever involves a projection is computed in float32. Lengths are taken of vectors that
were divided by their largest entry first: squares of numbers beyond 1e19 overflow in float32, and those of numbers
below 1e-19 vanish, while directions of any such size may be stored.

Reading a pack must not load torch, and operations import this module: torch is imported where a function needs more of
it than the methods of tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Rows: TypeAlias = Float[Tensor, "tokens hidden"]
    Vector: TypeAlias = Float[Tensor, "hidden"]
    Basis: TypeAlias = Float[Tensor, "rank hidden"]
    Dose: TypeAlias = float | Float[Tensor, "tokens"]


_SMALL = 1e-30


def column(strength: Dose) -> float | Tensor:
    """The strengths of tokens as `[n, 1]`; a number as it is."""
    return strength if isinstance(strength, float | int) else strength[:, None]


def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row divided by its largest entry, and what it was divided by, `[..., 1]`; float32, or float64 as given.

    Rows whose entries are all below 1e-30 are divided by that: their squares then neither vanish nor overflow either.
    """
    wide = x if x.element_size() == 8 else x.float()
    # detached: a length does not depend on what its entries were divided by on the way, nor does its gradient
    largest = wide.detach().abs().amax(dim=-1, keepdim=True).clamp_min(_SMALL)
    return wide / largest, largest


def norm(x: Tensor) -> Tensor:
    """`[..., 1]`: the length of each row, right wherever it can be written in float32."""
    ratio, largest = scaled(x)
    return _length(ratio) * largest


def unit(x: Tensor) -> Tensor:
    """Each row at length 1, whatever its length was; zeros stay zeros. float32, or float64 as given."""
    ratio, _ = scaled(x)
    return ratio / _length(ratio).clamp_min(_SMALL)


def _length(ratio: Tensor) -> Tensor:
    import torch

    # what `ratio.norm` comes to, at half of its cost for one token
    return torch.linalg.vector_norm(ratio, dim=-1, keepdim=True)


def orthonormal(directions: Vector | Basis) -> Basis:
    """An orthonormal basis of the span of the directions, `[rank, hidden]`, float32.

    How long each direction is makes no difference to the span, so it makes none to the rank.
    """
    stacked = unit(directions.double() if directions.dim() > 1 else directions.double()[None])
    if stacked.shape[0] == 1:
        return stacked.float()
    import torch

    _, values, right = torch.linalg.svd(stacked, full_matrices=False)
    rank = int((values > values[0] * 1e-7).sum())
    return right[:rank].float()


def project(x: Rows, basis: Basis) -> Rows:
    """The part of each row of x in the span of an orthonormal basis; float32."""
    return (x.float() @ basis.T) @ basis


def preserve_norm(changed: Rows, original: Rows) -> Rows:
    """Each changed row, rescaled to the norm of the original row; one that was not changed is left to the last bit."""
    rescaled = (unit(changed) * norm(original)).to(changed.dtype)
    # rounding alone would change a row that a dose of zero left as it was; a row with an infinite entry has no norm
    return rescaled.where((changed - original).abs().amax(dim=-1, keepdim=True) > 0, changed)


# -- measures: numbers read off a hidden state, along a direction of norm 1 --------------------------------------------


def projection(h: Rows, direction: Vector, reference: Vector | None = None) -> Float[Tensor, "tokens"]:
    """`(h - r) . d / |d|`, float32."""
    wide = h.float() if reference is None else h.float() - reference.float()
    return wide @ unit(direction.float())


def cosine(h: Rows, direction: Vector, reference: Vector | None = None) -> Float[Tensor, "tokens"]:
    """`(h - r) . d / (|h - r| |d|)`, float32; 0 where h equals r."""
    wide = h.float() if reference is None else h.float() - reference.float()
    return unit(wide) @ unit(direction.float())


def tanh_cosine(h: Rows, direction: Vector, reference: Vector | None = None) -> Float[Tensor, "tokens"]:
    """`cos(x, tanh(P x))` with `x = h - r` and P the projection on the direction, float32; 0 where `P x` is 0."""
    wide = h.float() if reference is None else h.float() - reference.float()
    along = unit(direction.float())
    squashed = ((wide @ along)[:, None] * along).tanh()
    return (unit(wide) * unit(squashed)).sum(dim=-1)


MEASURES = {"projection": projection, "cosine": cosine, "tanh_cosine": tanh_cosine}
"""The arithmetic of each kind of measure: `function(h, direction, reference)` gives one number for each row of h."""


def increments(by_layer: dict[int, Tensor]) -> dict[int, Tensor]:
    """Differences along the depth: the lowest layer keeps its value, each other loses that of the layer below it.

    Added at the output of every block, they sum along the residual stream to the value of the highest layer.
    """
    layers = sorted(by_layer)
    return {
        layer: by_layer[layer] if index == 0 else by_layer[layer] - by_layer[layers[index - 1]]
        for index, layer in enumerate(layers)
    }
