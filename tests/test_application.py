"""Every operation, site, gate and strength on a model, against the same formula in plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import (
    CACHE,
    TEXT_ONLY,
    WITH_IMAGE,
    Change,
    Edit,
    cache_of,
    captured,
    directions,
    distance,
    edited,
    generate,
    only,
    picture,
    prompt_length,
    since,
    vector,
    white,
)
from torch import Tensor

import steerkit as sk
from steerkit.engines.application import Application
from steerkit.errors import EngineError, LayerRangeError, OptionError
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Operation,
    Scale,
    StoredDirection,
)

CLEARLY = 1e-2
ROUNDING = 2e-5
"""Of logits, where a formula is written in another way than in `ops`."""

Formula = Callable[[Tensor, Tensor], Tensor]
"""`h [n, hidden]`, `d [hidden]` or `[k, hidden]` to the changed h."""


def unit(d: Tensor) -> Tensor:
    return d / d.norm()


def without(h: Tensor, d: Tensor, share: float = 1.0) -> Tensor:
    """Remove the span of rows of d, by the normal equations instead of a singular value decomposition."""
    rows = torch.atleast_2d(d).double()
    weights = torch.linalg.solve(rows @ rows.T, rows @ h.double().T)
    return (h.double() - share * (rows.T @ weights).T).float()


def clamped(h: Tensor, d: Tensor, low: float, high: float) -> Tensor:
    along = torch.einsum("nh,h->n", h, unit(d))
    bounded = torch.maximum(torch.minimum(along, torch.tensor(high)), torch.tensor(low))
    return h + torch.outer(bounded - along, unit(d))


def to_norm(changed: Tensor, h: Tensor) -> Tensor:
    return changed / changed.norm(dim=1, keepdim=True) * h.norm(dim=1, keepdim=True)


OPERATIONS: dict[str, tuple[Operation, Formula]] = {
    "add": (Add(), lambda h, d: h + 0.5 * d),
    "add_relative": (Add(relative=True), lambda h, d: h + 0.5 * torch.outer(h.norm(dim=1), unit(d))),
    "ablate": (Ablate(), lambda h, d: without(h, d, 0.5)),
    "clamp": (Clamp(minimum=1.0, maximum=2.0), lambda h, d: h + 0.5 * (clamped(h, d, 1.0, 2.0) - h)),
    "scale": (Scale(factor=-2.0), lambda h, d: h - 0.5 * 3 * torch.outer(h @ unit(d), unit(d))),
}


def steered(vlm: sk.VLM, tensors: dict[sk.Key, Tensor], interventions: Any, inputs: Any, **options: Any) -> Any:
    chosen = interventions if isinstance(interventions, tuple) else (interventions,)
    with sk.steer(vlm, vector(vlm, tensors, *chosen), policy="off", **options):  # some doses are large
        return generate(vlm.model, inputs)


def compare(vlm: sk.VLM, family: str, found: Any, edits: list[Edit], inputs: Any, tolerance: float = ROUNDING) -> None:
    """Equal to the edits, and unlike the unsteered answer."""
    with edited(vlm.model, family, edits):
        expected = generate(vlm.model, inputs)
    assert distance(found, expected) <= tolerance
    assert distance(found, generate(vlm.model, inputs)) > CLEARLY


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("norm_preserving", [False, True], ids=["free", "norm"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_operations(llava: sk.VLM, name: str, norm_preserving: bool, site: Any) -> None:
    operation, formula = OPERATIONS[name]
    inputs = llava.inputs(WITH_IMAGE)
    tensors = directions(llava, site=site)
    intervention = sk.Intervention(operation=operation, norm_preserving=norm_preserving, site=site)
    found = steered(llava, tensors, intervention, inputs, strength=0.5)

    def change(d: Tensor) -> Change:
        return lambda h, rows: to_norm(formula(h, d), h) if norm_preserving else formula(h, d)

    where = since(prompt_length("llava", inputs) - 1)
    edits = [Edit(key.layer, where, change(d), site) for key, d in tensors.items()]
    compare(llava, "llava", found, edits, inputs, 0.0 if name == "add" and not norm_preserving else ROUNDING)


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_sites_inside_the_blocks_of_every_family(family: str, vlm: sk.VLM, site: Any) -> None:
    inputs = vlm.inputs(WITH_IMAGE)
    tensors = directions(vlm, site=site)
    found = steered(vlm, tensors, sk.Intervention(site=site), inputs)
    where = since(prompt_length(family, inputs) - 1)
    edits = [Edit(key.layer, where, lambda h, rows, d=d: h + d, site) for key, d in tensors.items()]
    compare(vlm, family, found, edits, inputs, 0.0)


def test_ablates_a_subspace(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    stacked = {key: torch.stack([d, directions(llava, seed=1)[key], d * 2]) for key, d in directions(llava).items()}
    found = steered(llava, stacked, sk.Intervention(operation=Ablate(), tokens="all"), inputs)
    plane = {key: rows[:2] for key, rows in stacked.items()}
    real = inputs["attention_mask"].bool()

    def where(positions: Tensor) -> Tensor:
        padded = torch.cat([real, torch.ones(3, 9, dtype=torch.bool)], dim=1)
        return padded[:, positions]

    edits = [Edit(key.layer, where, lambda h, rows, d=d: without(h, d)) for key, d in plane.items()]
    compare(llava, "llava", found, edits, inputs, 1e-4)
    one = steered(llava, {key: rows[0] for key, rows in stacked.items()}, sk.Intervention(operation=Ablate()), inputs)
    assert distance(found, one) > CLEARLY


def test_adds_the_projection_of_a_contrast(llava: sk.VLM) -> None:
    """ShiftDC: the part of what the image does that lies along a direction is taken back."""
    inputs = llava.inputs(WITH_IMAGE)
    tensors = directions(llava)
    operation = AddProjection(contrast=MeasuredContrast(form="literal"))
    found = steered(llava, tensors, sk.Intervention(operation=operation, phase="prompt"), inputs, strength=2.0)
    text = captured(llava.model, "llava", llava.inputs(TEXT_ONLY))
    blank = captured(llava.model, "llava", llava.inputs([white(sample) for sample in WITH_IMAGE]))

    def change(layer: int, d: Tensor) -> Change:
        part = torch.outer((text[layer] - blank[layer]) @ unit(d), unit(d))
        return lambda h, rows: h + 2 * part[rows]

    where = only(prompt_length("llava", inputs) - 1)
    compare(llava, "llava", found, [Edit(key.layer, where, change(key.layer, d)) for key, d in tensors.items()], inputs)


@pytest.mark.parametrize("kind", ["projection", "cosine"])
@pytest.mark.parametrize("above", [True, False])
def test_gates_each_token(llava: sk.VLM, kind: Any, above: bool) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    tensors = directions(llava)
    passed: list[Tensor] = []
    gate = Gate(measure=Measure(kind=kind), threshold=0.0, above=above)
    found = steered(llava, tensors, sk.Intervention(operation=Add(), tokens="all", gate=gate), inputs)
    real = inputs["attention_mask"].bool()

    def where(positions: Tensor) -> Tensor:
        return torch.cat([real, torch.ones(3, 9, dtype=torch.bool)], dim=1)[:, positions]

    def change(d: Tensor) -> Change:
        def run(h: Tensor, rows: Tensor) -> Tensor:
            opened = (h @ d > 0) == above
            passed.append(opened)
            return torch.where(opened[:, None], h + d, h)

        return run

    compare(llava, "llava", found, [Edit(key.layer, where, change(d)) for key, d in tensors.items()], inputs, 0.0)
    assert 0.1 < torch.cat(passed).float().mean() < 0.9
    assert distance(found, steered(llava, tensors, sk.Intervention(tokens="all"), inputs)) > CLEARLY


def reading(llava: sk.VLM, inputs: Any) -> tuple[dict[sk.Key, Tensor], Tensor]:
    """Directions for the layers 2 and 3 with a reference and a condition at layer 1, and the prompts' projections."""
    tensors = {key: d for key, d in directions(llava).items() if key.layer >= 2}
    condition, point = directions(llava, seed=7)[sk.Key(1)], directions(llava, norm=1.0, seed=8)[sk.Key(1)]
    tensors |= {sk.Key(1, name="condition"): condition, sk.Key(1, name="point"): point}
    return tensors, (captured(llava.model, "llava", inputs)[1] - point) @ unit(condition)


