"""VTI against the paper's formula in float64, for the fit and for the steered model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ReadByHooks
from method_reference import BLOCKS, TOWER, edited, logits, same_answers, states, steered_logits
from PIL import Image
from torch import Tensor

import steerkit as sk
from steerkit.errors import EmptyAnchorSetError, EngineError, MissingImageError, OptionError
from steerkit.methods.vti import blotted

MASKS, GRID, RATIO = 3, 4, 0.6
OPTIONS: dict[str, Any] = {"masks": MASKS, "grid": GRID, "mask_ratio": RATIO, "seed": 5}
TOLERANCE = 2e-3  # the first component of a few nearly equal rows


@pytest.fixture(scope="module")
def demos(picture: Callable[..., Image.Image]) -> list[sk.Sample]:
    """Five pairs: one image with a true and with a hallucinated caption, in either order."""
    made = []
    for index, (true, false) in enumerate(
        [("a red dog", "a dog and a cat"), ("two cups", "a car"), ("a hill", "a sea"), ("rain", "snow"), ("x", "y")]
    ):
        pair = [
            sk.Sample(f"Describe it. {text}", (picture(index),), label=label)
            for text, label in ((true, "truthful"), (false, "hallucinated"))
        ]
        made += pair[:: 1 if index % 2 else -1]
    return made


def masked_by_hand(image: Image.Image, number: int) -> Image.Image:
    """32 pixels in 4 x 4 cells of 8, of which 9 are blotted out."""
    pixels = np.array(image)
    color = np.round(pixels.astype(float).mean((0, 1)))
    for cell in np.random.default_rng((5, number)).permutation(16)[:9]:
        pixels[8 * (cell // 4) : 8 * (cell // 4) + 8, 8 * (cell % 4) : 8 * (cell % 4) + 8] = color
    return Image.fromarray(pixels)


def expected_direction(rows: np.ndarray) -> np.ndarray:
    mean = rows.mean(0)
    first = np.linalg.svd(rows - mean, full_matrices=False)[2][0]
    return mean + first * np.sign(first @ mean)


def text_rows(vlm: sk.VLM, demos: list[sk.Sample]) -> np.ndarray:
    paths = [f"{BLOCKS}.{layer}" for layer in range(4)]
    by_label = {
        label: np.stack([states(vlm, sample, paths)[:, -1] for sample in demos if sample.label == label])
        for label in ("truthful", "hallucinated")
    }
    return by_label["truthful"] - by_label["hallucinated"]


def vision_rows(vlm: sk.VLM, demos: list[sk.Sample]) -> np.ndarray:
    paths = [f"{TOWER}.{layer}" for layer in range(3)]
    rows = []
    for sample in demos:
        if sample.label == "truthful":
            image: Any = sample.images[0]
            clean = states(vlm, sample, paths).mean(1)
            copies = [replace(sample, images=(masked_by_hand(image, k),)) for k in range(MASKS)]
            rows.append(np.mean([states(vlm, copy, paths).mean(1) for copy in copies], axis=0) - clean)
    return np.stack(rows)


def assert_close(found: Tensor, expected: np.ndarray) -> None:
    assert np.linalg.norm(expected) > 0.5
    assert np.abs(found.double().numpy() - expected).max() < TOLERANCE


def test_directions_are_mean_and_first_component(measured_llava: ReadByHooks, demos: list[sk.Sample]) -> None:
    vector = sk.methods.VTI(**OPTIONS).fit(measured_llava, demos, batch_size=3)
    text, seen = text_rows(measured_llava.vlm, demos), vision_rows(measured_llava.vlm, demos)
    assert len(vector.tensors) == 4 + 3
    for layer in range(4):
        assert_close(vector.tensors[sk.Key(layer, "mlp_out")], expected_direction(text[:, layer]))
    for layer in range(3):
        assert_close(vector.tensors[sk.Key(layer, "mlp_out", tower="vision")], expected_direction(seen[:, layer]))


def test_a_part_alone_is_that_part_of_both(measured_llava: ReadByHooks, demos: list[sk.Sample]) -> None:
    both = sk.methods.VTI(**OPTIONS).fit(measured_llava, demos)
    text = sk.methods.VTI(parts="text").fit(measured_llava, demos)
    unlabelled = [replace(sample, label=None) for sample in demos if sample.label == "truthful"]
    seen = sk.methods.VTI(parts="vision", **OPTIONS).fit(measured_llava, unlabelled)
    assert {*text.tensors, *seen.tensors} == {*both.tensors}
    for key, tensor in {**text.tensors, **seen.tensors}.items():
        assert torch.allclose(tensor, both.tensors[key], atol=TOLERANCE)
    assert text.interventions + seen.interventions == both.interventions


@pytest.mark.parametrize("parts", ["text", "vision", "both"])
def test_every_mlp_output_is_turned_and_keeps_its_norm(
    measured_llava: ReadByHooks, demos: list[sk.Sample], parts: Any, tmp_path: Path
) -> None:
    vlm, alpha = measured_llava.vlm, {"text": 7.0, "vision": 5.0}
    fitted = sk.methods.VTI(parts=parts, alpha_text=7.0, alpha_image=5.0, **OPTIONS).fit(measured_llava, demos)
    vector = sk.SteeringVector.load(fitted.save(tmp_path / "vti.safetensors"))

    def turn(direction: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
        unit = direction.double() / direction.double().norm()

        def change(x: Tensor) -> Tensor:
            norm = x.norm(dim=-1, keepdim=True)
            moved = x / norm + 0.1 * alpha * unit
            return norm * moved / moved.norm(dim=-1, keepdim=True)

        return change

    edits = [
        (f"{BLOCKS if key.tower == 'language' else TOWER}.{key.layer}.mlp", turn(tensor, alpha[part]))
        for key, tensor in vector.tensors.items()
        for part in ["text" if key.tower == "language" else "vision"]
    ]
    plain = logits(vlm, demos[0])
    with edited(vlm, edits):
        expected = logits(vlm, demos[0])
    found = steered_logits(vlm, vector, demos[0])
    assert (expected - plain).abs().max() > 0.05
    assert (found - expected).abs().max() < 2e-4
    same_answers(vlm, vector, demos[:2])


def test_masks_blot_out_cells_in_the_mean_colour(picture: Callable[..., Image.Image]) -> None:
    image = picture(3)
    assert np.array_equal(
        np.array(blotted(image, GRID, RATIO, np.random.default_rng((5, 1)))), np.array(masked_by_hand(image, 1))
    )
    whole = np.array(blotted(picture(1, 30), 7, 1.0, np.random.default_rng(0)))
    assert (whole == whole[0, 0]).all()


def test_what_can_not_be_fitted_is_refused_first(
    measured_llava: ReadByHooks, demos: list[sk.Sample], vlm_of: Callable[[str], sk.VLM]
) -> None:
    apart = [*demos[::2], *demos[1::2]]
    with pytest.raises(EmptyAnchorSetError, match="begins a pair"):
        sk.methods.VTI().fit(measured_llava, [demos[1], demos[2], demos[0], demos[3]])
    with pytest.raises(EmptyAnchorSetError, match="no principal component"):
        sk.methods.VTI().fit(measured_llava, demos[:2])
    with pytest.raises(MissingImageError):
        sk.methods.VTI().fit(measured_llava, [replace(sample, images=()) for sample in apart])
    with pytest.raises(OptionError, match="blots out none"):
        sk.methods.VTI(grid=2, mask_ratio=0.1)
    bare = sk.wrap(measured_llava.vlm.model, measured_llava.vlm.processor)
    bare.architecture = replace(bare.architecture, vision=None)
    with pytest.raises(EngineError, match="none whose blocks are known"):
        sk.methods.VTI().fit(bare, demos)
    assert measured_llava.samples_run == 0


@pytest.mark.parametrize("family_name", ["qwen2_5_vl", "llava_next", "instructblip-llama"])
def test_other_towers_are_fitted_and_steered(
    vlm_of: Callable[[str], sk.VLM], family_name: str, demos: list[sk.Sample]
) -> None:
    vlm = vlm_of(family_name)
    vector = sk.methods.VTI(parts="vision", alpha_image=30.0, **OPTIONS).fit(vlm, demos[:4])
    with sk.steer(vlm, vector, policy="off") as receipt:
        steered = vlm.generate(demos[:1], max_new_tokens=6, min_new_tokens=6)
    assert receipt.vision_layers == list(range(vlm.architecture.count("vision")))
    assert steered != vlm.generate(demos[:1], max_new_tokens=6, min_new_tokens=6)
