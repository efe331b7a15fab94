"""Samples and sample files: what is read, what is refused and how the row is named, and what a digest distinguishes."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from steerkit.errors import MissingImageError, OptionError, SampleError
from steerkit.models import Sample, anchor_digest, as_samples, open_image, read_samples

Picture = Callable[..., Image.Image]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """A folder with `images/a.png` and `images/b.png`."""
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.png")
    picture(2).save(tmp_path / "images" / "b.png")
    return tmp_path


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# -- one sample ------------------------------------------------------------------------------------------------------


def test_a_plain_text_is_one_user_turn() -> None:
    assert Sample("Hello").turns == (("user", "Hello"),)


def test_a_chat_is_kept_as_turns_in_tuples_or_in_mappings() -> None:
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    mappings = [{"role": role, "content": text} for role, text in turns]
    assert Sample(turns).turns == Sample(mappings).turns == Sample([list(turn) for turn in turns]).turns == turns


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ((), "user's turn"),
        ((("assistant", "Hi"),), "user's turn"),
        ((("robot", "Hi"),), "robot"),
        ((("user", 3),), "3"),
        ((("user",),), "user"),
        (({"role": "user"},), "user"),
        ((("user", " "),), "empty"),
        ((7,), "7"),
        (7, "7"),
        (None, "None"),
        ("half \ud800 a character", "ud800"),
    ],
)
def test_a_malformed_text_is_refused(text: object, problem: str) -> None:
    with pytest.raises(SampleError, match=problem) as caught:
        Sample(text)  # type: ignore[arg-type]
    assert caught.value.expected


@pytest.mark.parametrize("field", ["caption", "label"])
def test_captions_and_labels_are_strings(field: str) -> None:
    with pytest.raises(SampleError, match=f"{field} is 3"):
        Sample("Hi", **{field: 3})  # type: ignore[arg-type]


def test_a_sample_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Sample("Hi").text = "Bye"  # type: ignore[misc]


def test_one_image_needs_no_list(picture: Picture) -> None:
    array = np.asarray(picture(1))
    for image in (picture(1), array, "a.png", Path("a.png")):
        images = Sample("Hi", image).images  # type: ignore[arg-type]
        assert len(images) == 1
        assert images[0] is image


# -- images ----------------------------------------------------------------------------------------------------------


def test_path_array_and_image_open_as_the_same_pixels(folder: Path, picture: Picture) -> None:
    path = folder / "images" / "a.png"
    expected = np.asarray(picture(1))
    for image in (path, str(path), expected, picture(1)):
        opened = open_image(image)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), expected)


def test_other_modes_become_rgb() -> None:
    grey = Image.new("L", (2, 3), 77)
    opened = open_image(grey)
    assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (2, 3), (77, 77, 77))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        3,
        None,
        b"bytes",
        "no\0where.png",
    ],
    ids=["grey", "rgba", "float", "empty", "number", "none", "bytes", "null"],
)
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(MissingImageError) as caught:
        open_image(image)  # type: ignore[arg-type]
    assert caught.value.expected


def _broken_files(picture: Picture) -> dict[str, bytes]:
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture(1, 64).save(png, "PNG")
    picture(1, 64).save(jpeg, "JPEG")
    whole, photo = png.getvalue(), jpeg.getvalue()
    wrong_checksum = bytearray(whole)
    wrong_checksum[whole.index(b"IDAT") + 9] ^= 0xFF
    return {
        "text.png": b"this is a text",
        "empty.png": b"",
        "truncated.jpg": photo[: len(photo) // 2],
        "truncated.png": whole[: len(whole) // 2],
        "checksum.png": bytes(wrong_checksum),
    }


@pytest.mark.parametrize("name", ["text.png", "empty.png", "truncated.jpg", "truncated.png", "checksum.png"])
def test_a_broken_image_file_is_refused_with_its_name(tmp_path: Path, picture: Picture, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(_broken_files(picture)[name])
    with pytest.raises(MissingImageError, match=name.replace(".", r"\.")) as caught:
        open_image(path)
    assert caught.value.expected
    assert caught.value.fix


def test_a_truncated_image_that_the_caller_opened_is_refused(picture: Picture) -> None:
    opened = Image.open(io.BytesIO(_broken_files(picture)["truncated.jpg"]))
    with pytest.raises(MissingImageError):
        open_image(opened)


def test_loading_a_missing_image_names_it() -> None:
    with pytest.raises(MissingImageError, match="nowhere"):
        Sample("Hi", "nowhere.png").loaded()


# -- reading ---------------------------------------------------------------------------------------------------------


def test_jsonl_is_read_in_order_with_paths_from_its_folder(folder: Path) -> None:
    path = jsonl(
        folder / "set.jsonl",
        {"text": "Grüße, 世界 🎉", "image": "images/a.png", "caption": "A", "label": "harmful"},
        {"text": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
        {"text": "Two", "images": ["images/a.png", str(folder / "images" / "b.png")], "label": 1},
        {"text": "Null", "image": None, "caption": None},
    )
    first, chat, two, null = read_samples(path)
    assert first == Sample("Grüße, 世界 🎉", (folder / "images" / "a.png",), "A", "harmful")
    assert chat.turns == (("system", "Be brief."), ("user", "Hi"))
    assert two.images == (folder / "images" / "a.png", folder / "images" / "b.png")
    assert two.label == "1"
    assert null == Sample("Null")


def test_a_field_of_strings_only_means_the_same_in_jsonl_as_among_numbers(folder: Path) -> None:
    path = jsonl(
        folder / "set.jsonl",
        {"text": "A", "images": "images/a.png", "label": "1"},
        {"text": "A", "images": "images/a.png", "label": 1},
    )
    first, second = read_samples(path)
    assert first == second == Sample("A", (folder / "images" / "a.png",), label="1")


def test_csv_is_read_with_empty_cells_absent_and_quoted_line_breaks(folder: Path) -> None:
    path = folder / "set.csv"
    path.write_text(
        'text,image,label\n"Hi, ""you""\nthere",images/a.png,harmful\n日本,,\n', encoding="utf-8", newline=""
    )
    assert read_samples(path) == [
        Sample('Hi, "you"\nthere', (folder / "images" / "a.png",), label="harmful"),
        Sample("日本"),
    ]


def test_csv_holds_several_images_as_a_json_list(folder: Path) -> None:
    path = folder / "set.csv"
    path.write_text('text,images\nHi,"[""images/a.png"", ""images/b.png""]"\n', encoding="utf-8")
    assert [image.name for image in read_samples(path)[0].images] == ["a.png", "b.png"]  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set.{suffix}"
    path.write_text("text\nHi\n" if suffix == "csv" else '{"text": "Hi"}\n', encoding="utf-8-sig")
    assert read_samples(path) == [Sample("Hi")]


def test_a_list_may_mix_samples_mappings_and_texts(picture: Picture) -> None:
    image = picture(1)
    sample = Sample("Ready")
    read = read_samples([sample, {"text": "Map", "image": image}, "Plain"])
    assert read[0] is sample
    assert read[1].images == (image,)
    assert read[2] == Sample("Plain")


def test_image_root_replaces_the_folder_of_the_file(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    path = jsonl(folder / "elsewhere" / "set.jsonl", {"text": "Hi", "image": "a.png"})
    assert read_samples(path, image_root=folder / "images")[0].images == (folder / "images" / "a.png",)
    assert read_samples([{"text": "Hi", "image": "a.png"}], image_root=folder / "images")[0].images[0].name == "a.png"


def test_columns_rename_and_drop_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", {"question": "Hi", "id": 7})
    assert read_samples(path, columns={"question": "text", "id": None}) == [Sample("Hi")]


def test_an_empty_file_and_blank_lines_hold_no_samples(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).touch()
        assert read_samples(tmp_path / name) == []
    (tmp_path / "b.jsonl").write_text('\n{"text": "Hi"}\n\n')
    assert read_samples(tmp_path / "b.jsonl") == [Sample("Hi")]


BAD_ROWS: dict[str, tuple[str, str]] = {
    "not_json": ("{", "not JSON"),
    "no_object": ('["Hi"]', "the line is a list"),
    "no_text": ('{"label": "a"}', "'text' is missing"),
    "empty_text": ('{"text": ""}', "empty"),
    "bad_turn": ('{"text": [{"role": "user"}]}', "a turn is"),
    "number_for_text": ('{"text": 5}', "5"),
    "unknown_field": ('{"text": "Hi", "imgae": "a.png"}', "unknown field 'imgae'"),
    "two_image_fields": ('{"text": "Hi", "image": "images/a.png", "images": []}', "both"),
    "missing_image": ('{"text": "Hi", "image": "images/c.png"}', r"c\.png"),
    "text_as_image": ('{"text": "Hi", "image": "images/text.png"}', r"text\.png"),
    "empty_image": ('{"text": "Hi", "image": "images/empty.png"}', r"empty\.png"),
    "number_as_image": ('{"text": "Hi", "image": 5}', "int"),
    "null_in_path": ('{"text": "Hi", "image": "a\\u0000.png"}', "null"),
    "number_as_caption": ('{"text": "Hi", "caption": 5}', "caption is 5"),
    "repeated_key": ('{"text": "Hi", "text": "Bye"}', "'text'"),
    "surrogate": ('{"text": "\\ud800"}', "ud800"),
    "too_deep": ('{"text": ' + "[" * 100 + "]" * 100 + "}", "more than 32 deep"),
}


@pytest.fixture
def bad_file(folder: Path, request: pytest.FixtureRequest) -> Path:
    """A good row, a blank line, the bad row and another good one: the bad one is in line 3."""
    (folder / "images" / "text.png").write_text("text")
    (folder / "images" / "empty.png").touch()
    row = BAD_ROWS[request.param][0]
    path = folder / "set.jsonl"
    path.write_text(f'{{"text": "First"}}\n\n{row}\n{{"text": "Last"}}\n')
    return path


@pytest.mark.parametrize(("bad_file", "kind"), [(kind, kind) for kind in BAD_ROWS], indirect=["bad_file"], ids=BAD_ROWS)
def test_a_bad_row_is_named_by_its_line_under_every_policy(bad_file: Path, kind: str) -> None:
    problem = BAD_ROWS[kind][1]
    with pytest.raises(SampleError, match=f"(?s)line 3: .*{problem}") as caught:
        read_samples(bad_file)
    assert caught.value.expected
    assert caught.value.fix

    good = [Sample("First"), Sample("Last")]
    with pytest.warns(UserWarning, match="line 3"):
        assert read_samples(bad_file, on_error="skip") == good

    told: list[tuple[int, SampleError]] = []
    assert read_samples(bad_file, on_error=lambda row, error: told.append((row, error))) == good
    assert [row for row, _ in told] == [3]
    assert "line 3" in str(told[0][1])


def test_a_bad_csv_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text('text,label\n"two\nlines",a\n,b\nlast,c,too many\ntoo few\nno label,\n')
    told: list[int] = []
    good = [Sample("two\nlines", label="a"), Sample("no label")]
    assert read_samples(path, on_error=lambda row, error: told.append(row)) == good
    assert told == [4, 5, 6]


def test_a_bad_list_element_is_named_by_its_position() -> None:
    with pytest.raises(SampleError, match="row 2: a row is a int"):
        read_samples(["Hi", 5])  # type: ignore[list-item]


def test_two_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("text,text\nHi,Bye\n")
    with pytest.raises(SampleError, match="'text'"):
        read_samples(tmp_path / "set.csv")
    with pytest.raises(SampleError, match="'text'"):
        read_samples([{"text": "Hi", "question": "Bye"}], columns={"question": "text"})


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    for name, content in (("set.csv", "text\nGrüße\n"), ("set.jsonl", '{"text": "Grüße"}\n')):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(SampleError, match=rf"{name}.*UTF-8"):
            read_samples(tmp_path / name)


def test_a_csv_cell_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("text\n" + "a" * 200_000 + "\n")
    with pytest.raises(SampleError, match=r"set\.csv"):
        read_samples(tmp_path / "set.csv")


@pytest.mark.parametrize("name", ["missing.jsonl", "set.txt", "."])
def test_a_source_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "set.txt").write_text("Hi")
    with pytest.raises(SampleError) as caught:
        read_samples(tmp_path / name)
    assert ".jsonl" in str(caught.value.expected)


@pytest.mark.parametrize("choice", ["warn", None, ""])
def test_an_unknown_choice_for_bad_rows_is_refused_at_once(tmp_path: Path, choice: Any) -> None:
    with pytest.raises(OptionError, match=f"on_error is {choice!r}"):
        read_samples(tmp_path / "missing.jsonl", on_error=choice)


NOT_SAMPLES: dict[str, tuple[Any, str]] = {
    "one sample": (Sample("Hi"), "[sample]"),
    "a text": ("Hi", "sk.Sample("),
    "a mapping": ({"text": "Hi"}, "sk.Sample("),
    "a list of texts": ([Sample("Hi"), "Hi"], "sk.Sample("),
    "another sequence of texts": (deque(["Hi"]), "sk.Sample("),
    "a generator": ((Sample("Hi") for _ in range(2)), "list(samples)"),
    "nothing": (None, "sk.Sample("),
    "a number": (5, "sk.Sample("),
}


@pytest.mark.parametrize("kind", NOT_SAMPLES)
def test_what_is_no_sequence_of_samples_is_refused(kind: str) -> None:
    given, fix = NOT_SAMPLES[kind]
    with pytest.raises(SampleError) as caught:
        as_samples(given)
    assert caught.value.expected
    assert fix in str(caught.value.fix)


def test_a_sequence_of_samples_is_itself() -> None:
    for given in ([Sample("Hi")], (), deque([Sample("Hi")])):
        assert as_samples(given) is given


def test_images_are_checked_without_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no image")
    good = (tmp_path / "a.png", str(tmp_path / "a.png"), Image.new("L", (8, 8)), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(Image.Image, "convert", None)
    Sample("Hi", good).check_images()
    for bad in (tmp_path / "none.png", tmp_path / "text.png", tmp_path, np.zeros((8, 8, 3)), 5):
        with pytest.raises(MissingImageError):
            Sample("Hi", (*good, bad)).check_images()  # type: ignore[arg-type]


def test_a_single_mapping_is_no_list_of_samples() -> None:
    with pytest.raises(SampleError, match="of type dict"):
        read_samples({"text": "Hi"})  # type: ignore[arg-type]


# -- digests ---------------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_pixels_however_they_are_given(folder: Path, picture: Picture) -> None:
    path = folder / "images" / "a.png"
    given = (path, str(path), picture(1), np.asarray(picture(1)))
    assert len({Sample("Hi", (image,)).digest() for image in given}) == 1


def test_the_digest_is_the_one_that_packs_record(picture: Picture) -> None:
    """Packs say which anchors they were made from: what a sample without places or options hashes to must not move."""
    image = picture(1, 8)
    for text, turns in (
        ("Grüße", [["user", "Grüße"]]),
        ((("system", "s"), ("user", "Hi")), [["system", "s"], ["user", "Hi"]]),
    ):
        head = json.dumps({"caption": "c", "label": None, "turns": turns}, ensure_ascii=False)
        expected = hashlib.sha256(head.encode() + b"8x8:" + image.tobytes()).hexdigest()
        assert Sample(text, (image,), "c").digest() == expected


def test_a_text_and_its_single_turn_have_one_digest() -> None:
    assert Sample("Hi").digest() == Sample((("user", "Hi"),)).digest()


def test_the_digest_differs_on_any_change(picture: Picture) -> None:
    pixel = np.array(picture(1))
    pixel[3, 4, 2] ^= 1
    flat = np.asarray(picture(1)).reshape(16, 64, 3)
    base = {"text": "Hi", "images": (picture(1),), "caption": "c", "label": "l"}
    variants: list[dict[str, object]] = [
        base,
        {**base, "text": "Hi "},
        {**base, "text": (("system", "s"), ("user", "Hi"))},
        {**base, "images": ()},
        {**base, "images": (picture(1), picture(1))},
        {**base, "images": (picture(2),)},
        {**base, "images": (pixel,)},
        {**base, "images": (flat,)},
        {**base, "images": (picture(1), picture(2))},
        {**base, "images": (picture(2), picture(1))},
        {**base, "caption": "d"},
        {**base, "caption": None},
        {**base, "caption": "l", "label": "c"},
        {**base, "label": None},
    ]
    digests = [Sample(**fields).digest() for fields in variants]  # type: ignore[arg-type]
    assert len(set(digests)) == len(variants)
    assert all(len(digest) == 64 for digest in digests)


def test_the_anchor_digest_depends_on_the_order() -> None:
    first, second = Sample("a").digest(), Sample("b").digest()
    assert anchor_digest([first, second]) != anchor_digest([second, first])
    assert anchor_digest([first, second]) == anchor_digest(iter([first, second]))


def test_samples_cross_process_boundaries(picture: Picture) -> None:
    sample = Sample((("system", "s"), ("user", "Hi")), (picture(1),), "c", "l")
    assert pickle.loads(pickle.dumps(sample)).digest() == sample.digest()


def test_only_the_users_turns_must_say_something() -> None:
    turns = (("system", ""), ("user", "Hi"), ("assistant", ""), ("user", "Bye"))
    assert Sample(turns).turns == turns


class Unspeakable:
    """What has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("value", [10**5000, Unspeakable()], ids=["a huge number", "a failing repr"])
@pytest.mark.parametrize(
    "made",
    [
        lambda value: Sample(value),
        lambda value: Sample([value]),
        lambda value: Sample([{"role": value, "content": "text"}]),
        lambda value: Sample([{"role": "user", "content": [{"type": "text", "text": value}]}]),
        lambda value: Sample("text", label=value),
        lambda value: Sample("text", chat_template_kwargs=value),
        lambda value: as_samples(value),
        lambda value: as_samples([value]),
    ],
)
def test_what_can_not_be_shown_is_refused_as_anything_else(made: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises((SampleError, OptionError)):
        made(value)
