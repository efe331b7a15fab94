"""The cases of a published data set, from the files that the user has; nothing is downloaded."""

from __future__ import annotations

import hashlib
import warnings
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from steerkit._internal.faults import about, refused_as
from steerkit._internal.files import open_regular, read_bounded
from steerkit._internal.json import json_object
from steerkit._text import near, quoted
from steerkit.errors import MissingImageError, OptionError, SampleError, UnknownNameError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._datasets import DATASETS, Dataset, Part, Row
from steerkit.evaluation._records import Kind
from steerkit.models import Sample, Stored, check_image, sound_rows

LARGEST = 2**32
"""Bytes of a file, images in it included."""

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")

SHOWN = 3
"""How many missing images a message names."""


@dataclass(frozen=True)
class Read:
    """What was read: the cases by kind, what they are of, and the sha256 of the files."""

    name: str
    dataset: Dataset
    cases: Mapping[Kind, tuple[Case, ...]]
    digest: str


def read_dataset(name: str, root: Path, *, part: str | None, images: Path | None, whole: bool) -> Read:
    """Read a data set; see `load_suite`."""
    dataset = DATASETS.get(name)
    if dataset is None:
        raise UnknownNameError(
            f"no data set {quoted(name)}.{near(name, DATASETS)}",
            expected=", ".join(DATASETS),
            fix="for a file of your own, leave out root=: load_suite('prompts.jsonl')",
        )
    if part is None and len(dataset.parts) == 1:
        (part,) = dataset.parts
    if part is None or part not in dataset.parts:
        named = " or ".join(map(repr, dataset.parts)) if len(dataset.parts) > 1 else "none: it has one part"
        raise OptionError(f"part is {quoted(part)}, of {dataset.title}", expected=named)
    chosen = dataset.parts[part]
    paths = _files(dataset, chosen.files, root, chosen.files_expected if whole else 1)
    found = [pair for path in paths for pair in _rows(path, chosen.keyed)]
    if chosen.answers is not None:
        pattern, key, column = chosen.answers
        theirs = _files(dataset, (pattern,), root if root.is_dir() else root.parent, 1)
        found, paths = _joined(found, theirs[0], key, column), [*paths, *theirs]
    base = images if images is not None else (root if root.is_dir() else root.parent) / chosen.folder
    beside = _pictures(images) if images is not None and not chosen.image else []
    cases = _cases(dataset, chosen, found, base, whole, beside)
    return Read(f"{name} {part}".strip(), dataset, cases, file_digest(paths))


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name, to stand beside prompts that have none."""
    found = sorted(each for each in folder.glob("*") if each.suffix.lower() in PICTURES)
    if not found:
        raise MissingImageError(
            f"{quoted(str(folder), 300)} holds no picture", expected=f"a folder of files like {', '.join(PICTURES)}"
        )
    return found


def _files(dataset: Dataset, patterns: tuple[str, ...], root: Path, least: int) -> list[Path]:
    """The files of the first pattern that matches below the root, or in it; a root that is a file is that file."""
    if root.is_file() and least == 1:
        return [root]
    for pattern in patterns:
        for each in (pattern, pattern.rsplit("/", 1)[-1]):
            if paths := sorted(path for path in root.glob(each) if path.is_file()):
                if len(paths) < least:
                    raise SampleError(
                        f"{dataset.title}: {len(paths)} of {least} files {pattern} are in {quoted(str(root), 300)}",
                        expected="all of them: " + ", ".join(path.name for path in paths) + " are there",
                        fix=f"get the others from {dataset.address}; whole=False reads what is there",
                    )
                return paths
    names = [
        name
        for name, other in DATASETS.items()
        if other is not dataset
        and any(
            path.is_file()
            for part in other.parts.values()
            for pattern in part.files
            if "**" not in pattern
            for path in (*root.glob(pattern), *root.glob(pattern.rsplit("/", 1)[-1]))
        )
    ]
    what = f"holds files of {' and '.join(names)}, and no" if names else "holds no"
    raise SampleError(
        f"{quoted(str(root), 300)} {what if root.is_dir() else 'is no folder, and no'} "
        f"{' or '.join(patterns)} of {dataset.title}",
        expected=f"the folder of {dataset.title}",
        fix=f"get it from {dataset.address} (licence: {dataset.licence}) and pass its folder as root=",
    )


def _rows(path: Path, keyed: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, and where it stands."""
    if not keyed:
        yield from ((where, row) for _, where, row in sound_rows(path))
        return
    with refused_as(SampleError, quoted(str(path), 300), expected="a JSON file"):
        data = read_bounded(path, LARGEST).removeprefix(BOM_UTF8)
        table = json_object(data, str(path), error=SampleError, most=2**20)
    for entry, row in table.items():
        where = f"{path}, entry {quoted(entry)}"
        if not isinstance(row, dict):
            raise SampleError(f"{where}: it is {quoted(row)}", expected="an object")
        yield where, {**row, "entry": entry, "file": path.stem}


def _joined(
    found: list[tuple[str, dict[str, Any]]], path: Path, key: str, column: str
) -> list[tuple[str, dict[str, Any]]]:
    answers: dict[str, Any] = {}
    for where, row in _rows(path, keyed=False):
        _check_columns(where, row, (key, column))
        if str(row[key]) in answers:
            raise SampleError(f"{where}: a second answer to {key} {quoted(row[key])}", expected="one to each")
        answers[str(row[key])] = row[column]
    for where, row in found:
        _check_columns(where, row, (key,))
        if str(row[key]) not in answers:
            raise SampleError(f"{where}: {path} has no answer to it", expected=f"one with the {key} {quoted(row[key])}")
    return [(where, {**row, "reference": answers[str(row[key])]}) for where, row in found]


