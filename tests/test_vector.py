"""The algebra of steering vectors: what becomes of directions, doses and history, and what can't be combined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

import steerkit as sk
from steerkit.errors import LayerRangeError, ModelMismatchError, NonFiniteError, OptionError
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    StoredDirection,
)
from steerkit.vectors import (
    Key,
    MethodRecord,
    Metric,
    ModelRecord,
    PackMetadata,
    SteeringVector,
    StrengthPoint,
    StrengthRecord,
)

HIDDEN, LAYERS = 8, 4
ADD = Intervention(operation=Add())


def direction(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


A = {Key(0): direction(1), Key(2): direction(2)}
B = {Key(2): direction(3), Key(3): direction(4)}


def vector(tensors: dict[Key, Tensor], *interventions: Intervention, **model: Any) -> SteeringVector:
    record = {"architecture": "A", "model_type": "a", "hidden_size": HIDDEN, "layer_count": LAYERS} | model
    return SteeringVector(
        tensors,
        PackMetadata(
            method=MethodRecord(name="test"), interventions=interventions or (ADD,), model=ModelRecord(**record)
        ),
    )


def values(found: SteeringVector) -> dict[Key, np.ndarray]:
    return {key: tensor.double().numpy() for key, tensor in found.tensors.items()}


def assert_values(found: SteeringVector, expected: dict[Key, np.ndarray], tolerance: float = 1e-6) -> None:
    assert set(found.tensors) == set(expected)
    for key, value in expected.items():
        assert np.abs(values(found)[key] - value).max() < tolerance


def wide(tensors: dict[Key, Tensor]) -> dict[Key, np.ndarray]:
    return {key: tensor.double().numpy() for key, tensor in tensors.items()}


# -- sums and multiples ----------------------------------------------------------------------------------------------


def test_a_sum_adds_where_both_are_and_keeps_the_rest() -> None:
    a, b = wide(A), wide(B)
    assert_values(vector(A) + vector(B), {Key(0): a[Key(0)], Key(2): a[Key(2)] + b[Key(2)], Key(3): b[Key(3)]})


def test_vectors_are_summed_as_numbers_are() -> None:
    a, b = wide(A), wide(B)
    for three in (sum([vector(A), vector(B), vector(A)]), sum((each for each in (vector(B), vector(A))), vector(A))):
        assert isinstance(three, SteeringVector)
        assert_values(three, {Key(0): 2 * a[Key(0)], Key(2): 2 * a[Key(2)] + b[Key(2)], Key(3): b[Key(3)]})
    mean = sum([vector(A), vector(B)]) / 2
    assert_values(mean, {Key(0): a[Key(0)] / 2, Key(2): (a[Key(2)] + b[Key(2)]) / 2, Key(3): b[Key(3)] / 2})
    for wrong in (1, False, None, 0.5, "0"):
        with pytest.raises(TypeError):
            wrong + vector(A)  # type: ignore[operator]


@pytest.mark.parametrize("divisor", [0, -0.0, float("nan"), float("inf"), "2", True, 10**400, 1e-320, None])
def test_a_divisor_that_leaves_no_dose_is_refused(divisor: Any) -> None:
    with pytest.raises(OptionError, match="divided by") as caught:
        vector(A) / divisor
    assert caught.value.expected


def test_a_difference_subtracts() -> None:
    a, b = wide(A), wide(B)
    assert_values(vector(A) - vector(B), {Key(0): a[Key(0)], Key(2): a[Key(2)] - b[Key(2)], Key(3): -b[Key(3)]})


def test_the_negative_and_multiples_scale_added_directions_and_leave_the_dose() -> None:
    cases = (
        (-vector(A), -1.0),
        (vector(A) * 2.5, 2.5),
        (-3 * vector(A), -3.0),
        (vector(A) / 3, 1 / 3),
        (vector(A) / np.float32(-0.5), -2.0),
        (np.float64(2) * vector(A), 2.0),
        (vector(A) * torch.tensor(2), 2.0),
        (torch.tensor(0.5) * vector(A), 0.5),
        (vector(A) / torch.tensor(4.0), 0.25),
    )
    for found, factor in cases:
        assert_values(found, {key: factor * value for key, value in wide(A).items()})
        assert found.interventions == (ADD,)


RECORD = StrengthRecord(
    recommended=0.75,
    minimum=0.0,
    maximum=1.5,
    curve=(StrengthPoint(strength=0.75, unsafe=0.1), StrengthPoint(strength=1.5, cost=2.0, cost_kind="kl")),
    chosen_by="a rule",
)
METRIC = Metric(name="unsafe_rate", value=0.1)


def measured(*interventions: Intervention) -> SteeringVector:
    return vector(A, *interventions).with_metadata(strength=RECORD.model_dump(), metrics=(METRIC,))


def test_a_multiple_has_its_measured_strengths_in_its_own_unit() -> None:
    for made in (measured() * 3.0, 3 * measured(), measured(Intervention(operation=Ablate())) * 3.0):
        record = made.metadata.strength
        assert (record.recommended, record.minimum, record.maximum) == (0.25, 0.0, 0.5)
        assert [(point.strength, point.unsafe, point.cost, point.cost_kind) for point in record.curve] == [
            (0.25, 0.1, None, ""),
            (0.5, None, 2.0, "kl"),
        ]
        assert record.chosen_by == "a rule"
        assert made.metadata.metrics == ()
        assert SteeringVector.from_bytes(made.to_bytes()).metadata.strength == record
    assert measured().metadata.strength == RECORD


def test_a_multiple_of_a_vector_without_a_record_has_none() -> None:
    assert (vector(A) * 4.0).metadata.strength == StrengthRecord()


def test_nothing_measured_is_claimed_of_another_vector() -> None:
    for made in (-measured(), measured() * -0.5, measured() + vector(B), measured() - vector(B)):
        assert (made.metadata.strength, made.metadata.metrics) == (StrengthRecord(), ())
    for made in (measured().select([0]), measured().normalized()):
        assert (made.metadata.strength, made.metadata.metrics) == (StrengthRecord(), ())
    assert measured().to("bfloat16").metadata.strength == RECORD
    assert measured().to("bfloat16").metadata.metrics == (METRIC,)


STEERED = {
    "add": ADD,
    "add, by layer": ADD.model_copy(update={"strength": {0: 2.0, 1: 0.5, 2: 1.0, 3: 1.0}}),
    "add, norm kept": ADD.model_copy(update={"norm_preserving": True}),
    "add, relative": Intervention(operation=Add(relative=True), strength=0.1),
    "add, measured": ADD.model_copy(
        update={"strength": LinearStrength(measure=Measure(kind="cosine"), slope=2.0, minimum=-0.5, maximum=1.0)}
    ),
    "add, gated": ADD.model_copy(update={"gate": Gate(measure=Measure(kind="projection"), threshold=-1e9)}),
    "ablate": Intervention(operation=Ablate()),
    "clamp": Intervention(operation=Clamp(maximum=0.1)),
    "scale": Intervention(operation=Scale(factor=3.0)),
}


@pytest.mark.parametrize("name", STEERED)
def test_a_multiple_at_its_recommended_strength_steers_as_before(llava: sk.VLM, name: str) -> None:
    record = StrengthRecord(recommended=0.8, maximum=2.0).model_dump()
    before = reference.vector(llava, reference.directions(llava), STEERED[name]).with_metadata(strength=record)
    inputs = llava.inputs([sk.Sample("What is shown?")])

    def logits(each: SteeringVector, strength: float) -> Tensor:
        with sk.steer(llava, each, strength=strength, policy="off"), torch.no_grad():
            return llava.model(**inputs).logits

    expected = logits(before, before.metadata.strength.recommended)
    after = before * 2.5
    assert torch.allclose(logits(after, after.metadata.strength.recommended), expected, atol=1e-5)
    assert not torch.allclose(logits(after, before.metadata.strength.recommended), expected, atol=1e-4)


@pytest.mark.parametrize(
    "factor", [0, float("nan"), float("inf"), "2", True, 10**400, pytest.param(10**9999, id="huge")]
)
def test_a_factor_that_is_no_dose_is_refused(factor: Any) -> None:
    with pytest.raises(OptionError, match="scaled by") as caught:
        vector(A) * factor
    assert caught.value.expected


@pytest.mark.parametrize(
    "model", [{"architecture": "B"}, {"layer_count": LAYERS + 1}], ids=["another class", "another depth"]
)
def test_vectors_of_two_models_are_not_added(model: dict[str, Any]) -> None:
    with pytest.raises(ModelMismatchError, match="are added"):
        vector(A) + vector(A, **model)


def test_vectors_of_two_widths_are_not_added() -> None:
    narrow = vector({Key(0): torch.ones(HIDDEN - 1)}, hidden_size=HIDDEN - 1)
    with pytest.raises(ModelMismatchError, match="are added"):
        vector(A) + narrow


@pytest.mark.parametrize(
    "other",
    [
        Intervention(operation=Ablate()),
        Intervention(operation=Add(relative=True)),
        ADD.model_copy(update={"strength": 2.0}),
        ADD.model_copy(update={"tokens": "all"}),
        ADD.model_copy(update={"gate": Gate(measure=Measure(kind="cosine"), threshold=0.0)}),
    ],
)
def test_only_equal_additions_are_added(other: Intervention) -> None:
    for pair in ((vector(A), vector(A, other)), (vector(A, other), vector(A))):
        with pytest.raises(OptionError, match="not applied in the same way"):
            pair[0] + pair[1]
    if other.operation != ADD.operation or other.gate is not None:
        with pytest.raises(OptionError, match="not applied in the same way"):
            vector(A, other) + vector(A, other)


def test_a_vector_less_itself_is_refused_as_zero() -> None:
    with pytest.raises(OptionError, match="zero"):
        vector(A) - vector(A)


def test_a_sum_of_two_types_has_that_of_the_first() -> None:
    for first, second, expected in (("float32", "bfloat16", "float32"), ("bfloat16", "float32", "bfloat16")):
        total = vector(A).to(first) + vector(B).to(second)
        assert {str(tensor.dtype) for tensor in total.tensors.values()} == {f"torch.{expected}"}
        assert total.metadata.dtype == expected


# -- operations whose dose is scaled instead -------------------------------------------------------------------------

LINEAR = LinearStrength(measure=Measure(kind="projection"), slope=2, intercept=1, minimum=-1, maximum=3)
DOSED: dict[str, Intervention] = {
    "ablate": Intervention(operation=Ablate(), strength=0.5),
    "relative": Intervention(operation=Add(relative=True), strength=0.5),
    "contrast": Intervention(operation=Add(direction=MeasuredContrast()), strength=0.5),
    "projection": Intervention(operation=AddProjection(contrast=MeasuredContrast()), strength=0.5),
    "clamp": Intervention(operation=Clamp(minimum=0), strength=0.5),
    "scale": Intervention(operation=Scale(factor=2), strength=0.5),
    "gated": Intervention(gate=Gate(measure=Measure(kind="cosine"), threshold=0.1), strength=0.5),
    "per layer": Intervention(operation=Ablate(), strength={0: 0.5, 2: -1.0}),
}


@pytest.mark.parametrize("kind", DOSED)
def test_scaling_goes_to_the_dose_where_the_direction_must_not_change(kind: str) -> None:
    before = vector(A, DOSED[kind])
    after = before * -3
    assert after.digest() == before.digest()
    expected: Any = {0: -1.5, 2: 3.0} if kind == "per layer" else -1.5
    assert after.interventions == (DOSED[kind].model_copy(update={"strength": expected}),)
    assert before.interventions == (DOSED[kind],)


@pytest.mark.parametrize("factor", [2.0, -0.5])
def test_scaling_a_measured_strength_scales_the_function(factor: float) -> None:
    rule = (vector(A, ADD.model_copy(update={"strength": LINEAR})) * factor).interventions[0].strength
    assert isinstance(rule, LinearStrength)
    assert rule.measure == LINEAR.measure

    def dose(of: LinearStrength, measured: float) -> float:
        return float(np.clip(of.slope * measured + of.intercept, of.minimum, of.maximum))

    for measured in (-5.0, -0.9, 0.0, 0.7, 5.0):
        assert dose(rule, measured) == pytest.approx(factor * dose(LINEAR, measured))


@pytest.mark.parametrize("reader", [DOSED["clamp"], DOSED["gated"], DOSED["ablate"]], ids=["clamp", "gate", "ablation"])
def test_a_direction_that_something_else_reads_too_is_scaled_by_dose(reader: Intervention) -> None:
    """Scaled by -1, the direction itself would turn the clamp or the gate around."""
    before = vector(A, ADD, reader)
    after = -before
    assert after.digest() == before.digest()
    assert after.interventions == (
        ADD.model_copy(update={"strength": -1.0}),
        reader.model_copy(update={"strength": -0.5}),
    )


def test_of_two_interventions_each_is_scaled_in_its_own_way() -> None:
    named = Intervention(operation=Ablate(direction=StoredDirection(name="other")))
    after = vector({**A, Key(1, "resid_post", "other"): direction(9)}, ADD, named) * 2
    assert_values(
        after,
        {
            **{key: 2 * value for key, value in wide(A).items()},
            Key(1, "resid_post", "other"): wide({Key(0): direction(9)})[Key(0)],
        },
    )
    assert after.interventions == (ADD, named.model_copy(update={"strength": 2.0}))


# -- selection, norms, types -----------------------------------------------------------------------------------------


def test_selecting_keeps_the_directions_and_interventions_of_those_layers() -> None:
    chosen = vector(A).select([2])
    assert_values(chosen, {Key(2): wide(A)[Key(2)]})
    assert chosen.interventions[0].layers == (2,)
    both = vector(A).select([2, 0, 2])
    assert both.interventions[0].layers == (2, 0)


def test_selecting_drops_interventions_that_have_no_layer_left() -> None:
    low, high = ADD.model_copy(update={"layers": (0,)}), ADD.model_copy(update={"layers": (2,), "tokens": "all"})
    assert vector(A, low, high).select([0]).interventions == (low,)
    assert vector(A, low, high).select([2]).interventions == (high,)


def test_selecting_keeps_a_direction_that_is_read_at_another_layer() -> None:
    shared = Intervention(operation=Ablate(direction=StoredDirection(layer=2)))
    chosen = vector({Key(2): A[Key(2)]}, shared).select([0, 3])
    assert set(chosen.tensors) == {Key(2)}
    assert chosen.interventions[0].layers == (0, 3)
    gate = Gate(measure=Measure(kind="cosine", layer=0), threshold=0.0)
    gated = vector(A, Intervention(layers=(2,), gate=gate))
    assert set(gated.select([2]).tensors) == {Key(0), Key(2)}


def test_selecting_layers_of_a_measured_vector_narrows_it() -> None:
    measured = Intervention(operation=Add(direction=MeasuredContrast()))
    assert vector({}, measured).select([1, 3]).interventions[0].layers == (1, 3)


@pytest.mark.parametrize("layers", [[], [1], [0, 9], [-1]])
def test_selecting_layers_without_a_direction_is_refused(layers: list[int]) -> None:
    with pytest.raises(LayerRangeError):
        vector(A).select(layers)


def test_normalised_directions_have_norm_one_row_by_row() -> None:
    plane = {Key(1): direction(5, 3)}
    for tensors in (A, plane):
        found = vector(tensors, Intervention(operation=Ablate())).normalized()
        expected = {k: v / np.linalg.norm(v, axis=-1, keepdims=True) for k, v in wide(tensors).items()}
        assert_values(found, expected)


def test_normalising_leaves_the_reference_point_of_a_measure() -> None:
    point = Key(2, "resid_post", "centre")
    gate = Gate(measure=Measure(kind="projection", reference=StoredDirection(name="centre")), threshold=0.0)
    gated = vector({Key(2): A[Key(2)], point: direction(7)}, Intervention(gate=gate))
    found = gated.normalized()
    assert torch.equal(found.tensors[point], direction(7))
    assert float(found.tensors[Key(2)].norm()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_type_is_that_of_every_direction_and_of_the_metadata(dtype: Any) -> None:
    found = vector(A).to(dtype)
    assert found.metadata.dtype == dtype
    for key, tensor in A.items():
        assert torch.equal(found.tensors[key], tensor.to(getattr(torch, dtype)))


def test_the_type_of_the_metadata_follows_the_tensors() -> None:
    assert vector({Key(0): direction(1).half()}).metadata.dtype == "float16"


def test_values_that_do_not_fit_a_type_are_refused() -> None:
    with pytest.raises(NonFiniteError):
        (vector(A) * 1e6).to("float16")
    with pytest.raises(OptionError, match="float64"):
        vector(A).to("float64")  # type: ignore[arg-type]


# -- identity and immutability ---------------------------------------------------------------------------------------


def test_history_tells_what_was_done_in_order() -> None:
    derived = ((vector(A) * 2) + vector(B)).select([2]).normalized()
    assert derived.metadata.history == (
        "scale by 2",
        f"add test {vector(B).digest()[:12]}",
        "select layers [2]",
        "normalise",
    )
    assert vector(A).metadata.history == ()


def test_the_digest_depends_on_values_names_and_type_only() -> None:
    base = vector(A).digest()
    assert base == vector(dict(reversed(A.items()))).digest() == vector(A).with_metadata(description="x").digest()
    changed = A[Key(0)].clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    others = [
        vector({**A, Key(0): changed}),
        vector({Key(1): A[Key(0)], Key(2): A[Key(2)]}),
        vector(A).to("bfloat16"),
        vector({**A, Key(0): A[Key(0)][None]}),
        vector({Key(0): A[Key(0)]}),
    ]
    assert len({base, *(other.digest() for other in others)}) == 1 + len(others)


def test_a_derived_vector_forgets_the_digest_of_the_file() -> None:
    read = vector(A).with_metadata(tensors_sha256="0" * 64)
    for derived in (read * 2, read.to("bfloat16"), read.select([0])):
        assert derived.metadata.tensors_sha256 is None


@pytest.mark.parametrize(
    "derive",
    [
        lambda v: v * 2,
        lambda v: -v,
        lambda v: v + v,
        lambda v: v.select([0]),
        lambda v: v.normalized(),
        lambda v: v.to("float16"),
    ],
)
def test_algebra_leaves_its_operands_alone(derive: Callable[[SteeringVector], SteeringVector]) -> None:
    before = vector(A)
    digest, metadata = before.digest(), before.metadata
    assert derive(before) is not before
    assert before.digest() == digest
    assert before.metadata == metadata


def test_a_vector_can_not_be_changed() -> None:
    made = vector(A)
    with pytest.raises(AttributeError):
        made.metadata = made.metadata  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.tensors[Key(0)] = A[Key(2)]  # type: ignore[index]


def test_metadata_can_be_replaced_by_what_is_valid() -> None:
    made = vector(A).with_metadata(license="MIT", authors=("a",), strength={"recommended": 2.0})
    assert (made.metadata.license, made.metadata.authors, made.metadata.strength.recommended) == ("MIT", ("a",), 2.0)
    for fields in ({"surprise": 1}, {"strength": {"recommended": float("nan")}}, {"interventions": ()}):
        with pytest.raises(OptionError, match=next(iter(fields))):
            made.with_metadata(**fields)


def test_the_directions_are_those_of_the_first_intervention_that_stores_some() -> None:
    named = Intervention(operation=Add(direction=StoredDirection(name="second")))
    key = Key(1, "resid_post", "second")
    both = vector({**A, key: direction(8)}, named, ADD)
    assert list(both.directions) == [1]
    assert list(vector(A).directions) == [0, 2]
    assert vector({}, Intervention(operation=Add(direction=MeasuredContrast()))).directions == {}


def test_a_direction_is_found_at_its_layer_or_at_the_one_it_names() -> None:
    made = vector(A)
    assert torch.equal(made.direction(StoredDirection(), 2, "resid_post"), A[Key(2)])  # type: ignore[arg-type]
    assert torch.equal(made.direction(StoredDirection(layer=0), 2, "resid_post"), A[Key(0)])  # type: ignore[arg-type]
    assert made.direction(StoredDirection(), 1, "resid_post") is None
    assert made.direction(StoredDirection(), 2, "mlp_out") is None


def test_the_text_of_a_vector_says_what_it_is() -> None:
    assert repr(vector(A)) == "SteeringVector(test, A, layers=[0, 2], hidden=8, float32)"


# -- what is no vector -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({Key(0): torch.ones(HIDDEN + 1)}, OptionError),
        ({Key(0): torch.ones(1, 1, HIDDEN)}, OptionError),
        ({Key(0): torch.tensor(1.0)}, OptionError),
        ({Key(0): torch.ones(HIDDEN).double()}, OptionError),
        ({Key(0): torch.ones(HIDDEN).long()}, OptionError),
        ({Key(0): torch.zeros(HIDDEN)}, OptionError),
        ({Key(0): torch.cat([torch.ones(1, HIDDEN), torch.zeros(1, HIDDEN)])}, OptionError),
        ({Key(LAYERS): torch.ones(HIDDEN)}, LayerRangeError),
        ({Key(-1): torch.ones(HIDDEN)}, LayerRangeError),
        ({Key(0): torch.full((HIDDEN,), float("nan"))}, NonFiniteError),
        ({Key(0): torch.full((HIDDEN,), float("inf"))}, NonFiniteError),
        ({Key(0): torch.ones(HIDDEN), Key(1): torch.ones(HIDDEN).half()}, OptionError),
        ({}, OptionError),
        ({Key(0, "mlp_out"): torch.ones(HIDDEN)}, OptionError),
    ],
)
def test_impossible_directions_are_refused(tensors: dict[Key, Tensor], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        vector(tensors)
    assert caught.value.expected  # type: ignore[attr-defined]


GATE = Gate(measure=Measure(kind="cosine"), threshold=0.0)


@pytest.mark.parametrize(
    ("intervention", "error"),
    [
        (Intervention(layers=(LAYERS,)), LayerRangeError),
        (Intervention(layers=(0, 1)), OptionError),
        (Intervention(site="mlp_out"), OptionError),
        (Intervention(operation=Add(direction=StoredDirection(name="other"))), OptionError),
        (Intervention(operation=Ablate(direction=StoredDirection(layer=1))), OptionError),
        (Intervention(operation=Add(direction=MeasuredContrast()), gate=GATE), OptionError),
        (Intervention(layers=(0,), gate=Gate(measure=Measure(kind="cosine", layer=1), threshold=0)), OptionError),
        (Intervention(layers=(0,), gate=Gate(measure=Measure(kind="cosine", layer=9), threshold=0)), LayerRangeError),
    ],
)
def test_interventions_that_read_what_is_not_there_are_refused(
    intervention: Intervention, error: type[Exception]
) -> None:
    with pytest.raises(error):
        vector(A, intervention)


def test_a_measure_at_a_fixed_layer_needs_its_direction_there_only() -> None:
    key = Key(0, "resid_post", "gate")
    gate = Gate(measure=Measure(kind="cosine", direction=StoredDirection(name="gate"), layer=0), threshold=0.0)
    made = vector({Key(2): A[Key(2)], key: direction(5)}, Intervention(layers=(2,), gate=gate))
    assert set(made.tensors) == {Key(2), key}


@pytest.mark.parametrize(
    "make",
    [
        lambda: direction(1).to_sparse(),
        lambda: direction(1).to("meta"),
        lambda: torch.nested.nested_tensor([direction(1), direction(2)]),
        lambda: direction(1, 2).to_sparse_csr(),
    ],
    ids=["sparse", "meta", "nested", "csr"],
)
@pytest.mark.filterwarnings("ignore:.*prototype", "ignore:.*beta state")
def test_a_direction_that_is_not_dense_is_refused(make: Callable[[], Tensor]) -> None:
    with pytest.raises(OptionError, match="the direction at"):
        vector({Key(0): make()})


@pytest.mark.parametrize("layer", [True, np.bool_(True), torch.tensor(1), torch.tensor(True), 1.0, "1", None])
def test_a_layer_that_is_no_whole_number_is_refused(layer: Any) -> None:
    with pytest.raises(OptionError, match="the layer of"):
        vector({Key(layer): direction(1)})
    assert vector({Key(np.int64(1)): direction(1)}).tensors.keys() == {Key(1)}


@pytest.mark.parametrize("key", [Key(1, "resid"), Key(1, "resid_pre"), Key(1, tower="text"), (1, "hook_mlp_out")])  # type: ignore[arg-type]
def test_a_direction_at_a_place_that_there_is_not_is_refused_by_its_name(key: Any) -> None:
    name = key[3] if len(key) == 4 and key[3] == "text" else key[1]
    with pytest.raises(OptionError, match=f"of a direction is '{name}'"):
        vector({key: direction(1)})


def test_strengths_by_layer_are_of_layers_that_are_steered() -> None:
    made = vector(A, ADD)
    assert made.applied(strength={2: 0.5}).interventions[0].strength_at(2) == 0.5
    assert made.applied(strength={2: 0.5}).interventions[0].strength_at(0) == 0.0
    for given in ({}, {1: 0.5}, {2: 0.5, 99: 1.0}):
        with pytest.raises(OptionError, match=r"the strengths \{.* are of layers") as caught:
            made.applied(strength=given)
        assert "[0, 2]" in str(caught.value.expected)
    measured = LinearStrength(measure=Measure(kind="projection"), slope=1.0, minimum=0.0, maximum=2.0)
    assert made.applied(strength=measured.model_dump()).interventions == made.applied(strength=measured).interventions
