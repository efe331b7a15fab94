"""Several vectors at once: order, shares, conflicts and orthogonalisation, against plain hooks and numbers by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from reference import WITH_IMAGE, Edit, adds, captured, directions, distance, edited, generate, since, vector

import steerkit as sk
from steerkit.errors import ModelMismatchError, OptionError
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

CLEARLY = 1e-2


@pytest.fixture
def inputs(llava: sk.VLM) -> dict[str, torch.Tensor]:
    return llava.inputs(WITH_IMAGE)


def made(vlm: sk.VLM, seed: int, **intervention: Any) -> sk.SteeringVector:
    return vector(vlm, directions(vlm, seed=seed), sk.Intervention(**intervention))


def at(vlm: sk.VLM, *rows: Any, layer: int = 1, norm: float = 1.0, **intervention: Any) -> sk.SteeringVector:
    """A vector with one direction, whose first coordinates are given."""
    direction = torch.zeros(vlm.record.hidden_size)
    direction[: len(rows)] = torch.tensor(rows, dtype=torch.float)
    return vector(vlm, {sk.Key(layer): norm * direction}, sk.Intervention(**intervention))


# -- order -------------------------------------------------------------------------------------------------------------


def test_additions_are_one_sum_in_any_order(llava: sk.VLM, inputs: Any) -> None:
    strengths = (0.5, -0.25, 0.75)
    vectors = [made(llava, seed) for seed in range(3)]
    where = since(inputs["input_ids"].shape[1] - 1)
    total = {
        key: sum(s * v.tensors[key].double() for s, v in zip(strengths, vectors, strict=True)).float()
        for key in vectors[0].tensors
    }
    with edited(llava.model, "llava", adds(total, where)):
        expected = generate(llava.model, inputs)
    found = []
    for order in itertools.permutations(range(3)):
        with sk.steer(llava.model, [vectors[i] for i in order], strength=[strengths[i] for i in order]) as receipt:
            found.append(generate(llava.model, inputs))
        assert (receipt.prompt_tokens, receipt.generated_tokens) == (3, 12)  # once, not once for each vector
    assert all(distance(each, found[0]) == 0.0 for each in found)
    assert distance(found[0], expected) < 2e-5
    assert distance(found[0], generate(llava.model, inputs)) > CLEARLY


def test_what_does_not_commute_is_applied_in_the_order_given(llava: sk.VLM, inputs: Any) -> None:
    first, removed, last = made(llava, 0), made(llava, 1, operation=Ablate()), made(llava, 2)
    where = since(inputs["input_ids"].shape[1] - 1)

    def change(order: str, key: sk.Key) -> Any:
        def run(h: Any, rows: Any) -> Any:
            for letter in order:
                if letter == "r":
                    unit = removed.tensors[key] / removed.tensors[key].norm()
                    h = h - torch.outer(h @ unit, unit)
                else:
                    h = h + (first if letter == "a" else last).tensors[key]
            return h

        return run

    answers = []
    for order in ("arb", "rab", "abr"):
        steering = [{"a": first, "r": removed, "b": last}[letter] for letter in order]
        with sk.steer(llava.model, steering):
            found = generate(llava.model, inputs)
        edits = [Edit(key.layer, where, change(order, key)) for key in first.tensors]
        with edited(llava.model, "llava", edits):
            assert distance(found, generate(llava.model, inputs)) < 2e-5
        answers.append(found)
    assert distance(answers[0], answers[1]) > CLEARLY
    assert distance(answers[1], answers[2]) > CLEARLY


def test_vectors_on_different_tokens(llava: sk.VLM, inputs: Any) -> None:
    everywhere = made(llava, 0, tokens="all", phase="prompt")
    at_the_end = made(llava, 1, tokens="last")
    length = inputs["input_ids"].shape[1]
    real = inputs["attention_mask"] != 0
    with sk.steer(llava.model, [everywhere, at_the_end], strength=0.5) as receipt:
        found = generate(llava.model, inputs)

    def of_prompt(positions: Any) -> Any:
        shown = torch.zeros(3, len(positions), dtype=torch.bool)
        shown[:, positions < length] = real[:, positions[positions < length]]
        return shown

    edits = [*adds(everywhere.tensors, of_prompt, 0.5), *adds(at_the_end.tensors, since(length - 1), 0.5)]
    with edited(llava.model, "llava", edits):
        assert distance(found, generate(llava.model, inputs)) < 2e-5
    # the last token of each prompt is steered by both, and counted once
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (int(real.sum()), 12)
    assert [(v.prompt_tokens, v.generated_tokens) for v in receipt.vectors] == [(int(real.sum()), 0), (3, 12)]


def test_a_gate_sees_what_the_vectors_before_it_did(llava: sk.VLM, inputs: Any) -> None:
    push = at(llava, 50.0, layer=1)
    gate = Gate(measure=Measure(kind="projection", direction=StoredDirection(name="gate")), threshold=25.0)
    tensors = {sk.Key(1): directions(llava)[sk.Key(1)], sk.Key(1, name="gate"): push.tensors[sk.Key(1)]}
    gated = vector(llava, tensors, sk.Intervention(gate=gate))
    answers = {}
    for name, steering in {"after": [push, gated], "before": [gated, push], "alone": [push]}.items():
        with sk.steer(llava.model, steering):
            answers[name] = generate(llava.model, inputs)
    assert distance(answers["before"], answers["alone"]) == 0.0
    assert distance(answers["after"], answers["alone"]) > CLEARLY


# -- the receipt -------------------------------------------------------------------------------------------------------


def test_each_vector_has_its_share(llava: sk.VLM, inputs: Any) -> None:
    tensors = directions(llava)
    big = vector(llava, {sk.Key(1): tensors[sk.Key(1)]})
    small = vector(llava, {sk.Key(1): -tensors[sk.Key(1)]})
    h = captured(llava.model, "llava", inputs)[1].norm(dim=1)
    norm = tensors[sk.Key(1)].norm()
    with sk.steer(llava.model, [big, small], strength=[0.75, 0.25]) as receipt:
        generate(llava.model, inputs)
    one, other = receipt.vectors
    assert one.relative_change[1] == pytest.approx(float((0.75 * norm / h).mean()), rel=1e-5)
    assert other.relative_change[1] == pytest.approx(float((0.25 * norm / h).mean()), rel=1e-5)
    assert receipt.relative_change[1] == pytest.approx(float((0.5 * norm / h).mean()), rel=1e-5)  # they cancel in part
    assert (one.share, other.share) == (pytest.approx(0.75), pytest.approx(0.25))
    assert str(receipt).endswith("(test 75 %, test 25 %)")


def test_shares_of_operations_that_depend_on_the_state(llava: sk.VLM, inputs: Any) -> None:
    added = {sk.Key(1): directions(llava)[sk.Key(1)]}
    removed = {sk.Key(1): directions(llava, seed=1)[sk.Key(1)]}
    h = captured(llava.model, "llava", inputs)[1]
    unit = removed[sk.Key(1)] / removed[sk.Key(1)].norm()
    with sk.steer(
        llava.model, [vector(llava, added), vector(llava, removed, sk.Intervention(operation=Ablate()))]
    ) as receipt:
        generate(llava.model, inputs)
    changes = [added[sk.Key(1)].norm() / h.norm(dim=1), ((h + added[sk.Key(1)]) @ unit).abs() / h.norm(dim=1)]
    for each, change in zip(receipt.vectors, changes, strict=True):
        assert each.relative_change[1] == pytest.approx(float(change.mean()), rel=1e-4)
    assert sum(each.share for each in receipt.vectors) == pytest.approx(1.0)


def test_a_vector_of_several_interventions_counts_a_token_once(llava: sk.VLM, inputs: Any) -> None:
    tensors = {sk.Key(1, name=name): directions(llava, seed=at)[sk.Key(1)] for at, name in enumerate(("a", "b"))}
    both = vector(
        llava, tensors, *(sk.Intervention(operation=Add(direction=StoredDirection(name=name))) for name in ("a", "b"))
    )
    with sk.steer(llava.model, [both, made(llava, 3, phase="generation")]) as receipt:
        generate(llava.model, inputs)
    assert [(v.prompt_tokens, v.generated_tokens) for v in receipt.vectors] == [(3, 12), (0, 12)]
    assert receipt.sites[1, "resid_post"].prompt_tokens == 3
    assert sk.Receipt().vectors == ()


# -- conflicts ---------------------------------------------------------------------------------------------------------


def test_conflicts_are_reported_by_layer(llava: sk.VLM) -> None:
    one, other = at(llava, 1.0, 0.0), at(llava, -0.8, 0.6, norm=7.0)
    (found,) = sk.analysis.conflicts([one, other])
    assert (found.first, found.second, found.layer, found.site, found.kind) == (0, 1, 1, "resid_post", "opposing")
    assert found.cosine == pytest.approx(-0.8)
    assert str(found) == "layer 1 resid_post: 0 (test) and 1 (test) oppose each other, cosine -0.80"
    assert sk.analysis.conflicts([one, other], threshold=-0.9) == []
    assert sk.analysis.conflicts([one, other], strength=[1.0, -1.0]) == []
    assert len(sk.analysis.conflicts([one, other], strength=-1.0)) == 1
    assert sk.analysis.conflicts([one, other], strength=[1.0, 0.0]) == []
    assert sk.analysis.conflicts([one, at(llava, -1.0, layer=2)]) == []
    assert sk.analysis.conflicts([one]) == []


def test_the_worst_conflict_comes_first(llava: sk.VLM) -> None:
    found = sk.analysis.conflicts([at(llava, 1.0), at(llava, -0.6, 0.8), at(llava, -1.0)])
    assert [(each.first, each.second) for each in found] == [(0, 2), (0, 1)]


MEETINGS = pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ({"phase": "prompt"}, {"phase": "generation"}, False),
        ({"phase": "prompt"}, {"phase": "both"}, True),
        ({"phase": "prompt", "tokens": "image"}, {"phase": "prompt", "tokens": "text"}, False),
        ({"phase": "prompt", "tokens": "image"}, {"tokens": "all"}, True),
        ({"phase": "prompt", "tokens": "image"}, {"tokens": "generated"}, False),
        ({"tokens": "last"}, {"tokens": "generated"}, True),
        ({"phase": "prompt"}, {"tokens": "generated"}, False),
        ({"tokens": "text"}, {"phase": "generation"}, False),
        ({"prompts": "with_image"}, {"prompts": "without_image"}, False),
        ({"prompts": "with_image"}, {}, True),
        ({"tokens": "image"}, {"prompts": "without_image", "tokens": "all"}, False),
        ({"site": "mlp_out"}, {}, False),
    ],
)


@MEETINGS
def test_vectors_that_never_meet_do_not_conflict(llava: sk.VLM, one: Any, other: Any, meet: bool) -> None:
    opposite = [directions(llava, site=one.get("site", "resid_post")), {}]
    opposite[1] = {sk.Key(k.layer, other.get("site", "resid_post")): -t for k, t in opposite[0].items()}
    pair = [vector(llava, t, sk.Intervention(**i)) for t, i in zip(opposite, (one, other), strict=True)]
    assert bool(sk.analysis.conflicts(pair)) == meet
    assert bool(sk.analysis.conflicts(pair[::-1])) == meet


def test_an_ablation_conflicts_with_what_adds_its_direction(llava: sk.VLM) -> None:
    removed = at(llava, 1.0, operation=Ablate())
    for pair in ([removed, at(llava, -0.6, 0.8)], [at(llava, 0.6, 0.8), removed]):
        (found,) = sk.analysis.conflicts(pair)
        assert found.kind == "removed"
        assert found.cosine == pytest.approx(-0.6)
        assert "add and remove the same" in str(found)
    assert sk.analysis.conflicts([removed, removed]) == []
    assert sk.analysis.conflicts([removed, at(llava, 0.0, 1.0)]) == []


@pytest.mark.parametrize(("ends", "signs"), [((-2.0, 1.0), (1, -1)), ((-1.0, 2.0), (1, -1)), ((0.0, 2.0), (-1,))])
def test_a_measured_strength_counts_with_both_ends(llava: sk.VLM, ends: tuple[float, float], signs: Any) -> None:
    rule = LinearStrength(measure=Measure(kind="cosine"), slope=1.0, minimum=ends[0], maximum=ends[1])
    for sign in (1, -1):
        found = sk.analysis.conflicts([at(llava, 1.0), at(llava, sign, strength=rule)])
        assert [each.cosine for each in found] == ([-1.0] if sign in signs else [])


ALONG_THE_PLANE = AddProjection(contrast=MeasuredContrast(positive="text", negative="original"))


@pytest.mark.parametrize(
    ("remover", "dose", "adder", "cosine"),
    [
        (Scale(factor=0.5), 1.0, Add(), -0.6),
        (Scale(factor=2.0), 1.0, Add(), None),
        (Scale(factor=2.0), -1.0, Add(), -0.6),
        (Scale(factor=1.0), 1.0, Add(), None),
        (Clamp(minimum=-1.0, maximum=1.0), 1.0, Add(), -0.6),
        (Clamp(maximum=1.0), 1.0, Add(), -0.6),
        (Clamp(minimum=-1.0), 1.0, Add(), None),  # what is added along the direction is not bounded from below
        (Ablate(), -1.0, Add(), None),
        (Ablate(), -1.0, Ablate(), -0.6),
        (Ablate(), 1.0, Scale(factor=3.0), -0.6),
        (Ablate(), 1.0, Scale(factor=0.0), None),
        (Ablate(), 1.0, ALONG_THE_PLANE, -0.6),
        (Add(), 1.0, ALONG_THE_PLANE, None),
    ],
    ids=str,
)
def test_what_removes_is_told_from_what_adds(
    llava: sk.VLM, remover: Any, dose: float, adder: Any, cosine: float | None
) -> None:
    pair = [at(llava, 1.0, operation=remover, strength=dose), at(llava, 0.6, 0.8, operation=adder)]
    for order in (pair, pair[::-1]):
        found = sk.analysis.conflicts(order)
        assert [each.kind for each in found] == ([] if cosine is None else ["removed"])
        assert [each.cosine for each in found] == ([] if cosine is None else [pytest.approx(cosine)])


def test_of_a_span_the_nearest_direction_counts(llava: sk.VLM) -> None:
    span = torch.zeros(2, 48)
    span[0, :2] = torch.tensor([0.6, 0.8])
    span[1, 2] = 1.0
    added = vector(llava, {sk.Key(1): span}, sk.Intervention(operation=ALONG_THE_PLANE))
    (found,) = sk.analysis.conflicts([added, at(llava, 1.0, operation=Ablate())])
    assert (found.kind, found.cosine) == ("removed", pytest.approx(-0.6))


def test_conflicts_refuse(llava: sk.VLM, qwen: sk.VLM) -> None:
    for threshold in (0.5, float("nan"), "low"):
        with pytest.raises(OptionError, match="threshold is"):
            sk.analysis.conflicts([made(llava, 0)], threshold=threshold)  # type: ignore[arg-type]
    wide = at(llava, 1.0).metadata.model.model_copy(update={"hidden_size": 64})
    other = sk.SteeringVector({sk.Key(1): torch.ones(64)}, at(llava, 1.0).metadata.model_copy(update={"model": wide}))
    for compose in (sk.analysis.conflicts, sk.analysis.orthogonalized):
        with pytest.raises(ModelMismatchError, match=r"width \[48, 64\]"):
            compose([made(llava, 0), other])


# -- orthogonalisation -------------------------------------------------------------------------------------------------


def test_orthogonalized_is_gram_schmidt_by_layer(llava: sk.VLM) -> None:
    vectors = [made(llava, seed) for seed in range(3)]
    vectors[1] = vectors[1].select([1, 2]).with_metadata(strength={"recommended": 2.0})
    found = sk.analysis.orthogonalized(vectors)
    assert found[1].metadata.strength.recommended == 1.0  # which was measured of the vector as it was
    assert found[0] is vectors[0]
    for layer in range(4):
        basis: list[torch.Tensor] = []
        for given, after in zip(vectors, found, strict=True):
            if sk.Key(layer) not in given.tensors:
                continue
            expected = given.tensors[sk.Key(layer)].double()
            for unit in basis:
                expected = expected - (expected @ unit) * unit
            got = after.directions[layer].double()
            assert (got - expected).abs().max() < 1e-5
            basis.append(expected / expected.norm())
        assert layer in (0, 3) or len(basis) == 3
    assert "orthogonalise" in found[1].metadata.history[-1]
    assert sk.SteeringVector.from_bytes(found[2].to_bytes()).digest() == found[2].digest()


@pytest.mark.parametrize("asked", ["no", 0, 1, None, float("nan")])
def test_whether_to_orthogonalize_is_said_by_a_truth_value(llava: sk.VLM, asked: Any) -> None:
    added = vector(llava, directions(llava))
    with pytest.raises(OptionError, match="orthogonalize is"):
        sk.steer(llava.model, added, orthogonalize=asked)


def test_steer_orthogonalizes_on_request(llava: sk.VLM, inputs: Any) -> None:
    one, other = made(llava, 0), made(llava, 0) + 0.5 * made(llava, 1)
    where = since(inputs["input_ids"].shape[1] - 1)
    edits = []
    for key, d in one.tensors.items():
        rest = other.tensors[key] - (other.tensors[key] @ d) / (d @ d) * d
        edits.append(Edit(key.layer, where, lambda h, rows, total=0.3 * d + 0.6 * rest: h + total))
    with edited(llava.model, "llava", edits):
        expected = generate(llava.model, inputs)
    with sk.steer(llava.model, [one, other], strength=[0.3, 0.6], orthogonalize=True):
        assert distance(generate(llava.model, inputs), expected) < 2e-5
    with sk.steer(llava.model, [one, other], strength=[0.3, 0.6]):
        assert distance(generate(llava.model, inputs), expected) > CLEARLY


def test_an_addition_is_kept_clear_of_an_ablated_subspace(llava: sk.VLM, inputs: Any) -> None:
    plane = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    removed = vector(llava, {sk.Key(1): plane}, sk.Intervention(operation=Ablate()))
    added = vector(llava, {sk.Key(1): directions(llava)[sk.Key(1)]})
    _, clear = sk.analysis.orthogonalized([removed, added])
    assert (plane @ clear.directions[1]).abs().max() < 1e-4
    answers = []
    for order in ([removed, clear], [clear, removed]):
        with sk.steer(llava.model, order):
            answers.append(generate(llava.model, inputs))
    assert distance(*answers) < 2e-5
    assert sk.analysis.orthogonalized([added, removed])[1] is removed


@pytest.mark.parametrize(
    "operation", [Scale(factor=0.25), Scale(factor=1.5), Clamp(minimum=-0.1, maximum=0.1)], ids=str
)
def test_an_addition_is_kept_clear_of_what_is_scaled_or_clamped(llava: sk.VLM, inputs: Any, operation: Any) -> None:
    """Then the two can change places; with the whole direction they can't."""
    bound, added = made(llava, 0, operation=operation), made(llava, 0) + made(llava, 1)
    kept, clear = sk.analysis.orthogonalized([bound, added])
    assert kept is bound
    for layer, d in bound.directions.items():
        unit, whole = d.double() / d.double().norm(), added.directions[layer].double()
        assert (clear.directions[layer].double() - (whole - (whole @ unit) * unit)).abs().max() < 1e-5
    for later, same in ((clear, True), (added, False)):
        answers = []
        for order in ([bound, later], [later, bound]):
            with sk.steer(llava.model, order):
                answers.append(generate(llava.model, inputs))
        assert distance(*answers) < 2e-5 if same else distance(*answers) > CLEARLY
    assert sk.analysis.orthogonalized([added, bound])[1] is bound


