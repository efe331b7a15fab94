"""CMRM with anchors that need their picture: who is steered, and by what, against plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ReadByHooks
from PIL import Image
from reference import distance, generate
from test_methods import last_token
from test_methods_papers import LOGITS, assert_same, assert_steers, labelled, only, states

import steerkit as sk
from steerkit.errors import LabelError
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


def test_vector_is_of_the_anchors_that_are_not_spared(measured_llava: ReadByHooks, two_kinds: list[Sample]) -> None:
    vlm, moved = measured_llava.vlm, unlabelled(two_kinds)
    vector = sk.CMRM(spared="visual").fit(measured_llava, two_kinds, batch_size=3)
    shift = (states(vlm, moved, images=False) - states(vlm, moved, images=True)).mean(0)
    for layer, expected in enumerate(np.diff(shift, axis=0, prepend=0)):
        assert_same(vector, Key(layer), expected)
    kept = states(vlm, labelled(two_kinds, "visual"), images=True)
    layer, threshold, direction = gate_of(vector)
    shown = states(vlm, moved, images=True)
    apart = [
        np.linalg.norm(d := (shown[:, i].mean(0) - kept[:, i].mean(0)))
        / np.sqrt((shown[:, i] @ d / np.linalg.norm(d)).var() + (kept[:, i] @ d / np.linalg.norm(d)).var())
        for i in range(shown.shape[1])
    ]
    assert layer == int(np.argmax(apart))
    difference = shown[:, layer].mean(0) - kept[:, layer].mean(0)
    assert np.abs(direction - difference / np.linalg.norm(difference)).max() < 1e-4
    high, low = shown[:, layer] @ direction, kept[:, layer] @ direction
    assert (high.mean() - threshold) / high.std() == pytest.approx((threshold - low.mean()) / low.std(), rel=1e-3)


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_only_prompts_unlike_the_spared_ones_are_steered(
    measured_llava: ReadByHooks, two_kinds: list[Sample], level: Any
) -> None:
    vlm = measured_llava.vlm
    vector = sk.CMRM(level=level, spared="visual", alpha=2.0).fit(measured_llava, two_kinds)
    layer, threshold, direction = gate_of(vector)
    seen: set[bool] = set()
    for sample in two_kinds:
        moved = bool(last_token(vlm, str(sample.text), list(sample.images))[layer] @ direction > threshold)
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


@pytest.mark.parametrize("spared", ["harmful", "visual"])
def test_anchors_of_one_kind_are_refused(measured_llava: ReadByHooks, two_kinds: list[Sample], spared: str) -> None:
    chosen = labelled(two_kinds, "visual") if spared == "visual" else two_kinds
    with pytest.raises(LabelError, match=f"labelled '{spared}'"):
        sk.CMRM(spared=spared).fit(measured_llava, chosen)
