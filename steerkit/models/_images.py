"""Images as people have them: files, `file:` and `data:` URIs, bytes, PIL images and arrays, as one RGB picture each.

The pixels are those that `transformers.image_utils.load_image` gives: turned as the EXIF orientation says, then
converted to RGB by Pillow. Nothing is downloaded here, and what is no regular file is not opened.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias
from urllib.parse import unquote
from urllib.request import url2pathname

from steerkit._internal.files import open_regular, read_bounded, user_path
from steerkit.errors import MissingImageError, SteerKitError
from steerkit.models._stored import Stored

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageLike: TypeAlias = "str | Path | bytes | Mapping[str, Any] | Stored | Image.Image | np.ndarray"
else:
    ImageLike: TypeAlias = Any

MAX_IMAGE = 2**28
"""The most bytes of an image file; how many pixels Pillow decodes is `PIL.Image.MAX_IMAGE_PIXELS`."""

_EXPECTED = (
    "a path, a file: or data: URI, the bytes of an image file, a PIL image, or a [height, width, 3] array of uint8"
)
_ORIENTATION = 0x0112


def open_image(image: ImageLike) -> Image.Image:
    """Open an image as an upright RGB PIL image.

    Args:
        image: A path, a `file:` or `data:` URI, the bytes of an image file (or `{"bytes": ..., "path": ...}`, as
            `datasets` has them before they are decoded), a PIL image or a `[height, width, 3]` uint8 array.

    Raises:
        MissingImageError: The file is missing or is not an image, or it is something else than these.
    """
    from PIL import Image

    source = _source(image)
    if _is_array(source):
        return Image.fromarray(source)
    with _reading(image):
        if isinstance(source, Image.Image):
            source.load()
            turned = source.getexif().get(_ORIENTATION, 1) != 1
            return _upright(source) if turned or source.mode != "RGB" or not all(source.size) else source
        data = read_bounded(source, MAX_IMAGE) if isinstance(source, Path) else source
        with Image.open(io.BytesIO(data)) as opened:
            return _upright(opened)


def check_image(image: ImageLike) -> None:
    """Check an image as far as that goes without decoding its pixels.

    Raises:
        MissingImageError: The file is missing or is not an image, or it is something else than `open_image` takes.
    """
    from PIL import Image

    source = _source(image)
    if isinstance(source, Image.Image) or _is_array(source):
        return
    with _reading(image), _opened(source) as file, Image.open(file):
        pass


def image_name(image: ImageLike) -> str:
    """A few words that say which image it is, for messages: a path, or the kind and the size."""
    if isinstance(image, Mapping) and image.get("path") is not None:
        image = image["path"]
    if isinstance(image, (str, Path, Stored)):
        text = str(image)
        if text[:5].lower() == "data:":
            return f"of a data: URI with {len(text)} characters"
        return repr(text if len(text) <= 240 else f"{text[:120]}...{text[-100:]}")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"of {len(image)} bytes"
    return f"of type {type(image).__name__}"


def web_address(image: object) -> str | None:
    """The address, if an image is given by one that would have to be downloaded."""
    return image if isinstance(image, str) and re.match(r"https?://", image, re.IGNORECASE) else None


def resolved(image: Any, root: Path | None) -> Any:
    """An image of a sample file: a relative path is taken from a folder."""
    if isinstance(image, Mapping) and image.get("bytes") is None and isinstance(image.get("path"), (str, Path)):
        image = image["path"]
    if isinstance(image, Path) or (isinstance(image, str) and not _scheme(image)):
        path = user_path(image)
        return path if root is None or path.is_absolute() else root / path
    return image


def _source(image: Any) -> Any:
    """The image as a path, bytes, a PIL image or an array."""
    from PIL import Image

    if isinstance(image, Mapping) and not image.keys() - {"bytes", "path"}:
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, Stored):
        with _reading(image):
            return image.read(MAX_IMAGE)
    if isinstance(image, (str, os.PathLike)):
        text = os.fspath(image)
        scheme = _scheme(text)
        return _uri(text, scheme) if scheme else user_path(text)
    if isinstance(image, (bytes, bytearray, memoryview)):
        if len(image) > MAX_IMAGE:
            raise MissingImageError(f"an image has {len(image)} bytes", expected=f"at most {MAX_IMAGE}")
        return bytes(image)
    if not isinstance(image, Image.Image):
        _check_array(image)
    return image


def _scheme(text: str) -> str | None:
    # a Path of a URI has one slash where the URI has two
    found = re.match(r"(file|data|https?(?=:/)):|([a-z][a-z0-9+.-]+)://", text[:40], re.IGNORECASE)
    return found and (found[1] or found[2]).lower()


def _uri(text: str, scheme: str) -> Path | bytes:
    if scheme == "file":
        if (found := re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", text, re.IGNORECASE | re.DOTALL)) is None:
            raise MissingImageError(
                f"the image {image_name(text)} names no file of this machine",
                expected="file:///folder/picture.png, with the whole path",
            )
        return Path(url2pathname(found[1]))
    if scheme == "data":
        return _decoded(text)
    if scheme in ("http", "https"):
        raise MissingImageError(
            f"the image {image_name(text)} would have to be downloaded",
            expected="an image on this machine: nothing is downloaded unasked",
            fix="steerkit.models.download_image(url) gives its bytes, which a sample takes; "
            "read_samples(file, download=True) does it for a file, --download on the command line",
        )
    raise MissingImageError(
        f"the image {image_name(text)} has an address of the kind {scheme}://",
        expected=_EXPECTED,
        fix="copy it to this machine, or read its bytes with fsspec",
    )


def _decoded(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not re.search(r";\s*base64$", head[:200].rstrip(), re.IGNORECASE):
        raise MissingImageError(
            f"the image {image_name(uri)} is not in base64", expected="data:image/png;base64,... or another image type"
        )
    if len(body) > MAX_IMAGE * 4 // 3:
        raise MissingImageError(f"the image {image_name(uri)} is too large", expected=f"at most {MAX_IMAGE} bytes")
    try:
        return base64.b64decode("".join(unquote(body).split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise MissingImageError(
            f"the image {image_name(uri)} can't be decoded ({error})", expected="base64 in its usual alphabet"
        ) from error


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with open_regular(source, MAX_IMAGE) as file:
        yield file


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    if not all(image.size):
        raise ValueError(f"it is {image.width} pixels wide and {image.height} high")
    return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _reading(image: Any) -> Iterator[None]:
    """Say which image it was that can't be read."""
    try:
        yield
    except SteerKitError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise errors of a dozen kinds
        from PIL import UnidentifiedImageError

        why = "no kind of image that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise MissingImageError(
            f"the image {image_name(image)} can't be read ({str(why)[:200] or type(error).__name__})",
            expected="an image file that Pillow opens",
            fix=_fix(image, error),
        ) from error


