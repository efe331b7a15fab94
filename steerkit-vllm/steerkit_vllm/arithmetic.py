"""The one form that every operation is written in, so that a batch can hold many and a graph need not change.

Along a direction `u`, a state `x` becomes `x + c u` with

    c = dose (k0 + k1 |x| + k2 p + k3 (clip(p, low, high) - p)),    p = x . u

which is an addition at k0, one relative to the norm at k1, ablation and scaling at k2, a clamp at k3. Removing a
subspace is one such change for each vector of an orthonormal basis. What belongs to an intervention as a whole, its
gates, its measured strength and keeping the norm, refers to the state that the first of its changes found.

What no row of a batch has at work can be left out of the form: the terms of it are zero, and what is chosen between is
one and the same. `facts` says what a row has. A graph is made for whatever the server has room for (`every`), and an
eager engine computes what the rows of a step have: `eager.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from steerkit.interventions import _arithmetic as ops

if TYPE_CHECKING:
    from torch import Tensor

    from steerkit_vllm.settings import Room

NUMBERS = (
    *("k0", "k1", "k2", "k3", "low", "high", "dose", "opens", "norm"),
    *("rule", "rule_kind", "slope", "intercept", "minimum", "maximum", "combine"),
)
"""The numbers of a change, in the order of its row; behind them, for each gate, those of `GATE`."""

GATE = ("kind", "threshold", "above")


def projection(x: Tensor, direction: Tensor) -> Tensor:
    """`[n, 1]`: how far each state goes along a direction of norm 1."""
    return (x * direction).sum(dim=-1, keepdim=True)


def _cosine(x: Tensor, direction: Tensor) -> Tensor:
    return projection(ops.unit(x), direction)


def _tanh_cosine(x: Tensor, direction: Tensor) -> Tensor:
    return projection(ops.unit(x), ops.unit((projection(x, direction) * direction).tanh()))


MEASURES = {"projection": projection, "cosine": _cosine, "tanh_cosine": _tanh_cosine}
KINDS = tuple(MEASURES)
"""The kinds of measure that are known, by number."""

FREE, ANY, ALL = 0.0, 1.0, 2.0
"""How gates combine; none at all is free."""

UNBOUNDED = 3e38


class Rows(NamedTuple):
    """What each of n tokens undergoes; what is the same for all of them can be given once.

    Attributes:
        numbers: By name (see `names`) `[n, 1]` or `[1, 1]`; `dose` is times the strength that the request gave.
        u: The direction, `[n, hidden]` or `[1, hidden]`.
        measures: Direction and reference of `rule`, `gate0` and so on, as `u`; without the latter where no row has one.
    """

    numbers: Mapping[str, Tensor]
    u: Tensor
    measures: Mapping[str, tuple[Tensor, Tensor | None]]


def names(gates: int) -> tuple[str, ...]:
    """The names of a row's numbers, in their order."""
    return (*NUMBERS, *(f"gate{k}_{name}" for k in range(gates) for name in GATE))


def measures(room: Room) -> tuple[str, ...]:
    """What may be measured at a token."""
    return (*(("rule",) if room.rule else ()), *(f"gate{k}" for k in range(room.gates)))


def every(room: Room) -> frozenset[str]:
    """All facts that rows can have where there is so much room."""
    found = {"k0", "k1", "k2", "k3", "opens", "not opens", "norm", "not norm", "not rule", "free", "any", "all"}
    kinds = KINDS if room.squashed else KINDS[:-1]
    for name in measures(room):
        found |= {name, f"{name} from", f"{name} above", f"{name} below", *(f"{name} {kind}" for kind in kinds)}
    return frozenset(found)


def facts(numbers: Mapping[str, float], gates: int, referred: Collection[str]) -> frozenset[str]:
    """What of the form a row has, and what it has not where others may.

    Args:
        numbers: Its numbers, those of gates that it does not have among them.
        gates: How many gates rows can have.
        referred: Its measures that have a reference.
    """
    found = {name for name in ("k0", "k1", "k2", "k3") if numbers[name]}
    found |= {name if numbers[name] > 0 else f"not {name}" for name in ("opens", "norm", "rule")}
    found |= {f"{name} from" for name in referred}
    if numbers["rule"] > 0:
        found.add(f"rule {KINDS[int(numbers['rule_kind'])]}")
    combine = numbers["combine"]
    found.add({FREE: "free", ANY: "any", ALL: "all"}[combine])
    for gate in (f"gate{k}" for k in range(gates if combine != FREE else 0)):
        kind, _, above = given = tuple(numbers[f"{gate}_{name}"] for name in GATE)
        found.add(f"{gate} above" if above > 0 else f"{gate} below")
        if given != undecided(combine):
            found |= {gate, f"{gate} {KINDS[int(kind)]}"}
    return frozenset(found)


