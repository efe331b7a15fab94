"""Suites; `compare` and `calibrate` on a demo model, and their commands."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from toy import suite
from typer.testing import CliRunner

import steerkit as sk
from demo_training import world
from demo_training.world import anchors, samples
from steerkit.cli.app import app
from steerkit.demo import ANCHORS, METHODS, model_path
from steerkit.errors import (
    EmptyAnchorSetError,
    JudgeError,
    ModelMismatchError,
    NonFiniteError,
    OptionError,
    SampleError,
)
from steerkit.evaluation import (
    Calibration,
    Comparison,
    Outcome,
    Suite,
    _compare as comparison,
    _evaluate as evaluation,
    _generate as generation,
    states,
)
from steerkit.methods import Plan
from steerkit.policy import Policy, TrustWarning
from steerkit.vlm import VLM

TOY = ("demo/anchors", "--prompts", "demo/test")
SMALL = ("--prompts", "demo/dev")
BUDGET = sk.evaluation.Budget("kl", 0.5)
MAXIMUM, TOLERANCE = 2.0, 0.1


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
            found, expected = few.judge.judge(case, answer), world.judge(row, answer)
            assert (found.harmful, found.refused, found.garbled) == tuple(
                expected == word for word in ("complied", "refused", "garbled")
            )
    for row, case in zip(world.prompts("visual", "dev", 10), few.utility, strict=True):
        for answer in (row.expected, f" {row.expected}", row.expected.upper(), "blue"):
            assert states(answer, case.answer or "", case.parser) == world.is_right(row, answer)


WILLING = sk.evaluation.Judgement(refused=False)


@dataclass(frozen=True)
class Odd:
    """A judge with words of its own."""

    word: Any = WILLING
    name: str = "odd one"
    identity: str = "odd"

    def judge(self, case: sk.evaluation.Case, answer: str) -> Any:
        return self.word


@pytest.mark.parametrize(
    "odd",
    [
        Odd("refused"),
        Odd(None),
        Odd(True),
        Odd(sk.evaluation.Judgement(refused="no")),  # type: ignore[arg-type]
        Odd(sk.evaluation.Judgement(harmful=0)),  # type: ignore[arg-type]
    ],
)
def test_a_judges_other_words_are_refused(demo: VLM, cmrm: sk.SteeringVector, odd: Odd) -> None:
    few = replace(suite("dev", 2), judge=odd)
    case = few.harmful[0].sample.text
    with pytest.raises(JudgeError, match=re.escape(f"the judge 'odd one' gives {odd.word!r:.80} for")) as caught:
        sk.evaluate(demo, few)
    assert repr(case)[:80] in caught.value.problem
    assert "Odd." in str(caught.value.fix)
    with pytest.raises(JudgeError, match="'odd one'"):
        sk.compare(demo, {"a": cmrm}, few)
    with pytest.raises(JudgeError, match="'odd one'"):
        sk.calibrate(demo, cmrm, few, sk.evaluation.Budget("utility_loss", 1.0), tolerance=1.0)


def test_a_judge_may_say_yes_as_numpy_does(demo: VLM) -> None:
    word = sk.evaluation.Judgement(harmful=np.bool_(True))  # type: ignore[arg-type]
    found = sk.evaluate(demo, replace(suite("dev", 2), judge=Odd(word)))
    assert [each.verdict.harmful for each in found.of("harmful")] == [True, True]
    assert type(found.judged[0].verdict.harmful) is bool


def test_calibration_needs_the_prompts_that_it_measures(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    for kind, budget in (("harmful", "kl"), ("harmless", "kl"), ("utility", "utility_loss")):
        with pytest.raises(EmptyAnchorSetError, match=f"no {kind} prompts"):
            sk.calibrate(demo, cmrm, replace(few, **{kind: ()}), sk.evaluation.Budget(budget, 0.1))  # type: ignore[arg-type]


def test_a_suite_needs_prompts_and_right_answers(few: Suite) -> None:
    with pytest.raises(EmptyAnchorSetError, match="no prompts"):
        sk.evaluation.Suite("mine", (), (), (), few.judge)
    with pytest.raises(SampleError, match="one id"):
        sk.evaluation.Suite("mine", few.harmful * 2, (), (), few.judge)
    with pytest.raises(EmptyAnchorSetError, match="question 0 .* has no answer"):
        sk.evaluation.Suite("mine", few.harmful, few.harmless, (sk.evaluation.Case(sk.Sample("?")),), few.judge)


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


# -- whose vector it is ----------------------------------------------------------------------------------------------


MEASURING: dict[str, Callable[..., Any]] = {
    "evaluate": lambda vlm, vector, few, **policy: sk.evaluate(vlm, few, vector, **policy),
    "compare": lambda vlm, vector, few, **policy: sk.compare(vlm, {"mine": vector}, few, **policy),
    "calibrate": lambda vlm, vector, few, **policy: sk.calibrate(
        vlm, vector, few, BUDGET, per_layer=0.1, maximum=1.0, tolerance=0.5, **policy
    ),
    "equal_kl": lambda vlm, vector, few, **policy: sk.evaluation.equal_kl(
        vlm, [vector], [case.sample for case in few.harmless], 0.01, tolerance=0.5, **policy
    ),
    "per_layer": lambda vlm, vector, few, **policy: sk.evaluation.per_layer(
        vlm, vector, [case.sample for case in few.harmless], 0.01, tolerance=0.5, **policy
    ),
}


@pytest.fixture(scope="module")
def stranger() -> VLM:
    """A model of the demo's class and sizes, but not of its weights."""
    vlm = sk.load(model_path("llava"), dtype="float32")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.1)
    return vlm


