"""ShiftDC, RepE, AdaSteer, ActAdd and ASTRA against their papers' formulas, in float64 and plain hooks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from PIL import Image
from reference import Edit, Where, distance, edited, generate, only, picture, prompt_length, since
from test_methods import LAYERS, TOLERANCE, last_token

import steerkit as sk
from steerkit.errors import EmptyAnchorSetError, EngineError, OptionError, SteerKitError
from steerkit.interventions import LinearStrength
from steerkit.methods.astra import attribute, lasso, with_cells
from steerkit.models import Sample
from steerkit.vectors import Key, SteeringVector
from steerkit.vlm import VLM

LOGITS = 2e-3
"""Of logits up to about 10: the formula in float64 against float32, through the layers above."""
CLEARLY = 0.1

Change = Callable[[np.ndarray], np.ndarray]
"""`[n, hidden]` to the steered ones, float64."""


def states(vlm: VLM, chosen: Sequence[Sample], *, images: bool) -> np.ndarray:
    """`[samples, layers, hidden]` at the last prompt token."""
    shown: list[Any] = [list(sample.images) if images else [] for sample in chosen]
    return np.stack([last_token(vlm, str(s.text), pictures) for s, pictures in zip(chosen, shown, strict=True)])


def labelled(anchors: Sequence[Sample], label: str) -> list[Sample]:
    return [sample for sample in anchors if sample.label == label]


def assert_same(vector: SteeringVector, key: Key, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    found = vector.tensors[key].double().numpy()
    assert np.linalg.norm(expected) > 0.05
    assert np.abs(found - expected).max() < tolerance


def assert_steers(
    vlm: VLM, vector: SteeringVector, sample: Sample, changes: dict[int, Change], where: Callable[[int], Where]
) -> None:
    """Four tokens, steered by the vector and by the formula, and clearly not what they are without."""
    inputs = vlm.inputs([sample])
    position = where(prompt_length("llava", inputs) - 1)

    def wide(change: Change) -> Any:
        return lambda h, rows: torch.from_numpy(change(h.double().numpy()))

    with edited(vlm.model, "llava", [Edit(layer, position, wide(change)) for layer, change in changes.items()]):
        expected = generate(vlm.model, inputs, 4)
    with sk.steer(vlm, vector, policy="off"):
        found = generate(vlm.model, inputs, 4)
    plain = generate(vlm.model, inputs, 4)
    assert distance(found, expected) < LOGITS
    assert distance(plain, expected) > CLEARLY


# -- ShiftDC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["increments", "literal"])
def test_shiftdc_removes_the_projected_shift(measured_llava: ReadByHooks, anchors: list[Sample], form: Any) -> None:
    vlm = measured_llava.vlm
    vector = sk.methods.ShiftDC(form=form, alpha=1.5).fit(measured_llava, anchors, batch_size=3)
    safe, unsafe = (states(vlm, labelled(anchors, label), images=False) for label in ("harmless", "harmful"))
    s = safe.mean(0) - unsafe.mean(0)
    assert [key.layer for key in vector.tensors] == [2, 3]
    for layer in (2, 3):
        assert_same(vector, Key(layer), s[layer])
    m = states(vlm, [anchors[2]], images=True)[0] - states(vlm, [anchors[2]], images=False)[0]
    shift = {2: m[2], 3: m[3] - m[2] if form == "increments" else m[3]}

    def calibrate(layer: int) -> Change:
        return lambda h: h - 1.5 * (shift[layer] @ s[layer]) / (s[layer] @ s[layer]) * s[layer]

    assert_steers(vlm, vector, anchors[2], {layer: calibrate(layer) for layer in (2, 3)}, only)


def test_shiftdc_fits_its_direction_with_captions_on_request(
    measured_llava: ReadByHooks, anchors: list[Sample]
) -> None:
    vector = sk.methods.ShiftDC(text_side="caption", layers=(3,)).fit(measured_llava, anchors)
    posed = [replace(sample, text=f"{sample.caption}\n{sample.text}") for sample in anchors]
    safe, unsafe = (
        states(measured_llava.vlm, labelled(posed, label), images=False) for label in ("harmless", "harmful")
    )
    assert_same(vector, Key(3), (safe.mean(0) - unsafe.mean(0))[3])
    with pytest.raises(SteerKitError, match="no caption"):
        sk.methods.ShiftDC(text_side="caption").fit(
            measured_llava, [replace(sample, caption=None) for sample in anchors]
        )


@pytest.mark.parametrize("name", ["shiftdc", "cmrm"])
def test_the_caption_of_the_prompt_that_is_answered_is_in_its_text(
    measured_llava: ReadByHooks, anchors: list[Sample], name: str
) -> None:
    """`h_t` is that of the caption and the query, for each of two prompts of a batch."""
    vlm, pair = measured_llava.vlm, anchors[2:4]
    posed = [replace(sample, text=f"{sample.caption}\n{sample.text}") for sample in pair]
    m = states(vlm, posed, images=False) - states(vlm, pair, images=True)  # [2, layers, hidden]
    if name == "shiftdc":
        vector = sk.methods.ShiftDC(text_side="caption", layers=(2, 3), alpha=3.0).fit(measured_llava, anchors)
        s = {layer: vector.directions[layer].double().numpy() for layer in (2, 3)}
        along = {layer: np.outer(m[:, layer] @ s[layer] / (s[layer] @ s[layer]), s[layer]) for layer in (2, 3)}
        gained = np.outer((m[:, 3] - m[:, 2]) @ s[3] / (s[3] @ s[3]), s[3])
        added = {2: 3.0 * along[2], 3: 3.0 * gained}
    else:
        options: Any = {"level": "sample", "text_side": "caption", "counterpart": "original", "layers": (2, 3)}
        vector = sk.CMRM(**options, alpha=3.0).fit(measured_llava)
        added = {2: 3.0 * m[:, 2], 3: 3.0 * (m[:, 3] - m[:, 2])}
    last = only(prompt_length("llava", vlm.inputs(pair)) - 1)

    def change(layer: int) -> Any:
        return lambda h, rows: h.double() + torch.from_numpy(added[layer])[rows]

    edits = [Edit(layer, last, change(layer)) for layer in (2, 3)]
    plain = vlm.next_token_log_probabilities(pair)
    with edited(vlm.model, "llava", edits):
        expected = vlm.next_token_log_probabilities(pair)
    with edited(vlm.model, "llava", edits):
        texts = vlm.generate(pair, max_new_tokens=4)
    for engine in ("hooks", "nnsight"):
        with sk.steer(vlm, vector, policy="off", engine=engine):
            assert vlm.generate(pair, max_new_tokens=4) == texts
    with sk.steer(vlm, vector, policy="off"):
        found = vlm.next_token_log_probabilities(pair)
        assert [len(each) for each in vlm.log_likelihood(pair, ["Yes", "No"])]
    assert (found - expected).abs().max() < LOGITS
    assert (plain - expected).abs().max() > CLEARLY
    query = vector.with_metadata(
        interventions=[
            json.loads(json.dumps(each.model_dump(mode="json")).replace('"caption"', '"text"'))
            for each in vector.interventions
        ]
    )
    with sk.steer(vlm, query, policy="off"):
        assert (vlm.next_token_log_probabilities(pair) - expected).abs().max() > CLEARLY


def test_a_caption_that_nobody_gave_is_missed_before_the_model_answers(
    measured_llava: ReadByHooks, anchors: list[Sample]
) -> None:
    vlm = measured_llava.vlm
    vector = sk.methods.ShiftDC(text_side="caption").fit(measured_llava, anchors)
    lacking = [anchors[0], replace(anchors[1], caption=None)]
    done: list[int] = []
    with sk.steer(vlm, vector, policy="off"):
        with pytest.raises(SteerKitError, match=r"sample 1 \(.*no caption"):
            vlm.generate(lacking, batch_size=1, progress=lambda count, total: done.append(count))
        with pytest.raises(EngineError, match="the call has no samples"):
            generate(vlm.model, vlm.inputs(anchors[:1]), 4)
        assert done == []
        vlm.generate([replace(anchors[0], images=(), caption=None)], max_new_tokens=1)  # there is no shift in it


# -- RepE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["all", "neighbours"])
@pytest.mark.parametrize("scale", ["mean_projection", "unit"])
def test_repe_adds_the_first_component_of_the_differences(
    measured_llava: ReadByHooks, anchors: list[Sample], pairing: Any, scale: Any
) -> None:
    vlm = measured_llava.vlm
    chosen = [
        anchors[0],
        anchors[1],
        anchors[3],
        anchors[2],
        anchors[4],
        anchors[5],
    ]  # the second pair is the other way
    method = sk.methods.RepE(
        positive="harmful", negative="harmless", pairing=pairing, scale=scale, layers=(1,), coefficient=2.0
    )
    vector = method.fit(measured_llava, chosen, batch_size=3)
    positive, negative = (
        states(vlm, [anchors[index] for index in indices], images=True)[:, 1] for indices in ((0, 2, 4), (1, 3, 5))
    )
    pairs = zip(positive, negative, strict=True) if pairing == "neighbours" else itertools.product(positive, negative)
    differences = np.stack([p - n for p, n in pairs])
    _, vectors = np.linalg.eigh(differences.T @ differences)
    v = vectors[:, -1] * np.sign(vectors[:, -1] @ differences.mean(0))
    v = v * (differences.mean(0) @ v if scale == "mean_projection" else 1.0)
    assert_same(vector, Key(1), v, 10 * TOLERANCE)
    assert_steers(vlm, vector, anchors[2], {1: lambda h: h + 2.0 * v}, lambda last: since(0))


def test_repe_keeps_norms_on_request(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    method = sk.methods.RepE(
        positive="harmful", negative="harmless", layers=(2,), norm_preserving=True, coefficient=3.0
    )
    vector = method.fit(measured_llava, anchors)
    v = vector.tensors[Key(2)].double().numpy()

    def changed(h: np.ndarray) -> np.ndarray:
        moved = h + 3.0 * v
        return moved * np.linalg.norm(h, axis=1, keepdims=True) / np.linalg.norm(moved, axis=1, keepdims=True)

    assert_steers(measured_llava.vlm, vector, anchors[2], {2: changed}, lambda last: since(0))


def test_repe_refuses_neighbours_of_one_label(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    method = sk.methods.RepE(positive="harmful", negative="harmless", pairing="neighbours")
    for wrong in (anchors, [anchors[0], anchors[2], anchors[1], anchors[3]]):
        with pytest.raises(EmptyAnchorSetError, match=r"neighbours of different labels"):
            method.fit(measured_llava, wrong)
    assert measured_llava.samples_run == 0


# -- ActAdd ----------------------------------------------------------------------------------------------------------


def test_actadd_adds_the_difference_of_two_prompts(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    method = sk.methods.ActAdd(positive="harmful", negative="harmless", layer=1, coefficient=1.5)
    vector = method.fit(measured_llava, anchors[:2])
    h = states(measured_llava.vlm, anchors[:2], images=False)[:, 1]
    assert_same(vector, Key(1), h[0] - h[1])
    assert_steers(measured_llava.vlm, vector, anchors[2], {1: lambda x: x + 1.5 * (h[0] - h[1])}, only)
    with pytest.raises(EmptyAnchorSetError, match="holds 7 prompts"):
        method.fit(measured_llava, anchors)


# -- AdaSteer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["increments", "literal"])
@pytest.mark.parametrize("along", ["projection", "rejection"])
@pytest.mark.parametrize("labels", [False, True])
def test_adasteer_doses_by_the_unsteered_positions(
    measured_llava: ReadByHooks, anchors: list[Sample], form: Any, along: Any, labels: bool
) -> None:
    vlm = measured_llava.vlm
    chosen = [
        replace(sample, label="no") if labels and index in (0, 4) else sample for index, sample in enumerate(anchors)
    ]
    method = sk.methods.AdaSteer(
        rejected="no" if labels else None,
        layers=(0, 2),
        rejection_layer=3,  # above the steered ones
        harmfulness_layer=1,
        rejection=(-0.8, 1.2, 0.1, 3.0),
        harmfulness=(5.0, -6.0, -20.0, 20.0),  # q lies mostly across r: a small dose of its projection changes nothing
        harmfulness_along=along,
        form=form,
    )
    vector = method.fit(measured_llava, chosen, batch_size=3)
    r, q, complied, harmless = adasteer_groups(vlm, chosen, labels=labels)
    second = {layer: r[layer] if along == "rejection" else r[layer] * share(q, r, layer) for layer in (0, 2)}
    added = {"": {0: r[0], 2: r[2]}, "undone": dict(second)}
    if form == "increments":
        for rows in added.values():
            rows[2] = rows[2] - rows[0]
    for key, expected in {
        Key(3, name="rejection"): r[3],
        Key(3, name="complied"): complied[3],
        Key(1, name="harmfulness"): q[1],
        Key(1, name="harmless"): harmless[1],
    }.items():
        assert_same(vector, key, expected)
    for name, rows in added.items():
        for layer, expected in rows.items():
            assert np.abs(vector.tensors[Key(layer, name=name)].double().numpy() - expected).max() < TOLERANCE
    sample = anchors[5]
    h = states(vlm, [sample], images=True)[0]
    at_r = (h[3] - complied[3]) @ r[3] / (r[3] @ r[3])
    at_q = (h[1] - harmless[1]) @ q[1] / (q[1] @ q[1])
    a_r, a_q = np.clip(-0.8 * at_r + 1.2, 0.1, 3.0), np.clip(5.0 * at_q - 6.0, -20.0, 20.0)
    assert 0.1 < a_r < 3.0, "the test must see the slope"
    assert abs(a_q) < 20.0
    assert all(abs(a_q) * np.linalg.norm(rows) > CLEARLY for rows in second.values()), "and both terms"

    def moved(layer: int) -> Change:
        return lambda x: x + a_r * added[""][layer] + a_q * added["undone"][layer]

    assert_steers(vlm, vector, sample, {0: moved(0), 2: moved(2)}, only)


def adasteer_groups(vlm: VLM, chosen: Sequence[Sample], *, labels: bool = False) -> tuple[np.ndarray, ...]:
    """r, q and the means of what is complied with and of what is harmless, each `[layers, hidden]`."""
    complied = states(vlm, labelled(chosen, "harmful"), images=True).mean(0)
    harmless = states(vlm, labelled(chosen, "harmless"), images=True).mean(0)
    rejected = states(vlm, labelled(chosen, "no" if labels else "harmful"), images=labels).mean(0)
    return rejected - complied, complied - harmless, complied, harmless


def share(q: np.ndarray, r: np.ndarray, layer: int) -> float:
    """k, the coefficient of q's projection on r."""
    return float(q[layer] @ r[layer] / (r[layer] @ r[layer]))


