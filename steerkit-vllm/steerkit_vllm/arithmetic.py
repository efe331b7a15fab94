"""The one form that every operation is written in, so that a batch can hold many and a graph need not change.

Along a direction `u`, a state `x` becomes `x + c u` with

    c = dose (k0 + k1 |x| + k2 p + k3 (clip(p, low, high) - p)),    p = x . u

which is an addition at k0, one relative to the norm at k1, ablation and scaling at k2, a clamp at k3. Removing a
subspace is one such change for each vector of an orthonormal basis. What belongs to an intervention as a whole, its
gates, its measured strength and keeping the norm, refers to the state that the first of its changes found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from steerkit.interventions import _arithmetic as ops

if TYPE_CHECKING:
    from torch import Tensor

NUMBERS = (
    *("k0", "k1", "k2", "k3", "low", "high", "dose", "opens", "norm"),
    *("rule", "rule_kind", "slope", "intercept", "minimum", "maximum", "combine"),
)
"""The numbers of a change, in the order of its row; behind them, for each gate, those of `GATE`."""

GATE = ("kind", "threshold", "above")

KINDS = ("projection", "cosine", "tanh_cosine")
"""The kinds of measure that are known, by number."""

FREE, ANY, ALL = 0.0, 1.0, 2.0
"""How gates combine; none at all is free."""

UNBOUNDED = 3e38


class Rows(NamedTuple):
    """What each of n tokens undergoes; `[n, hidden]` but for the numbers and the coefficients.

    Attributes:
        numbers: `[n, len(NUMBERS) + gates * len(GATE)]`.
        coefficient: `[n]`: the strength that the request gave.
        u: The direction.
        rule: Direction and reference of the measured strength; None where the server has no room for one.
        gates: Direction and reference of each gate.
    """

    numbers: Tensor
    coefficient: Tensor
    u: Tensor
    rule: tuple[Tensor, Tensor] | None
    gates: tuple[tuple[Tensor, Tensor], ...]


def advance(x: Tensor, start: Tensor, rows: Rows, *, squashed: bool) -> tuple[Tensor, Tensor]:
    """The states after one change, and what the intervention that it belongs to found.

    Args:
        x: `[n, hidden]` float32.
        start: What the intervention of the change before found.
        rows: The changes.
        squashed: Whether some measure is `tanh_cosine`.
    """
    number = {name: rows.numbers[:, at] for at, name in enumerate(NUMBERS)}
    start = torch.where(_column(number["opens"] > 0), x, start)
    dose = rows.coefficient * number["dose"]
    if rows.rule is not None:
        value = measured(start, *rows.rule, number["rule_kind"], squashed=squashed)
        line = number["slope"] * value + number["intercept"]
        line = torch.minimum(torch.maximum(line, number["minimum"]), number["maximum"])
        dose = dose * torch.where(number["rule"] > 0, line, torch.ones_like(line))
    p = (x * rows.u).sum(dim=-1)
    clipped = torch.minimum(torch.maximum(p, number["low"]), number["high"])
    size = ops.norm(x)[:, 0]
    c = dose * (number["k0"] + number["k1"] * size + number["k2"] * p + number["k3"] * (clipped - p))
    changed = x + _column(c) * rows.u
    changed = torch.where(_column(number["norm"] > 0), ops.preserve_norm(changed, start), changed)
    if rows.gates:
        changed = torch.where(_column(_opened(start, rows, number["combine"], squashed=squashed)), changed, start)
    return changed, start


def _opened(start: Tensor, rows: Rows, combine: Tensor, *, squashed: bool) -> Tensor:
    passes = []
    for index, (direction, reference) in enumerate(rows.gates):
        first = len(NUMBERS) + index * len(GATE)
        kind, threshold, above = rows.numbers[:, first : first + len(GATE)].unbind(1)
        value = measured(start, direction, reference, kind, squashed=squashed)
        passes.append((value > threshold) == (above > 0))
    found = torch.stack(passes)
    return torch.where(combine == ALL, found.all(0), torch.where(combine == ANY, found.any(0), combine == FREE))


def measured(x: Tensor, direction: Tensor, reference: Tensor, kind: Tensor, *, squashed: bool) -> Tensor:
    """`[n]`: what each token's measure reads; the directions have norm 1."""
    x = x - reference
    along = (x * direction).sum(dim=-1)
    unit = ops.unit(x)
    value = torch.where(kind == KINDS.index("cosine"), (unit * direction).sum(dim=-1), along)
    if squashed:
        line = ops.unit((_column(along) * direction).tanh())
        value = torch.where(kind == KINDS.index("tanh_cosine"), (unit * line).sum(dim=-1), value)
    return value


def _column(values: Tensor) -> Tensor:
    return values[:, None]
