"""ITI against the paper's formula in float64: the probes, the choice of heads, and the steered model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from method_reference import BLOCKS, edited, logits, same_answers, states, steered_logits
from PIL import Image
from torch import Tensor

import steerkit as sk
from steerkit.errors import EmptyAnchorSetError, EngineError, OptionError
from steerkit.methods import fit_probes

HEADS, SIZE, LAYERS = 4, 12, 4
PATHS = [f"{BLOCKS}.{layer}.self_attn.o_proj" for layer in range(LAYERS)]
LABELS: dict[str, Any] = {"positive": "harmful", "negative": "harmless"}


@pytest.fixture(scope="module")
def many(picture: Callable[..., Image.Image]) -> list[sk.Sample]:
    """Sixty anchors, more than a block is wide, in no order."""
    generator = np.random.default_rng(0)
    return [
        sk.Sample(f"How do I {'harm' if label == 'harmful' else 'help'} {index % 9}?", (picture(index),), label=label)
        for index, label in enumerate(generator.choice(["harmful", "harmless"], 60))
    ]


def head_states(vlm: sk.VLM, anchors: list[sk.Sample]) -> np.ndarray:
    """`[anchors, layers, heads, size]` at the last token, from passes of one prompt each."""
    return np.stack([states(vlm, each, PATHS, heads=True)[:, -1] for each in anchors]).reshape(-1, LAYERS, HEADS, SIZE)


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression by plain Newton steps on `[weights, bias]`, the weights' square halved as penalty."""
    data, w = np.column_stack([x, np.ones(len(x))]), np.zeros(x.shape[1] + 1)
    ridge = np.diag([1.0] * x.shape[1] + [0.0])
    for _ in range(60):
        chance = 1 / (1 + np.exp(-data @ w))
        gradient = data.T @ (chance - y) + ridge @ w
        w -= np.linalg.solve((data.T * (chance * (1 - chance))) @ data + ridge, gradient)
    assert np.abs(gradient).max() < 1e-7
    return w[:-1], float(w[-1])


def expected(h: np.ndarray, harmful: np.ndarray, count: int, kind: str) -> dict[tuple[int, int], np.ndarray]:
    """`{(layer, head): sigma * theta}` of the chosen heads."""
    generator = torch.Generator().manual_seed(3)
    judged, learnt = [], []
    for rows in (np.flatnonzero(harmful), np.flatnonzero(~harmful)):
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        first = round(0.25 * len(order))
        judged += list(order[:first])
        learnt += list(order[first:])
    ranking, shifts = [], {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            x = h[:, layer, head]
            w, b = logistic(x[learnt], harmful[learnt].astype(float))
            margins = (x[judged] @ w + b) * np.where(harmful[judged], 1, -1)
            ranking.append((-(margins > 0).mean(), np.log1p(np.exp(-margins)).mean(), layer, head))
            theta = w if kind == "probe" else x[harmful].mean(0) - x[~harmful].mean(0)
            theta = theta / np.linalg.norm(theta)
            shifts[layer, head] = (x @ theta).std() * theta
    return {(layer, head): shifts[layer, head] for _, _, layer, head in sorted(ranking)[:count]}


@pytest.mark.parametrize("kind", ["mass_mean", "probe"])
def test_the_best_heads_are_shifted_by_their_spread(
    measured_llava: ReadByHooks, many: list[sk.Sample], kind: Any
) -> None:
    method = sk.methods.ITI(heads=5, direction=kind, held_out=0.25, seed=3, **LABELS)
    vector = method.fit(measured_llava, many, batch_size=7)
    harmful = np.array([sample.label == "harmful" for sample in many])
    chosen = expected(head_states(measured_llava.vlm, many), harmful, 5, kind)
    assert {key.layer for key in vector.tensors} == {layer for layer, _ in chosen}
    for key, tensor in vector.tensors.items():
        found = tensor.double().numpy().reshape(HEADS, SIZE)
        for head in range(HEADS):
            wanted = chosen.get((key.layer, head), np.zeros(SIZE))
            assert np.abs(found[head] - wanted).max() < 1e-4 * max(np.abs(wanted).max(), 1.0)
            assert (key.layer, head) in chosen or not found[head].any()
    (intervention,) = vector.interventions
    assert (intervention.tokens, intervention.phase, intervention.strength) == ("last", "both", 15.0)


def test_probes_are_where_the_gradient_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, 5, generator=generator, dtype=torch.float64)
    x[1] *= 300  # where full Newton steps overshoot
    x[2, :, 0] = torch.arange(40)  # separable
    y = (torch.arange(40) > 17).double()
    found = fit_probes(x, y, penalty=0.5)
    residual = torch.sigmoid(found.margins(x)) - y
    assert (torch.einsum("gn,gns->gs", residual, x) + 0.5 * found.weights).abs().max() < 1e-5
    assert residual.sum(1).abs().max() < 1e-6


def test_the_steered_model_is_that_of_the_formula(
    measured_llava: ReadByHooks, anchors: list[sk.Sample], tmp_path: Path
) -> None:
    vlm = measured_llava.vlm
    fitted = sk.methods.ITI(heads=3, alpha=20.0, **LABELS).fit(measured_llava, anchors)
    vector = sk.SteeringVector.load(fitted.save(tmp_path / "iti.safetensors"))

    def shifted(theta: Tensor) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, -1] += 20.0 * theta.double()
            return x

        return change

    edits = [(PATHS[key.layer], shifted(tensor)) for key, tensor in vector.tensors.items()]
    with edited(vlm, edits, inputs=True):
        wanted = logits(vlm, anchors[0])
        answers = vlm.generate(anchors[:2], max_new_tokens=4, min_new_tokens=4)
    assert (steered_logits(vlm, vector, anchors[0]) - wanted).abs().max() < 2e-4
    assert (wanted - logits(vlm, anchors[0])).abs().max() > 0.01
    assert same_answers(vlm, vector, anchors[:2]) == answers


def test_a_fit_goes_on_from_its_checkpoint(measured_llava: ReadByHooks, many: list[sk.Sample], tmp_path: Path) -> None:
    """The rows are kept across an interruption, also when there are more of them than dimensions."""

    def stop(done: int, total: int) -> None:
        if done >= 54:
            raise KeyboardInterrupt

    method, path = sk.methods.ITI(heads=5, **LABELS), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        method.fit(measured_llava, many, checkpoint=path, progress=stop, batch_size=6)
    ran = measured_llava.samples_run
    resumed = method.fit(measured_llava, many, checkpoint=path, batch_size=6)
    assert measured_llava.samples_run - ran == 6
    assert resumed.digest() == method.fit(measured_llava, many, batch_size=6).digest()


def test_refuses(measured_llava: ReadByHooks, anchors: list[sk.Sample], vlm_of: Callable[[str], sk.VLM]) -> None:
    with pytest.raises(OptionError, match="48 heads are wanted"):
        sk.methods.ITI(**LABELS).fit(measured_llava, anchors)
    few = [replace(each, label="harmful" if index else "harmless") for index, each in enumerate(anchors)]
    with pytest.raises(EmptyAnchorSetError, match="one anchor is labelled 'harmless'"):
        sk.methods.ITI(heads=2, **LABELS).fit(measured_llava, few)
    with pytest.raises(EngineError, match="head_out"):
        sk.methods.ITI(heads=2, **LABELS).fit(vlm_of("instructblip-t5"), anchors)
    assert measured_llava.samples_run == 0
