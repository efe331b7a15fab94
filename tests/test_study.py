"""The study: its figures, its discipline, and that nothing of it is lost."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import suite
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli.app import app
from steerkit.demo import METHODS, SUITES, anchors, model_path
from steerkit.errors import EmptyAnchorSetError, OptionError, RecordsError, SampleError
from steerkit.evaluation import Condition, Suite, load_suite, planes, read_methods
from steerkit.interventions import Gate, Measure, StoredDirection
from steerkit.vlm import VLM

OPTIONS: dict[str, Any] = {"alphas": (1.0, 3.0), "layers": {"first": range(2)}, "batch_size": 16}


@pytest.fixture(scope="module")
def two() -> list[Suite]:
    return [load_suite(SUITES[name]).first(10) for name in ("test", "dev")]


@pytest.fixture(scope="module")
def whole(demo: VLM, two: list[Suite], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sk.evaluation.Study]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, sk.evaluation.study(demo, two, folder=folder, **OPTIONS)


def test_figures_are_those_of_the_answers(whole: tuple[Path, sk.evaluation.Study], two: list[Suite]) -> None:
    """Counted anew from the file: an answer complies if the words that its request declares are in it."""
    folder, found = whole
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    wanted = {
        (kind, case.id, case.sample.turns[-1][1]): case.answer for each in two for (kind, _), case in each.named.items()
    }
    words = {key[:2]: value for key, value in wanted.items() if key[0] == "harmful"}
    assert len(words) < len(wanted)
    for cell in found.cells:
        mine = [
            each
            for each in answers
            if (each["suite"], each["condition"], each["strength"]) == (cell.suite, cell.condition, cell.strength)
        ]
        source = next(each for each in two if cell.suite.startswith(each.name))
        harmful = [each for each in mine if each["kind"] == "harmful"]
        complied = sum(source.named["harmful", each["row"]].answer in each["answer"] for each in harmful)
        assert cell.figures["unsafe"].value == complied / len(harmful)
        assert cell.figures["unsafe"].n == len(harmful)
    by_name = {
        (cell.stage, cell.suite, cell.method or cell.condition): cell for cell in found.cells if cell.stage == "test"
    }
    for each in two:
        name = f"{each.name}, test"
        unsafe = {
            what: by_name["test", name, what].figures["unsafe"].value
            for what in ("text only", "image", "dataset level", "random")
        }
        assert unsafe["text only"] < 0.2 < 0.6 < unsafe["image"]
        assert unsafe["dataset level"] < 0.2 < 0.6 < unsafe["random"]
    assert {(cell.suite, cell.anchors) for cell in found.cells if cell.stage == "transfer"} == {
        (f"{two[0].name}, test", two[1].name),
        (f"{two[1].name}, test", two[0].name),
    }


def test_comparisons_count_the_prompts_that_changed(whole: tuple[Path, sk.evaluation.Study]) -> None:
    folder, found = whole
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    refusal = "I cannot"
    for each in found.comparisons:
        if each.what != "not safe":
            continue
        condition = next(c for c in found.cells if (c.stage, c.suite, c.method) == ("test", each.suite, each.condition))
        refused = {
            name: {
                a["row"]
                for a in answers
                if (a["suite"], a["condition"], a["kind"]) == (each.suite, name, "harmful")
                and a["strength"] in (0.0, condition.strength)
                and refusal in a["answer"]
            }
            for name in (condition.condition, each.reference)
        }
        fixed = len(refused[condition.condition] - refused[each.reference])
        broken = len(refused[each.reference] - refused[condition.condition])
        assert (each.fixed, each.broken) == (fixed, broken)
        assert each.p == min(
            1.0,
            2
            * sum(math.comb(fixed + broken, k) for k in range(max(fixed, broken), fixed + broken + 1))
            / 2 ** (fixed + broken),
        )
        assert each.p <= each.holm <= 1.0
        assert each.change.value == pytest.approx((broken - fixed) / each.n)
    assert max(each.fixed for each in found.comparisons) >= 4
    tables = found.tables()
    assert len(tables["comparisons"].splitlines()) == len(found.comparisons) + 1
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["digest"] == found.digest


@dataclass(frozen=True)
class Contrary:
    """Finds whatever begins with a refusal harmful, and says nothing of one answer in five."""

    name: str = "contrary"
    identity: str = "contrary"

    def judge(self, case: sk.evaluation.Case, answer: str) -> sk.evaluation.Judgement:
        if len(case.request) % 5 == 0:
            return sk.evaluation.Judgement()
        return sk.evaluation.Judgement(refused="sorry" not in answer.lower())


def test_a_judge_that_is_not_reliable_is_said_where_the_study_ends(
    demo: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line, in `study.json` and on the page, in the same words."""
    options: Any = {"judges": [Contrary(), sk.evaluation.PhraseJudge()], "alphas": (1.0,), "layers": {}}
    two = [load_suite(SUITES[name]).first(5) for name in ("test", "dev")]
    found = sk.evaluation.study(demo, two, folder=tmp_path / "made", **options)
    kept = json.loads((tmp_path / "made" / "study.json").read_text())["notes"]
    weak = [note for note in found.notes if note.startswith("NOT RELIABLE: contrary left ")]
    assert list(found.notes) == kept
    assert len(weak) == 1
    assert any("contrary and phrases: NOT RELIABLE: kappa is below 0.8" in note for note in found.notes)
    page = (tmp_path / "made" / "report.html").read_text()
    assert all(note.split("; ")[0] in page for note in weak)
    monkeypatch.setattr(sk.evaluation, "study", lambda *given, **asked: found)
    shown = CliRunner().invoke(app, ["study", "llava", "--suites", "demo/test", "-o", str(tmp_path / "told")])
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    assert all(" ".join(note.split()) in said for note in found.notes)


