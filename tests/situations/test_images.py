"""Images as phones, scanners, web pages and other libraries give them: the pixels of transformers' `load_image`."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

import steerkit as sk
from steerkit.errors import MissingImageError, SampleError
from steerkit.models import check_image, open_image

Picture = Callable[..., Image.Image]


def corners() -> Image.Image:
    """32 x 48 pixels that no turn and no mirror leaves as they are."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24, 0], pixels[:16, :, 1], pixels[:8, :8] = 255, 200, 90
    return Image.fromarray(pixels)


def assert_as_transformers(path: Path) -> None:
    file_uri, data = path.as_uri(), path.read_bytes()
    expected = np.asarray(load_image(base64.b64encode(data).decode()))
    for image in (
        path,
        Path(path.as_uri()),
        str(path),
        file_uri,
        data,
        bytearray(data),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
        "data:image/png;base64," + base64.b64encode(data).decode(),
        Image.open(io.BytesIO(data)),
    ):
        check_image(image)  # type: ignore[arg-type]
        opened = open_image(image)  # type: ignore[arg-type]
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), expected)
        assert np.array_equal(np.asarray(open_image(opened)), expected), "opening twice turns once"


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [*range(10), None])
def test_every_orientation_is_upright(tmp_path: Path, orientation: int | None, kind: str) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    corners().save(path, exif=exif, quality=95)
    assert_as_transformers(path)
    if orientation in (5, 6, 7, 8):
        assert open_image(path).size == (32, 48)


def modes() -> dict[str, Image.Image]:
    wide = np.linspace(0, 65535, 32 * 48).reshape(32, 48)
    rgba = np.zeros((32, 48, 4), np.uint8)
    rgba[..., 0], rgba[:, :24, 3] = 255, 255
    palette = corners().convert("P")
    palette.info["transparency"] = 3
    return {
        "P.png": palette,
        "P.gif": corners().convert("P"),
        "1.png": corners().convert("1"),
        "L.png": corners().convert("L"),
        "LA.png": corners().convert("LA"),
        "RGBA.png": Image.fromarray(rgba),
        "RGBA.webp": Image.fromarray(rgba),
        "CMYK.jpg": corners().convert("CMYK"),
        "YCbCr.jpg": corners().convert("YCbCr"),
        "I16.png": Image.fromarray(wide.astype(np.uint16)),
        "F.tif": Image.fromarray((wide / 65535).astype(np.float32)),
        "RGB.bmp": corners(),
    }


