"""The built-in methods against an independent computation, and every registered method through its whole life."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from PIL import Image

import steerkit as sk
from steerkit.errors import NothingSteeredError, OptionError
from steerkit.interventions import Ablate, Add, MeasuredContrast, StoredDirection
from steerkit.models import Sample
from steerkit.vectors import Key, SteeringVector
from steerkit.vlm import VLM

# Passes of one prompt at a time against batches: float32 rounding, on hidden states up to 10
TOLERANCE = 2e-4
HIDDEN, LAYERS = 48, 4


def last_token(vlm: VLM, text: str, images: Sequence[Image.Image]) -> np.ndarray:
    """`[layers, hidden]` at the last token of one prompt: the model's own processor, plain hooks, float64.

    The prompt is written out here, as the template of LLaVA-1.5 gives it.
    """
    prompt = "USER: " + "<image>\n" * len(images) + f"{text} ASSISTANT:"
    options: dict[str, Any] = {"images": list(images)} if images else {}
    inputs = vlm.processor(text=prompt, return_tensors="pt", **options)
    found: dict[int, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(vlm.model.model.language_model.layers):  # type: ignore[union-attr,arg-type]

        def keep(module: Any, args: Any, output: Any, layer: int = layer) -> None:
            found[layer] = (output[0] if isinstance(output, tuple) else output)[0, -1]

        handles.append(block.register_forward_hook(keep))
    try:
        with torch.no_grad():
            vlm.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return np.stack([found[layer].double().numpy() for layer in range(LAYERS)])


def stripes(sample: Sample) -> list[Image.Image]:
    """A counterpart of one's own."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[::2] = 200
    return [Image.fromarray(pixels)]


@pytest.fixture(scope="module")
def shifts(llava: VLM, anchors: list[Sample]) -> Callable[[str, str], np.ndarray]:
    """`shifts(text side, counterpart)`: `[anchors, layers, hidden]`, text minus counterpart."""

    @functools.cache
    def measured(text_side: str, counterpart: str) -> np.ndarray:
        rows = []
        for sample in anchors:
            original: Any = sample.images[0]
            noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            shown = {
                "original": original,
                "blank": Image.new("RGB", (32, 32), (255, 255, 255)),
                "noise": Image.fromarray(noise),
                "callable": stripes(sample)[0],
            }[counterpart]
            text = str(sample.text)
            alone = text if text_side == "query" else f"{sample.caption}\n{text}"
            rows.append(last_token(llava, alone, []) - last_token(llava, text, [shown]))
        return np.stack(rows)

    return measured


def by_depth(shift: np.ndarray, form: str, layers: Sequence[int]) -> np.ndarray:
    """What each of the layers contributes, `[anchors, layers, hidden]`."""
    chosen = shift[:, list(layers)]
    return np.diff(chosen, axis=1, prepend=0.0) if form == "increments" else chosen


def component(rows: np.ndarray, *, center: bool, scale: str) -> np.ndarray:
    """First principal component by an eigendecomposition; its sign and length by the mean."""
    mean = rows.mean(0)
    used = rows - mean if center else rows
    values, vectors = np.linalg.eigh(used.T @ used / len(rows))
    first = vectors[:, -1] * (1 if vectors[:, -1] @ mean >= 0 else -1)
    return first * {"unit": 1.0, "sigma": np.sqrt(values[-1]), "mean_projection": mean @ first}[scale]


def assert_directions(vector: SteeringVector, expected: dict[int, np.ndarray], tolerance: float = TOLERANCE) -> None:
    assert list(vector.tensors) == [Key(layer) for layer in sorted(expected)]
    for layer, value in expected.items():
        assert np.linalg.norm(value) > 0.05, "the test must see the direction"
        assert np.abs(vector.tensors[Key(layer)].double().numpy() - value).max() < tolerance


# -- CMRM ------------------------------------------------------------------------------------------------------------

COUNTERPARTS: dict[str, Any] = {"original": "original", "blank": "blank", "noise": "noise", "callable": stripes}


