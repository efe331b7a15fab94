"""Sample files as other programs write them: read with their meaning, or refused with the line and what to do."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

import steerkit as sk
from steerkit.errors import OptionError, SampleError

Picture = Callable[..., Image.Image]
ASKED = sk.Sample("What is it?")


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """A folder with `a.png` and `b.png`."""
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    return tmp_path


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def names(sample: sk.Sample) -> list[str]:
    return [Path(str(image)).name for image in sample.images]


def kinds(sample: sk.Sample, images: int) -> list[list[str]]:
    """What stands in each turn: texts as they are, images as `#`."""
    return [
        ["#" if part["type"] == "image" else part["text"] for part in message["content"]]
        for message in sample.messages(images)
    ]


# -- rows of other libraries -----------------------------------------------------------------------------------------

QUESTION = {"type": "text", "text": "What is it?"}
ROWS: dict[str, dict[str, Any]] = {
    "llava": {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}],
    },
    "llava, mark behind": {
        "id": 1,
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
    },
    "llava, mark alone in its line": {
        "image": ["a.png"],
        "conversations": [{"from": "human", "value": "<image>What is it?\n"}],
    },
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, QUESTION],
            }
        ]
    },
    "transformers": {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, QUESTION]}]},
    "trl": {"images": ["a.png"], "prompt": [{"role": "user", "content": [{"type": "image"}, QUESTION]}]},
    "trl, no place": {"images": ["a.png"], "prompt": [{"role": "user", "content": "What is it?"}]},
    "trl, from arrow": {
        "images": [{"bytes": None, "path": "a.png"}],
        "prompt": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]}
        ],
    },
    "sharegpt in messages": {"image": "a.png", "messages": [{"from": "human", "value": "<image>What is it?"}]},
    "marked text": {"text": "<image>\nWhat is it?", "image": "a.png"},
    "plain": {"text": "What is it?", "image": "a.png", "caption": None},
    "plain prompt": {"prompt": "What is it?", "images": "a.png"},
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "ndjson", "JSONL"])
@pytest.mark.parametrize("kind", ROWS)
def test_rows_of_other_libraries_are_the_same_sample(folder: Path, kind: str, suffix: str) -> None:
    expected = sk.Sample("What is it?", (folder / "a.png",))
    assert sk.read_samples(lines(folder / f"set.{suffix}", ROWS[kind], ROWS[kind])) == [expected, expected]
    array = folder / "array.json"
    array.write_text(json.dumps([ROWS[kind], ROWS[kind]], indent=2), encoding="utf-8-sig")
    assert sk.read_samples(array) == [expected, expected]
    assert sk.read_samples([ROWS[kind]], image_root=folder) == [expected]


def test_marks_are_places_in_every_turn(folder: Path) -> None:
    row = {
        "image": ["a.png", "b.png", "a.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "First: <image>\nSecond: <image>\nCompare them."},
            {"from": "gpt", "value": "They differ."},
            {"from": "human", "value": "And this?\n<image>"},
            {"from": "gpt", "value": "As the first."},
        ],
    }
    sample = sk.read_samples(lines(folder / "set.jsonl", row))[0]
    assert names(sample) == ["a.png", "b.png", "a.png"]
    assert kinds(sample, 3) == [
        ["Be brief."],
        ["First: ", "#", "Second: ", "#", "Compare them."],
        ["They differ."],
        ["And this?", "#"],
    ]


def test_text_that_says_image_without_one_is_text(folder: Path) -> None:
    assert sk.read_samples([{"text": "What does <image> mean?"}]) == [sk.Sample("What does <image> mean?")]


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_an_answer_at_the_end_is_left_out_or_gone_on_with_as_the_field_says() -> None:
    turns = (("user", "Hi"), ("assistant", "Hello"))
    assert sk.read_samples([{"conversations": CHAT}]) == [sk.Sample("Hi")]
    for field in ("prompt", "text"):
        assert sk.read_samples([{field: CHAT}]) == [sk.Sample(turns)]
    with pytest.raises(SampleError, match="row 1: the chat ends with the assistant's turn") as caught:
        sk.read_samples([{"messages": CHAT}])
    assert "'conversations'" in str(caught.value.fix)
    assert "'prompt'" in str(caught.value.fix)
    assert sk.read_samples([{"messages": CHAT}], columns={"messages": "prompt"}) == [sk.Sample(turns)]
    assert sk.read_samples([{"messages": CHAT}], columns={"messages": "conversations"}) == [sk.Sample("Hi")]
    with pytest.raises(SampleError, match="the chat ends with the assistant's turn"):
        sk.read_samples([{"text": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}])


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "fewer images than marks": ({"text": "<image> <image>", "image": "a.png"}, "2 times, and the row has 1 images"),
    "marks and parts": (
        {"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]},
        "2 places for images, and 1",
    ),
    "no image for a place": (
        {"messages": [{"role": "user", "content": [{"type": "image"}, QUESTION]}]},
        "and 0 images",
    ),
    "a part's image is missing": (
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "c.png"}, QUESTION]}]},
        "c.png",
    ),
    "tool turn": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "{}"}]},
        "calls a tool",
    ),
    "unknown speaker": ({"conversations": [{"from": "narrator", "value": "Hi"}]}, "a turn is"),
    "two prompts": ({"text": "Hi", "messages": CHAT[:1]}, "both 'text' and 'messages'"),
    "messages as text": ({"messages": "Hi"}, "'messages' is 'Hi'"),
    "no messages": ({"messages": []}, "user's turn"),
    "another name": ({"question": "Hi"}, "unknown field 'question'"),
    "no prompt": ({"image": "a.png"}, "'text' is missing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_refused_with_its_line(folder: Path, kind: str) -> None:
    row, problem = BAD[kind]
    path = lines(folder / "set.jsonl", {"text": "Hi"}, row)
    with pytest.raises(SampleError, match=rf"set\.jsonl, line 2: .*{problem}") as caught:
        sk.read_samples(path)
    assert caught.value.expected
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("name", "better"),
    [("question", "text"), ("Text", "text"), (" image", "image"), ("imgs", "images")],
)
def test_a_column_of_another_name_is_named_with_the_one_it_may_be(name: str, better: str) -> None:
    with pytest.raises(SampleError, match="unknown field") as caught:
        sk.read_samples([{name: "Hi"}])
    assert f"columns={{{name!r}: {better!r}}}" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["completion", "chosen", "answer"])
def test_a_column_beside_the_prompt_is_not_taken_for_another_prompt(name: str) -> None:
    """The data sets of TRL, whose answers are no part of the prompt."""
    with pytest.raises(SampleError, match="unknown field") as caught:
        sk.read_samples([{"prompt": "Hi", name: "Hello"}])
    assert caught.value.fix == f"drop it with columns={{{name!r}: None}}"
    assert sk.read_samples([{"prompt": "Hi", name: "Hello"}], columns={name: None}) == [sk.Sample("Hi")]


# -- files -----------------------------------------------------------------------------------------------------------


def test_lines_are_counted_as_an_editor_counts_them(folder: Path) -> None:
    told: dict[str, list[int]] = {}

    def read(name: str, content: str, *, newline: str = "\n") -> list[sk.Sample]:
        (folder / name).write_bytes(content.replace("\n", newline).encode("utf-8-sig"))
        told[name] = []
        return sk.read_samples(folder / name, on_error=lambda number, error: told[name].append(number))

    for newline in ("\n", "\r\n"):
        good = read("a.jsonl", '{"text": "What is it?"}\n\n{"txt": 1}\n{"text": "What is it?"}\n{\n', newline=newline)
        assert (good, told["a.jsonl"]) == ([ASKED] * 2, [3, 5])
        good = read(
            "a.json",
            '[\n\n {"text": "What is it?"},\n {\n  "txt": 1\n },\n {"text": 2}, {"text": 3}\n]\n',
            newline=newline,
        )
        assert (good, told["a.json"]) == ([ASKED], [4, 7, 7])
        good = read("a.csv", 'text,label\n"one\ntwo",a\n\n"thr\nee",,\n,x\n"What\nis it?",\n', newline=newline)
        assert told["a.csv"] == [5, 7]
        assert [sample.turns[0][1].split() for sample in good] == [["one", "two"], ["What", "is", "it?"]]
        good = read("a.tsv", "text\tlabel\nWhat is it?\t\nx\ty\tz\n", newline=newline)
        assert (good, told["a.tsv"]) == ([ASKED], [3])


def test_cells_hold_lists_and_chats_as_json(folder: Path) -> None:
    chat = [{"role": "user", "content": [{"type": "image"}, QUESTION]}]
    for name, dialect in (("a.csv", "excel"), ("a.tsv", "excel-tab")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["messages", "prompt", "images", "chat_template_kwargs"], dialect=dialect)
            writer.writeheader()
            options = json.dumps({"enable_thinking": False})
            writer.writerow({"messages": json.dumps(chat), "images": '["a.png"]', "chat_template_kwargs": options})
            writer.writerow({"prompt": json.dumps(chat), "images": '["a.png"]'})
            writer.writerow({"prompt": "[sic]"})
        first, second, third = sk.read_samples(folder / name)
        assert second == sk.Sample("What is it?", (folder / "a.png",))
        assert first == sk.Sample("What is it?", (folder / "a.png",), chat_template_kwargs={"enable_thinking": False})
        assert third == sk.Sample("[sic]")


SPOILT: dict[str, tuple[str, bytes, str]] = {
    "semicolons": ("a.csv", b"text;image\nHi;a.png\n", "delimiter=';'"),
    "tabs in csv": ("a.csv", b"text\tlabel\nHi\ta\n", "delimiter='\\t'"),
    "commas in tsv": ("a.tsv", b"text,label\nHi,a\n", "delimiter=','"),
    "repeated column": ("a.csv", b"text,text\nHi,Ho\n", "repeats a column"),
    "open quote": ("a.csv", b'text,label\nHi,a\n"Ho,b\nHe,c\n', "not CSV from line 3 on"),
    "long cell": ("a.csv", b"text\nHi\n" + b"a" * 200_000, "from line 3 on"),
    "utf-16": ("a.csv", "text\nGrüße\n".encode("utf-16"), "may be in utf-16"),
    "utf-16, json": ("a.jsonl", '{"text": "Grüße"}\n'.encode("utf-16"), "may be in utf-16"),
    "utf-16 without mark": ("a.jsonl", '{"text": "Hi"}\n'.encode("utf-16-le"), "may be in utf-16"),
    "utf-16, array": ("a.json", '[{"text": "Hi"}]\n'.encode("utf-16"), "may be in utf-16"),
    "cp1252": ("a.csv", "text\nHi\nGrüße\n".encode("cp1252"), "from line 3 on, and may be in cp1252"),
    "cp1252, json": ("a.jsonl", '{"text": "Grüße"}\n'.encode("cp1252"), "from line 1 on, and may be in cp1252"),
    "cp1252, array": ("a.json", '[{"text": "Hi"},\n{"text": "Grüße"}]'.encode("cp1252"), "from line 2 on"),
    "single quotes": ("a.jsonl", b"{'text': 'Hi'}\n", "double quotes"),
    "one pretty object": ("a.json", json.dumps({"text": "Hi"}, indent=1).encode(), "without indent"),
    "array cut off": ("a.json", b'[{"text": "Hi"},\n{"text": "H', "line 2: not JSON"),
    "array without end": ("a.json", b'[{"text": "Hi"}', "line 1: '' follows"),
    "array without comma": ("a.json", b'[{"text": "Hi"}\n{"text": "Ho"}]', "line 2: "),
    "behind the array": ("a.json", b'[{"text": "Hi"}]\n{"text": "Ho"}', "follows"),
    "array of texts": ("a.json", b'["Hi", "Ho"]', "line 1: the row is a text"),
    "repeated key": ("a.json", b'[{"text": "Hi",\n"text": "Ho"}]', "line 1: the row repeats the key 'text'"),
    "infinite number": ("a.jsonl", b'{"text": "Hi", "label": 1e999}', "1e999"),
    "another kind": ("a.yaml", b"text: Hi\n", ".jsonl, .json, .csv, .tsv, .parquet or .tar"),
    "packed": ("a.jsonl.gz", b"", "ends in '.gz'"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_file_is_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    name, content, problem = SPOILT[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SampleError) as caught:
        sk.read_samples(tmp_path / name)
    assert problem in str(caught.value)
    assert name in str(caught.value)
    assert caught.value.expected
    assert len(str(caught.value)) < 900


def test_the_fix_for_another_encoding_is_right(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for encoding in ("cp1252", "utf-16"):
        path.write_bytes("text\nGrüße\n".encode(encoding))
        with pytest.raises(SampleError, match=encoding):
            sk.read_samples(path)
        path.write_text(path.read_text(encoding), "utf-8")
        assert sk.read_samples(path) == [sk.Sample("Grüße")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_an_empty_file_holds_no_samples(tmp_path: Path, name: str) -> None:
    for content in (b"", b"\n\n", b"\xef\xbb\xbf", *([b" [ ]\n"] if "json" in name else [b"text\n"])):
        (tmp_path / name).write_bytes(content)
        assert sk.read_samples(tmp_path / name) == []


@pytest.mark.parametrize("kind", ["fifo", "folder", "none", "device", "long", "null"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "set.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind in ("long", "null"):
        path = tmp_path / (("a" * 5000 if kind == "long" else "a\0") + ".jsonl")
    with pytest.raises(SampleError) as caught:
        sk.read_samples(path)
    assert ".jsonl" in str(caught.value.expected)
    assert len(str(caught.value)) < 600


class Table:
    """A table of pandas iterates over the names of its columns."""

    def __iter__(self) -> Any:
        return iter(["text", "image"])

    def iterrows(self) -> Any:
        raise AssertionError


def test_a_table_is_not_read_as_the_names_of_its_columns() -> None:
    with pytest.raises(SampleError, match="of type Table") as caught:
        sk.read_samples(Table())
    assert "to_dict('records')" in str(caught.value.fix)


@pytest.mark.parametrize("value", [None, "yes", 1, "https://example.org"])
def test_another_choice_for_downloads_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="download is"):
        sk.read_samples(["Hi"], download=value)


def test_a_parquet_file_without_pyarrow_says_so(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    code = (
        "import sys; sys.modules['pyarrow'] = None; import steerkit as sk\n"
        "try: sk.read_samples(sys.argv[1])\nexcept sk.SteerKitError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "set.parquet")], capture_output=True, text=True, check=True
    )
    assert "steerkit-vlm[parquet]" in done.stdout


def test_parquet_is_read_with_paths_and_bytes(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet is read where pyarrow is installed")
    import pyarrow.parquet as pq  # type: ignore[import-not-found]

    data = (folder / "b.png").read_bytes()
    table = pa.Table.from_pylist(
        [
            {"text": "What is it?", "image": {"bytes": None, "path": "a.png"}, "label": "x"},
            {"text": "What is it?", "image": {"bytes": data, "path": "b.png"}, "label": None},
            {"text": "What is it?", "image": None, "label": "x"},
            {"text": None, "image": None, "label": "x"},
        ]
    )
    pq.write_table(table, folder / "set.parquet", row_group_size=1)
    told: list[int] = []
    read = sk.read_samples(folder / "set.parquet", on_error=lambda number, error: told.append(number))
    assert told == [4]
    assert read[0] == sk.Sample("What is it?", (folder / "a.png",), label="x")
    assert read[1].digest() == sk.Sample("What is it?", (folder / "b.png",)).digest()
    assert read[2] == sk.Sample("What is it?", label="x")
    (folder / "set.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(SampleError, match=r"set\.parquet' can't be read from row 1 on"):
        sk.read_samples(folder / "set.parquet")


def test_bytes_of_images_in_rows_are_read(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    for image in (
        data,
        {"bytes": data, "path": None},
        {"bytes": data, "path": "gone.png"},
        Image.open(io.BytesIO(data)),
    ):
        sample = sk.read_samples([{"text": "What is it?", "image": image}])[0]
        assert sample.digest() == sk.Sample("What is it?", (folder / "a.png",)).digest()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    row = '{"txt": 1}\n' if name == "a.jsonl" else "a,b\n"
    path.write_text(("" if name == "a.jsonl" else "text\n") + row * 5000)

    def grow(number: int, error: SampleError) -> None:
        with path.open("a") as file:
            file.write(row)

    with pytest.raises(SampleError, match="changed while it was read"):
        sk.read_samples(path, on_error=grow)


@pytest.mark.parametrize(
    ("label", "text"),
    [(1, "1"), (True, "true"), (0.5, "0.5"), (np.int64(3), "3"), (np.bool_(False), "false"), ("a", "a")],
)
def test_labels_that_are_numbers_are_texts(label: Any, text: str) -> None:
    assert sk.read_samples([{"text": "Hi", "label": label}]) == [sk.Sample("Hi", label=text)]


@pytest.mark.parametrize("label", [float("nan"), [1], {"a": 1}, "\ud800", object()])
def test_other_labels_are_refused(label: Any) -> None:
    with pytest.raises(SampleError, match=r"row 1: (label is|the text '.ud800' holds half)"):
        sk.read_samples([{"text": "Hi", "label": label}])


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=8)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "tool", "human", "gpt", "text", "image", "image_url", "<image>", "a.png"])
    | st.just(np.zeros((2, 2, 3), np.uint8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "type", "text", "image", "url", "base64", "bytes", "path"]
            )
            | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def outcome(source: Any) -> list[sk.Sample] | SampleError:
    try:
        return sk.read_samples(source)
    except SampleError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(["text", "prompt", "messages", "conversations"]), prompt=ANY, image=ANY, other=ANY)
def test_whatever_a_row_holds_is_a_sample_or_the_documented_error(
    field: str, prompt: Any, image: Any, other: Any
) -> None:
    rows = [{field: prompt, "image": image}, {field: "Hi", "label": other}, {field: [prompt], "caption": other}]
    for row in [*rows, other]:
        found = outcome([row])
        if isinstance(found, SampleError):
            assert len(str(found)) < 1200
            continue
        assert found[0].digest()
        assert len(repr(found[0])) < 1000
        assert replace(found[0], images=()).messages(found[0].places)


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=40)
    | st.lists(
        st.sampled_from(['{"text": "Hi"}', "\n", ",", "[", "]", "text", '"', ";", "\0", "\r", "{", "image", "\t"])
    )
    .map("".join)
    .map(str.encode)
)
def test_whatever_a_file_holds_is_samples_or_the_documented_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    for suffix in ("jsonl", "json", "csv", "tsv"):
        path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
        path.write_bytes(content)
        found = outcome(path)
        assert not isinstance(found, SampleError) or len(str(found)) < 1200