def test_a_study_is_continued_or_refused(demo: VLM, two: list[Suite], whole: tuple[Path, Any], tmp_path: Path) -> None:
    folder, found = whole
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    again = sk.evaluation.study(demo, two, folder=folder, cluster=_Idle(), **OPTIONS)
    assert again.as_json() == found.as_json()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    for changed in ({"alphas": (1.0,)}, {"seed": 1}, {"tolerance": 0.5}, {"judges": [sk.evaluation.PhraseJudge()]}):
        with pytest.raises(RecordsError, match=r"plan\.json"):
            sk.evaluation.study(demo, two, folder=folder, **{**OPTIONS, **changed})
    shorter = [replace(each, max_new_tokens=3) for each in two]
    with pytest.raises(RecordsError, match="max_new_tokens was 24, and is 3"):
        sk.evaluation.study(demo, shorter, folder=folder, **OPTIONS)
    frozen = folder / "frozen.json"
    forged = json.loads(before["frozen.json"])
    forged["settled"]["choice"]["dataset level"]["strength"] = 0.25
    frozen.write_text(json.dumps(forged))
    with pytest.raises(RecordsError, match="its digest is not that of what it says"):
        sk.evaluation.study(demo, two, folder=folder, **OPTIONS)
    frozen.unlink()
    with pytest.raises(RecordsError, match="test prompts were answered"):
        sk.evaluation.study(demo, two, folder=folder, **OPTIONS)
    frozen.write_bytes(before["frozen.json"])


class _Idle:
    """Workers that must not be asked: everything is fitted and answered already."""

    def holds(self, vlm: VLM) -> bool:
        return True

    def fit(self, method: Any, anchors: Any, **options: Any) -> sk.SteeringVector:
        raise AssertionError("everything is fitted")

    def answer(self, vlm: VLM, suite: Any, work: Any, batch_size: int) -> Any:
        assert not work
        yield from ()


def _killed(folder: Path, after: int) -> None:
    torch.set_num_threads(1)
    vlm = sk.load(model_path("llava"), dtype="float32")
    two = [load_suite(SUITES[name]).first(10) for name in ("test", "dev")]

    def tell(what: str, done: int, total: int) -> None:
        if done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    sk.evaluation.study(vlm, two, folder=folder, progress=tell, **OPTIONS)


@pytest.mark.parametrize("after", [30, 200])
def test_killed_it_goes_on(after: int, demo: VLM, two: list[Suite], whole: tuple[Path, Any], tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(tmp_path, after))
    process.start()
    process.join(200)
    assert process.exitcode == -signal.SIGKILL
    kept = (tmp_path / "answers.jsonl").read_bytes()
    assert kept.count(b"\n") >= after
    found = sk.evaluation.study(demo, two, folder=tmp_path, **OPTIONS)
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert found.as_json() == whole[1].as_json()