def _fix(image: Any, error: Exception) -> str | None:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS"
    if isinstance(error, UnidentifiedImageError):
        return "convert it to PNG or JPEG, or install a plugin of Pillow for its format, such as pillow-heif"
    if not isinstance(image, (str, Path)) or not isinstance(error, OSError) or str(image)[:5].lower() == "data:":
        return None
    if re.fullmatch(r"[A-Za-z0-9+/=\s]{200,}", str(image)[:1000]):
        return "if this is base64, say so: 'data:image/png;base64,' in front of it"
    return "check the path; relative paths are taken from the folder of the sample file"


def _is_array(image: Any) -> bool:
    import numpy as np

    return isinstance(image, np.ndarray)


def _check_array(image: Any) -> None:
    """Refuse an array whose axes or scale would have to be guessed, and say how to write it."""
    import numpy as np

    if type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "shape"):
        raise MissingImageError(
            f"an image is a torch tensor of shape {tuple(image.shape)} and type {image.dtype}",
            expected=_EXPECTED,
            fix="Image.fromarray(tensor.permute(1, 2, 0).numpy()) for uint8 [3, height, width]; "
            "(tensor * 255).round().byte() first for floats of 0 to 1",
        )
    if not isinstance(image, np.ndarray):
        raise MissingImageError(
            f"an image is of type {type(image).__name__}",
            expected=_EXPECTED,
            fix="file.read() gives the bytes of an open file" if hasattr(image, "read") else None,
        )
    if image.dtype == "uint8" and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    fix = None
    if image.ndim == 4:
        fix = "list(array) gives the images of a batch one by one"
    elif np.issubdtype(image.dtype, np.floating):
        fix = "(array * 255).round().astype('uint8') where 1.0 is white, array.round().astype('uint8') where 255 is"
    elif image.dtype != "uint8" and image.dtype.kind in "biu":
        fix = "array.astype('uint8') where 255 is white, array.astype('uint8') * 255 where 1 is"
    elif image.dtype == "uint8" and image.ndim == 3 and image.shape[0] == 3:
        fix = "array.transpose(1, 2, 0) puts the channels last"
    elif image.dtype == "uint8" and image.size and (image.ndim == 2 or image.shape[2:] == (4,)):
        fix = "Image.fromarray(array) makes an image of grey values or of four channels"
    raise MissingImageError(
        f"an image array has shape {image.shape} and type {image.dtype}",
        expected="[height, width, 3] and uint8",
        fix=fix,
    )
