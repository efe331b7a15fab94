"""Interventions as data: each survives its JSON, and each impossible one is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from steerkit.errors import OptionError
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    Gates,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    StoredDirection,
    is_finite,
)
from steerkit.methods import CMRM

NAMED = StoredDirection(name="refusal", layer=3)
COSINE = Measure(kind="cosine", direction=NAMED, reference=StoredDirection(name="centre"), layer=2)
PROJECTION = Measure(kind="projection")

EVERY = {
    "add": Intervention(),
    "add relative": Intervention(operation=Add(direction=NAMED, relative=True), layers=(0, 5), site="mlp_out"),
    "add contrast": Intervention(
        operation=Add(direction=MeasuredContrast(positive="caption", negative="noise", form="literal", seed=7))
    ),
    "ablate": Intervention(operation=Ablate(direction=NAMED), tokens="all", norm_preserving=True),
    "add projection": Intervention(operation=AddProjection(contrast=MeasuredContrast(), direction=NAMED)),
    "clamp": Intervention(operation=Clamp(minimum=-1.5, maximum=2.0), site="attn_out", tower="vision"),
    "clamp below": Intervention(operation=Clamp(minimum=0.0)),
    "scale": Intervention(operation=Scale(factor=0.0), phase="generation", tokens="generated"),
    "gate": Intervention(gate=Gate(measure=COSINE, threshold=0.1, above=False), tokens="image", phase="prompt"),
    "gates": Intervention(gate=Gates(combine="all", gates=(Gate(measure=COSINE, threshold=0.1),) * 2), site="head_out"),
    "mean": Intervention(gate=Gate(measure=Measure(kind="tanh_cosine", layer=1, pool="mean"), threshold=0.0)),
    "state": Intervention(
        gate=Gate(
            measure=Measure(kind="projection", state=MeasuredContrast(negative=None, form="literal")), threshold=0
        )
    ),
    "per layer": Intervention(strength={3: 0.5, 10: -2.0}, layers=(3, 10)),
    "linear": Intervention(strength=LinearStrength(measure=PROJECTION, slope=2, intercept=1, minimum=0, maximum=3)),
}


@pytest.mark.parametrize("kind", EVERY)
def test_an_intervention_survives_its_json(kind: str) -> None:
    intervention = EVERY[kind]
    read = Intervention.model_validate_json(intervention.model_dump_json())
    assert read == intervention
    assert type(read.operation) is type(intervention.operation)
    assert type(read.strength) is type(intervention.strength)
    assert Intervention.model_validate(intervention.model_dump(mode="json")) == intervention


def test_the_json_says_what_the_intervention_is() -> None:
    assert EVERY["add relative"].model_dump(mode="json") == {
        "operation": {
            "kind": "add",
            "direction": {"source": "stored", "name": "refusal", "layer": 3},
            "relative": True,
        },
        "layers": [0, 5],
        "site": "mlp_out",
        "tower": "language",
        "tokens": "last",
        "phase": "both",
        "prompts": "all",
        "gate": None,
        "strength": 1.0,
        "norm_preserving": False,
    }


def _refused(problem: str, kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=problem) as caught:
        kind(**fields)
    assert next(iter(kind.model_fields)) in str(caught.value.expected)
    assert kind.__name__ in caught.value.problem


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Intervention, {}),
        (StoredDirection, {}),
        (MeasuredContrast, {}),
        (Add, {}),
        (Ablate, {}),
        (AddProjection, {"contrast": MeasuredContrast()}),
        (Clamp, {"minimum": 0.0}),
        (Scale, {"factor": 1.0}),
        (Measure, {"kind": "cosine"}),
        (Gate, {"measure": PROJECTION, "threshold": 0.0}),
        (LinearStrength, {"measure": PROJECTION, "slope": 1, "minimum": 0, "maximum": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unknown_keys_are_refused_and_known_ones_frozen(kind: type[Any], fields: dict[str, Any]) -> None:
    made = kind(**fields)
    _refused("Extra inputs are not permitted", kind, {**fields, "surprise": 1})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(kind.model_fields)), None)


@pytest.mark.parametrize(
    ("problem", "kind", "fields"),
    [
        ("with itself is zero", MeasuredContrast, {"positive": "blank"}),
        ("greater than or equal to 0", MeasuredContrast, {"seed": -1}),
        ("'text', 'caption'", MeasuredContrast, {"positive": "picture"}),
        ("pattern", StoredDirection, {"name": "a.b"}),
        ("pattern", StoredDirection, {"name": "a\n"}),
        ("at most 64", StoredDirection, {"name": "a" * 65}),
        ("greater than or equal to 0", StoredDirection, {"layer": -1}),
        ("minimum or a maximum", Clamp, {}),
        ("minimum 2.0 exceeds maximum 1.0", Clamp, {"minimum": 2, "maximum": 1}),
        ("finite number", Clamp, {"minimum": float("nan")}),
        ("finite number", Scale, {"factor": float("inf")}),
        ("Field required", Scale, {}),
        ("'projection', 'cosine' or 'tanh_cosine'", Measure, {"kind": "angle"}),
        ("greater than or equal to 0", Measure, {"kind": "cosine", "layer": -1}),
        ("finite number", Gate, {"measure": PROJECTION, "threshold": float("nan")}),
        (
            "minimum 1.0 exceeds maximum 0.0",
            LinearStrength,
            {"measure": PROJECTION, "slope": 1, "minimum": 1, "maximum": 0},
        ),
        ("Field required", LinearStrength, {"measure": PROJECTION, "slope": 1}),
        ("empty or repeat", Intervention, {"layers": ()}),
        (r"\[1, 1\] are empty or repeat", Intervention, {"layers": (1, 1)}),
        ("greater than or equal to 0", Intervention, {"layers": (-1,)}),
        ("'all'", Intervention, {"layers": "some"}),
        ("never occur in phase='prompt'", Intervention, {"tokens": "generated", "phase": "prompt"}),
        ("never occur in phase='generation'", Intervention, {"tokens": "image", "phase": "generation"}),
        ("never occur in phase='generation'", Intervention, {"tokens": "text", "phase": "generation"}),
        ("never occur in phase='generation'", Intervention, {"tokens": "system", "phase": "generation"}),
        ("never occur in phase='generation'", Intervention, {"tokens": "after_image", "phase": "generation"}),
        ("'resid_post', 'mlp_out', 'attn_out' or 'head_out'", Intervention, {"site": "resid_pre"}),
        ("finite number", Intervention, {"strength": float("inf")}),
        ("finite number", Intervention, {"strength": {0: float("nan")}}),
        ("negative layer", Intervention, {"strength": {-1: 1.0}}),
        ("does not match any of the expected tags", Intervention, {"operation": {"kind": "explode"}}),
        ("source", Intervention, {"operation": {"kind": "add", "direction": {"source": "elsewhere"}}}),
        ("stored", Intervention, {"operation": {"kind": "ablate", "direction": {"source": "contrast"}}}),
    ],
)
def test_what_is_impossible_is_refused(problem: str, kind: type[Any], fields: dict[str, Any]) -> None:
    _refused(problem, kind, fields)


def test_the_fixed_part_of_the_strength() -> None:
    assert Intervention(strength=2.5).strength_at(7) == 2.5
    assert [EVERY["per layer"].strength_at(layer) for layer in (3, 4, 10)] == [0.5, 0.0, -2.0]
    assert EVERY["linear"].strength_at(3) == 1.0


def test_every_direction_that_is_read_is_named_with_the_layer_it_is_read_at() -> None:
    assert EVERY["add"].stored == (StoredDirection(),)
    assert EVERY["add contrast"].stored == ()
    assert EVERY["add projection"].stored == (NAMED,)
    assert EVERY["gate"].stored == (StoredDirection(), NAMED, StoredDirection(name="centre", layer=2))
    assert EVERY["linear"].stored == (StoredDirection(), StoredDirection())
    assert EVERY["gate"].measures == (COSINE,)
    assert EVERY["linear"].measures == (PROJECTION,)
    both = EVERY["linear"].model_copy(update={"gate": EVERY["gate"].gate})
    assert both.measures == (COSINE, PROJECTION)


def test_the_contrast_that_must_be_measured() -> None:
    assert EVERY["add"].contrast is None
    assert EVERY["ablate"].contrast is None
    assert EVERY["add projection"].contrast == MeasuredContrast()
    assert EVERY["add contrast"].contrast == MeasuredContrast(
        positive="caption", negative="noise", form="literal", seed=7
    )


def test_only_finite_numbers_are_strengths() -> None:
    assert all(map(is_finite, (0, -2, 1.5, np.float32(2), np.int64(2), Fraction(1, 2))))
    assert not any(map(is_finite, (True, "1", None, 1j, float("nan"), float("inf"), np.float32("nan"), np.bool_(True))))


GATE = {"measure": PROJECTION, "threshold": 0.5}
ASKED: dict[str, tuple[type[Any], Any]] = {
    "strength": (Intervention, lambda x: {"strength": x}),
    "strength of a layer": (Intervention, lambda x: {"strength": {3: x}}),
    "layer of a strength": (Intervention, lambda x: {"strength": {x: 1.0}}),
    "layers": (Intervention, lambda x: {"layers": [0, x]}),
    "layers in a set": (Intervention, lambda x: {"layers": {x}}),
    "layers as they come": (Intervention, lambda x: {"layers": iter([x])}),
    "positions": (Intervention, lambda x: {"tokens": "all", "positions": [x]}),
    "end of a range": (Intervention, lambda x: {"tokens": "all", "positions": [[0, x]]}),
    "end of a slice": (Intervention, lambda x: {"tokens": "all", "positions": slice(x)}),
    "rows": (Intervention, lambda x: {"rows": [0.0, x]}),
    "steps": (Intervention, lambda x: {"steps": (x, 0.0)}),
    "gate, as a dictionary": (Intervention, lambda x: {"gate": {**GATE, "threshold": x}}),
    "layer in a dictionary in a list": (
        Gates,
        lambda x: {"gates": [{"measure": {"kind": "cosine", "layer": x}, "threshold": 0.0}]},
    ),
    "threshold": (Gate, lambda x: {**GATE, "threshold": x}),
    "layer of a measure": (Measure, lambda x: {"kind": "cosine", "layer": x}),
    "layer of a direction": (StoredDirection, lambda x: {"layer": x}),
    "seed": (MeasuredContrast, lambda x: {"seed": x}),
    "factor": (Scale, lambda x: {"factor": x}),
    "minimum": (Clamp, lambda x: {"minimum": x}),
    "slope": (LinearStrength, lambda x: {"measure": PROJECTION, "slope": x, "minimum": -9, "maximum": 9}),
    "option of a method": (CMRM, lambda x: {"alpha": x}),
    "layers of a method": (CMRM, lambda x: {"layers": [x]}),
    "seed of a method": (CMRM, lambda x: {"seed": x}),
}
TWO = (2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.int8))


@pytest.mark.parametrize("asked", ASKED)
def test_numbers_of_numpy_and_torch_are_numbers_and_truth_values_are_not(asked: str) -> None:
    kind, fields = ASKED[asked]
    keys = ("layer of a strength", "layers in a set")  # where an array can't be
    made = {repr(kind(**fields(two))) for two in TWO if asked not in keys or not isinstance(two, np.ndarray)}
    assert len(made) == 1
    for truth in (True, np.bool_(True), torch.tensor(True)):
        with pytest.raises(OptionError, match=r"True|not a finite number|valid integer"):
            kind(**fields(truth))
    nowhere = torch.tensor(2.0, device="meta")
    for wrong in (float("nan"), np.float32("nan"), torch.tensor(float("nan")), 1j, nowhere, "x"):
        with pytest.raises(OptionError):
            kind(**fields(wrong))


def test_arrays_and_tensors_are_lists_of_numbers() -> None:
    for of in (np.array, torch.tensor):
        made = Intervention(tokens="all", layers=of([3, 1]), positions=of([0, -1]), rows=of([1.0, 0.5]), steps=of([2]))
        assert made == Intervention(tokens="all", layers=(3, 1), positions=(0, -1), rows=(1.0, 0.5), steps=(2.0,))
    assert Intervention(layers=range(2, 5)).layers == (2, 3, 4)


def test_documents_are_read_as_before() -> None:
    with pytest.raises(ValidationError):
        Intervention.model_validate_json('{"strength": true}', strict=True)
    with pytest.raises(ValidationError):
        Intervention.model_validate({"layers": "x"})
    assert Intervention.model_validate_json('{"layers": [1], "strength": {"1": 2}}', strict=True).layers == (1,)
