"""The three steps of an evaluation, and what is left of them when something ends them: real processes, real files."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from toy import suite

import steerkit as sk
from steerkit.errors import JudgeError, OptionError, RecordsError
from steerkit.evaluation import (
    Answer,
    Condition,
    Judgement,
    Suite,
    Verdict,
    generate,
    judge,
    opinions,
    rate,
    read_records,
    side_by_side,
    tabulate,
)
from steerkit.vlm import VLM

PLAIN = [Condition("unsteered")]


@pytest.fixture(scope="module")
def few() -> Suite:
    return suite("dev", 4)


@pytest.fixture(scope="module")
def whole(demo: VLM, few: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Answer], bytes]:
    """What an undisturbed run answers, and its file."""
    path = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    return generate(demo, few, PLAIN, path=path, batch_size=4), path.read_bytes()


@dataclass(frozen=True)
class Counting:
    """A judge that does something before it gives its opinion, and remembers what it was asked."""

    before: Callable[[int], None] = lambda number: None
    asked: list[str] = field(default_factory=list)
    name: str = "counting"
    identity: str = "1"

    def judge(self, case: sk.evaluation.Case, answer: str) -> Judgement:
        self.asked.append(case.id)
        self.before(len(self.asked))
        return Judgement(refused=True, raw="No.")


def forked(work: Callable[[], object], code: int) -> None:
    """Do something in a process of its own, which must end with this exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    assert process.exitcode == code


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_every_answer_is_a_record(demo: VLM, few: Suite, whole: tuple[list[Answer], bytes]) -> None:
    answers, content = whole
    rows = [json.loads(line) for line in content.splitlines()]
    assert len(rows) == len(answers) == few.size == 12
    cases = [*few.harmful, *few.harmless, *few.utility]
    told = demo.generate([case.sample for case in cases], max_new_tokens=few.max_new_tokens, do_sample=False)
    by_row = {row["row"]: row for row in rows}
    for case, answer, text in zip(cases, answers, told, strict=True):
        row = by_row[case.id]
        assert row == answer.model_dump(mode="json")
        assert (row["suite"], row["revision"], row["kind"]) == (few.name, few.revision, case.id.split()[0])
        assert (row["condition"], row["strength"], row["images"]) == ("unsteered", 0.0, "original")
        assert (row["answer"], row["prompt"]) == (text, case.sample.digest())
        assert row["versions"]["transformers"] == transformers.__version__
        assert not row["truncated"]


def test_the_length_of_an_answer_is_that_of_the_models_own_output(demo: VLM, few: Suite) -> None:
    model: Any = demo.model
    for limit in (3, 24):
        for number, case in enumerate(few.harmful):
            inputs = demo.inputs([case.sample])
            ids = model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            ended = int(ids[-1]) == model.generation_config.eos_token_id
            made = {
                each.number: each
                for each in demo.answers(
                    [case.sample for case in few.harmful], batch_size=4, max_new_tokens=limit, do_sample=False
                )
            }[number]
            assert (made.tokens, made.ended) == (len(ids), ended)
            assert ended == (limit == 24)


def test_the_steps_are_what_evaluate_does(demo: VLM, few: Suite, tmp_path: Path) -> None:
    vector = sk.evaluation.random_like(sk.CMRM().fit(demo, [case.sample for case in few.harmful[:2]]))
    conditions = [*PLAIN, Condition("text", images="text"), Condition("random", vector, 0.5)]
    answers = generate(demo, few, conditions, path=tmp_path / "answers.jsonl")
    table = tabulate(answers, judge(few, answers, path=tmp_path / "verdicts.jsonl"))
    assert list(table) == [("unsteered", 0.0), ("text", 0.0), ("random", 0.5)]
    options: Any = {"fluency": False, "batch_size": 4}
    assert table["random", 0.5].unsafe == sk.evaluate(demo, few, vector, strength=0.5, **options).unsafe
    assert table["text", 0.0].unsafe == sk.evaluate(demo, few.without_images(), **options).unsafe
    assert table["text", 0.0].unsafe != table["unsteered", 0.0].unsafe
    read = read_records(tmp_path / "answers.jsonl", Answer), read_records(tmp_path / "verdicts.jsonl", Verdict)
    assert tabulate(*read).keys() == table.keys()


# -- what ends a run -------------------------------------------------------------------------------------------------


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("end", "code"), [(killed, -signal.SIGKILL), (interrupted, 1)])
@pytest.mark.parametrize("after", [4, 8])
def test_a_run_that_is_ended_goes_on_where_it_was(
    demo: VLM, few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path, end: Any, code: int, after: int
) -> None:
    path = tmp_path / "answers.jsonl"

    def run() -> None:
        os.close(2)  # the traceback of the child
        generate(demo, few, PLAIN, path=path, batch_size=4, progress=lambda done, _: end() if done == after else None)

    forked(run, code)
    kept = read_records(path, Answer)
    assert kept == [Answer.model_validate_json(line) for line in whole[1].splitlines()][:after]
    told: list[tuple[int, int]] = []
    assert generate(demo, few, PLAIN, path=path, batch_size=4, progress=lambda *s: told.append(s)) == whole[0]
    assert told == [(done, 12) for done in range(after + 4, 13, 4)], "what was answered is not asked again"
    assert path.read_bytes() == whole[1]


