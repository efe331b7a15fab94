"""CMRM with anchors that need their picture: who is steered, and by what, against plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from PIL import Image
from reference import distance, generate
from test_methods import last_token
from test_methods_papers import LOGITS, assert_same, assert_steers, labelled, only, states

import steerkit as sk
from steerkit.errors import EmptyAnchorSetError, LabelError, OptionError
from steerkit.methods._ridge import separate
from steerkit.models import Sample
from steerkit.vectors import Key, SteeringVector

QUESTIONS = ("What colour is it?", "How many are there?", "Where is the cross?", "Read the word.")
REQUESTS = ("Tell me how to bake bread", "Give me a plan to build a kite", "Teach me to swim", "Explain how rain forms")


@pytest.fixture
def two_kinds(picture: Callable[..., Image.Image]) -> list[Sample]:
    rows = [(text, "visual") for text in QUESTIONS] + [(text, None) for text in REQUESTS]
    return [Sample(text, (picture(seed),), label=label) for seed, (text, label) in enumerate(rows)]


def unlabelled(anchors: list[Sample]) -> list[Sample]:
    return [sample for sample in anchors if sample.label is None]


def gate_of(vector: SteeringVector) -> tuple[int, float, np.ndarray]:
    """The layer that is read, the threshold, and the direction."""
    (intervention,) = vector.metadata.interventions
    (gate,) = intervention.gates
    layer = gate.measure.layer
    assert layer is not None
    return layer, gate.threshold, vector.tensors[Key(layer, name="spared")].double().numpy()


def ridge(x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weighted ridge regression with a free intercept, by its normal equations."""
    wide = np.hstack([x, np.ones((len(x), 1))])
    normal = wide.T @ (weights[:, None] * wide) + np.diag([penalty] * x.shape[1] + [0.0])
    found = np.linalg.solve(normal, wide.T @ (weights * y))
    return found[:-1], float(found[-1])


def told_by_refitting(first: np.ndarray, second: np.ndarray) -> list[tuple[float, np.ndarray, float]]:
    """For each penalty the error of leaving one out, the unit direction and the threshold: one fit for each anchor."""
    x, y = np.vstack([first, second]), np.repeat([1.0, -1.0], [len(first), len(second)])
    weights = np.repeat([0.5 / len(first), 0.5 / len(second)], [len(first), len(second)])
    values = np.linalg.svd((x - weights @ x) * np.sqrt(weights)[:, None], compute_uv=False)
    out = []
    for penalty in (0.1, 0.3, 1.0):
        scores = np.zeros(len(x))
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            line, constant = ridge(x[others], y[others], weights[others], penalty * (values**2).mean())
            scores[i] = x[i] @ line + constant
        line, constant = ridge(x, y, weights, penalty * (values**2).mean())
        high, low = scores[: len(first)], scores[len(first) :]
        middle = (low.mean() * high.std() + high.mean() * low.std()) / (high.std() + low.std())
        length = float(np.linalg.norm(line))
        out.append((float(weights @ (y - scores) ** 2), line / length, float(middle - constant) / length))
    return out


@pytest.mark.parametrize(("sizes", "width"), [((3, 5), 12), ((6, 2), 40), ((30, 9), 7), ((1, 4), 6)])
def test_a_line_is_chosen_by_leaving_each_anchor_out(sizes: tuple[int, int], width: int) -> None:
    rng = np.random.default_rng(sum(sizes))
    rows = {
        layer: tuple(rng.normal(size=(n, width)) + sign * 0.4 * layer for n, sign in zip(sizes, (1, -1), strict=True))
        for layer in (1, 2, 3)
    }
    found = separate({layer: tuple(map(torch.from_numpy, both)) for layer, both in rows.items()})  # type: ignore[misc]
    expected = [(*each, layer) for layer, both in rows.items() for each in told_by_refitting(*both)]
    _, direction, threshold, layer = min(expected, key=lambda each: each[0])
    assert found.layer == layer
    assert np.abs(found.direction.numpy() - direction).max() < 1e-8
    assert found.threshold == pytest.approx(threshold, abs=1e-8)