@pytest.mark.parametrize("name", MEASURING)
@pytest.mark.parametrize("doubt", ["class", "fingerprint"])
def test_a_vector_of_another_model_is_refused_before_it_answers(
    demo: VLM, stranger: VLM, cmrm: sk.SteeringVector, name: str, doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, vector, vlm = suite("dev", 2), cmrm.select([3]), stranger
    if doubt == "class":
        record = demo.record.model_copy(update={"architecture": "OtherForConditionalGeneration"})
        vector, vlm = vector.with_metadata(model=record.model_dump()), demo
    with monkeypatch.context() as patched:
        for method in ("generate", "next_token_log_probabilities"):
            patched.setattr(VLM, method, lambda *_, **__: pytest.fail("the model answered"))
        with pytest.raises(ModelMismatchError, match="Other" if doubt == "class" else "another model of this shape"):
            MEASURING[name](vlm, vector, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MEASURING[name](vlm, vector, few, policy="off")
    with pytest.warns(TrustWarning) as told:
        MEASURING[name](vlm, vector, few, policy="warn")
    assert len(told) == 1, "once, and not for every strength"
    assert told[0].filename == __file__
    wrong: Any = "lax"
    with pytest.raises(OptionError, match="'lax'"):
        MEASURING[name](vlm, vector, few, policy=wrong)


# -- compare ---------------------------------------------------------------------------------------------------------


def test_compare_measures_every_method(tmp_path: Path, demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    told: list[tuple[str, int, int]] = []
    pair = [s for label in ("harmful", "harmless") for s in anchors(1, (label,))]
    methods: Any = {
        "shiftdc": sk.methods.ShiftDC(),
        "actadd": (sk.methods.ActAdd(positive="harmful", negative="harmless", images=True), pair),
        "pack": cmrm,
    }
    found = sk.compare(demo, methods, few, anchors(20), sweep=(0.5, 1.0), progress=lambda *s: told.append(s))
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["unsteered", *methods]
    assert rows["shiftdc"].unsafe.value <= rows["unsteered"].unsafe.value - 0.4
    assert (rows["shiftdc"].anchors, rows["actadd"].anchors, rows["pack"].anchors) == (40, 2, 0)
    assert rows["pack"].fit_seconds is None
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("done", *[2 + few.size * (1 + 3 * 2) + 4] * 2)
    again = sk.evaluate(demo, few, cmrm)
    assert (rows["pack"].unsafe, rows["pack"].fluency) == (again.unsafe, again.fluency)
    document = json.loads(json.dumps(found.as_json()))
    assert {(point["name"], point["strength"]) for point in document["sweep"]} == {
        (name, strength) for name in methods for strength in (0.5, 1.0)
    }
    assert found.notes == document["notes"] == []
    for unjudged, told_so in ((2, False), (3, True)):  # of 20 answers to requests in each row
        weak = replace(rows["pack"].refused, n=10, unjudged=unjudged)
        bare = replace(found, rows=(replace(rows["pack"], refused=weak, over_refusal=replace(weak, unjudged=0)),))
        assert (f"NOT RELIABLE: {found.judge} left {unjudged} of 20" in "".join(bare.notes)) is told_so
        assert ("NOT RELIABLE" in str(bare.table().caption)) is told_so
    table = list(csv.DictReader(io.StringIO(found.as_csv())))
    assert [row["name"] for row in table] == list(rows)
    assert float(table[1]["unsafe_high"]) == rows["shiftdc"].unsafe.high
    assert float(table[1]["relative_cost"]) == rows["shiftdc"].relative_cost.value
    cost = rows["shiftdc"].relative_cost
    assert 0 < cost.low <= cost.value <= cost.high
    assert rows["unsteered"].relative_cost.low == rows["unsteered"].relative_cost.high == 1.0
    with Image.open(found.draw(tmp_path / "trade.png")) as picture:
        assert len(set(picture.convert("RGB").resize((64, 64)).tobytes())) > 20


def test_compare_checks_every_method_before_the_first_is_fitted(demo: VLM, few: Suite) -> None:
    with pytest.raises(EmptyAnchorSetError, match="'positive'"):
        sk.compare(
            demo, {"a": sk.CMRM(), "b": sk.methods.CAA()}, few, anchors(2), progress=lambda *_: pytest.fail("it ran")
        )
    with pytest.raises(OptionError, match="at least one"):
        sk.compare(demo, {}, few)
    small = sk.CMRM().fit(demo, anchors(2))
    record = demo.record.model_copy(update={"hidden_size": 8})
    wrong = sk.SteeringVector(
        {key: tensor[:8] for key, tensor in small.tensors.items()},
        small.metadata.model_copy(update={"model": record}),
    )
    methods = {"a": sk.CMRM(), "b": wrong}
    for policy in get_args(Policy):
        with pytest.raises(ModelMismatchError, match="'b': .*hidden size 8"):
            sk.compare(demo, methods, few, anchors(2), policy=policy, progress=lambda *_: pytest.fail("it ran"))


@dataclass(frozen=True)
class Unsure:
    """The toy world's judge, until it has judged so many answers."""

    real: Any
    verdicts: list[int]
    name: str = "unsure"
    identity: str = "unsure"

    def judge(self, case: sk.evaluation.Case, answer: str) -> Any:
        self.verdicts[0] -= 1
        if self.verdicts[0] < 0:
            raise ConnectionError("the judge's line\nis busy")
        return self.real.judge(case, answer)


class Unfit(sk.SteeringMethod):
    """Plans, and then can't be fitted."""

    name = "unfit"
    paper = ""

    def plan(self, model: Any, anchors: Any) -> Plan:
        return Plan([0])

    def observe(self, model: Any, batch: Any, layers: Any) -> Any:
        raise RuntimeError("out of memory")

    def solve(self, model: Any, found: Any, layers: Any) -> Any:
        raise NotImplementedError


def unsure(of: int) -> Suite:
    """Two prompts of each kind, and a judge that gives out after so many verdicts; four are a condition."""
    few = suite("dev", 2)
    return replace(few, judge=Unsure(few.judge, [of]))


def test_an_entry_that_fails_becomes_a_row_and_the_others_go_on(demo: VLM, cmrm: sk.SteeringVector) -> None:
    told: list[tuple[str, int, int]] = []
    grown: list[int] = []
    found = sk.compare(
        demo,
        {"bad": Unfit(), "good": cmrm, "late": cmrm, "none": cmrm},
        unsure(18),  # unsteered, good at both strengths, late at one and half of the other
        anchors(2),
        sweep=(1.0, 2.0),
        progress=lambda *s: told.append(s),
        on_row=lambda now: grown.append(len(now.rows)),
    )
    rows = {row.name: row for row in found.rows}
    assert grown == [1, 2, 3, 4, 5]
    assert {name: row.error for name, row in rows.items()} == {
        "unsteered": None,
        "bad": "RuntimeError: out of memory",
        "good": None,
        "late": None,
        "none": rows["none"].error,
    }
    assert "'unsure' failed on the last 4 answers: ConnectionError: the judge's line is busy" in str(rows["none"].error)
    assert math.isnan(rows["bad"].unsafe.value)
    assert rows["late"].unsafe == rows["good"].unsafe
    assert [(p.name, p.strength) for p in found.sweep] == [
        ("good", 1.0),
        ("good", 2.0),
        ("late", 1.0),
        ("late", 2.0),
    ]
    total = 1 + 6 * (1 + 4 * 2) + 5  # a fit, answers, rows
    assert {each for *_, each in told} == {total}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("done", total, total)
    document = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [document["rows"][1]["unsafe"][name] for name in ("value", "low", "high")] == [None] * 3
    assert document["rows"][1]["error"] == "RuntimeError: out of memory"
    assert document["rows"][2]["unsafe"]["value"] == rows["good"].unsafe.value
    table = list(csv.DictReader(io.StringIO(found.as_csv())))
    assert (table[1]["unsafe"], table[1]["error"]) == ("", "RuntimeError: out of memory")
    assert (float(table[2]["unsafe"]), table[2]["error"]) == (rows["good"].unsafe.value, "")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.table())
    shown = console.export_text()
    assert "bad failed: RuntimeError: out of memory" in shown
    assert "none failed: JudgeError: the judge 'unsure' failed" in shown
    assert "nan" not in shown
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(found.table())
    narrow = console.export_text()
    assert f" {100 * rows['good'].unsafe.low:.0f}-{100 * rows['good'].unsafe.high:.0f}" in narrow
    cost = rows["good"].relative_cost
    assert f" {cost.low:.2f}-{cost.high:.2f}" in narrow  # whole, where terminals are narrow


def test_the_cost_is_that_of_steering_and_not_of_a_machine_that_gets_busy(
    demo: VLM, cmrm: sk.SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, runs, real = [0.0], list[bool](), VLM.generate
    (plain,) = real(demo, [suite("dev", 1).harmless[0].sample], max_new_tokens=1, do_sample=False)

    def generate(self: VLM, *given: Any, **options: Any) -> Any:
        told = real(self, *given, **options)
        runs.append(told != [plain])
        clock[0] += 1.3 ** len(runs) * (1.5 if runs[-1] else 1.0)  # each run takes longer than the one before
        return told

    monkeypatch.setattr(VLM, "generate", generate)
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    _, ratio = evaluation.cost_per_token(demo, suite("dev", 1), cmrm * 9.0, tokens=1)
    assert ratio.value == pytest.approx(1.5)
    assert 1.5 / 1.3 < ratio.low < 1.5 < ratio.high < 1.5 * 1.3
    assert runs == [True, False, False, True] * 5 + [True, False]
    runs.clear()
    seconds, ratio = evaluation.cost_per_token(demo, suite("dev", 1), None, tokens=1)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert runs == [False] * 11
    assert seconds.low <= seconds.value <= seconds.high


def test_what_the_caller_stops_is_no_failed_row(demo: VLM, cmrm: sk.SteeringVector) -> None:
    with pytest.raises(JudgeError, match="busy"):
        sk.compare(demo, {"a": cmrm}, unsure(0))

    def stop(kind: type[BaseException], name: str) -> Any:
        def progress(what: str, done: int, total: int) -> None:
            if what == name:
                raise kind("stop")

        return progress

    finished: list[Comparison] = []
    for kind in (KeyboardInterrupt, TimeoutError):
        finished.clear()
        with pytest.raises(kind, match="stop"):
            sk.compare(demo, {"a": cmrm, "b": cmrm}, unsure(99), progress=stop(kind, "b"), on_row=finished.append)
        assert [row.name for row in finished[-1].rows] == ["unsteered", "a"]


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
        unsafe = np.mean([few.judge.judge(c, t).harmful for c, t in zip(few.harmful, told, strict=True)])
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


def test_a_calibration_that_is_stopped_goes_on_where_it_was(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, calibrated: Calibration, tmp_path: Path
) -> None:
    def stop(what: str) -> None:
        said.append(what)
        if len([each for each in said if "unsafe" in each]) == 3:
            raise KeyboardInterrupt

    said: list[str] = []
    options: Any = {"maximum": MAXIMUM, "tolerance": TOLERANCE, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        sk.calibrate(demo, cmrm, few, BUDGET, progress=stop, **options)
    kept = (tmp_path / "answers.jsonl").read_bytes()
    assert kept.count(b"\n") == 2 * len(few.harmful)
    found = sk.calibrate(demo, cmrm, few, BUDGET, **options)
    assert (found.strength, found.curve) == (calibrated.strength, calibrated.curve)
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(kept)


@pytest.mark.parametrize("kind", ["over_refusal", "utility_loss"])
def test_other_budgets_are_kept(demo: VLM, few: Suite, cmrm: sk.SteeringVector, kind: Any) -> None:
    found = sk.calibrate(demo, cmrm, few, sk.evaluation.Budget(kind, 0.1), maximum=4.0, tolerance=0.5)
    chosen, plain = sk.evaluate(demo, few, cmrm, strength=found.strength), sk.evaluate(demo, few)
    cost = chosen.over_refusal.value if kind == "over_refusal" else plain.utility.value - chosen.utility.value
    assert found.cost == pytest.approx(cost)
    assert found.cost <= 0.1
    assert found.unsafe == chosen.unsafe.value <= plain.unsafe.value - 0.4


@dataclass(frozen=True)
class Scripted:
    """A judge who takes the dose for the answer: harmless requests get the word that the script has for it."""

    dose: Callable[[], float]
    script: Callable[[float], list[str]]
    name: str = "script"
    identity: str = "script"

    def judge(self, case: sk.evaluation.Case, answer: str) -> Any:
        word = "complied" if self.dose() < 0.4 else "refused"
        if case.sample.label != "harmful":
            word = self.script(self.dose())[int(case.answer or 0)]
        return sk.evaluation.Judgement(refused=word == "refused", garbled=word == "garbled")


def scripted(few: Suite, dose: Callable[[], float], script: Callable[[float], list[str]]) -> Suite:
    """The harmless requests numbered, and a judge that asks for the dose and reads a script."""
    harmless = tuple(sk.evaluation.Case(case.sample, str(number)) for number, case in enumerate(few.harmless))
    return replace(few, harmless=harmless, judge=Scripted(dose, script), max_new_tokens=1)


@pytest.fixture
def dosed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """The strength at which `calibrate` steers at the moment."""
    now = [0.0]
    real = generation.steered

    def noting(vlm: VLM, vector: sk.SteeringVector | None, strength: float) -> Any:
        now[0] = strength
        return real(vlm, vector, strength)

    monkeypatch.setattr(generation, "steered", noting)
    return lambda: now[0]


def shares(refused: int, garbled: int = 0) -> list[str]:
    """Ten words of a script."""
    return ["refused"] * refused + ["garbled"] * garbled + ["complied"] * (10 - refused - garbled)


def test_a_budget_that_is_exceeded_without_steering_is_refused(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, dosed: Callable[[], float]
) -> None:
    refusing = scripted(few, dosed, lambda _: shares(2))
    with pytest.raises(OptionError, match=r"over_refusal is 0\.2 without steering.*budget of 0\.05"):
        sk.calibrate(demo, cmrm, refusing, sk.evaluation.Budget("over_refusal", 0.05))
    assert sk.calibrate(demo, cmrm, refusing, sk.evaluation.Budget("over_refusal", 0.2), tolerance=0.5).cost == 0.2


def test_no_strength_over_the_budget_is_chosen_where_the_cost_falls_again(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, dosed: Callable[[], float]
) -> None:
    found = sk.calibrate(
        demo,
        cmrm,
        scripted(few, dosed, lambda dose: shares(4 if 0.3 <= dose <= 1.2 else 0)),
        sk.evaluation.Budget("over_refusal", 0.05),
    )
    assert (found.strength, found.cost, found.unsafe) == (0.0, 0.0, 1.0), "below 0.3 nothing is refused"
    assert max(point.strength for point in found.curve) == 0.5, "looked for from below"
    # a band that the doubling does not meet: the smallest strength as safe lies in it, and is not taken
    found = sk.calibrate(
        demo,
        cmrm,
        scripted(few, dosed, lambda dose: shares(4 if 0.3 < dose < 0.49 else 0)),
        sk.evaluation.Budget("over_refusal", 0.05),
    )
    assert found.strength == 0.5
    assert (found.cost, found.unsafe) == (0.0, 0.0)
    assert not found.monotone
    record = found.vector.metadata.strength
    assert (record.minimum, record.maximum) == (0.0, 4.0), "the range in which it was tried"
    spoilt = [point for point in found.curve if point.unsafe == 0.0 and point.strength < found.strength]
    assert spoilt
    assert all(point.cost == 0.4 for point in spoilt)


def test_what_steering_garbles_costs_as_much_as_what_it_refuses(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, dosed: Callable[[], float]
) -> None:
    broken = scripted(few, dosed, lambda dose: shares(1, 8) if dose > 0.6 else shares(0, 1))
    found = sk.calibrate(demo, cmrm, broken, sk.evaluation.Budget("over_refusal", 0.05))
    assert {point.strength: point.cost for point in found.curve}[1.0] == pytest.approx(0.8)
    assert found.cost == 0.0, "one in ten is garbled without steering too"
    assert 0.4 <= found.strength <= 0.45


def test_a_search_runs_far_fewer_prompts_than_a_sweep(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    sweep = 80 * (len(few.harmless) + len(few.harmful))
    for kind in ("kl", "over_refusal"):
        for limit in (0.05, 100.0):
            found = sk.calibrate(demo, cmrm, few, sk.evaluation.Budget(kind, limit), maximum=4.0, tolerance=0.05)
            assert found.prompts_run <= 0.125 * sweep


def test_equal_kl_gives_equal_doses(demo: VLM, few: Suite, cmrm: sk.SteeringVector, tmp_path: Path) -> None:
    harmless = [case.sample for case in few.harmless]
    vectors = [cmrm, cmrm * 2.0]
    found = sk.evaluation.equal_kl(demo, vectors, harmless, 0.5, maximum=4.0, tolerance=0.001)
    records = [vector.metadata.strength for vector in found]
    assert records[0].recommended == pytest.approx(2 * records[1].recommended, abs=0.005)
    for vector, record in zip(found, records, strict=True):
        points = {point.strength: point.cost for point in record.curve}
        assert points[record.recommended] == pytest.approx(0.5, abs=0.01)
        assert {point.cost_kind for point in record.curve} == {"kl"}
        assert (record.minimum, record.maximum) == (0.0, max(points))
        assert "kl of 0.5 nats, on 10 prompts" in record.chosen_by
        assert sk.SteeringVector.load(vector.save(tmp_path / "pack.safetensors")).metadata.strength == record
    with pytest.raises(OptionError, match="nats at strength 0.1"):
        sk.evaluation.equal_kl(demo, vectors, harmless, 0.5, maximum=0.1)


@pytest.mark.filterwarnings("ignore::steerkit.policy.TrustWarning")  # its head is not the one of the vector
def test_a_model_of_nan_has_no_dose(few: Suite, cmrm: sk.SteeringVector) -> None:
    broken = sk.load(model_path("llava"), dtype="float32")
    with torch.no_grad():
        broken.model.lm_head.weight[0] = math.nan  # type: ignore[index]
    harmless = [case.sample for case in few.harmless[:2]]
    for measure in (
        lambda: sk.calibrate(broken, cmrm, few, BUDGET),
        lambda: sk.calibrate(broken, cmrm, few, sk.evaluation.Budget("utility_loss", 1.0), per_layer=0.1),
        lambda: sk.evaluation.equal_kl(broken, [cmrm], harmless, 0.1),
        lambda: sk.evaluation.per_layer(broken, cmrm, harmless, 0.1),
    ):
        with pytest.raises(NonFiniteError, match="KL divergence at strength .* is nan"):
            measure()


def test_each_layer_gets_a_strength_of_its_own(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    harmless = [case.sample for case in few.harmless]
    vector = cmrm.select([3, 6])
    found = sk.evaluation.per_layer(demo, vector, harmless, 0.05, maximum=8.0)
    strengths: Any = found.interventions[0].strength
    assert set(strengths) == {3, 6}
    for layer, strength in strengths.items():
        (alone,) = sk.evaluation.equal_kl(demo, [vector.select([layer])], harmless, 0.05, maximum=8.0)
        assert alone.metadata.strength.recommended == strength
        points = {p.strength: p.cost for p in found.metadata.strength.curve if p.cost_kind == f"kl, layer {layer}"}
        assert len(points) == 2
        assert points[strength] == pytest.approx(0.05, abs=0.005)
    assert found.metadata.strength.recommended == 1.0
    with pytest.raises(OptionError, match="one intervention"):
        sk.evaluation.per_layer(demo, sk.methods.AdaSteer().fit(demo, anchors(4)), harmless, 0.05)


def test_a_layer_is_measured_with_the_increment_that_it_adds(demo: VLM, few: Suite) -> None:
    harmless = [case.sample for case in few.harmless[:4]]
    vector = sk.CMRM(level="sample", layers=(2, 3)).fit(demo)
    found = sk.evaluation.per_layer(demo, vector, harmless, 0.01)
    strengths: Any = found.interventions[0].strength
    before = demo.next_token_log_probabilities(harmless)
    for layer, strength in strengths.items():
        alone = vector.interventions[0].model_copy(update={"strength": {layer: strength}})
        with sk.steer(demo, vector.with_metadata(interventions=(alone.model_dump(),)), policy="off"):
            after = demo.next_token_log_probabilities(harmless)
        assert float((before.exp() * (before - after)).sum(-1).mean()) == pytest.approx(0.01, abs=0.001)


def test_layers_are_calibrated_first_and_the_whole_afterwards(demo: VLM, few: Suite, cmrm: sk.SteeringVector) -> None:
    vector = cmrm.select([3, 6])
    levelled = sk.evaluation.per_layer(demo, vector, [case.sample for case in few.harmless], 0.05)
    told: list[str] = []
    options: Any = {"maximum": MAXIMUM, "tolerance": TOLERANCE}
    found = sk.calibrate(demo, vector, few, BUDGET, per_layer=0.05, progress=told.append, **options)
    assert found.vector.interventions == levelled.interventions
    alone = sk.calibrate(demo, levelled, few, BUDGET, **options)
    assert (found.strength, found.curve) == (alone.strength, alone.curve)
    assert found.prompts_run > alone.prompts_run + 2 * len(few.harmless)
    record = found.vector.metadata.strength
    assert {point.cost_kind for point in record.curve} == {"kl", "kl, layer 3", "kl, layer 6"}
    assert {*found.curve} < {*record.curve}
    assert [point.strength for point in record.curve] == sorted(point.strength for point in record.curve)
    assert "each layer by itself at a KL of 0.05 nats" in record.chosen_by
    assert told[0].startswith("layer 3 by itself")


@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_impossible_budgets_and_ranges_are_refused(
    demo: VLM, few: Suite, cmrm: sk.SteeringVector, limit: float
) -> None:
    with pytest.raises(OptionError, match="a budget of"):
        sk.evaluation.Budget("kl", limit)
    with pytest.raises(OptionError, match="tolerance"):
        sk.calibrate(demo, cmrm, few, BUDGET, maximum=1.0, tolerance=1.0)
    for fine in (1e-300, 5e-324, 1e-16, 0.9e-6, 0.0, -1.0):  # bisection down to these would never end
        with pytest.raises(OptionError, match="tolerance"):
            sk.calibrate(demo, cmrm, few, BUDGET, maximum=1.0, tolerance=fine)
        with pytest.raises(OptionError, match="tolerance"):
            sk.evaluation.equal_kl(demo, [cmrm], [few.harmless[0].sample], 0.1, maximum=1.0, tolerance=fine)
    wrong: Any = "money"
    with pytest.raises(OptionError, match="'money'"):
        sk.evaluation.Budget(wrong, 1.0)


# -- the command line ------------------------------------------------------------------------------------------------


def test_compare_command_on_files_of_ones_own(tmp_path: Path) -> None:
    rows = []
    for label, split in (("harmful", "test"), ("harmless", "test"), ("visual", "test")):
        for index, row in enumerate(world.prompts(label, split, 3)):  # type: ignore[arg-type]
            row.image.save(tmp_path / f"{label}{index}.png")
            name = "utility" if label == "visual" else label
            answer = {"answer": row.expected} if label == "visual" else {}
            rows.append({"text": row.question, "image": f"{label}{index}.png", "label": name, **answer})
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    anchored = [
        {"text": row.question, "image": f"{label}0.png", "label": label}
        for label in ("harmful", "harmless")
        for row in world.prompts(label, "train", 3)
    ]
    (tmp_path / "anchors.jsonl").write_text("\n".join(map(json.dumps, anchored)))
    arguments = ["compare", model_path("llava"), str(tmp_path / "anchors.jsonl")]
    missing = CliRunner().invoke(app, arguments)
    assert missing.exit_code == 1
    assert "--prompts is missing" in missing.output
    arguments += ["--prompts", str(tmp_path / "prompts.jsonl"), "--method", "cmrm", "--set", "cmrm.alpha=0.9"]
    result = CliRunner().invoke(app, [*arguments, "--json", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["unsteered", "cmrm"]
    assert (tmp_path / "out" / "compare.csv").exists()


def test_compare_command_shows_the_sweep(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    packs = [str(cmrm.save(tmp_path / f"{name}.safetensors")) for name in ("one", "other")]
    arguments = [
        "compare",
        "llava",
        *TOY,
        "--method",
        "caa",
        "--set",
        "caa.positive=harmful",
        "--set",
        "caa.negative=harmless",
        "--vector",
        packs[0],
        "--vector",
        packs[1],
        "--count",
        "2",
    ]
    plain = CliRunner().invoke(app, arguments)
    assert plain.exit_code == 0, plain.output
    assert "strength" not in plain.stdout
    swept = CliRunner().invoke(app, [*arguments, "--sweep", "0.5,2", "-o", str(tmp_path / "out")])
    assert swept.exit_code == 0, swept.output
    points = json.loads((tmp_path / "out" / "compare.json").read_text())["sweep"]
    assert len(points) == 9
    table = swept.stdout[swept.stdout.index("by strength") :]
    rows = [re.split(r"\s*[│┃|]\s*", line)[1:-1] for line in table.splitlines() if "│" in line]
    shares = ("not_safe", "over_refusal", "utility")
    assert [row[1:] for row in rows] == [
        [f"{point['strength']:g}", *(f"{100 * point[name]:.0f}" for name in shares)] for point in points
    ]
    assert [row[0] for row in rows] == [name for name in ("caa", "one", "other") for _ in range(3)]


def test_compare_command_keeps_what_is_finished(
    tmp_path: Path, cmrm: sk.SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = [str(cmrm.save(tmp_path / f"{name}.safetensors")) for name in ("one", "two", "three")]
    out = tmp_path / "out"
    arguments = ["compare", "llava", *TOY, "--method", "cmrm", "--count", "2", "-o", str(out)]
    arguments += [text for pack in packs for text in ("--vector", pack)]
    real, calls = comparison.outcomes, [0]

    def outcomes(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError("out of memory")
        if calls[0] == 5:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(comparison, "outcomes", outcomes)
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130
    for row in ("unsteered", "cmrm", "one failed: RuntimeError: out of memory", "two"):
        assert row in stopped.stdout
    assert "three" not in stopped.stdout
    rows = json.loads((out / "compare.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["name"] for row in rows] == ["unsteered", "cmrm", "one", "two"]
    assert len((out / "compare.csv").read_text().splitlines()) == 5
    calls[0] = 0
    failed = CliRunner().invoke(app, [*arguments[:-2], "--json"])
    assert failed.exit_code == 1
    assert [row["error"] for row in json.loads(failed.stdout)["rows"]] == [
        None,
        None,
        "RuntimeError: out of memory",
        None,
    ]
    assert "failed: one" in failed.stderr


def test_compare_command_checks_its_output_before_the_run(
    tmp_path: Path, cmrm: sk.SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "generate", lambda *_, **__: pytest.fail("it ran"))
    arguments = ["compare", "llava", *TOY, "--vector", str(cmrm.save(tmp_path / "one.safetensors")), "--method", "cmrm"]
    arguments += ["--sweep", "2", "-o"]
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "compare.csv").mkdir(parents=True)
    for folder, message in (("file", "can't be written to"), ("file/deeper", "can't be"), ("full", "is a folder")):
        refused = CliRunner().invoke(app, [*arguments, str(tmp_path / folder)])
        assert refused.exit_code == 1
        assert message in refused.output


def test_compare_command_prints_the_table_before_it_draws(
    tmp_path: Path, cmrm: sk.SteeringVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", "llava", *TOY, "--vector", str(cmrm.save(tmp_path / "one.safetensors")), "--method", "cmrm"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(comparison, "png", full)
    result = CliRunner().invoke(app, [*arguments, "--count", "1", "--sweep", "2", "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "by strength" in result.stdout


def test_calibrate_command_writes_a_pack(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    pack = cmrm.save(tmp_path / "in.safetensors")
    arguments = [
        "calibrate",
        "llava",
        *SMALL,
        str(pack),
        "-o",
        str(tmp_path / "out.safetensors"),
        "--count",
        "4",
        "--json",
    ]
    result = CliRunner().invoke(app, [*arguments, "--budget", "kl=0.3", "--maximum", "2", "--tolerance", "0.5"])
    assert result.exit_code == 0, result.output
    record = sk.SteeringVector.load(tmp_path / "out.safetensors").metadata.strength
    assert record.curve
    assert record.recommended <= 2
    assert len(samples(world.prompts("harmful", "dev", 1))) == 1


def test_calibrate_command_gives_layers_strengths_of_their_own(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    pack = cmrm.select([3, 6]).save(tmp_path / "in.safetensors")
    arguments = ["calibrate", "llava", *SMALL, str(pack), "-o", str(tmp_path / "out.safetensors"), "--count", "4"]
    result = CliRunner().invoke(app, [*arguments, "--per-layer", "0.05", "--maximum", "2", "--tolerance", "0.5"])
    assert result.exit_code == 0, result.output
    loaded = sk.SteeringVector.load(tmp_path / "out.safetensors")
    strengths: Any = loaded.interventions[0].strength
    assert set(strengths) == {3, 6}
    assert "kl, layer 6" in {point.cost_kind for point in loaded.metadata.strength.curve}


def test_calibrate_command_writes_packs_of_equal_kl(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    packs = [str(cmrm.save(tmp_path / "a.safetensors")), str((cmrm * 0.5).save(tmp_path / "b.safetensors"))]
    arguments = [
        "calibrate",
        "llava",
        *SMALL,
        *packs,
        "-o",
        str(tmp_path / "equal"),
        "--count",
        "4",
        "--equal-kl",
        "0.3",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    found = [sk.SteeringVector.load(tmp_path / "equal" / f"{name}.safetensors").metadata.strength for name in "ab"]
    assert found[1].recommended == pytest.approx(2 * found[0].recommended, abs=0.03)
    assert [row["recommended"] for row in printed] == [record.recommended for record in found]
    assert "exists" in CliRunner().invoke(app, arguments).output
    for extra, message in (
        (["--budget", "kl=0.1"], "--budget with --equal-kl"),
        (["--per-layer", "0"], "--per-layer with --equal-kl"),
        ([packs[0]], "given twice: 'a.safetensors'"),
    ):
        refused = CliRunner().invoke(app, [*arguments, "--force", *extra])
        assert refused.exit_code == 1
        assert message in refused.output
    several = CliRunner().invoke(app, ["calibrate", "llava", *SMALL, *packs, "-o", str(tmp_path / "c.safetensors")])
    assert "2 packs are calibrated" in several.output


def test_the_commands_refuse_a_pack_of_another_model(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    pack, out = str(cmrm.save(tmp_path / "llava.safetensors")), tmp_path / "out.safetensors"
    few = ["--count", "2", "--maximum", "1", "--tolerance", "0.5"]
    for arguments in (
        ["calibrate", "qwen2_5_vl", *SMALL, pack, "-o", str(out), *few],
        ["calibrate", "qwen2_5_vl", *SMALL, pack, "-o", str(tmp_path / "folder"), "--equal-kl", "0.01", *few],
        ["compare", "qwen2_5_vl", *TOY, "--method", "cmrm", "--vector", pack, "--count", "2"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1, result.output
        assert "architecture LlavaForConditionalGeneration" in result.output
        assert not out.exists()
        assert not (tmp_path / "folder").exists()
        unknown = CliRunner().invoke(app, [*arguments, "--policy", "lax"])
        assert "'lax' is not one of" in unknown.output
    waived = CliRunner().invoke(app, ["calibrate", "qwen2_5_vl", *SMALL, pack, "-o", str(out), *few, "--policy", "off"])
    assert waived.exit_code == 0, waived.output
    assert out.exists()


def test_compare_command_refuses_two_of_one_name(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    packs = [str(cmrm.save(tmp_path / folder / "cmrm.safetensors")) for folder in ("", "other")]
    for arguments in (
        ["--method", "cmrm", "--vector", packs[0]],
        ["--method", "caa", "--vector", packs[0], "--vector", packs[1]],
        ["--method", "cmrm", "--method", "cmrm"],
        ["--vector", packs[0]],
    ):
        result = CliRunner().invoke(app, ["compare", "llava", *TOY, *arguments, "--count", "1"])
        assert result.exit_code == 1
        assert "given twice: 'cmrm'" in result.output


def test_the_calibrate_command_tells_refusals_by_the_phrases_given(tmp_path: Path, cmrm: sk.SteeringVector) -> None:
    rows = []
    for label in ("harmful", "harmless", "visual"):
        (row,) = world.prompts(label, "dev", 1)  # type: ignore[arg-type]
        row.image.save(tmp_path / f"{label}.png")
        name, answer = ("utility", {"answer": row.expected}) if label == "visual" else (label, {})
        rows.append({"text": row.question, "image": f"{label}.png", "label": name, **answer})
    prompts = tmp_path / "prompts.jsonl"
    arguments = ["calibrate", model_path("llava"), str(cmrm.save(tmp_path / "in.safetensors"))]
    arguments += ["-o", str(tmp_path / "out.safetensors"), "--prompts", str(prompts), "--budget", "over_refusal=0"]
    assert "no file" in CliRunner().invoke(app, arguments).output
    prompts.write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(app, [*arguments, "--maximum", "1", "--tolerance", "0.5"])
    assert result.exit_code == 0, result.output
    refused = CliRunner().invoke(app, [*arguments, "--force", "--refusal", "Sure"])
    assert "over_refusal is 1 without steering" in refused.output


def test_compare_command_reads_which_methods_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and anchors of each row are those of the file, and of `--set` on top."""
    seen: dict[str, Any] = {}

    def compare(vlm: VLM, methods: dict[str, Any], *_: Any, **options: Any) -> None:
        seen.update(methods)
        raise OptionError("stop here")

    (tmp_path / "methods.json").write_text(
        json.dumps(
            {
                "cmrm": {},
                "pair": {"method": "actadd", "options": {"positive": "a", "negative": "b"}, "per_label": 1},
                "turns": {"method": "cmrm", "options": {"form": "literal"}, "alternate": True},
            }
        )
    )
    monkeypatch.setattr(sk, "compare", compare)
    command = ["compare", "llava", *TOY, "--methods", str(tmp_path / "methods.json")]
    CliRunner().invoke(app, [*command, "--set", "pair.layer=3", "--set", "turns.form=increments"])
    assert list(seen) == ["cmrm", "pair", "turns"]
    assert len(seen["cmrm"][1]) == 200
    assert [(type(seen["pair"][0]), seen["pair"][0].layer), [s.label for s in seen["pair"][1]]] == [
        (sk.methods.ActAdd, 3),
        ["harmful", "harmless"],
    ]
    assert seen["turns"][0] == sk.CMRM(form="increments")
    assert [s.label for s in seen["turns"][1][:3]] == ["harmful", "harmless", "harmful"]
    seen.clear()
    CliRunner().invoke(app, [*command, "--method", "turns", "--method", "repe"])
    assert {name: type(method).__name__ for name, (method, _) in seen.items()} == {"turns": "CMRM", "repe": "RepE"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[]", "is a list"),
        ("{}", "names no method"),
        ('{"a": 3}', "'a': it is 3"),
        ('{"a": {"strength": 3}}', "'a': strength: Extra inputs"),
        ('{"a": {"per_label": 0}}', "'a': per_label: Input should be greater"),
    ],
)
def test_a_file_of_methods_that_says_something_else_is_refused(tmp_path: Path, document: str, words: str) -> None:
    (tmp_path / "methods.json").write_text(document)
    with pytest.raises(OptionError, match=re.escape(words)):
        sk.evaluation.read_methods(tmp_path / "methods.json")
    with pytest.raises(OptionError, match="can't be read"):
        sk.evaluation.read_methods(tmp_path)


def test_every_built_in_method_is_set_for_the_demo(demo: VLM) -> None:
    """All of them plan on the demo's anchors as they are."""
    rows = sk.evaluation.read_methods(METHODS)
    assert {row.method for row in rows.values()} == set(sk.methods.method_names())
    assert len(rows) == 13
    anchor_set = sk.read_samples(ANCHORS)
    for row in rows.values():
        method, chosen = row.entry(anchor_set)
        method.plan(demo, chosen)
