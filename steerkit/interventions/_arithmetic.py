"""The arithmetic of every operation, as pure functions of tensors.

`h` is `[n, hidden]`: n tokens. Directions are `[hidden]`, `[k, hidden]` or, where each token has its own, `[n,
hidden]`. `strength` is a number or `[n]`. Results have the type of `h`; whatever involves a projection is computed in
float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "tokens hidden"]
Vector = Float[Tensor, "hidden"]
Basis = Float[Tensor, "rank hidden"]
Dose = float | Float[Tensor, "tokens"]


def _column(strength: Dose) -> float | Tensor:
    return strength[:, None] if isinstance(strength, Tensor) else strength


def add(h: Rows, direction: Vector | Rows, strength: Dose = 1.0) -> Rows:
    """`h + s * d`."""
    return h + (_column(strength) * direction).to(h.dtype)


def add_relative(h: Rows, direction: Vector | Rows, strength: Dose = 1.0) -> Rows:
    """`h + s * |h| * d / |d|`: the dose is a fraction of the token's own norm."""
    wide = h.float()
    unit = direction.float() / direction.float().norm(dim=-1, keepdim=True)
    return (wide + _column(strength) * wide.norm(dim=-1, keepdim=True) * unit).to(h.dtype)


def orthonormal(directions: Vector | Basis) -> Basis:
    """An orthonormal basis of the span of the directions, `[rank, hidden]`, float32."""
    stacked = torch.atleast_2d(directions).double()
    if stacked.shape[0] == 1:
        return (stacked / stacked.norm(dim=-1, keepdim=True)).float()
    _, values, right = torch.linalg.svd(stacked, full_matrices=False)
    rank = int((values > values[0] * 1e-7).sum())
    return right[:rank].float()


def project(x: Rows, basis: Basis) -> Rows:
    """The part of each row of x in the span of an orthonormal basis; float32."""
    return (x.float() @ basis.T) @ basis


def ablate(h: Rows, basis: Basis, strength: Dose = 1.0) -> Rows:
    """`h - s * P h`: at s = 1 nothing is left of h along the basis."""
    return (h.float() - _column(strength) * project(h, basis)).to(h.dtype)


def add_projection(h: Rows, contrast: Rows | Vector, basis: Basis, strength: Dose = 1.0) -> Rows:
    """`h + s * P c`."""
    part = project(torch.atleast_2d(contrast), basis)
    return (h.float() + _column(strength) * part).to(h.dtype)


def clamp(h: Rows, direction: Vector, minimum: float | None, maximum: float | None, strength: Dose = 1.0) -> Rows:
    """Bound the coordinate along the unit direction."""
    wide, unit = h.float(), direction.float() / direction.float().norm()
    coordinate = wide @ unit
    change = coordinate.clamp(minimum, maximum) - coordinate
    return (wide + (strength * change)[:, None] * unit).to(h.dtype)


def scale(h: Rows, direction: Vector, factor: float, strength: Dose = 1.0) -> Rows:
    """Multiply the coordinate along the direction by a factor."""
    wide, unit = h.float(), direction.float() / direction.float().norm()
    change = (factor - 1.0) * (wide @ unit)
    return (wide + (strength * change)[:, None] * unit).to(h.dtype)


def preserve_norm(changed: Rows, original: Rows) -> Rows:
    """Each changed row, rescaled to the norm of the original row."""
    wide = changed.float()
    norm = wide.norm(dim=-1, keepdim=True)
    return (wide * (original.float().norm(dim=-1, keepdim=True) / norm.clamp_min(1e-12))).to(changed.dtype)


def projection(h: Rows, direction: Vector, reference: Vector | None = None) -> Float[Tensor, "tokens"]:
    """`(h - r) . d / |d|`, float32."""
    wide = h.float() if reference is None else h.float() - reference.float()
    return wide @ (direction.float() / direction.float().norm())


def cosine(h: Rows, direction: Vector, reference: Vector | None = None) -> Float[Tensor, "tokens"]:
    """`(h - r) . d / (|h - r| |d|)`, float32; 0 where h equals r."""
    wide = h.float() if reference is None else h.float() - reference.float()
    return projection(wide, direction) / wide.norm(dim=-1).clamp_min(1e-12)


def tanh_cosine(h: Rows, direction: Vector, reference: Vector | None = None) -> Float[Tensor, "tokens"]:
    """`cos(x, tanh(P x))` with `x = h - r` and P the projection on the direction, float32; 0 where `P x` is 0."""
    wide = h.float() if reference is None else h.float() - reference.float()
    squashed = torch.tanh(project(wide, orthonormal(direction)))
    norms = wide.norm(dim=-1) * squashed.norm(dim=-1)
    return (wide * squashed).sum(dim=-1) / norms.clamp_min(1e-12)


def increments(by_layer: dict[int, Tensor]) -> dict[int, Tensor]:
    """Differences along the depth: the lowest layer keeps its value, each other loses that of the layer below it.

    Added at the output of every block, they sum along the residual stream to the value of the highest layer.
    """
    layers = sorted(by_layer)
    return {
        layer: by_layer[layer] if index == 0 else by_layer[layer] - by_layer[layers[index - 1]]
        for index, layer in enumerate(layers)
    }
