"""Receipts count exactly what was steered."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference import TEXT_ONLY, WITH_IMAGE, captured, directions, generate, vector

import steerkit as sk
from steerkit.interventions import Gate, Measure


@pytest.mark.parametrize(
    ("intervention", "options", "prompt", "generated"),
    [
        ({"phase": "prompt"}, {}, 3, 0),
        ({"phase": "both"}, {}, 3, 12),
        ({"phase": "generation"}, {}, 0, 12),
        ({"tokens": "generated"}, {}, 0, 12),
        ({"phase": "prompt"}, {"num_beams": 2}, 6, 0),
        ({"phase": "both"}, {"num_beams": 2}, 6, 24),
        ({"phase": "both"}, {"num_return_sequences": 2, "do_sample": True}, 6, 24),
        ({"phase": "prompt", "tokens": "image"}, {}, 48, 0),
        ({"phase": "prompt", "tokens": "all"}, {}, 31 + 45 + 40, 0),
        # without a cache every pass reads the prompt, and is steered there, again
        ({"phase": "both"}, {"use_cache": False}, 15, 3 * (1 + 2 + 3 + 4)),
    ],
)
def test_counts(llava: sk.VLM, intervention: Any, options: Any, prompt: int, generated: int) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    steering = vector(llava, directions(llava), sk.Intervention(layers=(1, 3), **intervention))
    with sk.steer(llava, steering) as receipt:
        assert receipt.empty
        generate(llava.model, inputs, steps=5, **options)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (prompt, generated)
    assert receipt.layers == [1, 3]
    assert {key: (c.prompt_tokens, c.generated_tokens) for key, c in receipt.sites.items()} == {
        (1, "resid_post"): (prompt, generated),
        (3, "resid_post"): (prompt, generated),
    }
    assert all(0.1 < change < 10 for change in receipt.relative_change.values())


def test_calls_add_up(llava: sk.VLM) -> None:
    with sk.steer(llava, vector(llava, directions(llava))) as receipt:
        llava.generate([*TEXT_ONLY, *WITH_IMAGE], batch_size=2, max_new_tokens=3, min_new_tokens=3)
        with torch.no_grad():
            llava.model(**llava.inputs(TEXT_ONLY))
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (9, 12)


def test_the_relative_change_is_that_of_the_steered_tokens(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    d = directions(llava)[sk.Key(1)]
    h = captured(llava.model, "llava", inputs)[1]
    with sk.steer(llava, vector(llava, {sk.Key(1): d}), strength=0.5) as receipt:
        generate(llava.model, inputs)
    assert receipt.relative_change[1] == pytest.approx(float((0.5 * d.norm() / h.norm(dim=1)).mean()), rel=1e-5)
    size = f"{100 * receipt.relative_change[1]:.1f}"
    counts = "steered 1 layer (1), 3 prompt and 12 generated tokens each"
    assert str(receipt) == f"{counts}, by up to {size} % of the hidden state"


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_what_a_gate_shuts_out_is_not_counted(llava: sk.VLM, options: Any) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    d, tensors = directions(llava)[sk.Key(1)], directions(llava)
    states = captured(llava.model, "llava", inputs)
    read = (states[0].double() @ tensors[sk.Key(0)].double()) / tensors[sk.Key(0)].double().norm()
    threshold = float(read.sort().values[-2:].mean())  # one prompt of three passes
    measure = Measure(kind="projection", layer=0)
    gated = sk.Intervention(layers=(1,), gate=Gate(measure=measure, threshold=threshold))
    steering = vector(llava, tensors, gated)
    rows = options.get("num_beams", 1)
    with sk.steer(llava, steering) as receipt:
        generate(llava.model, inputs, steps=5, **options)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (rows, 4 * rows)
    assert receipt.relative_change[1] == pytest.approx(float(d.norm() / states[1][read.argmax()].norm()), rel=1e-5)

    plain = vector(llava, {sk.Key(1): -0.5 * d}, sk.Intervention(layers=(1,)))
    with sk.steer(llava, [steering, plain]) as receipt:
        generate(llava.model, inputs, steps=5, **options)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (3 * rows, 12 * rows)
    assert [each.prompt_tokens for each in receipt.vectors] == [rows, 3 * rows]
    assert [each.generated_tokens for each in receipt.vectors] == [4 * rows, 12 * rows]
    gated_size = float(d.norm() / states[1][read.argmax()].norm())
    assert receipt.vectors[0].relative_change[1] == pytest.approx(gated_size, rel=1e-5)


def test_a_gate_that_stays_shut_is_said_and_is_no_error(llava: sk.VLM) -> None:
    shut = sk.Intervention(layers=(1, 2), gate=Gate(measure=Measure(kind="projection"), threshold=1e6))
    with sk.steer(llava, vector(llava, directions(llava), shut)) as receipt:
        generate(llava.model, llava.inputs(WITH_IMAGE))
    assert not receipt.empty
    assert (receipt.layers, receipt.prompt_tokens, receipt.generated_tokens) == ([], 0, 0)
    assert str(receipt) == "nothing was steered: no gate was open"


def test_what_was_not_measured_is_not_reported() -> None:
    receipt = sk.Receipt()
    assert str(receipt) == "nothing was steered"
    receipt.add(2, "resid_post", prompt=0, generated=1, change=None)
    assert math.isnan(receipt.relative_change[2])
    assert str(receipt) == "steered 1 layer (2), 0 prompt and 1 generated tokens each"
    receipt.add(2, "mlp_out", prompt=2, generated=0, change=torch.tensor([0.25, 0.75]))
    assert receipt.relative_change == {2: 0.5}
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (2, 1)
    assert str(receipt).endswith("2 prompt and 1 generated tokens each, by up to 50.0 % of the hidden state")


def test_a_share_is_of_numbers_not_of_tensors() -> None:
    """Tensors of layers on two devices can't be added; in float32, as here, they would also lose the small one."""
    receipt = sk.Receipt()
    receipt.name(["one", "other"])
    for index, layer, change in ((0, 1, 2.0**24), (0, 2, 1.0), (1, 1, 2.0**24)):
        each = (index, 1, 0, torch.tensor([change]))
        receipt.add(layer, "resid_post", prompt=1, generated=0, change=None, shares=[each])
    one, other = receipt.vectors
    assert one.share == (2**24 + 1) / (2**25 + 1)
    assert other.share == 2**24 / (2**25 + 1)
