"""Anchor sets that hold their images: webdataset's tar files, the Parquet files of `datasets`, and folders of them."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from reference import picture

import steerkit as sk
from steerkit.errors import MissingImageError, SampleError
from steerkit.models import open_image


def png(number: int) -> bytes:
    out = io.BytesIO()
    picture(number).save(out, "png")
    return out.getvalue()


def pixels(image: Any) -> bytes:
    return open_image(image).tobytes()


def tar(path: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_shards_are_read_in_their_order(tmp_path: Path, layout: int) -> None:
    for shard in range(3):
        members: dict[str, bytes] = {}
        for row in range(4):
            number = 4 * shard + row
            key = f"{'long/' * 30 if layout != tarfile.USTAR_FORMAT else 'deep/'}{number:06}"
            members |= {f"{key}.PNG": png(number), f"{key}.txt": f"What is in picture {number}?".encode()}
            members |= {f"{key}.cls": b"harmful" if number % 2 else b"harmless"}
        tar(tmp_path / f"part-{shard}.tar", members, format=layout)
    samples = sk.read_samples(tmp_path)
    assert [sample.text for sample in samples] == [f"What is in picture {number}?" for number in range(12)]
    assert [sample.label for sample in samples] == ["harmless", "harmful"] * 6
    assert [pixels(sample.images[0]) for sample in samples] == [picture(number).tobytes() for number in range(12)]
    # what a sample of the same pixels held in memory has, so that a pack says the same of its anchors
    assert samples[5].digest() == sk.Sample(str(samples[5].text), (picture(5),), label="harmful").digest()
    assert len(pickle.dumps(samples)) < 8000  # a worker is sent the rows and no picture


def test_fields_of_json_and_of_their_own(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]}]
    path = tar(
        tmp_path / "a.tar",
        {
            "x.json": json.dumps({"messages": chat, "id": 7}).encode(),
            "x.0.png": png(1),
            "x.1.png": png(2),
            "x.caption.txt": "Zwei Bilder — ♥".encode(),
            "y.text.txt": b"alone",
            "y.label.cls": b"3",
        },
    )
    both, alone = sk.read_samples(path)
    assert [pixels(image) for image in both.images] == [picture(1).tobytes(), picture(2).tobytes()]
    assert (both.places, both.caption) == (2, "Zwei Bilder — ♥")
    assert (alone.text, alone.label, alone.images) == ("alone", "3", ())


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"a.txt": b"x", "a.text.txt": b"y"}, "row 1: 'a.text.txt' gives 'text' again"),
        ({"a.txt": b"x", "b.txt": b"\xff"}, "row 2: 'b.txt' is not in UTF-8"),
        ({"a.json": b"{"}, "row 1: 'a.json' is not JSON"),
        ({"a.json": b'{"text": "x", "images": []}', "a.png": png(0)}, "beside the field 'images'"),
        ({"a.png": png(0)}, "the field 'text' is missing"),
        ({"a.txt": b"x", "a.png": b"nothing"}, "a.tar:a.png' can't be read (no kind of image"),
        ({"a.txt": b"x", "a.mp4": b"\0\0\0\x18ftypmp42"}, "a.tar:a.mp4' can't be read"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, members: dict[str, bytes], problem: str) -> None:
    with pytest.raises(SampleError) as caught:
        sk.read_samples(tar(tmp_path / "a.tar", members))
    assert problem in str(caught.value)


def test_a_bad_row_is_skipped_and_the_rest_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.txt": b"x", "b.txt": b"\xff", "c.txt": b"z"})
    told: list[int] = []
    assert [each.text for each in sk.read_samples(path, on_error=lambda number, _: told.append(number))] == ["x", "z"]
    assert told == [2]


def test_links_and_compressed_files_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(entry)
    with pytest.raises(SampleError, match="is a link"):
        sk.read_samples(tmp_path / "link.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    with pytest.raises(SampleError, match="a tar file that is not compressed"):
        sk.read_samples(tmp_path / "packed.tar")


def test_a_file_that_ends_early_says_where(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.txt": b"x", "a.png": png(0), "b.txt": b"y", "b.png": png(1)})
    rows = sk.read_samples(path, check_images=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(png(1)) + 5])
    with pytest.raises(MissingImageError, match=r"a\.tar:b\.png' can't be read \(the file ends before it\)"):
        open_image(rows[1].images[0])
    with pytest.raises(SampleError, match=r"a\.tar"):
        sk.read_samples(path)


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("group", [1, 3, 100])
@pytest.mark.parametrize("shape", ["one", "several", "with holes"])
def test_images_stay_in_a_parquet_file(tmp_path: Path, group: int, shape: str) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(10):
        images: list[Any] = [{"bytes": png(number), "path": None}, {"bytes": png(number + 20), "path": "x.png"}]
        images = images[: 2 - number % 2] if number % 3 or shape == "several" else []
        row = {"text": f"{number}", "images": images} if shape != "one" else {"text": f"{number}", "image": images[0:1]}
        if shape == "one":
            row["image"] = images[0] if images else None
        rows.append(row)
    samples = sk.read_samples(parquet(tmp_path / "a.parquet", rows, row_group_size=group))
    for row, sample in zip(rows, samples, strict=True):
        held = row.get("images") or [row["image"]] if row.get("images") or row.get("image") else []
        assert [pixels(image) for image in sample.images] == [pixels(each["bytes"]) for each in held]
    assert len(pickle.dumps(samples)) < 6000 + 200 * len(samples)


def test_a_fit_reads_what_it_measures(tmp_path: Path, vlm: sk.VLM) -> None:
    members: dict[str, bytes] = {}
    for number in range(8):
        members |= {f"{number}.txt": f"request {number}".encode(), f"{number}.png": png(number)}
    held = [sk.Sample(f"request {number}", (picture(number),)) for number in range(8)]
    expected = sk.CMRM().fit(vlm, held, batch_size=2)
    path = tar(tmp_path / "a.tar", members)
    found = sk.CMRM().fit(vlm, sk.read_samples(path, check_images=False), batch_size=2)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all((found.tensors[key] == tensor).all() for key, tensor in expected.tensors.items())
    assert found.metadata.anchors == expected.metadata.anchors
    bad = sk.read_samples(tar(path, {**members, "6.png": b"nothing"}), check_images=False)
    with pytest.raises(MissingImageError, match=r"a\.tar:6\.png"):
        sk.CMRM().fit(vlm, bad, batch_size=2)


def test_a_folder_is_read_as_image_folders_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "What is it?"}\n')
    (tmp_path / "more.jsonl").write_text('{"text": "not asked"}\n')
    (sample,) = sk.read_samples(tmp_path)
    assert pixels(sample.images[0]) == picture(3).tobytes()
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "b.csv").write_text("text\nx\n")
    with pytest.raises(SampleError, match="has b.csv, more.jsonl"):
        sk.read_samples(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SampleError, match="no such file"):
        sk.read_samples(tmp_path / "empty")