@pytest.mark.parametrize("text_side", ["query", "caption"])
@pytest.mark.parametrize("counterpart", COUNTERPARTS)
@pytest.mark.parametrize("form", ["increments", "literal"])
def test_cmrm_takes_the_mean_shift(
    measured_llava: ReadByHooks,
    anchors: list[Sample],
    shifts: Callable[[str, str], np.ndarray],
    form: Any,
    counterpart: str,
    text_side: Any,
) -> None:
    method = sk.CMRM(form=form, counterpart=COUNTERPARTS[counterpart], text_side=text_side)
    vector = method.fit(measured_llava, anchors, batch_size=3)
    mean = by_depth(shifts(text_side, counterpart), form, range(LAYERS)).mean(0)
    assert_directions(vector, dict(enumerate(mean)))


@pytest.mark.parametrize("form", ["increments", "literal"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", ["mean_projection", "sigma", "unit"])
def test_cmrm_takes_the_first_principal_component(
    measured_llava: ReadByHooks,
    anchors: list[Sample],
    shifts: Callable[[str, str], np.ndarray],
    form: Any,
    center: bool,
    scale: Any,
) -> None:
    method = sk.CMRM(aggregate="pca", form=form, center=center, scale=scale, counterpart="blank")
    vector = method.fit(measured_llava, anchors, batch_size=3)
    rows = by_depth(shifts("query", "blank"), form, range(LAYERS))
    expected = {layer: component(rows[:, layer], center=center, scale=scale) for layer in range(LAYERS)}
    # the gap between the two greatest singular values amplifies the rounding of the passes
    assert_directions(vector, expected, 10 * TOLERANCE)


def test_the_options_of_cmrm_make_different_vectors(shifts: Callable[[str, str], np.ndarray]) -> None:
    """What the two tests above tell apart is further apart than their tolerance."""
    made = [
        by_depth(shifts(text_side, counterpart), form, range(LAYERS)).mean(0)
        for text_side, counterpart, form in itertools.product(
            ("query", "caption"), COUNTERPARTS, ("increments", "literal")
        )
    ]
    rows = by_depth(shifts("query", "blank"), "literal", range(LAYERS))[:, 3]
    components = [
        component(rows, center=center, scale=scale)
        for center, scale in itertools.product((False, True), ("mean_projection", "sigma", "unit"))
    ]
    for group in (made, components):
        for first, second in itertools.combinations(group, 2):
            assert np.abs(first - second).max() > 20 * TOLERANCE


def test_cmrm_measures_increments_between_the_chosen_layers(
    measured_llava: ReadByHooks, anchors: list[Sample], shifts: Callable[[str, str], np.ndarray]
) -> None:
    vector = sk.CMRM(layers=(3, 1)).fit(measured_llava, anchors)
    mean = by_depth(shifts("query", "original"), "increments", (1, 3)).mean(0)
    assert_directions(vector, {1: mean[0], 3: mean[1]})
    total = sum(tensor.double().numpy() for tensor in vector.tensors.values())
    assert np.abs(total - shifts("query", "original").mean(0)[3]).max() < TOLERANCE


def test_another_seed_is_other_noise(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    first, same, other = (
        sk.CMRM(counterpart="noise", seed=seed).fit(measured_llava, anchors[:2]).digest() for seed in (0, 0, 1)
    )
    assert first == same != other


@pytest.mark.parametrize(("phase", "alpha"), [("prompt", 1.0), ("both", -0.5)])
def test_cmrm_adds_at_the_last_prompt_token(
    measured_llava: ReadByHooks, anchors: list[Sample], phase: Any, alpha: float
) -> None:
    (intervention,) = sk.CMRM(phase=phase, alpha=alpha, layers=(1, 2)).fit(measured_llava, anchors[:2]).interventions
    assert intervention == sk.Intervention(
        operation=Add(), layers=(1, 2), tokens="last", phase=phase, prompts="with_image", strength=alpha
    )


@pytest.mark.parametrize("counterpart", ["blank", "noise", "original"])
def test_sample_level_cmrm_needs_no_anchors_and_says_what_to_measure(
    measured_llava: ReadByHooks, counterpart: Any
) -> None:
    method = sk.CMRM(level="sample", counterpart=counterpart, form="literal", seed=3, alpha=0.7)
    vector = method.fit(measured_llava)
    contrast = MeasuredContrast(positive="text", negative=counterpart, form="literal", seed=3)
    assert vector.interventions[0].operation == Add(direction=contrast)
    assert vector.interventions[0].strength == 0.7
    assert dict(vector.tensors) == {}
    assert vector.metadata.anchors is None
    assert measured_llava.samples_run == 0


class Striped:
    """A counterpart with options of its own."""

    def __call__(self, sample: Sample) -> list[Image.Image]:
        return stripes(sample)


@pytest.mark.parametrize("function", [lambda sample: sample.images, functools.partial(stripes), Striped()])
def test_any_callable_is_a_counterpart_and_is_named_in_the_metadata(
    measured_llava: ReadByHooks, anchors: list[Sample], function: Any
) -> None:
    config = sk.CMRM(counterpart=function).fit(measured_llava, anchors[:2]).metadata.method.config
    assert config["counterpart"].startswith("function ")
    with pytest.raises(OptionError, match="counterpart"):
        sk.CMRM(**config)


# -- the difference of two means -------------------------------------------------------------------------------------


def two_means(vlm: VLM, anchors: list[Sample], *, images: bool) -> np.ndarray:
    """`[layers, hidden]`: harmful minus harmless."""
    rows = np.stack([last_token(vlm, str(s.text), list(s.images) if images else []) for s in anchors])  # type: ignore[arg-type]
    harmful = np.array([sample.label == "harmful" for sample in anchors])
    return rows[harmful].mean(0) - rows[~harmful].mean(0)


@pytest.mark.parametrize("images", [True, False])
def test_caa_takes_the_difference_of_the_means(
    measured_llava: ReadByHooks, anchors: list[Sample], images: bool
) -> None:
    method = sk.methods.CAA(positive="harmful", negative="harmless", layers=(3, 0), images=images, multiplier=2.0)
    vector = method.fit(measured_llava, anchors, batch_size=3)
    expected = two_means(measured_llava.vlm, anchors, images=images)
    assert_directions(vector, {0: expected[0], 3: expected[3]})
    assert vector.interventions == (sk.Intervention(layers=(0, 3), tokens="last", phase="both", strength=2.0),)


def test_caa_turns_around_with_its_labels(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    forth = sk.methods.CAA(positive="harmful", negative="harmless").fit(measured_llava, anchors)
    back = sk.methods.CAA(positive="harmless", negative="harmful").fit(measured_llava, anchors)
    assert list(forth.tensors) == list(back.tensors) == [Key(1)], "the block at 40 % of four"
    assert torch.allclose(forth.tensors[Key(1)], -back.tensors[Key(1)], atol=TOLERANCE)


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize(("layer", "read"), [(None, 2), (0, 0), (3, 3)])
def test_the_refusal_direction_is_the_difference_of_the_means(
    measured_llava: ReadByHooks, anchors: list[Sample], images: bool, layer: int | None, read: int
) -> None:
    vector = sk.methods.RefusalDirection(images=images, layer=layer, coefficient=0.5).fit(
        measured_llava, anchors, batch_size=3
    )
    assert_directions(vector, {read: two_means(measured_llava.vlm, anchors, images=images)[read]})
    assert vector.interventions == (sk.Intervention(layers=(read,), tokens="all", strength=0.5),)


def test_the_refusal_direction_is_ablated_at_every_layer(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    vector = sk.methods.RefusalDirection(mode="ablate", layer=1).fit(measured_llava, anchors)
    assert_directions(vector, {1: two_means(measured_llava.vlm, anchors, images=False)[1]})
    operation = Ablate(direction=StoredDirection(layer=1))
    assert vector.interventions == (sk.Intervention(operation=operation, layers="all", tokens="all"),)


def test_steering_without_a_call_is_an_error(measured_llava: ReadByHooks, anchors: list[Sample]) -> None:
    vector = sk.CMRM().fit(measured_llava, anchors)
    with pytest.raises(NothingSteeredError), sk.steer(measured_llava.vlm, vector):
        pass
