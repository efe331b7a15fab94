"""Every operation against its formula, computed in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    MeasuredContrast,
    Operation,
    Scale,
    _arithmetic as ops,
)
from steerkit.interventions.operations.ablate import ablate

Apply = Callable[[Tensor, float | Tensor], Tensor]

TOKENS, HIDDEN = 5, 16
# float32 arithmetic on numbers around 1; and rounding to the type of the result: half a unit in the last place of |h|
ARITHMETIC = 2e-5
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
PER_TOKEN = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wide(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def column(strength: float | Tensor) -> np.ndarray | float:
    return wide(strength)[:, None] if isinstance(strength, Tensor) else strength


def span(directions: np.ndarray) -> np.ndarray:
    """The projection on the span of some rows, `[hidden, hidden]`, by the pseudo-inverse."""
    rows = np.atleast_2d(directions)
    return np.linalg.pinv(rows, rcond=1e-7) @ rows


H, D, C = numbers(TOKENS, HIDDEN), numbers(HIDDEN, seed=1) * 3, numbers(TOKENS, HIDDEN, seed=2)
E = numbers(TOKENS, HIDDEN, seed=3)
h, d, c, e = map(wide, (H, D, C, E))
unit = d / np.linalg.norm(d)


def lengths(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1, keepdims=True)


def along(x: np.ndarray) -> np.ndarray:
    """The part of each row along d."""
    return (x @ unit)[:, None] * unit


def moved(x: np.ndarray, coordinate: np.ndarray) -> np.ndarray:
    """What takes each row's coordinate along d to another value."""
    return (coordinate - x @ unit)[:, None] * unit


def run(operation: Operation, direction: Tensor | None, contrast: Tensor | None = None) -> Apply:
    """An operation as engines run it."""
    prepared = None if direction is None else operation.prepare(direction)
    function, arguments = operation.bind(prepared, contrast)
    return lambda x, strength: function(x, *arguments, strength)


MEASURED = MeasuredContrast()

# name: the operation, and the change that it makes at strength 1
CASES: dict[str, tuple[Apply, Callable[[np.ndarray], np.ndarray]]] = {
    "add": (run(Add(), D), lambda x: d + 0 * x),
    "add to each its own": (run(Add(direction=MEASURED), None, E), lambda x: e),
    "add relative": (run(Add(relative=True), D), lambda x: lengths(x) * unit),
    "add relative to each its own": (
        run(Add(direction=MEASURED, relative=True), None, E),
        lambda x: lengths(x) * e / lengths(e),
    ),
    "ablate": (run(Ablate(), D), lambda x: -along(x)),
    "ablate a plane": (run(Ablate(), E[:2]), lambda x: -x @ span(e[:2])),
    "add a projection": (run(AddProjection(contrast=MEASURED), D, C), lambda x: along(c)),
    "add one projection to all": (
        run(AddProjection(contrast=MEASURED), E[:3], C[:1].expand_as(C)),
        lambda x: c[0] @ span(e[:3]) + 0 * x,
    ),
    "clamp": (run(Clamp(minimum=-0.3, maximum=0.4), D), lambda x: moved(x, np.clip(x @ unit, -0.3, 0.4))),
    "clamp from below": (run(Clamp(minimum=0.5), D), lambda x: moved(x, np.maximum(x @ unit, 0.5))),
    "clamp from above": (run(Clamp(maximum=-0.5), D), lambda x: moved(x, np.minimum(x @ unit, -0.5))),
    "scale": (run(Scale(factor=-1.5), D), lambda x: moved(x, -1.5 * (x @ unit))),
}


@pytest.mark.parametrize("strength", [1.0, -0.7, PER_TOKEN], ids=["whole", "part", "per token"])
@pytest.mark.parametrize("kind", CASES)
def test_an_operation_is_its_formula(kind: str, strength: float | Tensor) -> None:
    operation, change = CASES[kind]
    expected = h + column(strength) * change(h)
    assert np.abs(expected - h).max() > 0.1, "the test must see the operation"
    before = H.clone()
    result = operation(H, strength)
    assert result.dtype == torch.float32
    assert torch.equal(before, H)
    assert np.abs(wide(result) - expected).max() < ARITHMETIC


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CASES)
def test_an_operation_keeps_the_type_of_the_hidden_state(kind: str, dtype: torch.dtype) -> None:
    """Nothing is rounded to the type but the result and, for plain addition, the addend."""
    operation, change = CASES[kind]
    low = H.to(dtype)
    result = operation(low, 1.0)
    assert result.dtype == dtype
    exact = wide(low) + change(wide(low))
    addend = np.abs(change(wide(low))) if kind in ("add", "add to each its own") else 0.0
    bound = ROUNDING[dtype] * (np.abs(exact) + 2 * addend) + ARITHMETIC
    assert (np.abs(wide(result) - exact) <= bound).all()


