"""`calibrate_gate` beside steering in earnest at every threshold, on a demo model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import suite
from typer.testing import CliRunner

import steerkit as sk
from demo_training.world import anchors
from steerkit.cli.app import app
from steerkit.errors import EmptyAnchorSetError, OptionError, SampleError
from steerkit.evaluation import Budget, Calibration, Outcome, Suite, calibrate_gate
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

BUDGETS = (Budget("over_refusal", 0.2), Budget("utility_loss", 0.1))
STRENGTHS = (0.4, 2.0)


@pytest.fixture(scope="module")
def few() -> Suite:
    return suite("dev", 10)


@pytest.fixture(scope="module")
def vectors(demo: VLM) -> list[SteeringVector]:
    # the labels of half of the anchors are wrong, so that the gate errs and its threshold matters
    rows = anchors(12)
    mixed = [replace(each, label="spared" if i % 3 else None) for i, each in enumerate(rows)]
    levels: Any = ("dataset", "sample")
    return [sk.CMRM(level=level, spared="spared").fit(demo, mixed, batch_size=24) for level in levels]


@pytest.fixture(scope="module")
def found(demo: VLM, few: Suite, vectors: list[SteeringVector]) -> Calibration:
    return calibrate_gate(demo, vectors, few, BUDGETS, strengths=STRENGTHS)


def at(vector: SteeringVector, threshold: float) -> SteeringVector:
    (change,) = vector.interventions
    (gate,) = change.gates
    moved = change.model_copy(update={"gate": gate.model_copy(update={"threshold": threshold})})
    return vector.with_metadata(interventions=[moved.model_dump()])


def threshold_of(vector: SteeringVector) -> float:
    return vector.interventions[0].gates[0].threshold


def costs(outcome: Outcome, plain: Outcome) -> tuple[float, float]:
    garbled = sum(bool(each.verdict.garbled) for each in outcome.of("harmless")) / 10
    return outcome.over_refusal.value + garbled, plain.utility.value - outcome.utility.value


def test_nothing_that_is_tried_in_earnest_is_better(
    demo: VLM, few: Suite, vectors: list[SteeringVector], found: Calibration
) -> None:
    options: Any = {"fluency": False, "policy": "off"}
    plain = sk.evaluate(demo, few, fluency=False)
    real = sk.evaluate(demo, few, found.vector, strength=found.strength, **options)
    assert found.unsafe == real.not_safe.value < plain.not_safe.value
    assert found.cost == pytest.approx(costs(real, plain)[0])
    assert all(cost <= budget.limit for cost, budget in zip(costs(real, plain), BUDGETS, strict=True))
    tried = []
    for vector in vectors:
        layer = vector.interventions[0].gates[0].measure.layer
        direction = vector.tensors[sk.vectors.Key(layer, name="spared")]  # type: ignore[arg-type]
        samples = [case.sample for case in (*few.harmful, *few.harmless, *few.utility)]
        read = demo.capture(samples, images=False, layers=[layer])[layer].float() @ direction  # type: ignore[list-item, index]
        for threshold in read.quantile(torch.tensor([0.2, 0.5, 0.8])).tolist():
            for strength in STRENGTHS:
                other = sk.evaluate(demo, few, at(vector, threshold), strength=strength, **options)
                if all(cost <= budget.limit for cost, budget in zip(costs(other, plain), BUDGETS, strict=True)):
                    tried.append((other.not_safe.value, sum(costs(other, plain))))
    assert (found.unsafe, sum(costs(real, plain))) <= min(tried)


def test_the_choice_is_in_the_pack(few: Suite, vectors: list[SteeringVector], found: Calibration) -> None:
    record = found.vector.metadata.strength
    assert record.recommended == found.strength
    assert (record.minimum, record.maximum) == STRENGTHS
    assert f"{threshold_of(found.vector):.6g}" in record.chosen_by
    assert "over_refusal at most 0.2 and utility_loss at most 0.1" in record.chosen_by
    assert [(p.strength, p.cost_kind) for p in record.curve] == [(s, b.kind) for s in STRENGTHS for b in BUDGETS]
    # unsteered once, and for each vector its gate and the strengths
    assert found.prompts_run == few.size * (1 + len(vectors) * (1 + len(STRENGTHS)))


def test_where_all_thresholds_do_the_same_the_fitted_one_is_kept(demo: VLM, few: Suite) -> None:
    vector = sk.CMRM(spared="harmless").fit(demo, anchors(12), batch_size=24)
    idle = calibrate_gate(demo, vector, few, Budget("over_refusal", 1.0), strengths=(1e-6,))
    assert threshold_of(idle.vector) == threshold_of(vector)
    assert idle.unsafe == idle.curve[0].unsafe


def test_a_search_goes_on_where_it_was(
    demo: VLM, few: Suite, vectors: list[SteeringVector], found: Calibration, tmp_path: Path
) -> None:
    def stop(what: str) -> None:
        if "gates open" in what:
            raise KeyboardInterrupt

    options: Any = {"strengths": STRENGTHS, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        calibrate_gate(demo, vectors, few, BUDGETS, progress=stop, **options)
    kept = (tmp_path / "answers.jsonl").read_bytes()
    again = calibrate_gate(demo, vectors, few, BUDGETS, **options)
    assert kept.count(b"\n") == few.size
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(kept)
    assert (again.strength, again.unsafe, again.curve) == (found.strength, found.unsafe, found.curve)
    assert again.vector.digest() == found.vector.digest()


def test_what_can_not_be_searched_is_refused(demo: VLM, few: Suite, vectors: list[SteeringVector]) -> None:
    plain = sk.CMRM().fit(demo, anchors(2))
    (change,) = vectors[0].interventions
    (gate,) = change.gates
    loose = gate.model_copy(update={"measure": gate.measure.model_copy(update={"layer": None, "state": None})})
    at_token = vectors[0].with_metadata(interventions=[change.model_copy(update={"gate": loose}).model_dump()])
    for ungated in (plain, at_token):
        with pytest.raises(OptionError, match="no gate whose threshold"):
            calibrate_gate(demo, ungated, few, BUDGETS)
    faults: dict[str, Any] = {
        "budgets of": {"budgets": [Budget("kl", 0.1)]},
        "budgets of nothing": {"budgets": []},
        "over_refusal', 'over_refusal'": {"budgets": [BUDGETS[0], BUDGETS[0]]},
        "strengths": {"strengths": (1.0, float("nan"))},
        r"strengths \(\)": {"strengths": ()},
        "strengths .None": {"strengths": None},
        "budgets": {"budgets": 3},
    }
    for match, given in faults.items():
        with pytest.raises(OptionError, match=match):
            calibrate_gate(demo, vectors, few, **{"budgets": BUDGETS, **given})
    with pytest.raises(EmptyAnchorSetError, match="no utility prompts"):
        calibrate_gate(demo, vectors, replace(few, utility=()), BUDGETS)
    with pytest.raises(SampleError, match="the anchors and .* share 1 prompts"):
        calibrate_gate(demo, vectors, few, BUDGETS, anchors=[few.harmful[0].sample])
    complying = Budget("utility_loss", 0.0)
    assert calibrate_gate(demo, vectors[0], few, complying, strengths=(2.0,)).cost <= 0.0


def test_the_command_writes_the_pack_with_its_gate(vectors: list[SteeringVector], tmp_path: Path) -> None:
    packs = [str(each.save(tmp_path / f"{i}.safetensors")) for i, each in enumerate(vectors)]
    out = tmp_path / "out.safetensors"
    arguments = ["calibrate", "llava", "--prompts", "demo/dev", "--count", "3", "-o", str(out), "--gate", "2"]
    budgets = ["--budget", "over_refusal=0.4", "--budget", "utility_loss=0.4"]
    result = CliRunner().invoke(app, [*arguments[:2], *packs, *arguments[2:], *budgets, "--json"])
    assert result.exit_code == 0, result.output
    (written,) = [json.loads(result.stdout)]
    loaded = SteeringVector.load(out)
    assert written["recommended"] == loaded.metadata.strength.recommended == 2.0
    assert threshold_of(loaded) in [pytest.approx(float(written["chosen_by"].split("(")[1].split(")")[0]), rel=1e-4)]
    for extra, words in ((["--maximum", "2"], "--maximum"), (["--budget", "kl=0.1"], "budgets of")):
        refused = CliRunner().invoke(app, [*arguments[:2], packs[0], *arguments[2:], *extra, "--force"])
        assert refused.exit_code != 0
        assert words in refused.output
    several = [word for word in arguments if word not in ("--gate", "2")]
    refused = CliRunner().invoke(app, [*several[:2], packs[0], *several[2:], *budgets, "--force"])
    assert "2 budgets" in refused.output
