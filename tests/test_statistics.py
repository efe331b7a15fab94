"""Running statistics against the whole data in float64, and the exactness of merging."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from steerkit.methods import Moments, merge_groups

HIDDEN = 12
# Sums in float64 of numbers around 10, in another order
EXACT = 1e-12
# A principal component, whose gap to the next one is of the order of its own value
COMPONENT = 1e-9


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """Rows with a mean far from zero and one direction in which they vary most."""
    generator = np.random.default_rng(seed)
    spread = np.ones(HIDDEN)
    spread[3] = 6.0
    return torch.tensor(
        generator.normal(size=(count, HIDDEN)) * spread + np.linspace(-2, 4, HIDDEN), dtype=torch.float32
    )


def component(data: np.ndarray, *, center: bool) -> tuple[np.ndarray, float]:
    """The first principal component by an eigendecomposition of the whole data, its sign along the mean."""
    used = data - data.mean(0) if center else data
    values, vectors = np.linalg.eigh(used.T @ used / len(data))
    first = vectors[:, -1]
    return first * (-1 if first @ data.mean(0) < 0 else 1), float(np.sqrt(values[-1]))


def in_parts(data: torch.Tensor, size: int) -> Moments:
    parts = [Moments.of(part, second=True) for part in data.split(size)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


@pytest.mark.parametrize("count", [1, 2, 5, HIDDEN - 1, HIDDEN, HIDDEN + 1, 100])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_mean_is_that_of_the_whole(count: int, size: int) -> None:
    data = rows(count)
    expected = data.double().numpy().mean(0)
    for second in (False, True):
        parts = [Moments.of(part, second=second) for part in data.split(size)]
        total = parts[0]
        for part in parts[1:]:
            total = total.merge(part)
        assert total.count == count
        assert total.mean.dtype == torch.float64
        assert np.abs(total.mean.numpy() - expected).max() < EXACT


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("count", [2, 5, HIDDEN - 1, HIDDEN, HIDDEN + 1, 100])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_principal_component_is_that_of_the_whole(count: int, size: int, center: bool) -> None:
    data = rows(count)
    expected, spread = component(data.double().numpy(), center=center)
    found, sigma = in_parts(data, size).principal(center=center)
    assert np.abs(found.numpy() - expected).max() < COMPONENT
    assert sigma == pytest.approx(spread, rel=COMPONENT)
    assert float(found.norm()) == pytest.approx(1)


def test_centring_matters_in_this_data() -> None:
    data = rows(100).double().numpy()
    assert np.abs(component(data, center=True)[0] - component(data, center=False)[0]).max() > 0.1


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("count", [5, 100])
def test_the_sign_follows_the_mean(count: int, center: bool) -> None:
    data = rows(count)
    up, _ = in_parts(data, 3).principal(center=center)
    down, _ = in_parts(-data, 3).principal(center=center)
    assert float(up @ data.double().mean(0)) > 0
    assert torch.allclose(down, -up, atol=COMPONENT)


@pytest.mark.parametrize("second", [False, True])
def test_parts_merge_to_the_whole_in_any_order(second: bool) -> None:
    """Parts of 1, 3, 9 and 20 rows: below and above the width, where second moments change their form."""
    data = rows(33)
    whole = Moments.of(data, second=second)
    pieces = data.split([1, 3, 9, 20])
    for order in itertools.permutations(range(4)):
        parts = [Moments.of(pieces[index], second=second) for index in order]
        for total in (
            parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]),
            parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])),
        ):
            assert total.count == 33
            assert float((total.mean - whole.mean).abs().max()) < EXACT
            if second:
                for center in (False, True):
                    found, sigma = total.principal(center=center)
                    expected, spread = whole.principal(center=center)
                    assert float((found - expected).abs().max()) < COMPONENT
                    assert sigma == pytest.approx(spread, rel=COMPONENT)


def test_merging_leaves_the_parts_alone() -> None:
    first, second = Moments.of(rows(8), second=True), Moments.of(rows(8, seed=1), second=True)
    mean, component_before = first.mean.clone(), first.principal(center=False)[0].clone()
    first.merge(second)
    assert first.count == 8
    assert torch.equal(first.mean, mean)
    assert torch.equal(first.principal(center=False)[0], component_before)


def test_memory_is_bounded_by_the_width_however_many_rows() -> None:
    total = in_parts(rows(1000), 7)
    held = [part for part in (total.total, total.rows, total.outer) if part is not None]
    assert sum(part.numel() for part in held) <= HIDDEN * (HIDDEN + 1)
    assert Moments.of(rows(1000), second=False).rows is None


def test_low_precision_rows_are_summed_in_float64() -> None:
    data = torch.full((4096, HIDDEN), 0.1).bfloat16()
    expected = float(data[0, 0].double())
    assert float(Moments.of(data, second=False).mean[0]) == pytest.approx(expected, rel=1e-12)


def test_groups_merge_by_name_and_layer() -> None:
    first = {"a": {0: Moments.of(rows(2), second=False)}, "b": {0: Moments.of(rows(1), second=False)}}
    second = {"a": {0: Moments.of(rows(3), second=False), 1: Moments.of(rows(4), second=False)}, "c": {}}
    merged = merge_groups(first, second)
    counts = {name: {layer: moments.count for layer, moments in layers.items()} for name, layers in merged.items()}
    assert counts == {"a": {0: 5, 1: 4}, "b": {0: 1}, "c": {}}
    assert {name: list(layers) for name, layers in first.items()} == {"a": [0], "b": [0]}
    assert first["a"][0].count == 2