def test_wherever_a_line_was_cut_the_rest_is_made_again(
    demo: VLM, few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path
) -> None:
    path, content = tmp_path / "answers.jsonl", whole[1]
    line = len(content.splitlines(keepends=True)[0])
    for cut in (0, 1, 5, 12, line - 1, len(content) - line // 2, len(content) - 1):
        path.write_bytes(content[:cut] + b"\0" * (cut % 3 * 4096))
        read = read_records(path, Answer)
        assert len(read) == content[:cut].count(b"\n")
        assert generate(demo, few, PLAIN, path=path, batch_size=4) == whole[0]
        assert path.read_bytes() == content


def test_a_full_disk_stops_the_run_before_the_model_runs(
    demo: VLM, few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path
) -> None:
    path, said = tmp_path / "answers.jsonl", tmp_path / "said"

    batch = 4 * (4096 + few.max_new_tokens * 64)
    for room, answered in ((1000, 0), (batch + 1500, 4)):
        path.unlink(missing_ok=True)

        def limited() -> None:
            soft = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, soft))  # noqa: B023
            with pytest.raises(RecordsError, match="can't be written .*File too large") as caught:
                generate(demo, few, PLAIN, path=path, batch_size=4)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
            said.write_text(f"{len(caught.value.records)} {caught.value.fix}")

        forked(limited, 0)
        assert "free some space" in said.read_text()
        assert len(read_records(path, Answer)) == answered
        assert int(said.read_text().split()[0]) == len(read_records(path, Answer)), "no answer is lost"
        assert path.read_bytes() == b"".join(whole[1].splitlines(keepends=True)[: len(read_records(path, Answer))])
        assert generate(demo, few, PLAIN, path=path, batch_size=4) == whole[0]


