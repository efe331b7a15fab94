"""What the checks of a type amount to: a level, what it can't do, and what it needs; the rows of docs/models.md."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers

from breadth import checks, pairs, text_models
from steerkit._internal.files import write_atomically
from steerkit.models import Family, family_for

_SHOWN = (
    "loading",
    "blocks",
    "inputs",
    "capture",
    "steering",
    "padding",
    "image tokens",
    "several images",
    "generation",
    "nnsight",
)
_TEXT = ("counterpart", "text", "mixed")
_PLACES = ("mlp_out", "attn_out", "head_out", "vision")
_MEDIA = ("video", "text of a video", "sample with a video", "audio")
_MAY_REFUSE = ("several images", "image tokens", *_PLACES, *_TEXT, *_MEDIA)
"""What a type may refuse, and say so, and still be steered with images."""

PACKAGES = ("torchvision", "timm", "scipy", "num2words")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
RECORDED = DOCUMENT.parents[1] / "steerkit" / "models" / "tested.json"


@dataclass(frozen=True)
class Row:
    """One type.

    Attributes:
        level: `images and text`, `images`, `text`, `fails`, `refused`, `not built`, or `untested` for one that has no
            row.
        cannot: What is refused with an error, though the type has its level.
        fails: What is wrong.
        declared: The fields that its record declares.
        needs: Packages without which its processor or its model can't be made.
        reason: Why it is refused or not built.
        also: What is steered beside images and text: `video`, `audio`.
    """

    level: str
    cannot: list[str] = field(default_factory=list)
    fails: list[str] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    reason: str = ""
    also: list[str] = field(default_factory=list)


def row_of(found: Mapping[str, str], declared: Sequence[str] = (), needs: Sequence[str] = ()) -> Row:
    """The row of a type, from the outcomes of its checks."""
    built = found["built"]
    if built != "ok":
        kind, _, reason = built.partition(": ")
        return Row(kind, declared=list(declared), needs=list(needs), reason=reason)
    bad = [
        key
        for key, outcome in found.items()
        if outcome.startswith("fails") or (outcome not in ("ok", "none", "untried") and key not in _MAY_REFUSE)
    ]
    cannot = [key for key, outcome in found.items() if outcome.startswith("refused") and key in _MAY_REFUSE]
    shown = not any(key in bad for key in _SHOWN)
    text = all(found[key] == "ok" for key in _TEXT)
    level = "images and text" if shown and text else "images" if shown else "fails"
    also = [key for key in ("video", "audio") if found.get(key) == "ok"]
    return Row(level, cannot, bad, list(declared), list(needs), also=also)


def declared_of(name: str) -> list[str]:
    """The fields that the record of a type declares."""
    family = family_for(name)
    plain = Family(types=(name,), auto_class=family.auto_class)
    return [
        key for key in Family.__dataclass_fields__ if key != "types" and getattr(family, key) != getattr(plain, key)
    ]


def recorded() -> dict[str, Any]:
    """The committed levels."""
    return json.loads(RECORDED.read_text())


def rows_of(name: str) -> dict[str, Any]:
    """The committed rows of language models, or of the others: those that a type belongs to."""
    return recorded().get("text" if name in text_models.NAMES else "types", {})


def missing(needs: Sequence[str]) -> list[str]:
    """The packages of these that are not installed here."""
    return [name for name in needs if importlib.util.find_spec(name) is None]


def checked(name: str) -> Row:
    """The row of a type, as it is found now."""
    known = rows_of(name).get(name, {})
    declared = declared_of(name)
    if name in text_models.NAMES or ("marks" in declared and not family_for(name).marks):
        kind, _, reason = text_models.outcome(name).partition(": ")
        return Row("text" if kind == "ok" else kind, declared=declared, reason=reason)
    outcomes = checks.outcomes(name)
    row = row_of(outcomes, declared, known.get("needs", []))
    untried = {key for key, outcome in outcomes.items() if outcome == "untried"}  # without torchvision
    kept = {
        name: [key for key in outcomes if key in getattr(row, name) or key in untried & set(known.get(name, ()))]
        for name in ("also", "cannot", "fails")
    }
    return replace(row, **kept)


def compared(name: str) -> str | None:
    """What differs from the committed row; None if nothing does, or if the type needs what is not installed."""
    expected = rows_of(name).get(name)
    if expected is None:
        return f"{name}: untested: no row in {RECORDED.name}; add it with `python -m breadth.report {name}`"
    if missing(expected.get("needs", [])):
        return None
    found = asdict(checked(name))
    wrong = [f"{key} is {found[key]}, not {expected[key]}" for key in expected if found[key] != expected[key]]
    return f"{name}: {'; '.join(wrong)}" if wrong else None


def write(rows: Mapping[str, Row]) -> None:
    """Keep rows, beside those that are there, and write the page."""
    document = recorded()
    for name, row in rows.items():
        if name in text_models.NAMES:
            document.setdefault("text", {})[name] = {key: asdict(row)[key] for key in ("level", "declared", "reason")}
        else:
            document["types"][name] = asdict(row)
    kinds = {kind: dict(sorted(document.get(kind, {}).items())) for kind in ("types", "text")}
    document = {"transformers": transformers.__version__, **kinds}
    # whole at any time: other processes read it, and so does steerkit when it wraps a model
    write_atomically(RECORDED, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    DOCUMENT.write_text(page(document))


_INTRODUCTION = """# Models