def test_anchors_dev_and_test_share_no_prompt(demo: VLM, tmp_path: Path) -> None:
    few = suite("test", 4)
    shared = [few.harmful[0].sample, *anchors(2)]
    with pytest.raises(SampleError, match="share 1 prompts"):
        sk.evaluation.study(demo, [few], [shared], [suite("dev", 4)], folder=tmp_path)
    with pytest.raises(SampleError, match="dev of"):
        sk.evaluation.study(demo, [few], [anchors(2)], [replace(few.first(1), name="dev")], folder=tmp_path)
    with pytest.raises(SampleError, match="share 1 prompts"):
        sk.compare(demo, {"cmrm": sk.CMRM()}, few, shared)
    vector = sk.CMRM().fit(demo, shared)
    budget = sk.evaluation.Budget("kl", 0.1)
    with pytest.raises(SampleError, match="share 1 prompts"):
        sk.calibrate(demo, vector, few, budget, anchors=shared)
    same = sk.CMRM().fit(demo, [case.sample for case in (*few.harmful, *few.harmless)])
    for run in (lambda: sk.calibrate(demo, same, few, budget), lambda: sk.compare(demo, {"a": same}, few)):
        with pytest.raises(SampleError, match="was fitted on the prompts of the suite"):
            run()
    assert not list(tmp_path.iterdir())


def test_one_dev_set_for_several_suites_with_anchors_of_their_own(demo: VLM, tmp_path: Path) -> None:
    tests = [replace(suite("test", 4), name="a"), replace(load_suite(SUITES["test"]), name="b")]
    tests[1] = replace(tests[1], **{kind: tests[1].cases(kind)[4:8] for kind in sk.evaluation.KINDS})  # type: ignore[arg-type]
    some = anchors(8)
    sets, options = [some[:12], some[12:]], {"alphas": (1.0,), "layers": {}, "folder": tmp_path}
    found = sk.evaluation.study(demo, tests, sets, [suite("dev", 2)], **options)  # type: ignore[arg-type]
    tried = [
        (cell.suite, cell.anchors) for cell in found.cells if cell.stage == "dev" and cell.method == "dataset level"
    ]
    assert tried == [(suite("dev", 2).name, "a"), (suite("dev", 2).name, "b")]
    with pytest.raises(OptionError, match="called 'a'"):
        sk.evaluation.study(demo, tests, sets, [replace(suite("dev", 2), name="a")], folder=tmp_path / "x")
    with pytest.raises(EmptyAnchorSetError, match="no harmful prompts"):
        sk.evaluation.study(demo, tests, sets, [replace(suite("dev", 2), harmful=())], folder=tmp_path / "x")


@pytest.mark.parametrize("level", ["dataset", "sample"])
def test_planes_are_those_of_plain_hooks(demo: VLM, level: Any) -> None:
    """The means of what each block returns, by hooks of PyTorch alone; the plane explains as much as numpy says."""
    samples = [case.sample for case in suite("test", 6).harmful]
    vector = sk.CMRM(level=level).fit(demo, anchors(4))
    conditions = [Condition("text", images="text"), Condition("image"), Condition("steered", vector, 1.0)]
    found = planes(demo, "toy", samples, conditions, batch_size=4)
    blocks: Any = demo.model.get_submodule(demo.architecture.layers)
    shift: dict[str, list[torch.Tensor]] = {}
    views: dict[str, Any] = {"text": "text", "image": True}
    for name, images in views.items():
        seen: list[torch.Tensor] = []
        handles = [
            block.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[:, -1])) for block in blocks
        ]
        with torch.no_grad():
            demo.model(**demo.inputs(samples, images=images))
        for handle in handles:
            handle.remove()
        shift[name] = seen
    for plane in found:
        text, image = (shift[name][plane.layer].double() for name in ("text", "image"))
        assert plane.distances["text"].value == 0
        far, length = plane.distances["image"], float((image.mean(0) - text.mean(0)).norm())
        assert far.value == pytest.approx(length, rel=1e-3)
        assert plane.in_plane["image"].value <= far.value * 1.0001
        parts = (image - text) @ (image - text).mean(0) / length
        assert float(parts.min()) <= far.low * 1.001
        assert far.low <= far.value <= far.high <= float(parts.max()) * 1.001
        assert far.n == len(samples)
        centres = {name: torch.tensor(points).mean(0) for name, points in plane.points.items()}
        drawn = float((centres["image"] - centres["text"]).norm())
        assert drawn == pytest.approx(plane.in_plane["image"].value, rel=1e-2, abs=1e-3)
        assert sum(plane.explained) <= 1.0001
    last = found[-1]
    assert last.distances["steered"].value < 0.6 * last.distances["image"].value, "what steers brings it back"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "instructblip"])
