"""The state of an extraction on disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from steerkit._internal.files import read_bounded, replacing
from steerkit._internal.json import json_object
from steerkit.errors import CheckpointError
from steerkit.methods._moments import Groups, Moments

MAX_CHECKPOINT = 2**36
MAX_VALUES = 2**26
"""Of the record of a checkpoint, which holds a digest for each anchor."""


@dataclass(slots=True)
class Progressed:
    """What has been measured so far.

    Attributes:
        identity: Digest of method, model and anchor set: what a checkpoint belongs to.
        digests: Digests of the samples done, in order.
        groups: Their statistics.
    """

    identity: str
    digests: list[str] = field(default_factory=list)
    groups: Groups = field(default_factory=dict)


def save_checkpoint(path: Path, state: Progressed) -> None:
    """Write the state, complete or not at all.

    Raises:
        CheckpointError: It can't be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for name, layers in state.groups.items():
        for layer, moments in layers.items():
            key = f"{name}/{layer}"
            counts[key] = moments.count
            for part in ("total", "rows", "outer"):
                value = getattr(moments, part)
                if value is not None:
                    tensors[f"{key}/{part}"] = value.contiguous()
    head = {"identity": state.identity, "digests": state.digests, "counts": counts}
    with _writing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"extraction": json.dumps(head)})


def check_place(path: Path) -> None:
    """Find out before the work that a checkpoint can't be written at all; nothing is left there.

    Raises:
        CheckpointError: It can't.
    """
    with suppress(_NotNow), _writing(path):
        raise _NotNow


class _NotNow(Exception):
    """Keeps a file that could be written from taking its place."""


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        with replacing(path) as temporary:
            yield temporary
    except (safetensors.SafetensorError, OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise CheckpointError(
            f"the checkpoint {str(path)!r:.300} can't be written ({error})",
            expected="a file in a folder that can be written, on a disk with space left",
            fix="free some space, or choose another place for the checkpoint",
        ) from error


def _record(data: bytes) -> dict[str, Any]:
    """What a checkpoint says of itself, from the header of the file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json_object(data[8:end], "its header", most=MAX_VALUES)
    return json_object(header["__metadata__"]["extraction"], "its record", most=MAX_VALUES)


def load_checkpoint(path: Path, identity: str) -> Progressed:
    """Read the state back, or an empty one where there is no file.

    Raises:
        CheckpointError: The file belongs to another extraction, is damaged or can't be read.
    """
    try:
        data = read_bounded(path, MAX_CHECKPOINT)
    except (FileNotFoundError, NotADirectoryError):
        return Progressed(identity)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {str(path)!r:.300} can't be read ({error})",
            expected="a file, or the name of a new one",
            fix="choose another place for the checkpoint",
        ) from error
    try:
        head = _record(data)
        tensors = safetensors.torch.load(data)
        state = Progressed(head["identity"], list(head["digests"]))
        for key, count in head["counts"].items():
            name, _, layer = key.rpartition("/")
            parts = (tensors[f"{key}/total"], tensors.get(f"{key}/rows"), tensors.get(f"{key}/outer"))
            state.groups.setdefault(name, {})[int(layer)] = Moments(int(count), *parts)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is damaged ({type(error).__name__}: {error})",
            expected="a checkpoint written by fit",
            fix="delete it; the extraction then starts from the beginning",
        ) from error
    if state.identity != identity:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} belongs to another extraction",
            expected="the same method, options, model and number of anchors",
            fix="delete it, or name another checkpoint",
        )
    return state
