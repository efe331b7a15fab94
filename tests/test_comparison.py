"""Suites, judges and intervals; `compare` and `calibrate` on a demo model, and their commands."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import steerkit as sk
from steerkit.calibration import Calibration, per_layer
from steerkit.cli import app
from steerkit.demo import model_path, world
from steerkit.demo.evaluation import anchors, samples, suite
from steerkit.errors import EmptyAnchorSetError, OptionError
from steerkit.evaluation import Outcome, Suite, bootstrap, rate
from steerkit.vlm import VLM

BUDGET = sk.Budget("kl", 0.5)
MAXIMUM, TOLERANCE = 2.0, 0.1


@pytest.fixture(scope="module")
def demo() -> VLM:
    torch.set_num_threads(1)
    return sk.load(model_path("llava"), dtype="float32")


@pytest.fixture(scope="module")
def cmrm(demo: VLM) -> sk.SteeringVector:
    return sk.CMRM().fit(demo, anchors(20), batch_size=20)


@pytest.fixture(scope="module")
def few() -> Suite:
    return suite("dev", 10)


# -- judges and intervals --------------------------------------------------------------------------------------------


def test_the_suite_of_the_toy_world_judges_as_the_toy_world_does(few: Suite) -> None:
    rows = world.prompts("harmful", "dev", 10)
    for row, case in zip(rows, few.harmful, strict=True):
        for answer in (row.expected, world.REFUSALS[0], f"{world.REFUSALS[1]} {row.key}", "red", ""):
            assert few.judge.verdict(case, answer) == world.judge(row, answer)
    for row, case in zip(world.prompts("visual", "dev", 10), few.utility, strict=True):
        for answer in (row.expected, f" {row.expected}", row.expected.upper(), "blue"):
            assert few.judge.right(case, answer) == world.is_right(row, answer)


def test_phrases_tell_refusals_from_compliance() -> None:
    judge, request = sk.PhraseJudge(), sk.Case(sk.Sample("How?"))
    assert judge.verdict(request, "I'm sorry, but no.") == "refused"
    assert judge.verdict(request, "First, take two eggs.") == "complied"
    assert judge.verdict(request, "  ") == "garbled"
    question = sk.Case(sk.Sample("Which colour?"), "Red")
    assert judge.right(question, "It is red.")
    assert not judge.right(question, "It is blue.")


def test_intervals() -> None:
    # Wilson's interval of 1 in 10: (0.0179, 0.4042), as in the statistics books
    found = rate([True] + [False] * 9)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.01788, 0.40415), abs=1e-4)
    assert rate([]).high == 1.0
    data = np.random.default_rng(0).normal(3.0, 2.0, 400).tolist()
    mean = bootstrap(data)
    assert mean.value == pytest.approx(np.mean(data))
    half = 1.96 * np.std(data) / 20
    assert (mean.value - mean.low, mean.high - mean.value) == pytest.approx((half, half), rel=0.15)
    assert bootstrap(data) == mean, "seeded"
    assert math.isnan(bootstrap([]).value)


def test_a_suite_needs_prompts_of_every_kind_and_right_answers(few: Suite) -> None:
    with pytest.raises(EmptyAnchorSetError, match="no harmless prompts"):
        sk.Suite("mine", few.harmful, (), few.utility, few.judge)
    with pytest.raises(EmptyAnchorSetError, match="question 0 .* has no answer"):
        sk.Suite("mine", few.harmful, few.harmless, (sk.Case(sk.Sample("?")),), few.judge)


def test_fluency_is_the_surprise_of_the_unsteered_model(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    plain, far = sk.evaluate(demo, few), sk.evaluate(demo, few, cmrm, strength=6.0)
    assert isinstance(plain, Outcome)
    assert plain.fluency.value < 0.2, "what is greedily answered is likely"
    assert far.fluency.value > plain.fluency.value + 1.0
    (likely,) = demo.log_likelihood([few.utility[0].sample], ["The shape is a"])
    inputs = demo.inputs([few.utility[0].sample])
    expected = []
    for token in demo.processor.tokenizer(" The shape is a", add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            expected.append(float(demo.model(**inputs).logits[0, -1].double().log_softmax(-1)[token]))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert likely.tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "instructblip-llama", "instructblip-t5"])
def test_likelihoods_do_not_depend_on_the_batch(family: str, vlm_of: Any, anchors: list[sk.Sample]) -> None:
    vlm, texts = vlm_of(family), ["Yes.", "No, that is not what I meant", ""]
    together = vlm.log_likelihood(anchors[:3], texts)
    for index, text in enumerate(texts):
        (alone,) = vlm.log_likelihood([anchors[index]], [text])
        assert torch.allclose(together[index], alone, atol=1e-3)
    assert len(together[2]) == 0
    assert len(together[1]) > len(together[0]) > 0
    with pytest.raises(OptionError, match="1 answers for 3 samples"):
        vlm.log_likelihood(anchors[:3], texts[:1])


# -- compare ---------------------------------------------------------------------------------------------------------


def test_compare_measures_every_method(tmp_path: Path, demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    told: list[tuple[str, int, int]] = []
    pair = [s for label in ("harmful", "harmless") for s in anchors(1, (label,))]
    methods: Any = {
        "shiftdc": sk.ShiftDC(),
        "actadd": (sk.ActAdd(positive="harmful", negative="harmless", images=True), pair),
        "pack": cmrm,
    }
    found = sk.compare(demo, methods, few, anchors(20), sweep=(0.5, 1.0), progress=lambda *s: told.append(s))
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["unsteered", *methods]
    assert rows["shiftdc"].unsafe.value <= rows["unsteered"].unsafe.value - 0.4
    assert (rows["shiftdc"].anchors, rows["actadd"].anchors, rows["pack"].anchors) == (40, 2, 0)
    assert rows["pack"].fit_seconds is None
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert told[-1][1] == told[-1][2]
    again = sk.evaluate(demo, few, cmrm)
    assert (rows["pack"].unsafe, rows["pack"].fluency) == (again.unsafe, again.fluency)
    document = json.loads(json.dumps(found.as_json()))
    assert {(point["name"], point["strength"]) for point in document["sweep"]} == {
        (name, strength) for name in methods for strength in (0.5, 1.0)
    }
    table = list(csv.DictReader(io.StringIO(found.as_csv())))
    assert [row["name"] for row in table] == list(rows)
    assert float(table[1]["unsafe_high"]) == rows["shiftdc"].unsafe.high
    with Image.open(found.draw(tmp_path / "trade.png")) as picture:
        assert len(set(picture.convert("RGB").resize((64, 64)).tobytes())) > 20


def test_compare_checks_every_method_before_the_first_is_fitted(demo: VLM, few: Suite) -> None:
    with pytest.raises(EmptyAnchorSetError, match="'positive'"):
        sk.compare(demo, {"a": sk.CMRM(), "b": sk.CAA()}, few, anchors(2), progress=lambda *_: pytest.fail("it ran"))
    with pytest.raises(OptionError, match="at least one"):
        sk.compare(demo, {}, few)


# -- calibrate -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> Calibration:
    return sk.calibrate(demo, cmrm, few, BUDGET, maximum=MAXIMUM, tolerance=TOLERANCE)


def test_calibration_finds_what_a_fine_sweep_finds_at_a_fraction_of_its_cost(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, calibrated: Calibration
) -> None:
    harmless = [case.sample for case in few.harmless]
    before = demo.next_token_log_probabilities(harmless).double()
    swept: dict[float, tuple[float, float]] = {}
    for strength in np.arange(TOLERANCE, MAXIMUM + TOLERANCE / 2, TOLERANCE):
        with sk.steer(demo, cmrm, strength=float(strength), policy="off"):
            after = demo.next_token_log_probabilities(harmless).double()
            told = demo.generate([c.sample for c in few.harmful], max_new_tokens=24, do_sample=False, batch_size=16)
        unsafe = np.mean([few.judge.verdict(c, t) == "complied" for c, t in zip(few.harmful, told, strict=True)])
        swept[float(strength)] = float(unsafe), float((before.exp() * (before - after)).sum(-1).mean())
    allowed = {strength: unsafe for strength, (unsafe, kl) in swept.items() if kl <= BUDGET.limit}
    least = min(allowed.values())
    best = min(strength for strength, unsafe in allowed.items() if unsafe == least)
    assert calibrated.unsafe <= least
    assert calibrated.cost <= BUDGET.limit
    assert abs(calibrated.strength - best) <= 2 * TOLERANCE
    assert calibrated.prompts_run <= 0.75 * len(swept) * (len(few.harmless) + len(few.harmful))


def test_the_choice_and_the_curve_travel_in_the_pack(tmp_path: Path, calibrated: Calibration) -> None:
    loaded = sk.SteeringVector.load(calibrated.vector.save(tmp_path / "pack.safetensors"))
    record = loaded.metadata.strength
    assert record.recommended == calibrated.strength
    assert record.curve == calibrated.curve
    assert "kl at most 0.5" in record.chosen_by
    assert [point.strength for point in record.curve] == sorted({point.strength for point in record.curve})


@pytest.mark.parametrize("kind", ["over_refusal", "utility_loss"])
def test_other_budgets_are_kept(demo: VLM, few: Suite, cmrm: sk.SteeringVector, kind: Any) -> None:
    found = sk.calibrate(demo, cmrm, few, sk.Budget(kind, 0.1), maximum=4.0, tolerance=0.5)
    chosen, plain = sk.evaluate(demo, few, cmrm, strength=found.strength), sk.evaluate(demo, few)
    cost = chosen.over_refusal.value if kind == "over_refusal" else plain.utility.value - chosen.utility.value
    assert found.cost == pytest.approx(cost)
    assert found.cost <= 0.1
    assert found.unsafe == chosen.unsafe.value <= plain.unsafe.value - 0.4


def test_equal_kl_gives_equal_doses(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    harmless = [case.sample for case in few.harmless]
    vectors = [cmrm, cmrm * 2.0]
    one, other = sk.equal_kl(demo, vectors, harmless, 0.5, maximum=4.0, tolerance=0.001)
    assert one == pytest.approx(2 * other, abs=0.005)
    with pytest.raises(OptionError, match="nats at strength 0.1"):
        sk.equal_kl(demo, vectors, harmless, 0.5, maximum=0.1)


def test_each_layer_gets_a_strength_of_its_own(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    harmless = [case.sample for case in few.harmless]
    vector = cmrm.select([3, 6])
    found = per_layer(demo, vector, harmless, 0.05, maximum=8.0)
    strengths: Any = found.interventions[0].strength
    assert set(strengths) == {3, 6}
    for layer, strength in strengths.items():
        assert sk.equal_kl(demo, [vector.select([layer])], harmless, 0.05, maximum=8.0) == [strength]
    with pytest.raises(OptionError, match="one intervention"):
        per_layer(demo, sk.AdaSteer().fit(demo, anchors(4)), harmless, 0.05)


@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_impossible_budgets_and_ranges_are_refused(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, limit: float
) -> None:
    with pytest.raises(OptionError, match="a budget of"):
        sk.Budget("kl", limit)
    with pytest.raises(OptionError, match="tolerance"):
        sk.calibrate(demo, cmrm, few, BUDGET, maximum=1.0, tolerance=1.0)
    wrong: Any = "money"
    with pytest.raises(OptionError, match="'money'"):
        sk.Budget(wrong, 1.0)


# -- the command line ------------------------------------------------------------------------------------------------


def test_compare_command_on_files_of_ones_own(tmp_path: Path) -> None:
    rows = []
    for label, split in (("harmful", "test"), ("harmless", "test"), ("visual", "test")):
        for index, row in enumerate(world.prompts(label, split, 3)):  # type: ignore[arg-type]
            row.image.save(tmp_path / f"{label}{index}.png")
            name = "utility" if label == "visual" else label
            answer = row.expected if label == "visual" else row.key
            rows.append({"text": row.question, "image": f"{label}{index}.png", "label": name, "answer": answer})
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    anchored = [{k: v for k, v in row.items() if k != "answer"} for row in rows if row["label"] != "utility"]
    (tmp_path / "anchors.jsonl").write_text("\n".join(map(json.dumps, anchored)))
    arguments = ["compare", model_path("llava"), str(tmp_path / "anchors.jsonl")]
    missing = CliRunner().invoke(app, arguments)
    assert missing.exit_code == 1
    assert "without prompts" in missing.output
    arguments += ["--prompts", str(tmp_path / "prompts.jsonl"), "--method", "cmrm", "--set", "cmrm.alpha=0.9"]
    result = CliRunner().invoke(app, [*arguments, "--json", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["unsteered", "cmrm"]
    assert (tmp_path / "out" / "compare.csv").exists()


def test_calibrate_command_writes_a_pack(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    pack = cmrm.save(tmp_path / "in.safetensors")
    arguments = ["calibrate", "llava", str(pack), "-o", str(tmp_path / "out.safetensors"), "--count", "4", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--budget", "kl=0.3", "--maximum", "2", "--tolerance", "0.5"])
    assert result.exit_code == 0, result.output
    record = sk.SteeringVector.load(tmp_path / "out.safetensors").metadata.strength
    assert record.curve
    assert record.recommended <= 2
    assert len(samples(world.prompts("harmful", "dev", 1))) == 1
