"""VLM-Guard against the paper's formula in float64, for the fit and for the steered model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from method_reference import BLOCKS, components, edited, logits, same_answers, states, steered_logits
from torch import Tensor

import steerkit as sk
from steerkit.errors import EmptyAnchorSetError, ProcessorError
from steerkit.interventions import Measure, MeasuredContrast

PATHS = [f"{BLOCKS}.{layer}" for layer in range(4)]


def text_states(vlm: sk.VLM, samples: list[sk.Sample]) -> np.ndarray:
    """`[samples, layers, hidden]` of the text alone, at the last token."""
    return np.stack([states(vlm, sample, PATHS, image=False)[:, -1] for sample in samples])


def spans(vlm: sk.VLM, anchors: list[sk.Sample], pairing: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """`[layers, rank, hidden]` from the differences themselves, and the middle of the labels along the first."""
    h = text_states(vlm, anchors)
    harmful = np.array([sample.label == "harmful" for sample in anchors])
    if pairing == "all":
        a = (h[harmful][:, None] - h[~harmful][None]).reshape(-1, *h.shape[1:])
    else:
        a = h[harmful] - h[~harmful]
    found, middles = [], []
    for layer in range(4):
        leading = components(a[:, layer])[:rank]
        mean = a[:, layer].mean(0)
        leading = leading * np.where(leading @ mean < 0, -1, 1)[:, None]
        found.append(leading)
        middles.append((h[harmful, layer].mean(0) + h[~harmful, layer].mean(0)) @ leading[0] / 2)
    return np.stack(found), np.array(middles)


@pytest.mark.parametrize(("pairing", "count"), [("all", 7), ("neighbours", 6)])
def test_the_span_is_that_of_the_leading_singular_vectors(
    measured_llava: ReadByHooks, anchors: list[sk.Sample], pairing: Any, count: int
) -> None:
    vector = sk.methods.VLMGuard(pairing=pairing, rank=2).fit(measured_llava, anchors[:count], batch_size=3)
    expected, _ = spans(measured_llava.vlm, anchors[:count], pairing, 2)
    for layer in range(4):
        span = vector.tensors[sk.Key(layer, name="span")].double().numpy()
        assert np.abs(span - expected[layer]).max() < 5e-3
        assert np.array_equal(vector.tensors[sk.Key(layer, name="first")].double().numpy(), span[0])


@pytest.mark.parametrize("threshold", ["zero", "middle"])
@pytest.mark.parametrize("gate_all", [False, True])
def test_the_texts_component_replaces_the_blurred_one(
    measured_llava: ReadByHooks, anchors: list[sk.Sample], tmp_path: Path, threshold: Any, gate_all: bool
) -> None:
    vlm = measured_llava.vlm
    fitted = sk.methods.VLMGuard(rank=2, alpha=1.5, threshold=threshold, gate_all=gate_all).fit(measured_llava, anchors)
    vector = sk.SteeringVector.load(fitted.save(tmp_path / "guard.safetensors"))
    _, middles = spans(vlm, anchors, "all", 2)
    q = torch.tensor(text_states(vlm, anchors))
    gates: list[bool] = []

    def replaced(index: int, layer: int) -> Any:
        v = vector.tensors[sk.Key(layer, name="span")].double()
        opened = bool(q[index, layer] @ v[0] > (middles[layer] if threshold == "middle" else 0.0))
        gates.append(opened)

        def change(h: Tensor) -> Tensor:
            last = h[:, -1].clone()
            if opened or not gate_all:
                last = last - last @ v.T @ v
            if opened:
                last = last + 1.5 * q[index, layer] @ v.T @ v
            return torch.cat([h[:, :-1], last[:, None]], 1)

        return change

    for index in (0, 1, 3):
        with edited(vlm, [(path, replaced(index, layer)) for layer, path in enumerate(PATHS)]):
            expected = logits(vlm, anchors[index])
        found = steered_logits(vlm, vector, anchors[index])
        assert (found - expected).abs().max() < 5e-4
        moved = float((found - logits(vlm, anchors[index])).abs().max())
        shut = gate_all and not any(gates[-len(PATHS) :])
        assert moved == 0.0 if shut else moved > 0.01
    assert {True, False} == set(gates), "the gate is open for some and shut for others"
    same_answers(vlm, vector, anchors[:2])


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_a_prompt_without_an_image_is_left_alone(
    measured_llava: ReadByHooks, anchors: list[sk.Sample], engine: Any
) -> None:
    """Be its gate open or shut: there is no image whose component the text's could replace."""
    vlm = measured_llava.vlm
    vector = sk.methods.VLMGuard(rank=2, alpha=1.5, threshold="middle").fit(measured_llava, anchors)
    inputs = vlm.inputs([replace(sample, images=()) for sample in anchors])
    with torch.no_grad():
        plain = vlm.model(**inputs).logits
        with sk.steer(vlm, vector, engine=engine, policy="off") as receipt:
            if engine == "hooks":
                found = vlm.model(**inputs).logits
            else:
                with receipt.nnsight.trace(**inputs):
                    found = receipt.nnsight.output.logits.save()
    assert (found - plain).abs().max() < 2e-5  # nnsight rounds differently, steered or not
    assert (receipt.empty, receipt.left_alone) == (True, len(anchors))


def test_one_pass_measures_all_layers(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    """The state of the text is read once for each prompt, whatever the number of interventions."""
    vlm = measured_llava.vlm
    vector = sk.methods.VLMGuard(threshold="middle").fit(measured_llava, anchors)
    assert len(vector.interventions) == 8
    passes: list[int] = []
    handle = vlm.model.get_submodule(PATHS[0]).register_forward_hook(lambda *_: passes.append(1))
    with sk.steer(vlm, vector):
        logits(vlm, anchors[0])
    handle.remove()
    assert len(passes) == 2


def test_refuses(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    with pytest.raises(EmptyAnchorSetError, match="span at most 6"):
        sk.methods.VLMGuard(rank=7).fit(measured_llava, anchors)
    with pytest.raises(EmptyAnchorSetError, match="begins a pair"):
        sk.methods.VLMGuard(pairing="neighbours").fit(measured_llava, anchors)
    vector = sk.methods.VLMGuard().fit(measured_llava, anchors)
    with pytest.raises(ProcessorError):
        sk.steer(measured_llava.vlm.model, vector)
    with pytest.raises(ValueError, match="increments"):
        MeasuredContrast(positive="text", negative=None)
    with pytest.raises(ValueError, match="pool='mean'"):
        Measure(kind="cosine", pool="mean")
