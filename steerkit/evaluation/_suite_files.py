"""Suites from files: those of the user in a format of steerkit, and those of published data sets."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from steerkit._internal.faults import about, refused_as
from steerkit._internal.files import user_path
from steerkit._internal.validation import PATH, expect
from steerkit._text import quoted
from steerkit.errors import OptionError, SampleError, SteerKitError
from steerkit.evaluation._cases import Case
from steerkit.evaluation._dataset_files import file_digest, read_dataset
from steerkit.evaluation._datasets import DATASETS
from steerkit.evaluation._judges import KeyedJudge, PhraseJudge
from steerkit.evaluation._questions import Parser
from steerkit.evaluation._suites import KINDS, Suite
from steerkit.evaluation._text import REFUSALS
from steerkit.interventions import Frozen
from steerkit.models import Sample, is_separated, read_samples, sound_rows, unit_of

LISTED = 8
"""So many repeated rows are named."""


_Line = Annotated[str, Field(min_length=1, max_length=200)]
_Phrases = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class _PhraseJudge(Frozen):
    kind: Literal["phrases"]
    name: _Line = "phrases"
    refusals: _Phrases = REFUSALS


class _KeyedJudge(Frozen):
    kind: Literal["keyed"]
    name: _Line = "declared words"
    refusals: _Phrases


class _Settings(Frozen):
    """The optional first line of a suite file."""

    name: _Line | None = None
    judge: Annotated[_PhraseJudge | _KeyedJudge, Field(discriminator="kind")] = _PhraseJudge(kind="phrases")
    parser: Parser | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 64


def load_suite(
    path: str | Path,
    *,
    root: str | Path | None = None,
    part: str | None = None,
    images: str | Path | None = None,
    revision: str | None = None,
    whole: bool = True,
    columns: Mapping[str, str | None] | None = None,
    refusals: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
) -> Suite:
    """Read a suite from a file of rows, or from the files of a published data set (those of `DATASETS`).

    The file is of any kind that `steerkit.read_samples` takes, and each row a sample as it takes it, with a `label` of
    `harmful`, `harmless` or `utility` and perhaps an `answer`, an `id` and a `cluster`; see `Case`. The first row may
    be `{"suite": {...}}` with any of `name`, `judge`, `parser` (how answers to questions are read; see `states`) and
    `max_new_tokens`. A judge is an object of `kind`, `name` and `refusals`: of the kind `phrases` it is a
    `PhraseJudge`, of the kind `keyed` a `KeyedJudge`, which reads the `answer` of requests. In CSV and TSV files
    columns are fields, and empty cells are nothing. Rows that stand in the file more than once are named in a warning.

    Of a published data set, columns, counts, ids and images are checked; see `DATASETS` for its files. A difference
    from a count that could not be confirmed is a warning.

    Args:
        path: The file; image paths are relative to its folder. With `root`, the name of a data set, such as `xstest`.
        root: Folder of the data set, as it is published, or the folder or file of its rows. Nothing is downloaded;
            XSTest's prompts come with steerkit, and need none.
        part: Which part of the data set, where it has several.
        images: Folder of its images. Default: where they are published, below `root`. Of a data set without images,
            pictures to stand beside its prompts, in turn; the prompts of a cluster have the same.
        revision: Which revision the files are of, such as a commit; it is recorded beside their digest.
        whole: Whether all rows and images must be there. Otherwise rows without their image are left out, with a
            warning.
        columns: New names for fields of a file of one's own, as `{"question": "text", "source": None}`; None drops it.
        refusals: Phrases by which the judge knows a refusal, in place of those of the file. Default: `REFUSALS`.
        max_new_tokens: Length of the answers, in place of that of the file. Default: 64.

    Raises:
        SampleError: A file can't be read, or a row is malformed, or labelled harmful in one place and harmless in
            another; the message names the line. Or it is another data set, or a part of one.
        MissingImageError: Images of the data set are missing; the message says how many of how many.
        UnknownNameError: There is no such data set.
        EmptyAnchorSetError: A kind has no prompts, or a question has no answer.
        OptionError: An argument is impossible.

    Example:
        >>> suite = sk.evaluation.load_suite("prompts.jsonl")
        >>> sk.compare(vlm, {"cmrm": sk.CMRM()}, suite, anchors)
        >>> suite = sk.evaluation.load_suite("xstest", images="pictures")
        >>> suite = sk.evaluation.load_suite("pope", root="POPE", images="coco/val2014", part="random")
    """
    expect(PATH, "a file of rows, or the name of a data set", path=path)
    expect(PATH | None, "a folder", root=root, images=images)
    expect(str | None, "a text", part=part, revision=revision)
    expect(Mapping | None, "{'source field': 'text'}", columns=columns)
    expect(bool, "True or False", whole=whole)
    name = str(path)
    dataset = DATASETS.get(name)
    if root is None and dataset is not None and not columns and not user_path(path).exists():
        if dataset.shipped is None:
            raise OptionError(
                f"root is missing: {name} is a data set, and does not come with steerkit",
                expected="the folder where you have it",
                fix=f"get it from {dataset.address}, and pass load_suite({name!r}, root=FOLDER)",
            )
        root, revision = dataset.shipped, revision or dataset.revision
    settings, terms = _Settings(), {}
    cases: Mapping[Any, Sequence[Case]]
    if root is not None:
        if columns:
            raise OptionError(
                "columns and root are both given", expected="columns= for a file of your own, without root="
            )
        beside = None if images is None else user_path(images)
        found = read_dataset(name, user_path(root), part=part, images=beside, whole=whole)
        name, cases, digest = found.name, found.cases, found.digest
        terms = {"licence": found.dataset.licence, "citation": found.dataset.citation}
    else:
        if part is not None or images is not None or not whole:
            raise OptionError("part, images or whole is given without root", expected="them for data sets alone")
        file = user_path(path)
        settings, cases = _own(file, columns or {})
        name, digest = settings.name or file.stem, file_digest([file])
    kind = KeyedJudge if settings.judge.kind == "keyed" else PhraseJudge
    return Suite(
        name,
        *(tuple(cases[kind]) for kind in KINDS),
        judge=kind(tuple(refusals or settings.judge.refusals), settings.judge.name),
        max_new_tokens=settings.max_new_tokens if max_new_tokens is None else max_new_tokens,
        revision=f"{revision or ''} sha256:{digest}".strip(),
        **terms,
    )


def _own(path: Path, columns: Mapping[str, str | None]) -> tuple[_Settings, dict[str, list[Case]]]:
    """The settings and the cases of a file in a format of steerkit."""
    settings = _Settings()
    groups: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    begun, unit = False, unit_of(path)
    seen: _Seen = {}
    repeated: list[str] = []
    for number, where, row in sound_rows(path):
        with about(where, SampleError):
            if not begun and set(row) == {"suite"}:
                settings = _settings(row["suite"])
            else:
                case = _case(_renamed(row, columns, is_separated(path)), path.parent, settings)
                if (first := _first(seen, number, case, unit)) != number:
                    repeated.append(f"{number} (as {first})")
                groups[case.sample.label or ""].append(case)
        begun = True
    if repeated:
        more = len(repeated) - LISTED
        warnings.warn(
            f"{path} holds {len(repeated)} of {sum(map(len, groups.values()))} rows more than once: "
            f"{unit}s {', '.join(repeated[:LISTED])}{f' and {more} more' if more > 0 else ''}. Every one counts in the "
            "shares, and the intervals count rows of one image, or of one text without images, once: leave them out "
            "unless they are to weigh more",
            stacklevel=3,
        )
    return settings, groups


_Seen = dict[str, dict[tuple[str | None, str | None], int]]
"""The rows of a file so far, by what they ask, label and answer: ids, which may differ, do not count."""


def _first(seen: _Seen, number: int, case: Case, unit: str) -> int:
    """The first row that is like this one, which may be this one; it is noted.

    Raises:
        SampleError: It is a request that is harmful in one place and harmless in another.
    """
    sample = case.sample
    asked = (sample.text, sample.images, sample.videos, sample.caption, dict(sample.chat_template_kwargs))
    alike = seen.setdefault(hashlib.sha256(repr(asked).encode()).hexdigest(), {})
    other = {"harmful": "harmless", "harmless": "harmful"}.get(sample.label or "")
    if contrary := [line for (label, _), line in alike.items() if label == other]:
        raise SampleError(
            f"the request of {unit} {contrary[0]} is {sample.label} here and {other} there",
            expected="one label for a request with the same images",
            fix="leave one of the two out",
        )
    return alike.setdefault((sample.label, case.answer), number)


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str | None], is_table: bool) -> dict[str, Any]:
    """The fields of a row by their new names; an empty cell of a table is no field."""
    kept = [(columns.get(name, name), value) for name, value in row.items() if not (is_table and value == "")]
    names = [name for name, _ in kept if name is not None]
    if len(set(names)) < len(names):
        raise SampleError("two fields have one name", expected="one of each", fix="drop the other: columns={...: None}")
    return {name: value for name, value in kept if name is not None}


def _settings(given: Any) -> _Settings:
    expected = 'an object of name, judge ({"kind": "phrases", "refusals": [...]}), parser and max_new_tokens'
    with refused_as(SampleError, "the settings of the suite", expected=expected, wrong="are malformed"):
        return _Settings.model_validate_json(json.dumps(given), strict=True)


def _case(row: dict[str, Any], root: Path, settings: _Settings) -> Case:
    answer, cluster, called = (row.pop(name, None) for name in ("answer", "cluster", "id"))
    if not isinstance(called, (str, int, type(None))):
        raise SampleError(f"the id is {quoted(called)}", expected="a text, a number or nothing")
    case = Case(
        _sample(row, root), answer, None, "" if called is None else str(called), "" if cluster is None else cluster
    )
    if case.sample.label not in KINDS:
        raise SampleError(f"the label is {quoted(case.sample.label)}", expected=" or ".join(map(repr, KINDS)))
    if case.sample.label == "utility":
        return replace(case, parser=settings.parser)
    if answer is not None and settings.judge.kind != "keyed":
        raise SampleError(
            f"a {case.sample.label} request has an answer, and the judge {settings.judge.name!r} does not read it",
            expected="answers of questions alone",
            fix='leave it out, or begin with {"suite": {"judge": {"kind": "keyed", "refusals": [...]}}}',
        )
    return case


def _sample(row: dict[str, Any], root: Path) -> Sample:
    try:
        (sample,) = read_samples([row], image_root=root)
    except SampleError as error:  # whose message names the row of a list of one
        cause = error.__cause__ if isinstance(error.__cause__, SteerKitError) else error
        raise SampleError(cause.problem, expected=cause.expected, fix=cause.fix) from error
    return sample