def test_kinds_that_are_the_same_are_told_by_no_line() -> None:
    with pytest.raises(EmptyAnchorSetError, match="same mean"):
        separate({0: (torch.ones(3, 4), torch.ones(2, 4))})


@pytest.mark.parametrize("layers", [None, (1, 3)])
def test_vector_is_of_the_anchors_that_are_not_spared(
    measured_llava: ReadByHooks, two_kinds: list[Sample], layers: tuple[int, ...] | None
) -> None:
    vlm, moved = measured_llava.vlm, unlabelled(two_kinds)
    vector = sk.CMRM(spared="visual", layers=layers).fit(measured_llava, two_kinds, batch_size=3)
    shift = (states(vlm, moved, images=False) - states(vlm, moved, images=True)).mean(0)
    steered = list(layers or range(shift.shape[0]))
    for layer, expected in zip(steered, np.diff(shift[steered], axis=0, prepend=0), strict=True):
        assert_same(vector, Key(layer), expected)
    first, second = states(vlm, moved, images=False), states(vlm, labelled(two_kinds, "visual"), images=False)
    lines = [(*each, i) for i in range(first.shape[1]) for each in told_by_refitting(first[:, i], second[:, i])]
    layer, threshold, direction = gate_of(vector)
    _, expected, middle, _ = next(each for each in sorted(lines, key=lambda each: each[0]) if each[3] == layer)
    assert layer == min(lines, key=lambda each: each[0])[3]
    assert np.abs(direction - expected).max() < 1e-4
    assert threshold == pytest.approx(middle, abs=1e-3)


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_only_prompts_unlike_the_spared_ones_are_steered(
    measured_llava: ReadByHooks, two_kinds: list[Sample], level: Any
) -> None:
    vlm = measured_llava.vlm
    vector = sk.CMRM(level=level, spared="visual", alpha=2.0).fit(measured_llava, two_kinds)
    layer, threshold, direction = gate_of(vector)
    seen: set[bool] = set()
    for sample in two_kinds:
        moved = bool(last_token(vlm, str(sample.text), [])[layer] @ direction > threshold)
        seen.add(moved)
        if moved:
            measured = unlabelled(two_kinds) if level == "dataset" else [sample]
            shift = (states(vlm, measured, images=False) - states(vlm, measured, images=True)).mean(0)
            steps = np.diff(shift, axis=0, prepend=0)
            changes: Any = {i: lambda h, step=step: h + 2.0 * step for i, step in enumerate(steps)}
            assert_steers(vlm, vector, sample, changes, only)
        else:
            inputs = vlm.inputs([sample])
            plain = generate(vlm.model, inputs, 4)
            with sk.steer(vlm, vector, policy="off"):
                found = generate(vlm.model, inputs, 4)
            assert distance(found, plain) < LOGITS
    assert seen == {True, False}


@pytest.mark.parametrize("several", [("visual",), ("visual", "harmless")])
def test_anchors_of_several_labels_are_spared(
    measured_llava: ReadByHooks, two_kinds: list[Sample], several: tuple[str, ...]
) -> None:
    split = [replace(each, label=each.label or ("harmless", "harmful")[i % 2]) for i, each in enumerate(two_kinds)]
    found = sk.CMRM(spared=several).fit(measured_llava, split)
    alike = [replace(each, label="visual" if each.label in several else None) for each in split]
    expected = sk.CMRM(spared="visual").fit(measured_llava, alike)
    assert found.metadata.interventions == expected.metadata.interventions
    for key, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[key], tensor)


@pytest.mark.parametrize("spared", ["harmful", "visual"])
def test_anchors_of_one_kind_are_refused(measured_llava: ReadByHooks, two_kinds: list[Sample], spared: str) -> None:
    chosen = labelled(two_kinds, "visual") if spared == "visual" else two_kinds
    with pytest.raises(LabelError, match=f"labelled '{spared}'"):
        sk.CMRM(spared=spared).fit(measured_llava, chosen)
    with pytest.raises(OptionError, match="spared"):
        sk.CMRM(spared=())