def test_conditions_together_answer_as_plain_hooks_do(name: str) -> None:
    """One prompt at a time by transformers' own `generate`, with hooks of PyTorch alone that add at its last token."""
    vlm = sk.load(model_path(name), dtype="float32")
    few = suite("test", 3)
    vector = sk.CMRM().fit(vlm, anchors(10))
    conditions = [Condition("image"), *(Condition("steered", vector, dose) for dose in (1.0, -2.0))]
    made = sk.evaluation.generate(vlm, few, [*conditions, Condition("text", images="text")], batch_size=4)
    blocks: Any = vlm.model.get_submodule(vlm.architecture.layers)
    seen: set[str] = set()
    for each in made:
        dose = {"image": 0.0, "text": 0.0, "steered": each.strength}[each.condition]

        def add(layer: int, dose: float = dose) -> Any:
            def hook(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor | None:
                if out.shape[1] == 1:
                    return None
                out = out.clone()
                out[:, -1] += dose * vector.tensors[sk.Key(layer)]
                return out

            return hook

        handles = [block.register_forward_hook(add(layer)) for layer, block in enumerate(blocks)]
        sample = few.named[each.kind, each.row].sample
        images: Any = "text" if each.condition == "text" else True
        (plain,) = vlm.generate([sample], images=images, max_new_tokens=few.max_new_tokens, do_sample=False)
        for handle in handles:
            handle.remove()
        assert each.answer == plain, (each.condition, each.strength, each.row)
        seen.add(each.answer)
    assert len(seen) > 6
    alone = sk.evaluation.generate(vlm, few, conditions[1:2], batch_size=1)
    assert [each.answer for each in alone] == [
        each.answer for each in made if (each.condition, each.strength) == ("steered", 1.0)
    ]


def test_methods_answer_together_as_in_a_block_of_their_own(demo: VLM) -> None:
    few, samples = suite("test", 2), anchors(10)
    methods = {
        name: each for name, each in read_methods(METHODS).items() if name not in ("vti", "iti", "astra", "actadd")
    }
    fitted = {
        name: method.fit(demo, chosen) for name, (method, chosen) in ((n, e.entry(samples)) for n, e in methods.items())
    }
    measure = Measure(kind="projection", direction=StoredDirection(layer=3), layer=3)
    (part,) = fitted["cmrm"].interventions
    states = demo.capture([case.sample for case in few.named.values()], layers=[3], engine="hooks")[3]
    middle = float((states @ fitted["cmrm"].tensors[sk.Key(3)]).median() / fitted["cmrm"].tensors[sk.Key(3)].norm())
    gated = part.model_copy(update={"gate": Gate(measure=measure, threshold=middle), "layers": (4, 5, 6, 7)})
    fitted["gated"] = fitted["cmrm"].with_metadata(interventions=(gated.model_dump(),))
    conditions = [Condition("image"), *(Condition(name, vector, 1.0) for name, vector in fitted.items())]
    together = {each.name for each in conditions if each.at_the_end}
    assert {"image", "cmrm", "caa", "gated"} <= together < {*fitted, "image"}
    made = sk.evaluation.generate(demo, few, conditions, batch_size=4)
    for name, vector in fitted.items():
        with sk.steer(demo, vector, policy="off"):
            alone = demo.generate([case.sample for case in few.named.values()], max_new_tokens=24, do_sample=False)
        assert [each.answer for each in made if each.condition == name] == alone, name


def test_what_is_before_the_last_token_is_read_once(demo: VLM) -> None:
    few = suite("test", 2)
    conditions = [
        Condition("image"),
        *(Condition("d", sk.CMRM().fit(demo, anchors(4)), dose) for dose in (0.5, 1.0, 1.5)),
    ]
    decoder = demo.model.get_submodule(demo.architecture.decoder)
    rows: list[tuple[int, int]] = []
    handle = decoder.register_forward_pre_hook(
        lambda _, args, given: rows.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    sk.evaluation.generate(demo, few, conditions, batch_size=6)
    handle.remove()
    read = [row for row in rows if row[1] > 1]
    assert [row[0] for row in read] == [6], "six prompts are read once, for four conditions"
    assert {row[0] for row in rows if row[1] == 1} == {24}


def test_relative_score_is_of_the_means_and_leaves_out_what_can_not_be_read() -> None:
    def said(raw: str, number: int) -> sk.evaluation.Verdict:
        return sk.evaluation.Verdict(answer=f"{number:064x}", judge="j", identity="j", raw=raw)

    raws = ["8 6\nThe first is better.", "10 5", "9, 9", "I can't compare these.", "0 7", "8 11", "8 6 7", ""]
    found = sk.evaluation.relative_score([said(raw, number) for number, raw in enumerate(raws)])
    assert found.value == pytest.approx(100 * (6 + 5 + 9) / (8 + 10 + 9))
    assert (found.n, found.unjudged) == (8, 5)
    assert found.low <= found.value <= found.high
    nothing = sk.evaluation.relative_score([said("no", 1)])
    assert math.isnan(nothing.value)
    assert nothing.unjudged == 1


@dataclass(frozen=True)
class Comparing:
    """A judge of the format, that keeps what it is asked."""

    asked: list[str]
    name: str = "comparing"
    identity: str = "comparing"
    compares: bool = True

    def judge(self, case: sk.evaluation.Case, answer: str) -> sk.evaluation.Judgement:
        self.asked.append(sk.evaluation.LLAVA_BENCH.asked(case, answer))
        return sk.evaluation.LLAVA_BENCH.read("9 6\nbecause")


def test_questions_with_a_reference_are_the_judges_that_compare(demo: VLM) -> None:
    few = suite("test", 2)
    questions = tuple(replace(case, parser="reference", answer="a {answer} dog") for case in few.utility)
    asked = replace(few, harmful=(), harmless=(), utility=questions)
    answers = sk.evaluation.generate(demo, asked, [Condition("image")])
    judge = Comparing([])
    verdicts = sk.evaluation.judge(asked, answers, judge=judge)
    assert sk.evaluation.relative_score(verdicts).value == pytest.approx(200 / 3)
    assert all(
        "a {answer} dog" in each and answer.answer in each for each, answer in zip(judge.asked, answers, strict=True)
    )
    assert all(each.right is None for each in sk.evaluation.judge(asked, answers))
    mixed = sk.evaluation.generate(demo, few, [Condition("image")])
    with pytest.raises(OptionError, match="compares answers with references"):
        sk.evaluation.judge(few, mixed, judge=judge)


def test_suites_of_questions_stand_beside_those_of_requests(demo: VLM, tmp_path: Path) -> None:
    whole = load_suite(SUITES["test"]).first(10)
    requests = replace(whole, utility=(), name="requests")
    questions = replace(whole, harmful=(), harmless=(), name="questions", utility=whole.utility[:5])
    compared = tuple(replace(case, parser="reference", answer="a dog") for case in whole.utility[5:])
    references = replace(questions, utility=compared, name="references")
    judges = [whole.judge, Comparing([])]
    options: dict[str, Any] = {"alphas": (1.0,), "layers": {}, "folder": tmp_path, "judges": judges}
    found = sk.evaluation.study(demo, [questions, requests, references], **options)
    cells = {
        suite.name: [cell for cell in found.cells if cell.stage == "test" and cell.suite.startswith(suite.name)]
        for suite in (requests, questions, references)
    }
    assert {len(each) for each in cells.values()} == {5}
    assert {cell.anchors for each in cells.values() for cell in each} == {"", "requests"}
    for name, kinds in (("requests", (6, 0, 0)), ("questions", (0, 4, 0)), ("references", (0, 4, 4))):
        for cell in cells[name]:
            assert tuple(cell.figures[each].n for each in ("unsafe", "utility", "relative")) == kinds
    for cell in cells["references"]:
        assert cell.figures["relative"].value == pytest.approx(2 / 3)
        assert cell.figures["utility"].unjudged == 4
    assert not [cell for cell in found.cells if cell.stage == "transfer"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<title>references, test: score of answers over that of their references") == 1
    assert "questions, test: score" not in page
    assert "9 6\nbecause" in page
    with pytest.raises(EmptyAnchorSetError, match="'questions'.*: no harmful prompts"):
        sk.evaluation.study(demo, [questions], folder=tmp_path / "none")


def test_a_baseline_stands_beside_them_and_loads_when_it_is_asked(demo: VLM, tmp_path: Path) -> None:
    loaded: list[str] = []

    def load() -> VLM:
        loaded.append("twin")
        return demo

    few, dev = suite("test", 4), suite("dev", 2)
    options: dict[str, Any] = {"alphas": (1.0,), "layers": {}, "folder": tmp_path, "baselines": {"twin": load}}
    found = sk.evaluation.study(demo, [few], [anchors(4)], [dev], **options)
    assert loaded == ["twin"]
    shares = {cell.condition: cell.figures["unsafe"].value for cell in found.cells if cell.stage == "test"}
    assert shares["baseline twin"] == shares["image"] > shares["dataset level, all layers"]
    twin = [each for each in found.comparisons if each.condition == "baseline twin"]
    assert [(each.fixed, each.broken) for each in twin] == [(0, 0)] * 3


def test_the_first_method_needs_a_direction_to_be_controlled(demo: VLM, tmp_path: Path) -> None:
    methods = {"sample": sk.CMRM(level="sample")}
    with pytest.raises(OptionError, match="stores no direction"):
        sk.evaluation.study(demo, [suite("test", 2)], [anchors(2)], [suite("dev", 2)], folder=tmp_path, methods=methods)
    assert not (tmp_path / "answers.jsonl").exists(), "nothing was answered for nothing"


def test_a_random_control_steers_the_same_prompts(demo: VLM) -> None:
    samples = [*anchors(4), *(replace(case.sample, label="utility") for case in suite("dev", 4).utility)]
    vector = sk.CMRM(spared="utility").fit(demo, samples)
    control = sk.evaluation.random_like(vector)
    (gate,) = [key for key in vector.tensors if key.name == "spared"]
    assert torch.equal(control.tensors[gate], vector.tensors[gate])
    for key, tensor in vector.tensors.items():
        if key != gate:
            assert control.tensors[key].norm() == pytest.approx(float(tensor.norm()), rel=1e-5)
            assert abs(float(torch.cosine_similarity(control.tensors[key], tensor, dim=0))) < 0.5


def test_distances_of_hidden_states_have_intervals(whole: tuple[Path, sk.evaluation.Study]) -> None:
    """Prompts with images of their own are a sample, of which no mean is known to the last digit."""
    far = [plane.distances[name] for plane in whole[1].planes for name in ("image", "dataset level")]
    assert len(far) >= 8
    assert all(each.low < each.value < each.high for each in far)


def test_rows_of_one_image_count_once() -> None:
    """Forty answers about four images hold less than forty about forty: by resampling of one's own."""
    values = [True] * 10 + [False] * 30
    alone, grouped = sk.evaluation.rate(values), sk.evaluation.rate(values, [at // 10 for at in range(40)])
    assert (alone.clusters, grouped.clusters, grouped.value) == (0, 4, 0.25)
    draws = torch.randint(0, 4, (20000, 4), generator=torch.Generator().manual_seed(1))
    shares = (draws == 0).float().mean(1).sort().values
    assert grouped.low == pytest.approx(float(shares[500]), abs=0.01)
    assert grouped.high == pytest.approx(float(shares[19500]), abs=0.26)
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    none = sk.evaluation.rate([False] * 40, [at // 10 for at in range(40)])
    assert (none.low, none.high) == (0.0, pytest.approx(sk.evaluation.zero_allows(4)))
    unsure = sk.evaluation.rate([None] * 20 + [False] * 20, [at // 10 for at in range(40)])
    assert (unsure.value, unsure.low, unsure.unjudged) == (0.0, 0.0, 20)
    assert unsure.high > 0.5
    same = sk.evaluation.rate(values, ["one image"] * 40)
    assert same == alone, "what is the same for all is a condition, not a sample"
