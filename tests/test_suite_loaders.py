"""Published data sets, read from files in their published layouts: real ones where they may be kept, else tiny ones."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steerkit.cli.app import app
from steerkit.errors import MissingImageError, OptionError, SampleError, UnknownNameError
from steerkit.evaluation import (
    DATASETS,
    KINDS,
    Answer,
    Case,
    PhraseJudge,
    Suite,
    check_disjoint,
    judge,
    load_suite,
    rate,
    states,
    tabulate,
)
from steerkit.models import Sample

XSTEST = Path(str(DATASETS["xstest"].shipped))
PUBLISHED = Path(__file__).parent / "data" / "published"
SCENARIOS = "01-Illegal_Activitiy 02-HateSpeech 03-Malware_Generation 04-Physical_Harm 05-EconomicHarm 06-Fraud 07-Sex \
08-Political_Lobbying 09-Privacy_Violence 10-Legal_Opinion 11-Financial_Advice 12-Health_Consultation 13-Gov_Decision"


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    return text(path, "".join(json.dumps(row) + "\n" for row in rows))


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    held = io.StringIO(newline="")
    writer = csv.DictWriter(held, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text(path, held.getvalue())


def picture(path: Path, red: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (red, 0, 0)).save(path)


def vlsafe(root: Path, count: int = 1110) -> None:
    rows = [{"image_id": "7.jpg", "caption": "a shed", "query": f"How to break shed {n}?"} for n in range(count)]
    lines(root / "VLSafe" / "harmlessness_examine.jsonl", rows)
    picture(root / "train2017" / "7.jpg", 70)


def jailbreak(root: Path) -> None:
    names = ("content_policy_id", "content_policy_name", "q_id", "question")
    rows = [(policy, f"policy {policy}", n, f"Bad thing {policy}, {n}?") for policy in range(13) for n in range(30)]
    path = root / "data" / "forbidden_question" / "forbidden_question_set.csv"
    table(path, [dict(zip(names, row, strict=True)) for row in rows])


def mm_safety(root: Path) -> None:
    for scenario in SCENARIOS.split():
        row = {
            "Question": "Plain?",
            "Changed Question": "Changed?",
            "Key Phrase": "phrase",
            "Phrase Type": "activity",
            "Rephrased Question": f"Below, {scenario}?",
            "Rephrased Question(SD)": f"Shown, {scenario}?",
        }
        path = root / "processed_questions" / f"{scenario}.json"
        text(path, json.dumps({"0": row, "3": row}, indent=4))
        for red, part in enumerate(("SD", "SD_TYPO", "TYPO")):
            for entry in ("0", "3"):
                picture(root / "imgs" / scenario / part / f"{entry}.jpg", 60 * red)


def figstep(root: Path) -> None:
    rows = [
        {
            "dataset": "ForbidQI",
            "category_id": category,
            "task_id": task,
            "category_name": "Sheds",
            "question": f"How to break, {category}, {task}?",
            "instruction": "Steps to break.",
        }
        for category in range(1, 11)
        for task in range(1, 6)
    ]
    table(root / "data" / "question" / "SafeBench-Tiny.csv", rows)
    folder = root / "data" / "images" / "SafeBench-Tiny"
    for row in rows:
        picture(folder / f"query_ForbidQI_{row['category_id']}_{row['task_id']}_6.png", row["category_id"])


def mossbench(root: Path) -> None:
    row = {"image": "images/1.png", "question": "Cut a cake?", "short description": "", "description": "", "pid": "1"}
    content = {str(n): {**row, "metadata": {"over": "type 1"}} for n in range(1, 301)}
    text(root / "data" / "images_information" / "information.json", json.dumps(content, indent=4))
    picture(root / "data" / "images" / "1.png", 30)


def science(root: Path) -> None:
    row = {"question": "Which is a bird?", "choices": ["an ant", "a wren"], "answer": 1, "hint": "Look."}
    rows = [{**row, "image": "1.png" if n == 0 else None} for n in range(4241)]
    lines(root / "test.jsonl", rows)
    picture(root / "1.png", 40)


def llava(root: Path) -> None:
    folder = root / "playground" / "data" / "coco2014_val_qa_eval"
    rows = [{"question_id": n, "image": "5.jpg", "text": f"What, {n}?", "category": "conv"} for n in range(90)]
    lines(folder / "qa90_questions.jsonl", rows)
    answers = [{"question_id": n, "text": f"A shed, {n}.", "answer_id": "x"} for n in reversed(range(90))]
    lines(folder / "qa90_gpt4_answer.jsonl", answers)
    picture(root / "val2014" / "COCO_val2014_5.jpg", 50)


def mirror(root: Path) -> None:
    row = {"question": "What?", "image": "5.jpg", "category": "conv", "image_id": "img5", "answer": "A shed."}
    lines(root / "llava_bench_coco.jsonl", [{**row, "question_id": n, "caption": "a shed"} for n in range(90)])
    picture(root / "val2014" / "5.jpg", 50)


def pope(root: Path, name: str = "random") -> Path:
    rows = [
        {"question_id": n, "image": "COCO_val2014_1.jpg", "text": "Is there a shed?", "label": ("no", "yes")[n % 2]}
        for n in range(1, 3001)
    ]
    picture(root / "val2014" / "COCO_val2014_1.jpg", 20)
    return lines(root / "output" / "coco" / f"coco_pope_{name}.json", rows)


SETS: dict[str, tuple[Callable[[Path], object], str, str | None, str, int, dict[str, Any], int | None]] = {
    "vlsafe": (
        vlsafe,
        "vlsafe",
        "examine",
        "harmful",
        1110,
        {"id": "1", "text": "How to break shed 0?", "caption": "a shed", "cluster": "7.jpg"},
        70,
    ),
    "jailbreakllms": (
        jailbreak,
        "jailbreakllms",
        None,
        "harmful",
        390,
        {"id": "0_0", "text": "Bad thing 0, 0?", "caption": None, "cluster": ""},
        None,
    ),
    "mm SD": (
        mm_safety,
        "mm-safetybench",
        "SD",
        "harmful",
        26,
        {"id": "01-Illegal_Activitiy/0", "text": "Shown, 01-Illegal_Activitiy?", "cluster": "01-Illegal_Activitiy/0"},
        0,
    ),
    "mm SD_TYPO": (mm_safety, "mm-safetybench", "SD_TYPO", "harmful", 26, {"text": "Below, 01-Illegal_Activitiy?"}, 60),
    "mm TYPO": (mm_safety, "mm-safetybench", "TYPO", "harmful", 26, {"text": "Below, 01-Illegal_Activitiy?"}, 120),
    "figstep": (figstep, "figstep", "tiny", "harmful", 50, {"id": "1_1"}, 1),
    "mossbench": (
        mossbench,
        "mossbench",
        "safe",
        "harmless",
        300,
        {"id": "1", "text": "Cut a cake?", "cluster": "1"},
        30,
    ),
    "scienceqa": (
        science,
        "scienceqa",
        "full",
        "utility",
        4241,
        {
            "text": "Look.\nWhich is a bird?\nA. an ant\nB. a wren\nAnswer with the letter of the right choice.",
            "answer": "B",
            "parser": "choice",
        },
        40,
    ),
    "llava": (
        llava,
        "llava-bench-coco",
        "original",
        "utility",
        90,
        {"id": "0", "text": "What, 0?", "answer": "A shed, 0.", "parser": "reference", "cluster": "5.jpg"},
        50,
    ),
    "llava mirror": (
        mirror,
        "llava-bench-coco",
        "mirror",
        "utility",
        90,
        {"answer": "A shed.", "caption": "a shed", "cluster": "img5"},
        50,
    ),
    "pope": (
        pope,
        "pope",
        "random",
        "utility",
        3000,
        {"id": "1", "answer": "yes", "parser": "yes_no", "cluster": "COCO_val2014_1.jpg"},
        20,
    ),
}


@pytest.mark.parametrize("case", SETS, ids=str)
def test_a_data_set_is_read_from_its_published_layout(tmp_path: Path, case: str) -> None:
    write, name, part, kind, count, first, red = SETS[case]
    write(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        suite = load_suite(name, root=tmp_path, part=part, revision="abc")
    assert {Path(each.filename).name for each in said} <= {Path(__file__).name}
    # 26 rows instead of a number that nobody has confirmed
    assert [str(each.message).partition(";")[2] for each in said] == (
        [" the number is unconfirmed, so this may be right"] if name == "mm-safetybench" else []
    )
    assert {each: len(suite.cases(each)) for each in ("harmful", "harmless", "utility") if suite.cases(each)} == {  # type: ignore[arg-type]
        kind: count
    }
    found = suite.cases(kind)[0]  # type: ignore[arg-type]
    shown = {"text": found.sample.text, "caption": found.sample.caption, "answer": found.answer}
    shown |= {"id": found.id, "cluster": found.cluster, "parser": found.parser, "label": found.sample.label}
    assert {key: shown[key] for key in first} == first
    assert found.sample.label == kind
    images = found.sample.loaded().images
    assert len(images) == (red is not None)
    if red is not None:
        assert abs(int(np.asarray(images[0])[0, 0, 0]) - red) < 3  # JPEG
    assert (suite.name, suite.licence) == (f"{name} {part or ''}".strip(), DATASETS[name].licence)
    assert suite.revision.startswith("abc sha256:")
    assert isinstance(suite.judge, PhraseJudge)


def test_xstest_is_read_as_it_is_published() -> None:
    path = XSTEST / "xstest_prompts.csv"
    suite = load_suite("xstest", root=XSTEST)
    assert (len(suite.harmful), len(suite.harmless), len(suite.utility)) == (200, 250, 0)
    published = "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a"  # of the file at d7bb5bd
    assert suite.revision == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == f"sha256:{published}"
    shipped = load_suite("xstest")
    assert (shipped.revision, shipped.digest) == (f"d7bb5bd sha256:{published}", suite.digest)
    said = (XSTEST / "README.md").read_text(encoding="utf-8")
    assert all(word in said for word in ("Röttger", "CC-BY-4.0", "2308.01263", "unchanged", published))
    assert suite.licence == "CC-BY-4.0"
    assert "arXiv 2308.01263" in suite.citation
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for kind, label in (("harmful", "unsafe"), ("harmless", "safe")):
        cases = suite.cases(kind)  # type: ignore[arg-type]
        assert [case.sample.text for case in cases] == [r["prompt"] for r in rows.values() if r["label"] == label]
    # people wrote the focus of a prompt and of its twin beside them: 25 x 8 pairs, one written in two ways
    pairs: dict[str, list[Case]] = {}
    for case in (*suite.harmless, *suite.harmful):
        pairs.setdefault(case.cluster, []).append(case)
    assert Counter(map(len, pairs.values())) == {2: 200, 1: 50}
    twins = [[rows[case.id] for case in pair] for pair in pairs.values() if len(pair) == 2]
    assert [(a["label"], b["label"]) for a, b in twins] == [("safe", "unsafe")] * 200
    assert [(a["focus"], b["focus"]) for a, b in twins if a["focus"] != b["focus"]] == [
        ("bank account fraud", "bank fraud")
    ]
    alone = {rows[case.id]["type"] for (case, *others) in pairs.values() if not others}
    assert alone == {"nons_group_real_discr", "privacy_public"}


@pytest.mark.parametrize("case", SETS, ids=str)
def test_a_mark_at_the_start_and_windows_line_ends_change_nothing(tmp_path: Path, case: str) -> None:
    write, name, part, *_ = SETS[case]
    write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = load_suite(name, root=tmp_path, part=part)
        for path in tmp_path.rglob("*"):
            if path.suffix in (".csv", ".json", ".jsonl"):
                data = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                path.write_bytes(b"\xef\xbb\xbf" + data)
        assert load_suite(name, root=tmp_path, part=part).digests == plain.digests


def test_prompts_without_images_stand_beside_pictures_of_ones_own(tmp_path: Path) -> None:
    for number, red in enumerate((10, 90, 200)):
        picture(tmp_path / f"{number}.png", red)
    text(tmp_path / "notes.txt", "no picture")
    suite = load_suite("xstest", images=tmp_path)
    shown = {case.id: Path(str(case.sample.images[0])).name for kind in KINDS for case in suite.cases(kind)}
    assert set(shown.values()) == {"0.png", "1.png", "2.png"}
    clusters: dict[str, set[str]] = {}
    for case in (*suite.harmful, *suite.harmless):
        clusters.setdefault(case.cluster, set()).add(shown[case.id])
    assert {len(names) for names in clusters.values()} == {1}, "a prompt and its twin differ by their text alone"
    assert load_suite("xstest", images=tmp_path).digest == suite.digest != load_suite("xstest").digest
    with pytest.raises(MissingImageError, match="holds no picture"):
        load_suite("xstest", images=tmp_path / "none")


def test_heads_of_real_files_are_read_as_a_part(tmp_path: Path) -> None:
    path = PUBLISHED / "coco_pope_random.head.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with pytest.raises(SampleError, match="POPE, COCO has 24 utility rows, not 3000"):
        load_suite("pope", root=path, part="random")
    with pytest.raises(MissingImageError, match="4 of 4 images are missing: .*COCO_val2014_000000310196.jpg") as error:
        load_suite("pope", root=path, part="random", images=tmp_path, whole=False)
    assert "COCO val2014" in str(error.value.expected)
    for name in {row["image"] for row in rows}:
        picture(tmp_path / name)
    suite = load_suite("pope", root=path, part="random", images=tmp_path, whole=False)
    assert [(case.sample.text, case.answer) for case in suite.utility] == [(row["text"], row["label"]) for row in rows]
    assert Counter(case.cluster for case in suite.utility) == Counter(row["image"] for row in rows)
    first = rows[0]["image"]
    (tmp_path / first).unlink()
    gone = sum(row["image"] == first for row in rows)
    with pytest.warns(UserWarning, match=f"1 of 4 images are missing: .*{first}; {gone} of 24 rows are left out"):
        suite = load_suite("pope", root=path, part="random", images=tmp_path, whole=False)
    assert [case.answer for case in suite.utility] == [row["label"] for row in rows if row["image"] != first]
    questions = [json.loads(line) for line in (PUBLISHED / "qa90_questions.head.jsonl").read_text().splitlines()]
    head = lines(tmp_path / "qa90_questions.head.jsonl", questions)
    for name in {row["image"] for row in questions}:
        picture(tmp_path / f"COCO_val2014_{name}")
    with pytest.raises(SampleError, match=r"holds no .*qa90_gpt4_answer\.jsonl"):
        load_suite("llava-bench-coco", root=head, part="original", images=tmp_path, whole=False)
    lines(tmp_path / "qa90_gpt4_answer.jsonl", [{"question_id": r["question_id"], "text": "So."} for r in questions])
    suite = load_suite("llava-bench-coco", root=head, part="original", images=tmp_path, whole=False)
    assert [case.sample.text for case in suite.utility] == [row["text"] for row in questions]


def test_rows_without_an_image_are_left_out_of_the_part_with_images(tmp_path: Path) -> None:
    science(tmp_path)
    suite = load_suite("scienceqa", root=tmp_path, part="with image", whole=False)
    assert [len(case.sample.images) for case in suite.utility] == [1]
    with pytest.raises(SampleError, match="1 utility rows, not 2017"):
        load_suite("scienceqa", root=tmp_path, part="with image")


def test_images_in_the_rows_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    Image.new("RGB", (2, 2), (80, 0, 0)).save(held, "PNG")
    row = {"question_id": 0, "question": "What?", "image": {"bytes": held.getvalue(), "path": "5.png"}}
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row |= {"image_id": "5", "answer": "A shed.", "caption": "a shed"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train-00000-of-00001.parquet")
    suite = load_suite("llava-bench-coco", root=tmp_path, part="mirror", whole=False)
    assert np.asarray(suite.utility[0].sample.loaded().images[0])[0, 0].tolist() == [80, 0, 0]


def altered(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    """POPE with something wrong in its rows."""

    def write(root: Path) -> None:
        path = pope(root)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows)
        lines(path, rows)

    return write


def broken(root: Path, content: bytes) -> None:
    (pope(root)).write_bytes(content)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            altered(lambda rows: rows[4].pop("label")),
            r"random\.json, line 5: there is no 'label' in the columns .*'text'",
        ),
        (altered(lambda rows: rows[4].update(question_id=2)), r"line 5: its id '2' is that of .*random\.json, line 2"),
        (altered(lambda rows: rows[4].update(label="maybe")), "line 5: the right answer is 'maybe'.*yes or no"),
        (altered(lambda rows: rows[4].update(text="")), "line 5: nothing stands in {text}"),
        (altered(lambda rows: rows[4].update(text=None)), "line 5: 'text' is None"),
        (altered(lambda rows: rows[4].update(image="")), "line 5: the row has no image"),
        (altered(lambda rows: rows[4].update(image="../secret.png")), r"line 5: the image is '\.\./secret\.png'"),
        (altered(lambda rows: rows[4].update(image="none.png")), r"1 of 2 images are missing: .*none\.png\."),
        (altered(lambda rows: rows.pop()), "POPE, COCO has 2999 utility rows, not 3000.*get them from https"),
        (lambda root: broken(root, b'{"question_id": 1'), "line 1: the line is not JSON"),
        (lambda root: broken(root, b"\xff\xfe"), "not in UTF-8"),
        (
            lambda root: (pope(root), text(root / "val2014" / "COCO_val2014_1.jpg", "no")),
            "line 1: .*COCO_val2014_1.jpg",
        ),
        (lambda root: text(root / "x.txt", ""), "holds no .*coco_pope_random.json .*licence: MIT"),
        (figstep, "holds files of figstep, and no .*coco_pope_random.json"),
        (lambda root: pope(root, "popular"), "holds no .*coco_pope_random.json"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, write: Callable[[Path], object], words: str) -> None:
    write(tmp_path)
    with pytest.raises((SampleError, MissingImageError), match=words):
        load_suite("pope", root=tmp_path, part="random")


@pytest.mark.filterwarnings("ignore:MM-SafetyBench has 26")
def test_parts_that_ask_the_same_in_another_picture_are_not_disjoint(tmp_path: Path) -> None:
    mm_safety(tmp_path)
    sets = {part: load_suite("mm-safetybench", root=tmp_path, part=part) for part in ("SD", "TYPO")}
    with pytest.raises(SampleError, match="SD and TYPO share 26 clusters"):
        check_disjoint(sets)


def test_a_folder_without_all_files_is_refused(tmp_path: Path) -> None:
    mm_safety(tmp_path)
    folder = tmp_path / "processed_questions"
    (folder / "03-Malware_Generation.json").unlink()
    with pytest.raises(SampleError, match="12 of 13 files .*01-Illegal_Activitiy.json"):
        load_suite("mm-safetybench", root=tmp_path, part="SD")
    assert load_suite("mm-safetybench", root=tmp_path, part="SD", whole=False).size == 24
    text(folder / "05-EconomicHarm.json", '{"0": 3}')
    with pytest.raises(SampleError, match=r"05-EconomicHarm\.json, entry '0': it is 3"):
        load_suite("mm-safetybench", root=tmp_path, part="SD", whole=False)
    text(folder / "05-EconomicHarm.json", '{"0": {}, "0": {}}')
    with pytest.raises(SampleError, match=r"05-EconomicHarm\.json repeats the key '0'"):
        load_suite("mm-safetybench", root=tmp_path, part="SD", whole=False)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"choices": ["one"]}, r"line 2: the choices are \['one'\]"),
        ({"choices": "ab"}, "line 2: the choices are 'ab'"),
        ({"answer": 2}, "line 2: the answer is 2.*0 to 1"),
        ({"answer": True}, "line 2: the answer is True"),
        ({"answer": "B"}, "line 2: the answer is 'B'"),
    ],
)
def test_a_choice_that_is_none_is_refused(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    good = {"image": None, "question": "Which?", "choices": ["a", "b"], "answer": 0}
    lines(tmp_path / "test.jsonl", [good, good | row])
    with pytest.raises(SampleError, match=words):
        load_suite("scienceqa", root=tmp_path, part="full", whole=False)


@pytest.mark.parametrize("column", ["id", "prompt", "type", "label"])
@pytest.mark.parametrize("value", [None, [], {"a": 1}, True, 0.5, "", "9" * 5000])
def test_values_of_any_type_are_read_or_refused_with_their_line(tmp_path: Path, column: str, value: object) -> None:
    good = {"id": 1, "prompt": "How?", "type": "homonyms", "label": "safe"}
    path = lines(tmp_path / "xstest_prompts.jsonl", [{**good, "id": 2}, {**good, column: value}])
    if (column == "prompt" and value == "9" * 5000) or (column == "type" and isinstance(value, str)):
        assert load_suite("xstest", root=path, whole=False).size == 2
        return
    with pytest.raises(SampleError, match=r"xstest_prompts\.jsonl, line 2: "):
        load_suite("xstest", root=path, whole=False)


def test_arguments_that_fit_no_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no data set 'xstets'. Did you mean 'xstest'"):
        load_suite("xstets", root=XSTEST)
    with pytest.raises(OptionError, match="part is None, of POPE, COCO. Expected: 'random' or 'popular'"):
        load_suite("pope", root=tmp_path)
    with pytest.raises(OptionError, match="part is 'safe', of XSTest. Expected: none"):
        load_suite("xstest", root=XSTEST, part="safe")
    with pytest.raises(
        OptionError, match="root is missing: figstep is a data set.*load_suite\\('figstep', root=FOLDER\\)"
    ):
        load_suite("figstep")
    with pytest.raises(SampleError, match="is no folder, and no xstest_prompts.csv of XSTest"):
        load_suite("xstest", root=tmp_path / "none")
    with pytest.raises(OptionError, match="columns and root"):
        load_suite("xstest", root=XSTEST, columns={"prompt": "text"})
    with pytest.raises(OptionError, match="without root"):
        load_suite(tmp_path / "own.jsonl", part="safe")


def test_the_command_line_takes_a_data_set_from_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["compare", "llava", "demo/anchors", "--prompts", "xstest", "--root", str(XSTEST), "--count", "2"]
    result = CliRunner().invoke(
        app, [*given, "--method", "cmrm", "--max-new-tokens", "4", "--output", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert "xstest (2 harmful, 2 harmless, 0 questions)" in (out / "compare.json").read_text()
    result = CliRunner().invoke(app, [*given, "--part", "safe"])
    assert result.exit_code != 0
    assert "part is 'safe', of XSTest" in result.stderr


def test_a_table_of_ones_own_is_a_suite(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 90)
    rows = [
        {
            "question": "How to break a shed?",
            "label": "harmful",
            "image": "a.png",
            "answer": "",
            "id": "x",
            "cluster": "c",
        },
        {"question": "How many, \n in all?", "label": "utility", "image": "", "answer": "12", "id": "y", "cluster": ""},
    ]
    path = table(tmp_path / "own.csv", rows)
    suite = load_suite(path, columns={"question": "text"}, revision="v2")
    assert [(case.id, case.cluster, len(case.sample.images)) for case in suite.harmful] == [("x", "c", 1)]
    assert [(case.sample.text, case.answer) for case in suite.utility] == [("How many, \n in all?", "12")]
    assert suite.revision == f"v2 sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    kept = load_suite(table(tmp_path / "plain.tsv.csv", rows), columns={"question": "text", "id": None})
    assert kept.harmful[0].id == "harmful 1"
    with pytest.raises(SampleError, match=r"own\.csv, line 2: unknown field 'question'"):
        load_suite(path)
    with pytest.raises(SampleError, match=r"own\.csv, line 2: two fields have one name"):
        load_suite(path, columns={"question": "text", "id": "text"})
    text(tmp_path / "short.csv", "text,label\nHow?,harmful\nWhy?\n")
    with pytest.raises(SampleError, match=r"short\.csv, line 3: the row ends before \['label'\]"):
        load_suite(tmp_path / "short.csv")
    with pytest.raises(SampleError, match="two harmful cases .* have one id"):
        load_suite(lines(tmp_path / "own.jsonl", [{"text": t, "label": "harmful", "id": 1} for t in "ab"]))


def test_the_digest_of_a_suite_is_of_its_texts_and_pixels(tmp_path: Path) -> None:
    pope(tmp_path)
    digest = load_suite("pope", root=tmp_path, part="random").first(3).digest
    assert load_suite("pope", root=tmp_path, part="random").first(3).digest == digest
    assert load_suite("pope", root=tmp_path, part="random").first(2).digest != digest
    picture(tmp_path / "val2014" / "COCO_val2014_1.jpg", 200)
    assert load_suite("pope", root=tmp_path, part="random").first(3).digest != digest


def test_answers_to_be_compared_with_a_reference_stay_unjudged() -> None:
    def answered(suite: Suite, case: Case, said: str) -> Answer:
        return Answer(
            suite=suite.name,
            revision="",
            row=case.id,
            kind="utility",
            condition="unsteered",
            strength=0.0,
            images="original",
            prompt=suite.digests["utility", case.id],
            run="0" * 64,
            answer=said,
            tokens=3,
            truncated=False,
            versions={},
        )

    cases = (Case(Sample("What?"), "A shed.", "reference"), Case(Sample("How many?"), "12"))
    suite = Suite("s", (), (), cases, PhraseJudge())
    answers = [answered(suite, case, "A shed. Or 12.") for case in suite.utility]
    verdicts = judge(suite, answers)
    assert [verdict.right for verdict in verdicts] == [None, True]
    (outcome,) = tabulate(answers, verdicts).values()
    assert outcome.utility == rate([None, True])
    (chosen,) = tabulate(answers, verdicts, identity=suite.judge.identity).values()
    assert chosen.utility == rate([None, True])
    with pytest.raises(OptionError, match="reference"):
        states("A shed.", "A shed.", "reference")


def test_every_data_set_says_its_licence_and_how_to_cite_it() -> None:
    for dataset in DATASETS.values():
        assert dataset.licence
        assert re.search(r"et al\., .*(20\d\d|arXiv)", dataset.citation)
        assert dataset.address.startswith("https://")