def test_an_addition_is_kept_clear_of_what_a_contrast_is_added_along(llava: sk.VLM) -> None:
    """Whatever the contrast of a prompt is, nothing that is added repeats or undoes it."""
    span = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    measured = vector(llava, {sk.Key(1): span}, sk.Intervention(operation=ALONG_THE_PLANE))
    added = made(llava, 1)
    kept, clear = sk.analysis.orthogonalized([measured, added])
    assert kept is measured
    assert (span @ clear.directions[1]).abs().max() < 1e-4
    assert (span @ added.directions[1]).abs().max() > 0.1
    assert torch.equal(clear.directions[2], added.directions[2]), "elsewhere nothing is lost"
    assert sk.analysis.orthogonalized([added, measured])[1] is measured, "it reads what it read"


@MEETINGS
def test_vectors_that_never_meet_keep_their_directions(llava: sk.VLM, one: Any, other: Any, meet: bool) -> None:
    pair = [
        vector(llava, directions(llava, site=given.get("site", "resid_post"), seed=seed), sk.Intervention(**given))
        for seed, given in enumerate((one, other))
    ]
    assert (sk.analysis.orthogonalized(pair)[1] is pair[1]) != meet


def test_of_several_vectors_an_addition_loses_what_it_meets(llava: sk.VLM) -> None:
    """Also where only one of the additions of a vector meets what came before."""
    for_images = at(llava, 1.0, prompts="with_image")
    for_texts = at(llava, 0.0, 1.0, prompts="without_image")
    each = [sk.Intervention(prompts=prompts) for prompts in ("with_image", "without_image")]
    both = vector(llava, at(llava, 1.0, 1.0, 1.0).tensors, *each)
    *kept, found = sk.analysis.orthogonalized([for_images, for_texts, both])
    assert kept == [for_images, for_texts]
    left = [found.tensors[sk.Key(1, name=i.operation.direction.name)][:3].tolist() for i in found.interventions]
    assert left == [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    _, alone = sk.analysis.orthogonalized([for_images, both])
    assert alone.interventions[1] == both.interventions[1]
    assert torch.equal(alone.tensors[sk.Key(1)], both.tensors[sk.Key(1)])


@pytest.mark.parametrize(
    "idle",
    [{"operation": Scale(factor=1.0)}, {"operation": Ablate(), "strength": {0: 1.0}}, {"strength": 0.0}],
    ids=str,
)
def test_what_works_on_nothing_takes_nothing(llava: sk.VLM, idle: Any) -> None:
    added = at(llava, 1.0)
    assert torch.equal(
        sk.analysis.orthogonalized([at(llava, 1.0, **idle), added])[1].directions[1], added.directions[1]
    )


def test_a_gate_keeps_the_direction_that_it_reads(llava: sk.VLM) -> None:
    gated = at(llava, 1.0, 1.0, gate=Gate(measure=Measure(kind="projection"), threshold=0.0))
    _, found = sk.analysis.orthogonalized([at(llava, 1.0), gated])
    (changed,) = found.interventions
    assert torch.equal(found.tensors[sk.Key(1)], gated.tensors[sk.Key(1)])
    assert found.directions[1][:2].tolist() == [0.0, 1.0]
    assert changed.gate == gated.interventions[0].gate


def test_one_direction_for_all_layers_becomes_one_for_each(llava: sk.VLM) -> None:
    shared = vector(
        llava,
        {sk.Key(2): directions(llava)[sk.Key(2)]},
        sk.Intervention(operation=Add(direction=StoredDirection(layer=2)), layers=(0, 3)),
    )
    _, found = sk.analysis.orthogonalized([at(llava, 1.0, layer=3), shared])
    assert torch.equal(found.directions[0], shared.tensors[sk.Key(2)])
    assert found.directions[3][0] == 0.0
    assert torch.equal(found.directions[3][1:], shared.tensors[sk.Key(2)][1:])


def test_orthogonalized_refuses(llava: sk.VLM) -> None:
    with pytest.raises(OptionError, match="nothing is left of what vector 1 adds at layer 1"):
        sk.analysis.orthogonalized([at(llava, 1.0), at(llava, -3.0)])
    sample_level = sk.CMRM(level="sample").fit(llava)
    assert isinstance(sample_level.interventions[0].operation.direction, MeasuredContrast)
    with pytest.raises(OptionError, match=r"vector 1 \(cmrm\) is measured on each prompt"):
        sk.analysis.orthogonalized([at(llava, 1.0), sample_level])


def test_what_a_share_is_of_nothing() -> None:
    receipt = sk.Receipt()
    receipt.name(["one"])
    assert math.isnan(receipt.vectors[0].share)
