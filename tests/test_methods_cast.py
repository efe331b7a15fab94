"""CAST against the paper's formula in float64: vectors, condition point, and the steered model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from method_reference import BLOCKS, components, edited, logits, same_answers, states, steered_logits
from reference import CACHE, cache_of
from torch import Tensor

import steerkit as sk
from steerkit.errors import EmptyAnchorSetError, EngineError, LayerRangeError, OptionError
from steerkit.interventions import Gates

PATHS = [f"{BLOCKS}.{layer}" for layer in range(4)]


def pooled(vlm: sk.VLM, samples: list[sk.Sample], pool: str) -> np.ndarray:
    """`[samples, layers, hidden]`, from passes of one prompt each."""
    found = [states(vlm, sample, PATHS) for sample in samples]
    return np.stack([h.mean(1) if pool == "mean" else h[:, -1] for h in found])


def first_component(h: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Pairwise-centred PCA over all pairs: each state less the middle of its pair."""
    pairs = [(p, n) for p in h[positive] for n in h[~positive]]
    rows = np.concatenate([[p - (p + n) / 2, n - (p + n) / 2] for p, n in pairs])
    leading = components(rows)[0]
    return leading * np.sign(leading @ (h[positive].mean(0) - h[~positive].mean(0)))


def similarity(h: np.ndarray, c: np.ndarray) -> float:
    """`cos(h, tanh(P h))` with the projection as a matrix."""
    squashed = np.tanh(np.outer(c, c) / (c @ c) @ h)
    return float(h @ squashed / np.linalg.norm(h) / np.linalg.norm(squashed))


def f1_of(predicted: np.ndarray, truth: np.ndarray) -> float:
    hits = (predicted & truth).sum()
    return 2 * hits / (predicted.sum() + truth.sum())


def harmful(anchors: list[sk.Sample]) -> np.ndarray:
    return np.array([sample.label == "harmful" for sample in anchors])


def sims(vlm: sk.VLM, anchors: list[sk.Sample], pool: str) -> np.ndarray:
    """`[anchors, layers]`."""
    h, truth = pooled(vlm, anchors, pool), harmful(anchors)
    vectors = [first_component(h[:, layer], truth) for layer in range(4)]
    return np.array([[similarity(each[layer], vectors[layer]) for layer in range(4)] for each in h])


def best_f1(values: np.ndarray, truth: np.ndarray) -> float:
    """Over every threshold and both comparisons; `values` of one layer, or of several of which any suffices."""
    edges = np.unique(values)
    edges = np.concatenate([(edges[:-1] + edges[1:]) / 2])
    scores = [f1_of((values > edge).any(1), truth) for edge in edges]
    return max(scores + [f1_of((values <= edge).any(1), truth) for edge in edges])


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_vectors_and_condition_point(measured_llava: ReadByHooks, anchors: list[sk.Sample], pool: Any) -> None:
    vlm, truth = measured_llava.vlm, harmful(anchors)
    vector = sk.methods.CAST(layers=(2, 3), pool=pool, scale="unit").fit(measured_llava, anchors, batch_size=3)
    (change,) = vector.interventions
    (gate,) = change.gates
    last, condition = pooled(vlm, anchors, "last"), pooled(vlm, anchors, pool)
    for layer in (2, 3):
        found = vector.tensors[sk.Key(layer)].double().numpy()
        assert np.abs(found - first_component(last[:, layer], truth)).max() < 5e-3
    read = gate.measure.layer
    assert read is not None
    found = vector.tensors[sk.Key(read, name="condition")].double().numpy()
    assert np.abs(found - first_component(condition[:, read], truth)).max() < 5e-3
    values = sims(vlm, anchors, pool)
    reached = f1_of((values[:, read] > gate.threshold) == gate.above, truth)
    assert read <= 2
    assert reached == pytest.approx(max(best_f1(values[:, [layer]], truth) for layer in range(3)))
    assert reached > f1_of(np.ones_like(truth), truth), "better than a condition that always holds"