Every type of `AutoModelForImageTextToText` in transformers {version}, and what was seen of it. Each is built tiny, with
random weights, its real classes and its real processor, and compared with plain PyTorch hooks: the blocks, what is
captured, steering behind every block, left padding against each prompt alone, which tokens are the image's, several
images, the prompt without its image, mixed batches, generation, and nnsight. Where the processor takes videos or audio,
the same is held for a call of the model with one.

| level | means |
| --- | --- |
| images and text | all of this holds, for prompts with images and for their text-only counterparts, so CMRM too |
| images | prompts with images are steered right; methods that measure the prompt without its image refuse |
| text | a language model, though transformers lists it here: text is steered right |
| fails | something is wrong: steerkit refuses the type, or its self-check at load does |
| refused | steerkit refuses the type, and says why |
| not built | nothing is known: a tiny model can't be built |
| untested | the type is new in transformers, and [tried when it is loaded](add-a-model.md#what-is-tried-at-loading) |

*Also* lists what a type is steered with beside images and text. *Declares* lists the fields of the type's `Family`
record; all else is asked of transformers, or looked up in the model: `steerkit models TYPE` tells which. *Can't* lists
what is refused with an error; without the *text of a video*, methods that measure the prompt without its video refuse.
*Needs* lists packages without which the processor or the model can't be made. Where torchvision is missing, a
placeholder stands for the video part of a processor: images work, and a video is refused. The table is written by
`python -m breadth.report` in `tests/`, and compared in CI: with the packages of *needs*, which videos need too, in an
environment of its own (`.ci/run all`), and without them in any other, where what needs them stays as it was.

{summary}

Language models of `AutoModelForCausalLM` are in a [table of their own](#language-models).

| type | level | also | declares | can't | needs |
| --- | --- | --- | --- | --- | --- |
"""


def page(document: Mapping[str, Any]) -> str:
    """The page of the docs."""
    rows: dict[str, Any] = document["types"]
    lines = []
    counts: dict[str, int] = {}
    for name in sorted({*rows, *pairs.NAMES}):
        row = rows.get(name)
        level = "untested" if row is None else row["level"]
        counts[level] = counts.get(level, 0) + 1
        row = row or asdict(Row(level))
        why = f": {row['reason']}" if row["reason"] else f": {', '.join(row['fails'])}" if row["fails"] else ""
        cells = (
            f"`{name}`",
            (level + why).replace("|", "\\|"),
            ", ".join(row["also"]),
            ", ".join(f"`{each}`" for each in row["declared"]),
            ", ".join(row["cannot"]),
            ", ".join(row["needs"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    summary = "; ".join(f"{count} {level}" for level, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    head = _INTRODUCTION.format(
        version=document["transformers"], summary=f"Of {sum(counts.values())} types: {summary}."
    )
    return head + "\n".join(lines) + "\n" + _text_page(document.get("text", {}))


_TEXT_INTRODUCTION = """
## Language models

Every type of `AutoModelForCausalLM` that takes no images, tiny and with random weights, against plain hooks: the order
of its blocks, what is captured, steering behind the first block and behind all, prompts of different lengths in one
batch, generation, and nnsight. A type is *not built* where no tiny model can be made from its default configuration, or
it is no language model by itself; steerkit checks such a model when it is loaded, as one of a type that is not listed.

{summary}

| type | level | declares |
| --- | --- | --- |
"""


def _text_page(rows: Mapping[str, Any]) -> str:
    good = [name for name, row in rows.items() if row["level"] == "text" and not row["declared"]]
    others = {name: row for name, row in rows.items() if name not in good}
    built = sum(row["level"] != "not built" for row in rows.values())
    right = sum(row["level"] == "text" for row in rows.values())
    cells = [
        (f"`{name}`", row["level"] + (f": {row['reason']}" if row["reason"] else ""), row["declared"])
        for name, row in others.items()
    ]
    lines = [
        f"| {name} | {level.replace('|', '/')} | {', '.join(map('`{}`'.format, said))} |" for name, level, said in cells
    ]
    listed = ", ".join(f"`{name}`" for name in good)
    summary = f"Of {len(rows)} types, {built} are built, and {right} of these are steered right."
    summary += f" Without any record: {listed}."
    return _TEXT_INTRODUCTION.format(summary=summary) + "\n".join(lines) + "\n"