def with_gates(numbers: Tensor, gates: int) -> Tensor:
    """The numbers of rows, `[..., numbers]`, with those of gates that an intervention does not have."""
    missing = (len(names(gates)) - numbers.shape[-1]) // len(GATE)
    combine = numbers[..., NUMBERS.index("combine"), None]
    of_all, of_others = (numbers.new_tensor(undecided(each)) for each in (ALL, ANY))
    return torch.cat([numbers, *([torch.where(combine == ALL, of_all, of_others)] * missing)], dim=-1)


def undecided(combine: float) -> tuple[float, float, float]:
    """The numbers of a gate that an intervention does not have, which never decides."""
    return (0.0, float(torch.tensor(-UNBOUNDED if combine == ALL else UNBOUNDED)), 1.0)


def refers(found: Collection[str]) -> bool:
    """Whether rows refer to the state that their intervention found."""
    return "norm" in found or "rule" in found or bool(gated(found))


def gated(found: Collection[str]) -> list[str]:
    """The gates that rows have."""
    return sorted(name for name in found if name.startswith("gate") and name.isalnum())


def needed(found: Collection[str]) -> list[str]:
    """The names of the numbers that `advance` reads where rows have these facts; the dose is the first."""
    wanted = ["dose", *(name for name in ("k0", "k1", "k2", "k3") if name in found)]
    wanted += ["low", "high"] if "k3" in found else []
    wanted += [name for name in ("opens", "norm", "rule") if name in found and f"not {name}" in found]
    wanted += ["rule_kind", "slope", "intercept", "minimum", "maximum"] if "rule" in found else []
    wanted += ["combine"] if gated(found) else []
    return wanted + [f"{gate}_{name}" for gate in gated(found) for name in GATE]


def advance(x: Tensor, start: Tensor | None, rows: Rows, found: Collection[str]) -> tuple[Tensor, Tensor]:
    """The states after one change, and what the intervention that it belongs to found.

    Args:
        x: `[n, hidden]` float32.
        start: What the intervention of the change before found; None for the first change.
        rows: The changes.
        found: The facts of all rows together; see `facts`.
    """
    number = rows.numbers
    if start is None or "not opens" not in found:
        start = x
    elif "opens" in found:
        start = torch.where(number["opens"] > 0, x, start)
    dose = number["dose"]
    if "rule" in found:
        line = number["slope"] * _measured(start, "rule", rows, found) + number["intercept"]
        line = torch.minimum(torch.maximum(line, number["minimum"]), number["maximum"])
        dose = dose * (torch.where(number["rule"] > 0, line, torch.ones_like(line)) if "not rule" in found else line)
    terms = []
    if "k0" in found:
        terms.append(number["k0"])
    if "k1" in found:
        terms.append(number["k1"] * ops.norm(x))
    if "k2" in found or "k3" in found:
        p = projection(x, rows.u)
        if "k2" in found:
            terms.append(number["k2"] * p)
        if "k3" in found:
            clipped = torch.minimum(torch.maximum(p, number["low"]), number["high"])
            terms.append(number["k3"] * (clipped - p))
    changed = x
    if terms:
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        changed = x + dose * total * rows.u
    if "norm" in found:
        kept = ops.preserve_norm(changed, start)
        changed = torch.where(number["norm"] > 0, kept, changed) if "not norm" in found else kept
    opened = _opened(start, rows, found)
    return changed if opened is None else torch.where(opened, changed, start), start


def _opened(start: Tensor, rows: Rows, found: Collection[str]) -> Tensor | None:
    """`[n, 1]`: whether the gates of each token let it be changed; None where there are none."""
    one = every_one = None
    for gate in rows.measures:
        if gate == "rule" or gate not in found:
            continue
        value, threshold = _measured(start, gate, rows, found), rows.numbers[f"{gate}_threshold"]
        passes = value > threshold
        if f"{gate} below" in found:
            passes = passes == (rows.numbers[f"{gate}_above"] > 0) if f"{gate} above" in found else ~passes
        one = passes if one is None else one | passes
        every_one = passes if every_one is None else every_one & passes
    if one is None or every_one is None:
        return None
    combine = rows.numbers["combine"]
    opened = one if "all" not in found else every_one
    if "all" in found and "any" in found:
        opened = torch.where(combine == ALL, every_one, one)
    return opened | (combine == FREE) if "free" in found else opened


def _measured(x: Tensor, name: str, rows: Rows, found: Collection[str]) -> Tensor:
    """`[n, 1]`: what the measure of this name reads of each token; the directions have norm 1."""
    direction, reference = rows.measures[name]
    if reference is not None:
        x = x - reference
    value = None
    for number, (kind, measure) in enumerate(MEASURES.items()):
        if f"{name} {kind}" in found:
            other = measure(x, direction)
            value = other if value is None else torch.where(rows.numbers[f"{name}_kind"] == number, other, value)
    assert value is not None, "a measure is of some kind"
    return value