def test_a_condition_that_tells_nothing_is_said(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    """Three prompts of four stand under both labels: no threshold can tell more than the fourth."""
    labels = {"harmful": anchors[:4], "harmless": [*anchors[:3], anchors[4]]}
    same = [replace(each, label=label) for label, some in labels.items() for each in some]
    with pytest.warns(UserWarning, match="always open with 0.67"):
        sk.methods.CAST(layers=(2,)).fit(measured_llava, same)


@pytest.mark.parametrize("condition_layers", [None, (0, 1)])
def test_the_behaviour_is_added_where_the_condition_holds(
    measured_llava: ReadByHooks, anchors: list[sk.Sample], tmp_path: Path, condition_layers: Any
) -> None:
    vlm = measured_llava.vlm
    method = sk.methods.CAST(layers=(1, 2), condition_layers=condition_layers, coefficient=3.0)
    vector = sk.SteeringVector.load(method.fit(measured_llava, anchors).save(tmp_path / "cast.safetensors"))
    (change,) = vector.interventions
    assert isinstance(change.gate, Gates) == (condition_layers is not None)
    if condition_layers is not None:
        assert tuple(gate.measure.layer for gate in change.gates) == condition_layers

    def added(direction: Tensor) -> Any:
        return lambda h: h + 3.0 * direction.double()

    held: list[bool] = []
    for sample in anchors:
        h = pooled(vlm, [sample], "mean")[0]
        passed = [
            (
                similarity(h[gate.measure.layer], vector.tensors[sk.Key(gate.measure.layer, name="condition")].numpy())  # type: ignore[index,arg-type]
                > gate.threshold
            )
            == gate.above
            for gate in change.gates
        ]
        held.append(any(passed))
        edits = [(PATHS[layer], added(vector.tensors[sk.Key(layer)])) for layer in (1, 2)] if any(passed) else []
        with edited(vlm, edits):
            expected = logits(vlm, sample)
        found = steered_logits(vlm, vector, sample)
        assert (found - expected).abs().max() < 5e-4
        assert ((found - logits(vlm, sample)).abs().max() > 0.01) == held[-1]
    assert {True, False} == set(held)
    together = same_answers(vlm, vector, anchors)
    apart = [same_answers(vlm, vector, [sample])[0] for sample in anchors]
    assert together == apart, "neither padding nor the other prompts of a batch enter the mean"


def test_all_of_several_gates(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    vlm = measured_llava.vlm
    vector = sk.methods.CAST(layers=(2,), condition_layers=(0, 1, 2), coefficient=3.0).fit(measured_llava, anchors)
    (change,) = vector.interventions
    gate = change.gate
    assert isinstance(gate, Gates)
    values = sims(vlm, anchors, "mean")[:, [0, 1, 2]]
    # one threshold on each layer that is passed by about half of the prompts, so that any and all differ
    gates = tuple(
        each.model_copy(update={"threshold": float(np.sort(values[:, layer])[2:4].mean()), "above": True})
        for layer, each in enumerate(gate.gates)
    )
    passed = np.stack([values[:, layer] > each.threshold for layer, each in enumerate(gates)], 1)
    assert not np.array_equal(passed.any(1), passed.all(1))
    for combine, expected in (("any", passed.any(1)), ("all", passed.all(1))):
        both = Gates(combine=combine, gates=gates)  # type: ignore[arg-type]
        gated = vector.with_metadata(interventions=[change.model_copy(update={"gate": both})])
        with sk.steer(vlm, gated, policy="off"):
            found = [logits(vlm, sample) for sample in anchors]
        moved = [not torch.equal(after, logits(vlm, sample)) for after, sample in zip(found, anchors, strict=True)]
        assert moved == expected.tolist()


def test_a_prompt_in_chunks_is_judged_once_it_was_read(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    """A mean over the prompt is there with its last chunk; whoever needs it earlier is told so."""
    vlm = measured_llava.vlm
    vector = sk.methods.CAST(layers=(2,), coefficient=3.0).fit(measured_llava, anchors)
    (change,) = vector.interventions
    later = vector.with_metadata(interventions=[change.model_copy(update={"phase": "generation"})])
    prompts = [replace(sample, images=()) for sample in anchors]
    inputs = vlm.inputs(prompts)
    whole, chunked = [], []
    for found, options in ((whole, {}), (chunked, {"prefill_chunk_size": 5})):
        with sk.steer(vlm, later, policy="off"):
            found.append(vlm.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **options))  # type: ignore[operator]
    assert torch.equal(whole[0], chunked[0])
    assert not torch.equal(whole[0], vlm.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5))  # type: ignore[operator]
    with pytest.raises(EngineError, match="chunked prefill"), sk.steer(vlm, vector, policy="off"):
        vlm.model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=5)  # type: ignore[operator]
    with torch.no_grad():
        cache = cache_of(vlm.model(**inputs, use_cache=True))
        with pytest.raises(EngineError, match="continues from a KV cache"), sk.steer(vlm, later, policy="off"):
            vlm.model(input_ids=inputs["input_ids"][:, -1:], **{CACHE: cache})


def test_the_behaviour_may_have_labels_of_its_own(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    extra = [
        replace(sample, text=f"{sample.text} {word}", label=label)
        for sample in anchors[:3]
        for word, label in (("I can't.", "refusal"), ("Sure.", "compliance"))
    ]
    method = sk.methods.CAST(
        towards="refusal",
        away="compliance",
        behaviour_pool="last",
        layers=(2,),
        scale="unit",
        condition_layers=(1,),
    )
    vector = method.fit(measured_llava, [*anchors, *extra], batch_size=4)
    h = pooled(measured_llava.vlm, extra, "last")[:, 2]
    expected = first_component(h, np.array([sample.label == "refusal" for sample in extra]))
    assert np.abs(vector.tensors[sk.Key(2)].double().numpy() - expected).max() < 5e-3
    plain = sk.methods.CAST(layers=(2,), condition_layers=(1,)).fit(measured_llava, anchors)
    key = sk.Key(1, name="condition")
    assert torch.allclose(plain.tensors[key], vector.tensors[key], atol=1e-4)


def test_refuses(measured_llava: ReadByHooks, anchors: list[sk.Sample]) -> None:
    with pytest.raises(LayerRangeError, match="comes before"):
        sk.methods.CAST(layers=(1,), condition_layers=(2,)).fit(measured_llava, anchors)
    with pytest.raises(EmptyAnchorSetError, match="refusal"):
        sk.methods.CAST(towards="refusal", away="compliance").fit(measured_llava, anchors)
    with pytest.raises(OptionError, match="are both"):
        sk.methods.CAST(towards="harmless")
    assert measured_llava.samples_run == 0