def between(values: Tensor) -> float:
    """The middle of the widest gap between values: no rounding puts one of them on its other side."""
    ordered = values.sort().values
    at = int(ordered.diff().argmax())
    return float(ordered[at] + ordered[at + 1]) / 2


def condition(**options: Any) -> Measure:
    at = {"layer": 1}
    return Measure(
        kind="projection",
        direction=StoredDirection(name="condition", **at),
        reference=StoredDirection(name="point", **at),
        **options,
    )


def test_a_gate_read_at_a_layer_holds_for_the_answer(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    tensors, values = reading(llava, inputs)
    low, middle, high = values.sort().values.tolist()
    threshold = (middle + high) / 2
    gate = Gate(measure=condition(layer=1), threshold=threshold)
    found = steered(llava, tensors, sk.Intervention(layers=(2, 3), gate=gate), inputs)

    opened = values > threshold
    assert opened.sum() == 1
    where = since(prompt_length("llava", inputs) - 1)
    edits = [
        Edit(layer, where, lambda h, rows, d=d: torch.where(opened[rows][:, None], h + d, h))
        for (layer, *_), d in tensors.items()
        if layer >= 2
    ]
    compare(llava, "llava", found, edits, inputs, 0.0)
    assert low < threshold


def test_a_gate_read_at_a_layer_follows_its_prompt_through_beams(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    tensors, values = reading(llava, inputs)
    gate = Gate(measure=condition(layer=1), threshold=between(values))
    steering = vector(llava, tensors, sk.Intervention(layers=(2, 3), gate=gate))
    with sk.steer(llava, steering):
        found = generate(llava.model, inputs, num_beams=3)
    opened = (values > gate.threshold).repeat_interleave(3)
    where = since(prompt_length("llava", inputs) - 1)
    edits = [
        Edit(layer, where, lambda h, rows, d=d: torch.where(opened[rows][:, None], h + d, h))
        for (layer, *_), d in tensors.items()
        if layer >= 2
    ]
    with edited(llava.model, "llava", edits):
        expected = generate(llava.model, inputs, num_beams=3)
    assert distance(found, expected) == 0.0
    assert distance(found, generate(llava.model, inputs, num_beams=3)) > CLEARLY


@pytest.mark.parametrize("layer", [None, 1])
def test_strength_as_a_bounded_function_of_a_measure(llava: sk.VLM, layer: int | None) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    tensors, values = reading(llava, inputs)
    measure = condition(layer=1) if layer is not None else Measure(kind="cosine")
    slope, bounds = (0.3, (-0.4, 0.4)) if layer is not None else (4.0, (-0.5, 0.5))
    rule = LinearStrength(measure=measure, slope=slope, intercept=0.1, minimum=bounds[0], maximum=bounds[1])
    found = steered(llava, tensors, sk.Intervention(layers=(2, 3), strength=rule), inputs, strength=1.5)

    def change(d: Tensor) -> Change:
        def run(h: Tensor, rows: Tensor) -> Tensor:
            value = values[rows] if layer is not None else torch.cosine_similarity(h, d[None], dim=1)
            dose = (slope * value + 0.1).clamp(*bounds)
            return h + torch.outer(1.5 * dose, d)

        return run

    where = since(prompt_length("llava", inputs) - 1)
    compare(llava, "llava", found, [Edit(at, where, change(tensors[sk.Key(at)])) for at in (2, 3)], inputs)


def test_strength_by_layer(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    tensors = directions(llava)
    found = steered(llava, tensors, sk.Intervention(strength={0: 0.5, 2: -1.0}), inputs)
    where = since(prompt_length("llava", inputs) - 1)
    edits = [
        Edit(0, where, lambda h, rows: h + 0.5 * tensors[sk.Key(0)]),
        Edit(2, where, lambda h, rows: h - tensors[sk.Key(2)]),
    ]
    compare(llava, "llava", found, edits, inputs, 0.0)


def test_a_direction_of_one_layer_serves_others(llava: sk.VLM) -> None:
    """The refusal direction: one layer's direction, ablated everywhere."""
    inputs = llava.inputs(WITH_IMAGE)
    d = directions(llava)[sk.Key(2)]
    operation = Ablate(direction=StoredDirection(layer=2))
    found = steered(llava, {sk.Key(2): d}, sk.Intervention(operation=operation), inputs)
    where = since(prompt_length("llava", inputs) - 1)
    compare(llava, "llava", found, [Edit(at, where, lambda h, rows: without(h, d)) for at in range(4)], inputs)


def test_equal_measures_at_two_sites_are_read_apart(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    at_output, at_mlp = directions(llava), directions(llava, site="mlp_out")
    tensors = {**at_output, **at_mlp}
    rule = LinearStrength(measure=Measure(kind="projection", layer=1), slope=0.2, minimum=-1, maximum=1)
    interventions = (
        sk.Intervention(layers=(2, 3), strength=rule),
        sk.Intervention(layers=(2, 3), strength=rule, site="mlp_out"),
    )
    found = steered(llava, tensors, interventions, inputs)
    where = since(prompt_length("llava", inputs) - 1)
    edits = []
    for site, those in (("resid_post", at_output), ("mlp_out", at_mlp)):
        d = those[sk.Key(1, site)]
        doses = (0.2 * captured(llava.model, "llava", inputs, site)[1] @ unit(d)).clamp(-1, 1)
        edits += [
            Edit(at, where, lambda h, rows, d=each, s=doses: h + torch.outer(s[rows], d), site)
            for (at, *_), each in those.items()
            if at >= 2
        ]
    compare(llava, "llava", found, edits, inputs)


def test_contrasts_on_overlapping_layers_are_measured_apart(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    low = sk.CMRM(level="sample", counterpart="blank", layers=(0, 1, 2)).fit(llava)
    high = sk.CMRM(level="sample", counterpart="blank", layers=(1, 3)).fit(llava)
    with sk.steer(llava, [low, high]):
        found = generate(llava.model, inputs)
    text = captured(llava.model, "llava", llava.inputs(TEXT_ONLY))
    blank = captured(llava.model, "llava", llava.inputs([white(sample) for sample in WITH_IMAGE]))
    shift = [a - b for a, b in zip(text, blank, strict=True)]
    added = {0: [shift[0]], 1: [shift[1] - shift[0], shift[1]], 2: [shift[2] - shift[1]], 3: [shift[3] - shift[1]]}
    where = only(prompt_length("llava", inputs) - 1)
    edits = [
        Edit(layer, where, lambda h, rows, c=c: h + c[rows]) for layer, contrasts in added.items() for c in contrasts
    ]
    compare(llava, "llava", found, edits, inputs, 0.0)


def test_a_held_measure_needs_its_prompt(llava: sk.VLM) -> None:
    inputs = llava.inputs(TEXT_ONLY[:1])
    tensors, _ = reading(llava, inputs)
    steering = vector(
        llava, tensors, sk.Intervention(layers=(2, 3), gate=Gate(measure=condition(layer=1), threshold=0))
    )
    with torch.no_grad():
        cache = cache_of(llava.model(**inputs, use_cache=True))
        with pytest.raises(EngineError, match="continues from a KV cache"), sk.steer(llava, steering):
            llava.model(input_ids=torch.tensor([[70]]), **{CACHE: cache})


# -- refusals, before anything runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervention", "error", "message"),
    [
        (
            sk.Intervention(layers=(0, 1), gate=Gate(measure=Measure(kind="cosine", layer=1), threshold=0)),
            EngineError,
            "comes before",
        ),
    ],
)
def test_refuses(llava: sk.VLM, intervention: sk.Intervention, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sk.steer(llava, vector(llava, directions(llava), intervention))


@pytest.mark.parametrize("operation", [Add(), Add(relative=True), Clamp(minimum=0.0), Scale(factor=2.0)])
def test_refuses_several_directions_where_one_is_meant(llava: sk.VLM, operation: Operation) -> None:
    stacked = {key: torch.stack([d, -d]) for key, d in directions(llava).items()}
    with pytest.raises(EngineError, match="reads 2 directions"):
        sk.steer(llava, vector(llava, stacked, sk.Intervention(operation=operation)))


def test_refuses_layers_that_the_model_lacks(llava: sk.VLM) -> None:
    taller = vector(llava, {sk.Key(6): torch.ones(48)}, layer_count=8)
    with pytest.raises(LayerRangeError, match="steers layer 6"):
        Application([taller], [1.0], llava.architecture, sk.Receipt(), lambda *_: {})


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), True, "1"])
def test_refuses_strengths_that_are_no_numbers(llava: sk.VLM, strength: Any) -> None:
    with pytest.raises(OptionError, match="strength is"):
        sk.steer(llava, vector(llava, directions(llava)), strength=strength)


def test_places_follow_the_forward_pass(llava: sk.VLM) -> None:
    tensors = {**directions(llava), **directions(llava, site="attn_out"), **directions(llava, site="mlp_out")}
    interventions = [
        sk.Intervention(layers=(1, 0), site="mlp_out"),
        sk.Intervention(layers=(1,)),
        sk.Intervention(layers=(1,), site="attn_out"),
    ]
    application = Application(
        [vector(llava, tensors, *interventions)], [1.0], llava.architecture, sk.Receipt(), lambda *_: {}
    )
    assert [place[:2] for place in application.places] == [
        (0, "mlp_out"),
        (1, "attn_out"),
        (1, "mlp_out"),
        (1, "resid_post"),
    ]


def test_a_prompt_of_two_images_is_contrasted_with_two_white_ones(llava: sk.VLM) -> None:
    sample = sk.Sample("Compare them.", images=(picture(1), picture(2)))
    inputs = llava.inputs([sample])
    with sk.steer(llava, sk.CMRM(level="sample", counterpart="blank", form="literal").fit(llava)):
        found = generate(llava.model, inputs)
    text = captured(llava.model, "llava", llava.inputs([sk.Sample("Compare them.")]))
    blank = captured(llava.model, "llava", llava.inputs([white(sample)]))
    where = only(prompt_length("llava", inputs) - 1)
    edits = [
        Edit(layer, where, lambda h, rows, c=a - b: h + c) for layer, (a, b) in enumerate(zip(text, blank, strict=True))
    ]
    compare(llava, "llava", found, edits, inputs, 0.0)
