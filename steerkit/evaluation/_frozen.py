"""What is settled before it could be fitted to the figures: the plan of a study, and what dev has chosen."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steerkit._internal.faults import refused_as
from steerkit._internal.files import read_bounded, write_atomically
from steerkit._internal.json import json_object
from steerkit._text import quoted
from steerkit.errors import RecordsError

LARGEST = 2**26
"""Bytes of such a file."""


def digest_of(document: Any) -> str:
    """sha256 of a document of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


def settle(path: Path, document: dict[str, Any], *, fresh: bool = True) -> str:
    """Write a document with its digest, on the disk when this returns; or find the same one there.

    Args:
        path: The file.
        document: What is settled, as plain values.
        fresh: Whether it may be settled now; otherwise it must be there.

    Returns:
        Its digest.

    Raises:
        RecordsError: Something else was settled there, or the file was changed; or it is missing and comes too late.
        FileWriteError: It can't be written.
    """
    digest, what = digest_of(document), quoted(str(path), 300)
    if path.exists():
        kept = read_settled(path)
        settled = kept["settled"]
        if kept["digest"] != digest:
            raise RecordsError(
                f"{what} has settled otherwise: {_difference(settled, document)}",
                expected="a study that is continued as it was begun",
                fix="name another folder for another study",
            )
        return digest
    if not fresh:
        raise RecordsError(
            f"test prompts were answered in this folder, and {what} is missing",
            expected="a choice that was written before test was read",
            fix="put it back, or begin a new study in another folder",
        )
    kept = {"digest": digest, "written": datetime.now(UTC).isoformat(timespec="seconds"), "settled": document}
    write_atomically(path, json.dumps(kept, indent=1, allow_nan=False).encode())
    return digest


def read_settled(path: Path) -> dict[str, Any]:
    """What was settled, its digest and when that was written.

    Raises:
        RecordsError: The file can't be read, or was changed.
    """
    what = quoted(str(path), 300)
    with refused_as(RecordsError, what, expected="the file of this study"):
        kept = json_object(read_bounded(path, LARGEST), what, error=RecordsError)
    if kept.get("digest") != digest_of(kept.get("settled")) or not isinstance(kept.get("written"), str):
        raise RecordsError(
            f"{what} was changed: its digest is not that of what it says",
            expected="the file as this study wrote it",
            fix="put it back, or begin a new study in another folder",
        )
    return kept


def _difference(one: Any, other: Any, where: str = "") -> str:
    """The first place in which two documents differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key not in one or key not in other or digest_of(one[key]) != digest_of(other[key]):
                return _difference(one.get(key), other.get(key), f"{where}.{key}".strip("."))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        numbered = [{f"{at}": item for at, item in enumerate(each)} for each in (one, other)]
        return _difference(numbered[0], numbered[1], where)
    return f"{where} was {quoted(one)}, and is {quoted(other)}"