@pytest.mark.parametrize("form", ["increments", "literal"])
@pytest.mark.parametrize("along", ["projection", "rejection"])
def test_adasteer_takes_back_from_the_harmless_what_it_can(
    measured_llava: ReadByHooks, anchors: list[Sample], form: Any, along: Any
) -> None:
    method = sk.methods.AdaSteer(rejection_layer=2, harmfulness_layer=1, form=form, harmfulness_along=along)
    vector = method.fit(measured_llava, anchors)
    r, q, complied, harmless = adasteer_groups(measured_llava.vlm, anchors)
    a_r = np.clip(1 - (harmless[2] - complied[2]) @ r[2] / (r[2] @ r[2]), 0, 1)
    assert a_r > 0.1, "there is something to take back"
    second = np.stack([r[layer] * (1 if along == "rejection" else share(q, r, layer)) for layer in range(LAYERS)])
    least = np.linalg.lstsq(second.reshape(-1, 1), -a_r * r[:LAYERS].reshape(-1), rcond=None)[0].item()
    rule = vector.interventions[1].strength
    assert isinstance(rule, LinearStrength)

    def dose(position: float) -> float:
        return float(np.clip(rule.slope * position * np.linalg.norm(q[1]) + rule.intercept, rule.minimum, rule.maximum))

    assert dose(0.0) == pytest.approx(least, rel=1e-3)
    assert dose(-1.0) == pytest.approx(least, rel=1e-3), "and no more where a prompt is more harmless still"
    assert dose(0.5) == pytest.approx(least / 2, rel=1e-3)
    assert dose(1.0) == pytest.approx(0.0, abs=1e-4 * abs(least))
    assert dose(2.0) == pytest.approx(0.0, abs=1e-4 * abs(least))
    left = np.linalg.norm(a_r * r[:LAYERS] + least * second)
    assert left < (1e-6 if along == "rejection" else 0.999) * np.linalg.norm(a_r * r[:LAYERS])