def _check_columns(where: str, row: Row, columns: tuple[str, ...]) -> None:
    if absent := [name for name in columns if name not in row]:
        raise SampleError(
            f"{where}: there is no {', '.join(map(repr, absent))} in the columns {', '.join(map(repr, row))}",
            expected="the published columns, " + ", ".join(map(repr, columns)),
            fix="pass the file as it was published; one of your own goes without root=, with columns=",
        )


def _cases(
    dataset: Dataset,
    part: Part,
    found: list[tuple[str, dict[str, Any]]],
    base: Path,
    whole: bool,
    beside: Sequence[Path],
) -> dict[Kind, tuple[Case, ...]]:
    groups: dict[Kind, list[Case]] = {"harmful": [], "harmless": [], "utility": []}
    places: dict[str, str] = {}
    counts: Counter[Kind] = Counter()
    wanted: dict[str, bool] = {}
    turns: dict[str, int] = {}
    for number, (where, raw) in enumerate(found, 1):
        _check_columns(where, raw, part.columns)
        with about(where, SampleError):
            row = {**raw, **part.derive(raw)}
            images = _images(part, row, base)
            if images is None:
                continue
            if beside:  # a request and its twin beside one picture differ by their text alone
                turn = turns.setdefault(_filled(part.cluster, row) if part.cluster else where, len(turns))
                images = (beside[turn % len(beside)],)
            kind, case = _case(part, row, number, images)
            if (before := places.setdefault(case.id, where)) != where:
                raise SampleError(f"its id {case.id!r} is that of {before}", expected="every id once")
            counts[kind] += 1
            if all(_is_there(image, wanted) for image in images):
                groups[kind].append(case)
    _check_counts(dataset, part, counts, whole)
    missing = [path for path, there in wanted.items() if not there]
    if missing:
        names = ", ".join(missing[:SHOWN]) + " and others" * (len(missing) > SHOWN)
        left = sum(counts.values()) - sum(map(len, groups.values()))
        said = f"{dataset.title}: {len(missing)} of {len(wanted)} images are missing: {names}"
        if whole or len(missing) == len(wanted):
            raise MissingImageError(
                said,
                expected=f"the images of {dataset.images or dataset.address}, in {base}",
                fix="pass their folder as images=; whole=False leaves the rows without them out",
            )
        warnings.warn(f"{said}; {left} of {sum(counts.values())} rows are left out", stacklevel=4)
    return {kind: tuple(cases) for kind, cases in groups.items()}


def _is_there(image: Any, looked_at: dict[str, bool]) -> bool:
    """Whether there is such an image, which is then known to be one; each file is looked at once."""
    if not isinstance(image, Path):
        check_image(image)
        return True
    if (name := str(image)) not in looked_at:
        looked_at[name] = image.is_file()
        if looked_at[name]:
            check_image(image)
    return looked_at[name]


def _case(part: Part, row: Row, number: int, images: tuple[Any, ...]) -> tuple[Kind, Case]:
    if isinstance(part.kind, tuple):
        column, meanings = part.kind
        if (word := str(row[column])) not in meanings:
            raise SampleError(f"{column!r} is {quoted(word)}", expected=" or ".join(map(repr, meanings)))
        kind = meanings[word]
    else:
        kind = part.kind
    sample = Sample(_filled(part.prompt, row), images, row[part.caption] if part.caption else None, kind)
    answer = None if part.answer is None else _filled(part.answer, row)
    called = _filled(part.id, row) if part.id else str(number)
    return kind, Case(sample, answer, part.parser, called, _filled(part.cluster, row) if part.cluster else "")


def _filled(template: str, row: Row) -> str:
    for _, name, _, _ in Formatter().parse(template):
        if name is not None and type(row[name]) not in (str, int):
            raise SampleError(f"{name!r} is {quoted(row[name])}", expected="a text")
    if not (text := template.format_map(row)).strip():
        raise SampleError(f"nothing stands in {template}", expected="a text")
    return text


def _images(part: Part, row: Row, base: Path) -> tuple[Any, ...] | None:
    """The image of a row, whether it is there or not; None, where the row is not of the part for want of one."""
    if not part.image:
        return ()
    given = row.get("image", "")
    if given is None or (given == "" and "image" in row):
        if part.imageless == "refused":
            raise SampleError("the row has no image", expected="one")
        return () if part.imageless == "kept" else None
    if isinstance(given, (Mapping, Stored)):  # of a Parquet file: an image file, or where it stands there
        return (given,)
    names = [Path(_filled(template, row)) for template in part.image]
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise SampleError(f"the image is {quoted(str(names[0]))}", expected="a name within the folder of images")
    paths = [base / name for name in names]
    return (next((path for path in paths if path.is_file()), paths[0]),)


def _check_counts(dataset: Dataset, part: Part, counts: Mapping[Kind, int], whole: bool) -> None:
    said = [
        f"{counts.get(kind, 0)} {kind} rows, not {n}" for kind, n in part.counts.items() if counts.get(kind, 0) != n
    ]
    if not whole or not said:
        return
    problem = f"{dataset.title} has {' and '.join(said)}"
    if not part.confirmed:
        warnings.warn(f"{problem}; the number is unconfirmed, so this may be right", stacklevel=5)
        return
    raise SampleError(
        problem,
        expected="the rows that were published",
        fix=f"get them from {dataset.address}; whole=False reads a part of them",
    )


def file_digest(paths: list[Path]) -> str:
    """sha256 of a file; of several, of their names and digests."""
    found: list[tuple[str, str]] = []
    for path in paths:
        with open_regular(path, LARGEST) as file:
            found.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return found[0][1] if len(found) == 1 else hashlib.sha256(repr(found).encode()).hexdigest()
