"""Videos of samples: handed to the model's processor, which reads them; named, checked and told apart here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from steerkit._internal.files import open_regular, user_path
from steerkit._text import quoted
from steerkit.errors import MissingImageError
from steerkit.models._images import open_image, web_address

MAX_VIDEO = 2**36
"""The most bytes of a video file."""


def video_name(video: Any) -> str:
    """What messages call a video: its path, or what it is."""
    if isinstance(video, (str, PathLike)):
        return fspath(video)
    return f"{type(video).__name__} of {len(video)} frames" if hasattr(video, "__len__") else type(video).__name__


def video_in(video: Any, folder: Path | None) -> Any:
    """A video of a sample file: relative paths are taken from a folder."""
    if isinstance(video, (list, tuple)):
        return [video_in(frame, folder) for frame in video]
    if not isinstance(video, (str, PathLike)) or folder is None or web_address(video):
        return video
    return folder / user_path(video)  # an absolute path stays as it is


def opened_video(video: Any) -> Any:
    """A video as processors take it: the path of a file, or frames, `[frames, height, width, 3]` uint8.

    Raises:
        MissingImageError: A frame can't be read, or is of another size than the first.
    """
    if not isinstance(video, (list, tuple)):
        is_path = isinstance(video, (str, PathLike)) and not web_address(video)
        return fspath(user_path(video)) if is_path else video
    frames = [np.asarray(open_image(frame)) for frame in video]
    if len({frame.shape for frame in frames}) != 1:
        raise MissingImageError(f"the frames of a {video_name(video)} differ in size", expected="one size")
    return np.stack(frames)


def check_video(video: Any) -> None:
    """Refuse what is no video, as far as that can be told without reading frames.

    Raises:
        MissingImageError: It is an address, a file that is not there, or frames of another shape.
    """
    if isinstance(video, (list, tuple)) and video and all(isinstance(frame, (str, PathLike)) for frame in video):
        for frame in video:
            check_video(frame)
        return
    if isinstance(video, (str, PathLike)):
        if not user_path(video).is_file():
            raise MissingImageError(
                f"there is no video {quoted(fspath(video))}",
                expected="a file of this machine: what has an address is not downloaded",
            )
        return
    shape = getattr(video, "shape", ())
    if (
        len(shape) != 4
        or 3 not in (shape[1], shape[-1])
        or str(getattr(video, "dtype", None)).rpartition(".")[2] != "uint8"
    ):
        raise MissingImageError(
            f"a video is {quoted(video, 60)} of type {type(video).__name__}",
            expected="the path of a file, a list of the paths of frames, or a [frames, height, width, 3] uint8 array",
        )


def video_digest(video: Any) -> bytes:
    """sha256 of the bytes of its files, or of its frames."""
    state = hashlib.sha256(b"video")
    for part in _contents(video):
        state.update(part)
    return state.digest()


def _contents(video: Any) -> Iterator[bytes]:
    if isinstance(video, (str, PathLike)):
        with open_regular(user_path(video), MAX_VIDEO) as file:
            left = os.fstat(file.fileno()).st_size
            while left and (part := file.read(min(left, 2**20))):
                left -= len(part)
                yield part
    elif isinstance(video, (list, tuple)):
        for frame in video:
            yield from _contents(frame)
    else:
        frames = np.asarray(video)
        yield str(frames.shape).encode()
        yield frames.tobytes()
