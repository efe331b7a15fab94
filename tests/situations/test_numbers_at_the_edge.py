"""Directions of any length, and sums that no longer fit their type: the line's effect, or a clear error; never NaN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import WITH_IMAGE, captured, generate, vector
from torch import Tensor

import steerkit as sk
from steerkit.errors import NonFiniteError, NothingSteeredError, SteerKitError
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    StoredDirection,
)

NORMS = (1e-42, 1e-38, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e30, 1e37)
HUGE = pytest.mark.parametrize("norm", NORMS)
ROUNDED = 2e-2
"""How far the entries of a direction of norm 1e-42 are rounded: float32 has steps of 1.4e-45 there."""


def line(width: int) -> Tensor:
    made = torch.randn(width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return made / made.norm()


def stored(vlm: sk.VLM, norm: float, rows: int = 1) -> Tensor:
    """The line at a length, in float32; of several rows, each at another length."""
    unit = line(vlm.record.hidden_size)
    if rows == 1:
        return (unit * norm).float()
    other = torch.roll(unit, 7)
    return torch.stack([unit * norm, other * min(norm * 1e3, 1e37)]).float()


MEASURE = Measure(kind="projection", direction=StoredDirection(name="read"))
GATED: dict[str, Any] = {
    "projection": {"gate": Gate(measure=MEASURE, threshold=0.0)},
    "cosine": {"gate": Gate(measure=MEASURE.model_copy(update={"kind": "cosine"}), threshold=0.01)},
    "tanh": {"gate": Gate(measure=MEASURE.model_copy(update={"kind": "tanh_cosine"}), threshold=0.05)},
    "strength": {"strength": LinearStrength(measure=MEASURE, slope=0.5, minimum=-2.0, maximum=2.0)},
}


def along(h: Tensor, unit: Tensor) -> Tensor:
    return (h @ unit)[:, None] * unit


# name: the operation, and what it does to float64 states along a unit direction
LINES: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "relative": (Add(relative=True), lambda h, u: h + h.norm(dim=1, keepdim=True) * u),
    "ablate": (Ablate(), lambda h, u: h - along(h, u)),
    "scale": (Scale(factor=3.0), lambda h, u: h + 2.0 * along(h, u)),
    "clamp": (Clamp(minimum=0.5, maximum=0.75), lambda h, u: h + ((h @ u).clamp(0.5, 0.75) - h @ u)[:, None] * u),
}


def states(vlm: sk.VLM, made: sk.SteeringVector) -> Tensor:
    with sk.steer(vlm, made, policy="off"):
        return captured(vlm.model, "llava", vlm.inputs(WITH_IMAGE))[1].double()


@HUGE
@pytest.mark.parametrize("name", LINES)
def test_an_operation_that_uses_a_line_does_not_depend_on_its_length(llava: sk.VLM, name: str, norm: float) -> None:
    operation, change = LINES[name]
    direction = stored(llava, norm)
    exact = direction.double() / direction.double().norm()
    made = vector(llava, {sk.Key(1): direction}, sk.Intervention(operation=operation, layers=(1,)))
    plain = captured(llava.model, "llava", llava.inputs(WITH_IMAGE))[1].double()
    expected = change(plain, exact)
    assert float((states(llava, made) - expected).abs().max()) < 2e-5
    assert float((expected - plain).abs().max()) > 1e-2
    assert float((change(plain, line(exact.numel())) - expected).abs().max()) < (ROUNDED if norm < 1e-37 else 1e-5)


@HUGE
def test_a_span_does_not_depend_on_the_lengths_of_its_rows(llava: sk.VLM, norm: float) -> None:
    rows = stored(llava, norm, rows=2)
    made = vector(llava, {sk.Key(1): rows}, sk.Intervention(operation=Ablate(), layers=(1,)))
    units = rows.double() / rows.double().norm(dim=1, keepdim=True)
    plain = captured(llava.model, "llava", llava.inputs(WITH_IMAGE))[1].double()
    expected = plain - plain @ torch.linalg.pinv(units) @ units
    assert float((states(llava, made) - expected).abs().max()) < 2e-5


@HUGE
@pytest.mark.parametrize("kind", GATED)
def test_a_measure_does_not_depend_on_the_length_of_its_direction(llava: sk.VLM, kind: str, norm: float) -> None:
    direction, read = stored(llava, 3.0), stored(llava, norm)
    tensors = {sk.Key(1): direction, sk.Key(1, name="read"): torch.roll(read, 5)}
    unit = torch.roll(read.double(), 5)
    unit = unit / unit.norm()
    plain = captured(llava.model, "llava", llava.inputs(WITH_IMAGE))[1].double()
    squashed = torch.tanh(along(plain, unit))
    value = {
        "projection": plain @ unit,
        "cosine": plain @ unit / plain.norm(dim=1),
        "tanh": (plain * squashed).sum(1) / plain.norm(dim=1) / squashed.norm(dim=1),
        "strength": plain @ unit,
    }[kind]
    given = dict(GATED[kind])
    if kind == "strength":
        factor = (0.5 * value).clamp(-2.0, 2.0)
    else:  # halfway between two of the three prompts, so that it is open for some
        ordered = value.sort().values
        threshold = float(ordered[0] + ordered[1]) / 2
        given = {"gate": given["gate"].model_copy(update={"threshold": threshold})}
        factor = (value > threshold).double()
    made = vector(llava, tensors, sk.Intervention(layers=(1,), **given))
    expected = plain + factor[:, None] * direction.double()
    assert float((states(llava, made) - expected).abs().max()) < 2e-5
    assert float((expected - plain).abs().max()) > 1e-2


@HUGE
def test_a_projection_of_a_contrast_does_not_depend_on_the_length(llava: sk.VLM, norm: float) -> None:
    contrast = MeasuredContrast(positive="blank", negative="original", form="literal")
    operation = AddProjection(contrast=contrast)
    answers = [
        states(llava, vector(llava, {sk.Key(1): direction}, sk.Intervention(operation=operation, layers=(1,))))
        for direction in (
            stored(llava, norm),
            (stored(llava, norm).double() / stored(llava, norm).double().norm()).float(),
        )
    ]
    assert float((answers[0] - answers[1]).abs().max()) < 2e-5
    assert torch.isfinite(answers[0]).all()


@HUGE
def test_normalising_works_at_any_length_and_in_a_pack(llava: sk.VLM, norm: float, tmp_path: Path) -> None:
    direction = stored(llava, norm)
    made = vector(llava, {sk.Key(1): direction}, sk.Intervention(layers=(1,)))
    read = sk.SteeringVector.load(made.save(tmp_path / "edge.safetensors"))
    exact = direction.double() / direction.double().norm()
    assert float((read.normalized().tensors[sk.Key(1)].double() - exact).abs().max()) < 1e-6


# -- additions: here the length counts -------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "strength"), [(1e37, 1.0), (1e37, 1e3), (1.0, 1e25)])
def test_an_addition_that_no_norm_of_the_model_survives_is_refused(llava: sk.VLM, norm: float, strength: float) -> None:
    made = vector(llava, {sk.Key(1): stored(llava, norm)}, sk.Intervention(layers=(1,)))
    with pytest.raises(NonFiniteError, match="at layer 1"):
        sk.steer(llava, made, strength=strength, policy="off")


def test_an_addition_of_any_length_is_brought_to_size_by_the_strength(llava: sk.VLM) -> None:
    plain = captured(llava.model, "llava", llava.inputs(WITH_IMAGE))[1].double()
    for norm in (1e-30, 1e30):
        direction = stored(llava, norm)
        made = vector(llava, {sk.Key(1): direction}, sk.Intervention(layers=(1,)))
        with sk.steer(llava, made, strength=5.0 / norm, policy="off"):
            found = captured(llava.model, "llava", llava.inputs(WITH_IMAGE))[1].double()
        assert float((found - plain - 5.0 * direction.double() / norm).abs().max()) < 2e-5


@pytest.mark.parametrize("norm", [1e-42, 1e-20, 1e-9])
def test_an_addition_that_rounding_swallows_is_said(llava: sk.VLM, norm: float) -> None:
    made = vector(llava, {sk.Key(1): stored(llava, norm)}, sk.Intervention(layers=(1,)))
    with pytest.raises(NothingSteeredError, match="lost to rounding"), sk.steer(llava, made, policy="off"):
        generate(llava.model, llava.inputs(WITH_IMAGE))


def test_what_cancels_is_not_said_to_be_lost(llava: sk.VLM) -> None:
    made = vector(llava, {sk.Key(1): stored(llava, 3.0)}, sk.Intervention(layers=(1,)))
    with sk.steer(llava, [made, -made], policy="off") as receipt:
        generate(llava.model, llava.inputs(WITH_IMAGE))
    assert receipt.relative_change == {1: 0.0}


@pytest.fixture
def half(llava: sk.VLM) -> sk.VLM:
    return sk.wrap(copy.deepcopy(llava.model).half(), llava.processor)


def spike(vlm: sk.VLM, size: float) -> sk.SteeringVector:
    direction = torch.zeros(vlm.record.hidden_size)
    direction[5] = size
    return vector(vlm, {sk.Key(1): direction}, sk.Intervention(layers=(1,), tokens="all"))


def test_a_sum_that_overflows_half_precision_is_refused_before_anything_runs(half: sk.VLM, llava: sk.VLM) -> None:
    with pytest.raises(NonFiniteError, match="float16"):
        sk.steer(half, spike(half, 70000.0), policy="off")
    with pytest.raises(NonFiniteError, match="the sum of 2 additions at layer 1"):
        sk.steer(half, [spike(half, 40000.0)] * 2, policy="off")
    sk.steer(llava, [spike(llava, 40000.0)] * 2, policy="off")  # in float32 it fits


@pytest.mark.parametrize("tokens", ["all", "last", "generated"])
def test_a_state_that_overflows_half_precision_is_an_error_and_not_nan(half: sk.VLM, tokens: Any) -> None:
    """Two additions, each of which fits, at layers one after the other."""
    direction = torch.zeros(half.record.hidden_size)
    direction[5] = 40000.0
    tensors = {sk.Key(1): direction, sk.Key(2): direction}
    made = vector(half, tensors, sk.Intervention(tokens=tokens))
    with pytest.raises(NonFiniteError, match="float16"), sk.steer(half, made, policy="off"):
        generate(half.model, half.inputs(WITH_IMAGE))


@pytest.mark.parametrize("more", [{}, {"steps": [1.0, 0.5]}, GATED["projection"]], ids=["plain", "steps", "gate"])
def test_a_model_that_is_halved_inside_the_block(llava: sk.VLM, more: dict[str, Any]) -> None:
    inner = sk.wrap(copy.deepcopy(llava.model), llava.processor)
    read = {sk.Key(1, name="read"): stored(inner, 1.0)}
    fits = vector(inner, {sk.Key(1): stored(inner, 3.0), **read}, sk.Intervention(layers=(1,), **more))
    huge = vector(inner, {sk.Key(1): stored(inner, 1e6), **read}, sk.Intervention(layers=(1,), **more))
    inputs = inner.inputs(WITH_IMAGE)

    def halved() -> Any:
        inner.model.half()
        return generate(inner.model, {**inputs, "pixel_values": inputs["pixel_values"].half()}).logits

    with sk.steer(inner, fits, policy="off") as receipt:
        logits = halved()
    assert all(torch.isfinite(each).all() for each in logits)
    assert receipt.relative_change[1] > 0 or more == GATED["projection"]
    inner.model.float()
    with pytest.raises(NonFiniteError, match="float16"), sk.steer(inner, huge, policy="off"):
        halved()


@HUGE
def test_nothing_is_nan_whatever_is_asked(llava: sk.VLM, norm: float) -> None:
    """Every operation, plain or with its norm preserved: finite logits, or an error of the library's own."""
    contrast = MeasuredContrast(form="literal")
    operations = [Add(), Add(direction=contrast, relative=True), *(each for each, _ in LINES.values())]
    operations.append(AddProjection(contrast=contrast))
    for operation in operations:
        for keeps in (False, True):
            change = sk.Intervention(operation=operation, layers=(1,), tokens="all", norm_preserving=keeps)
            made = vector(llava, {sk.Key(1): stored(llava, norm)}, change)
            try:
                with sk.steer(llava, made, policy="off"):
                    found = generate(llava.model, llava.inputs(WITH_IMAGE), steps=2)
            except SteerKitError:
                assert isinstance(operation, Add)
                assert not operation.relative
                continue
            assert all(torch.isfinite(each).all() for each in found.logits), operation