def test_adasteer_reads_where_the_groups_are_best_apart(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    vector = sk.methods.AdaSteer().fit(measured_llava, anchors, batch_size=3)
    harmful, harmless = labelled(anchors, "harmful"), labelled(anchors, "harmless")
    vlm = measured_llava.vlm
    groups = {
        "rejection": (states(vlm, harmful, images=False), states(vlm, harmful, images=True)),
        "harmfulness": (states(vlm, harmful, images=True), states(vlm, harmless, images=True)),
    }
    for name, (one, other) in groups.items():
        apart = []
        for layer in range(LAYERS):
            d = one[:, layer].mean(0) - other[:, layer].mean(0)
            u = d / np.linalg.norm(d)
            apart.append(np.linalg.norm(d) / np.sqrt((one[:, layer] @ u).var() + (other[:, layer] @ u).var()))
        assert [key.layer for key in vector.tensors if key.name == name] == [int(np.argmax(apart))]


def test_an_unsteered_measure_is_read_for_each_prompt_of_a_batch_and_each_of_its_answers(
    measured_llava: ReadByHooks, anchors: list[Sample]
) -> None:
    """Rows of one batch have doses of their own, and several answers to a prompt have its dose."""
    vlm = measured_llava.vlm
    vector = sk.methods.AdaSteer(rejection_layer=3, rejection=(-3.0, 1.0, -9.0, 9.0)).fit(measured_llava, anchors)
    chosen = [anchors[0], replace(anchors[1], text="Where?")]
    with sk.steer(vlm, vector, policy="off"):
        together = generate(vlm.model, vlm.inputs(chosen), 2, num_return_sequences=2, num_beams=2)
        alone = [generate(vlm.model, vlm.inputs([s]), 2, num_return_sequences=2, num_beams=2) for s in chosen]
    for row, one in enumerate(alone):
        assert (together.logits[0][2 * row : 2 * row + 2] - one.logits[0]).abs().max() < LOGITS


# -- ASTRA -----------------------------------------------------------------------------------------------------------


def black_where(sample: Sample, hidden: set[tuple[int, int]], grid: int = 2) -> Image.Image:
    """The sample's image of 32 x 32 with some cells of the grid painted black."""
    pixels = np.array(sample.images[0]).copy()
    side = 32 // grid
    for row, column in hidden:
        pixels[row * side : (row + 1) * side, column * side : (column + 1) * side] = 0
    return Image.fromarray(pixels)


def answer_log_likelihood(vlm: VLM, text: str, image: Image.Image, answer: list[int]) -> float:
    """Token after token, one forward pass each."""
    total = 0.0
    inputs = dict(vlm.processor(text=f"USER: <image>\n{text} ASSISTANT:", images=[image], return_tensors="pt"))
    for token in answer:
        with torch.no_grad():
            logits = vlm.model(**inputs).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return total


def test_astra_masks_what_brought_the_answer_about(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    vlm = measured_llava.vlm
    chosen = [anchors[0], anchors[1], anchors[2], anchors[3]]
    method = sk.methods.ASTRA(layer=2, grid=2, masks=12, top=0.5, penalty=0.1, answer_tokens=3, alpha=2.0, seed=4)
    vector = method.fit(measured_llava, chosen, batch_size=3)
    alone = method.fit(measured_llava, chosen, batch_size=1)
    assert torch.allclose(vector.tensors[Key(2)], alone.tensors[Key(2)], atol=TOLERANCE), "batches do not matter"

    rows = []
    for sample in labelled(chosen, "harmful"):
        answer = vlm.generate([sample], max_new_tokens=3, do_sample=False)[0]
        begun = [vlm.processor.tokenizer(start + answer, add_special_tokens=False)["input_ids"] for start in ("", " ")]
        generator = np.random.default_rng([4, int(sample.digest()[:16], 16)])
        shown = generator.random((12, 1, 2, 2)) < 0.5
        y = np.array(
            [
                max(answer_log_likelihood(vlm, str(sample.text), black_where(sample, hidden), ids) for ids in begun)
                for hidden in ({tuple(cell) for cell in np.argwhere(~cells[0])} for cells in shown)
            ]
        )
        weights = np.asarray(lasso_by_subsets(shown.reshape(12, 4).astype(float), y, 0.1))
        worst = [i for i in np.argsort(-weights)[:2] if weights[i] > 1e-9]
        masked = black_where(sample, {divmod(int(i), 2) for i in worst})
        rows.append(
            last_token(vlm, str(sample.text), [sample.images[0]]) - last_token(vlm, str(sample.text), [masked])  # type: ignore[list-item]
        )
    v = np.stack(rows).mean(0)[2]
    r = states(vlm, labelled(chosen, "harmless"), images=True).mean(0)[2]
    assert_same(vector, Key(2), v)
    assert_same(vector, Key(2, name="reference"), r)
    assert_steers_away(vlm, vector, anchors[0], v, r, 2.0)


def assert_steers_away(
    vlm: VLM, vector: SteeringVector, sample: Sample, v: np.ndarray, r: np.ndarray, alpha: float
) -> None:
    seen: list[float] = []

    def away(h: np.ndarray) -> np.ndarray:
        cosine = (h - r) @ v / np.linalg.norm(h - r, axis=1) / np.linalg.norm(v)
        seen.extend(cosine)
        c = np.clip(cosine, 0, 1)[:, None]
        return h - alpha * c * np.linalg.norm(h, axis=1, keepdims=True) * v / np.linalg.norm(v)

    assert_steers(vlm, vector, sample, {2: away}, since)
    assert any(value > 0.01 for value in seen)


def test_astra_takes_masked_images_that_the_anchors_bring(
    measured_llava: ReadByHooks, anchors: list[Sample], picture: Callable[..., Image.Image]
) -> None:
    vlm = measured_llava.vlm
    masked = [replace(s, images=(picture(90 + i),), label="masked") for i, s in enumerate(anchors[::2])]
    vector = sk.methods.ASTRA(source="pairs", layer=2, alpha=4.0).fit(measured_llava, [*anchors, *masked], batch_size=4)
    v = (states(vlm, anchors[::2], images=True) - states(vlm, masked, images=True)).mean(0)[2]
    r = states(vlm, anchors[1::2], images=True).mean(0)[2]
    assert_same(vector, Key(2), v)
    assert_steers_away(vlm, vector, anchors[0], v, r, 4.0)


def test_astra_finds_planted_cells() -> None:
    shape = (1, 4, 4)
    planted = np.zeros(shape)
    planted[0, 1, 2], planted[0, 3, 0] = 5.0, -4.0
    noise = np.random.default_rng(0)

    def likelihood(shown: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([(planted * cells).sum() - 20.0 + 0.1 * noise.standard_normal() for cells in shown])

    weights = attribute(likelihood, shape, 60, 0.5, 0.05, np.random.default_rng(1))
    assert np.argmax(weights) == np.ravel_multi_index((0, 1, 2), shape)
    assert np.argmin(weights) == np.ravel_multi_index((0, 3, 0), shape)
    assert np.sort(np.abs(weights), axis=None)[-3] < 0.2, "the lasso leaves the others out"


def lasso_by_subsets(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """The minimum of the lasso's objective over every pattern of signs, each solved in closed form."""
    x, y = x - x.mean(0), y - y.mean()
    n, features = x.shape
    bound = penalty * np.abs(x.T @ y).max() / n
    best, least = np.zeros(features), (y @ y) / 2 / n
    for signs in itertools.product((-1, 0, 1), repeat=features):
        used = np.flatnonzero(signs)
        if not len(used):
            continue
        part, sign = x[:, used], np.array(signs)[used]
        w = np.linalg.lstsq(part.T @ part / n, part.T @ y / n - bound * sign, rcond=None)[0]
        value = ((y - part @ w) ** 2).sum() / 2 / n + bound * np.abs(w).sum()
        if value < least - 1e-12:
            least, best = value, np.zeros(features)
            best[used] = w
    return best


@pytest.mark.parametrize("penalty", [0.0, 0.05, 0.4])
def test_the_lasso_is_at_its_minimum(penalty: float) -> None:
    generator = np.random.default_rng(7)
    x = (generator.random((30, 4)) < 0.5).astype(float)
    y = x @ [3.0, -1.0, 0.2, 0.0] + generator.standard_normal(30)
    assert np.abs(lasso(x, y, penalty) - lasso_by_subsets(x, y, penalty)).max() < 1e-6


def test_cells_are_painted_black_in_every_image(picture: Callable[..., Image.Image]) -> None:
    sample = Sample("Compare.", (picture(1), picture(2, 30)))
    shown = np.ones((2, 3, 3), dtype=bool)
    shown[1, 0, 2] = False
    first, second = (np.array(image) for image in with_cells(sample, shown).images)
    assert np.array_equal(first, np.array(sample.images[0]))
    assert (second[:10, 20:] == 0).all()
    second[:10, 20:] = np.array(sample.images[1])[:10, 20:]
    assert np.array_equal(second, np.array(sample.images[1]))


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (sk.methods.ShiftDC, {"safe": "a", "unsafe": "a"}, "both 'a'"),
        (sk.methods.RepE, {"positive": "a", "negative": "a"}, "both 'a'"),
        (sk.methods.ActAdd, {"positive": "a", "negative": "a"}, "both 'a'"),
        (sk.methods.AdaSteer, {"rejected": "harmful"}, "the same"),
        (sk.methods.AdaSteer, {"rejection": (1.0, 0.0, 1.0, 0.0)}, "minimum of rejection"),
        (sk.methods.AdaSteer, {"harmfulness": (1.0, 0.0, 1.0, 0.0)}, "minimum of harmfulness"),
        (sk.methods.ASTRA, {"benign": "harmful"}, "the same"),
        (sk.methods.ASTRA, {"source": "pairs", "grid": 4}, "attribution"),
    ],
)
def test_options_that_conflict_are_refused(kind: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        kind(**options)


@pytest.mark.parametrize("name", ["AdaSteer", "VLMGuard", "VTI", "CAST"])
def test_groups_of_the_same_prompts_are_refused(measured_llava: ReadByHooks, name: str) -> None:
    """Read as one row each: batches round differently, and would hide it."""
    labels = ("positive", "negative") if name == "VTI" else ("harmful", "harmless")
    options = {"positive": labels[0], "negative": labels[1], "parts": "text"} if name == "VTI" else {}
    if name == "AdaSteer":
        labels, options = (*labels, "rejected"), {"rejected": "rejected"}
    same = [sk.Sample(f"How do I do it {at}?", (picture(at),), label=label) for at in range(3) for label in labels]
    with pytest.raises(EmptyAnchorSetError, match="two groups of anchors have the same mean state"):
        getattr(sk.methods, name)(**options).fit(measured_llava, same, batch_size=2 if name == "VTI" else 1)