@pytest.mark.parametrize("name", modes())
def test_every_mode_is_rgb_as_in_transformers(tmp_path: Path, name: str) -> None:
    modes()[name].save(tmp_path / name)
    assert_as_transformers(tmp_path / name)


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    corners().save(path, save_all=True, append_images=[corners().rotate(180)])
    assert_as_transformers(path)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_photo_reaches_the_model_upright(tmp_path: Path, qwen: sk.VLM, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners().save(tmp_path / "a.jpg", exif=exif)
    messages = [
        {"role": "user", "content": [{"type": "image", "url": str(tmp_path / "a.jpg")}, {"type": "text", "text": "Hi"}]}
    ]
    expected = qwen.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    for image in (tmp_path / "a.jpg", Image.open(io.BytesIO((tmp_path / "a.jpg").read_bytes()))):
        found = qwen.inputs([sk.Sample("Hi", (image,))])
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        assert torch.equal(found["image_grid_thw"], expected["image_grid_thw"])


def test_names_with_odd_characters_are_read_by_their_uri(tmp_path: Path) -> None:
    for name in ("a b.png", "100%.png", "ü#1?.png", "日本.png"):
        corners().save(tmp_path / name)
        assert_as_transformers(tmp_path / name)
        open_image(f"file://localhost{(tmp_path / name).as_uri().removeprefix('file://')}")
    assert open_image("file://" + str(tmp_path / "ü#1?.png")).size == (48, 32)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        made += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return made


def hostile() -> dict[str, bytes]:
    """Files that are none, or that would fill the memory."""
    whole = io.BytesIO()
    corners().resize((480, 320)).save(whole, "PNG")
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return {
        "bomb.png": _png((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")),
        "text.png": b"<html>not found</html>",
        "empty.png": b"",
        "svg.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "cut.png": whole.getvalue()[:200],
        "zeros.tif": b"II*\0" + b"\0" * 100,
        "fields.tif": b"II*\0\x08\0\0\0" + b"\xff" * 200,
    }


@pytest.mark.parametrize("name", hostile())
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, name: str, llava: sk.VLM) -> None:
    path = tmp_path / name
    data = hostile()[name]
    path.write_bytes(data)
    with pytest.raises(MissingImageError, match=name.replace(".", r"\.")) as caught:
        open_image(path)
    assert caught.value.expected
    with pytest.raises(MissingImageError, match=rf"sample 1 \('Two'\): the image .*{name}"):
        llava.generate([sk.Sample("One", (corners(),)), sk.Sample("Two", (path,))], max_new_tokens=1)
    with pytest.raises(MissingImageError, match=f"of {len(data)} bytes"):
        open_image(data)


@pytest.mark.parametrize("place", ["fifo", "/dev/zero", "/dev/null", ".", "a" * 5000, "nowhere.png", "no\0where.png"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, place: str) -> None:
    path = Path(place) if place.startswith("/dev") else tmp_path / place
    if place == "fifo":
        os.mkfifo(path)
    for call in (open_image, check_image):
        with pytest.raises(MissingImageError) as caught:
            call(path)
        assert caught.value.expected
        assert len(str(caught.value)) < 1000
    with pytest.raises(SampleError, match=r"the list, row 1: the image"):
        sk.read_samples([{"text": "Hi", "image": str(path)}])


def test_a_file_that_grows_while_it_is_read_is_read_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerkit.models._images.MAX_IMAGE", 2**20)
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 2**20)
    for image in (tmp_path / "large.png", (tmp_path / "large.png").read_bytes()):
        with pytest.raises(MissingImageError, match=r"bytes"):
            open_image(image)


NOISE = base64.b64encode(np.random.default_rng(0).bytes(300_000)).decode()
SHORT: dict[str, tuple[Any, str]] = {
    "no base64": ("data:image/png,abc", "not in base64"),
    "no comma": ("data:image/png;base64", "not in base64"),
    "wrong letters": ("data:image/png;base64,%%%%", "can't be decoded"),
    "wrong length": ("data:image/png;base64,abc", "can't be decoded"),
    "no image": ("data:image/png;base64," + NOISE, "no kind of image"),
    "base64 alone": (NOISE, "say so: 'data:image/png;base64,'"),
    "https": ("https://example.org/cat.png", "download_image"),
    "path of a url": (Path("https://example.org/cat.png"), "download_image"),
    "HTTP": ("HTTP://example.org/" + "a" * 3000, "download_image"),
    "s3": ("s3://bucket/cat.png", "of the kind s3://"),
    "another machine": ("file://server/share/cat.png", "no file of this machine"),
    "relative uri": ("file://cat.png", "no file of this machine"),
    "bytes": (NOISE.encode(), "of 400000 bytes"),
}


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("how", ["open", "check", "read", "generate"])
def test_messages_about_images_are_short_and_say_what_to_do(llava: sk.VLM, kind: str, how: str) -> None:
    image, problem = SHORT[kind]
    with pytest.raises((MissingImageError, SampleError)) as caught:
        {
            "open": lambda: open_image(image),
            "check": lambda: check_image(image),
            "read": lambda: sk.read_samples([{"text": "Hi", "image": image}]),
            "generate": lambda: llava.generate([sk.Sample("Hi", image)], max_new_tokens=1),
        }[how]()
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 900
    assert len(repr(sk.Sample("Hi", image))) < 400


def test_a_data_uri_beyond_the_bound_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerkit.models._images.MAX_IMAGE", 1000)
    monkeypatch.setattr(base64, "b64decode", None)
    with pytest.raises(MissingImageError, match="too large"):
        open_image("data:image/png;base64," + "A" * 2000)


def test_base64_may_be_broken_into_lines_and_escaped() -> None:
    data = io.BytesIO()
    corners().save(data, "PNG")
    lines = base64.encodebytes(data.getvalue()).decode()
    for text in (lines, lines.replace("\n", "%0A"), lines.replace("+", "%2B").replace("=", "%3D")):
        opened = open_image("data:image/png;charset=utf-8;base64," + text)
        assert np.array_equal(np.asarray(opened), np.asarray(corners()))


ARRAYS: dict[str, tuple[Any, str]] = {
    "channels first": (np.zeros((3, 8, 9), np.uint8), "transpose(1, 2, 0)"),
    "floats": (np.zeros((8, 9, 3), np.float32), "* 255"),
    "floats, channels first": (np.zeros((3, 8, 9), np.float64), "* 255"),
    "grey": (np.zeros((8, 9), np.uint8), "Image.fromarray"),
    "four channels": (np.zeros((8, 9, 4), np.uint8), "Image.fromarray"),
    "16 bits": (np.zeros((8, 9, 3), np.uint16), "where 255 is white"),
    "truth values": (np.zeros((8, 9, 3), bool), "* 255 where 1 is"),
    "a batch": (np.zeros((2, 8, 9, 3), np.uint8), "list(array)"),
    "a batch of floats": (np.zeros((2, 3, 8, 9), np.float32), "list(array)"),
    "an open file": (io.BytesIO(b"GIF89a"), "file.read()"),
    "torch": (torch.zeros(3, 8, 9, dtype=torch.uint8), "permute(1, 2, 0)"),
    "torch floats": (torch.rand(3, 8, 9), "permute(1, 2, 0)"),
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_image_without_pixels_is_refused_by_its_size(vlm_of: Any, mode: str, family: str) -> None:
    sample = sk.Sample("What is this?", (Image.new(mode, (0, 7)),))
    with pytest.raises(MissingImageError, match="sample 0 .* 0 pixels wide and 7 high"):
        vlm_of(family).generate([sample], max_new_tokens=1)


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_whose_meaning_would_be_guessed_are_refused(kind: str, llava: sk.VLM) -> None:
    array, fix = ARRAYS[kind]
    for call in (open_image, check_image, lambda each: llava.inputs([sk.Sample("Hi", (each,))])):
        with pytest.raises(MissingImageError) as caught:
            call(array)
        assert fix in str(caught.value)


def test_the_fixes_for_arrays_are_right() -> None:
    """What the messages say to write gives the picture that the array is of."""
    pixels = np.asarray(corners())
    floats = pixels.astype(np.float32) / 255
    assert np.array_equal((floats * 255).round().astype("uint8"), pixels)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    assert np.array_equal(np.asarray(Image.fromarray(tensor.permute(1, 2, 0).numpy())), pixels)
    assert torch.equal(((tensor / 255) * 255).round().byte(), tensor)
    assert np.array_equal(pixels.astype(np.int64).astype("uint8"), pixels)
    assert np.array_equal((pixels > 127).astype("uint8") * 255, np.where(pixels > 127, 255, 0))
    for one, other in zip(list(np.stack([pixels, pixels[::-1]])), (pixels, pixels[::-1]), strict=True):
        assert np.array_equal(np.asarray(open_image(one)), other)


@pytest.mark.parametrize("shape", [(), (0, 3), (8, 8, 2), (1, 1, 1, 1, 1), (8, 8, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, object, "U3", np.complex64])
def test_no_fix_is_made_up_for_what_is_no_picture(shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(MissingImageError) as caught:
        open_image(np.zeros(shape, dtype))
    assert caught.value.fix is None


def test_a_fix_is_about_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the path is right, nobody is sent to check it."""
    (tmp_path / "drawing.png").write_text("<svg/>")
    corners().save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    said = {"drawing.png": "PNG or JPEG", "large.png": "MAX_IMAGE_PIXELS", "gone.png": "check the path"}
    for name, fix in said.items():
        with pytest.raises(MissingImageError) as caught:
            open_image(tmp_path / name)
        assert fix in str(caught.value.fix)