def test_strength_zero_changes_nothing() -> None:
    for operation, _ in CASES.values():
        assert torch.equal(operation(H, 0.0), H)


def test_nothing_is_left_along_what_is_ablated() -> None:
    basis = ops.orthonormal(E[:3])
    left = wide(ablate(H, basis)) @ e[:3].T
    assert np.abs(left).max() < ARITHMETIC
    assert np.abs(h @ e[:3].T).max() > 1


@pytest.mark.parametrize(
    ("directions", "rank"),
    [
        (E[:3], 3),
        (torch.stack([E[0], 2 * E[0], -E[0]]), 1),
        (torch.stack([E[0], E[1], E[0] + E[1]]), 2),
        (torch.cat([E, E + 1e-12]), TOKENS),
        (torch.stack([E[0], torch.zeros(HIDDEN)]), 1),
        (D, 1),
        (1e-20 * D, 1),
        (1e18 * E[:2], 2),
    ],
    ids=["full", "parallel", "sum", "doubled", "zero row", "one", "tiny", "huge"],
)
def test_a_basis_is_orthonormal_and_spans_what_it_was_made_of(directions: Tensor, rank: int) -> None:
    basis = ops.orthonormal(directions)
    assert basis.dtype == torch.float32
    assert basis.shape == (rank, HIDDEN)
    assert np.abs(wide(basis) @ wide(basis).T - np.eye(rank)).max() < 1e-6
    scaled = wide(torch.atleast_2d(directions))
    scaled = scaled / np.abs(scaled).max()
    assert np.abs(scaled @ wide(basis).T @ wide(basis) - scaled).max() < ARITHMETIC


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_each_row_is_preserved_and_its_direction_is_not(dtype: torch.dtype) -> None:
    changed, original = (5 * H + D).to(dtype), H.to(dtype)
    kept = ops.preserve_norm(changed, original)
    assert kept.dtype == dtype
    expected = wide(changed) / np.linalg.norm(wide(changed), axis=-1, keepdims=True)
    expected = expected * np.linalg.norm(wide(original), axis=-1, keepdims=True)
    assert np.abs(wide(kept) - expected).max() < ARITHMETIC + ROUNDING[dtype] * np.abs(expected).max()
    assert torch.isfinite(ops.preserve_norm(torch.zeros_like(H), H)).all()


def test_projection_and_cosine_are_their_formulas() -> None:
    reference = numbers(HIDDEN, seed=4)
    shifted = h - wide(reference)
    assert np.abs(wide(ops.projection(H, D)) - h @ unit).max() < ARITHMETIC
    assert np.abs(wide(ops.projection(H, D, reference)) - shifted @ unit).max() < ARITHMETIC
    assert np.abs(wide(ops.cosine(H, D)) - h @ unit / lengths(h)[:, 0]).max() < 1e-6
    assert np.abs(wide(ops.cosine(H, D, reference)) - shifted @ unit / lengths(shifted)[:, 0]).max() < 1e-6
    assert ops.projection(H.bfloat16(), D).dtype == ops.cosine(H.bfloat16(), D).dtype == torch.float32
    assert torch.equal(ops.cosine(H[:1], D, H[0]), torch.zeros(1))


def test_projecting_twice_is_projecting_once() -> None:
    basis = ops.orthonormal(E[:3])
    once = ops.project(H, basis)
    assert np.abs(wide(ops.project(once, basis)) - wide(once)).max() < ARITHMETIC
    assert np.abs(wide(once) - h @ span(e[:3])).max() < ARITHMETIC


def test_increments_sum_to_the_value_of_the_top_layer() -> None:
    by_layer = {layer: numbers(2, HIDDEN, seed=layer) for layer in (7, 0, 3)}
    found = ops.increments(by_layer)
    assert sorted(found) == [0, 3, 7]
    assert torch.equal(found[0], by_layer[0])
    assert torch.equal(found[3], by_layer[3] - by_layer[0])
    for top in (0, 3, 7):
        total = sum(wide(found[layer]) for layer in found if layer <= top)
        assert np.abs(total - wide(by_layer[top])).max() < 1e-6
    assert ops.increments({}) == {}


def test_the_cosine_with_the_squashed_projection() -> None:
    for reference in (None, C[0]):
        x = h if reference is None else h - wide(reference)
        squashed = np.tanh(x @ np.outer(d, d) / (d @ d))
        expected = (x * squashed).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(squashed, axis=1)
        assert np.abs(wide(ops.tanh_cosine(H, D, reference)) - expected).max() < ARITHMETIC