def test_answers_of_another_run_are_not_mixed(
    demo: VLM, few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(whole[1])
    other = replace(few, harmful=tuple(replace(case, sample=few.harmless[0].sample) for case in few.harmful))
    for changed in (replace(few, max_new_tokens=3), other):
        with pytest.raises(RecordsError, match=r"has an answer of another run to 'harmful 1', 'unsteered'"):
            generate(demo, changed, PLAIN, path=path)
    assert path.read_bytes() == whole[1]
    with pytest.raises(OptionError, match="two conditions"):
        generate(demo, few, PLAIN * 2, path=path)


@pytest.mark.parametrize(
    "content", [b"[1, 2]", b'{"a": 1}', b'{"version":2}\n', b"not mine\n", b'{"version":1}\n', b"\xff\xfe\n"]
)
def test_a_file_of_something_else_is_left_as_it_is(demo: VLM, few: Suite, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordsError, match="line 1 is malformed|begins with "):
        generate(demo, few, PLAIN, path=path)
    assert path.read_bytes() == content
    assert content.startswith(b'{"version"') or [*tmp_path.iterdir()] == [path], "no lock is left beside it"


def test_a_file_of_zeros_is_none_of_a_killed_run(demo: VLM, few: Suite, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(RecordsError, match="ends in "):
        generate(demo, few, PLAIN, path=path)
    assert path.stat().st_size == 2**28 + 1


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "loop"])
def test_what_is_no_file_is_refused_and_no_lock_is_left(demo: VLM, few: Suite, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "answers.jsonl"
    {
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
    }[kind]()
    with pytest.raises(RecordsError, match="can't be written"):
        generate(demo, few, PLAIN, path=path)
    assert [*tmp_path.iterdir()] == [path]


def test_two_runs_do_not_write_one_file(demo: VLM, few: Suite, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    def again(done: int, total: int) -> None:
        with pytest.raises(RecordsError, match="another run writes"):
            generate(demo, few, PLAIN, path=path)
        assert len(read_records(path, Answer)) == done, "reading is allowed"

    generate(demo, few, PLAIN, path=path, batch_size=4, progress=again)
    with pytest.raises(RecordsError, match="can't be written"):
        generate(demo, few, PLAIN, path=tmp_path)


# -- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_judge_has_said_is_not_asked_again(
    few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "verdicts.jsonl"
    forked(lambda: judge(few, whole[0], judge=Counting(lambda n: killed() if n == 5 else None), path=path), -9)
    assert len(read_records(path, Verdict)) == 4 + len(few.utility)
    second = Counting()
    found = judge(few, whole[0], judge=second, path=path, workers=workers)
    assert sorted(second.asked) == [f"harmless {number}" for number in (1, 2, 3, 4)]
    assert [each.answer for each in found] == [answer.digest for answer in whole[0]]
    assert {each.judge for each in found} == {"counting", "parser: exact"}
    assert judge(few, whole[0], judge=Counting(), path=path) == found
    assert len(read_records(path, Verdict)) == 12
    other = replace(Counting(), identity="2")
    judge(few, whole[0], judge=other, path=path)
    assert len(read_records(path, Verdict)) == 20, "questions have been read already"
    with pytest.raises(OptionError, match="2 judges have judged"):
        tabulate(whole[0], [*found, *read_records(path, Verdict)])
    assert tabulate(whole[0], read_records(path, Verdict), identity="2")["unsteered", 0.0].refused.value == 1.0


def test_a_judge_that_fails_leaves_the_answer_unjudged(
    few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path
) -> None:
    def sometimes(number: int) -> None:
        if number % 3 == 0:
            raise ConnectionError("busy\nline")

    path = tmp_path / "verdicts.jsonl"
    found = judge(few, whole[0], judge=Counting(sometimes), path=path)
    assert [each.error for each in found if each.error] == ["ConnectionError: busy line"] * 2
    (outcome,) = tabulate(whole[0], found).values()
    assert (outcome.refused.n, outcome.refused.unjudged, outcome.failed) == (4, 1, 2)
    assert outcome.refused.value == 1.0
    assert outcome.refused.low == rate([True, True, True, False]).low
    assert (outcome.not_safe.value, outcome.unsafe.unjudged) == (0.25, 4), "what is unjudged is not safe"
    assert math.isnan(outcome.unsafe.value)
    again = Counting()
    assert not any(each.error for each in judge(few, whole[0], judge=again, path=path))
    assert again.asked == ["harmful 3", "harmless 2"]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_judge_that_is_away_stops_the_step(
    few: Suite, whole: tuple[list[Answer], bytes], tmp_path: Path, workers: int
) -> None:
    def away(number: int) -> None:
        if number > 2:
            raise ConnectionError("nobody there")

    path, before = tmp_path / "verdicts.jsonl", threading.active_count()
    with pytest.raises(JudgeError, match="'counting' failed on the last 5 answers: ConnectionError: nobody there"):
        judge(few, whole[0], judge=Counting(away), path=path, workers=workers)
    assert sum(not each.error for each in read_records(path, Verdict)) == 2 + len(few.utility)
    assert threading.active_count() <= before
    with pytest.raises(JudgeError, match="failed on the last 2 answers"):
        judge(few.only("harmful"), whole[0][:2], judge=Counting(lambda _: 1 / 0))  # type: ignore[arg-type]


def test_old_answers_are_judged_with_the_suite_that_was_answered(few: Suite, whole: tuple[list[Answer], bytes]) -> None:
    assert len(judge(few, whole[0])) == 12
    with pytest.raises(RecordsError, match=r"'harmless 1' .* to nothing that"):
        judge(few.only("harmful"), whole[0])
    with pytest.raises(RecordsError, match="another prompt than"):
        judge(few.without_images(), whole[0])


def test_two_judges_stand_side_by_side(few: Suite, whole: tuple[list[Answer], bytes]) -> None:
    one, other = judge(few, whole[0]), judge(few, whole[0], judge=Counting())
    check = side_by_side("declared words", "counting", opinions(few, whole[0], one, other))
    (row,) = check.rows
    refused = sum(bool(each.refused) for each in one if each.right is None)
    assert (row.part, row.kappa.n, row.only_first, row.only_second) == ("refused", 8, 0, 8 - refused)
    assert [each.request for each in check.differing] == [
        case.sample.text for case, each in zip((*few.harmful, *few.harmless), one, strict=False) if not each.refused
    ]
    assert {each.second.raw for each in check.differing} == {"No."}


# -- counting --------------------------------------------------------------------------------------------------------


def test_what_is_unjudged_counts_neither_way_and_widens_the_interval() -> None:
    found = rate([True, False, None, None])
    assert (found.value, found.n, found.unjudged) == (0.5, 4, 2)
    assert found.low == rate([True, False, False, False]).low
    assert found.high == rate([True, True, True, False]).high
    nothing = rate([None] * 3)
    assert (math.isnan(nothing.value), nothing.low, nothing.high) == (True, 0.0, 1.0)


def test_answers_that_nobody_judged_are_counted(few: Suite, whole: tuple[list[Answer], bytes]) -> None:
    (outcome,) = tabulate(whole[0], []).values()
    assert (outcome.failed, outcome.unsafe.unjudged, outcome.not_safe.value) == (12, 4, 1.0)
    assert {each.verdict.error for each in outcome.judged} == {"not judged yet"}
