"""The report of a study: one self-contained page, with its figures, its discipline, and the answers to read.

It loads nothing from anywhere, and its policy forbids it to ask for more. Whatever a model or a judge has said is text
in it, never markup: it is cleaned and escaped. Answers to harmful requests are folded. Images are not shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from steerkit._internal.files import write_atomically
from steerkit._internal.sealed_page import sealed_page
from steerkit.evaluation._agreement import MOST_LEFT, Check, opinions, side_by_side
from steerkit.evaluation._evaluate import ANSWERS, VERDICTS
from steerkit.evaluation._figures import curves, intervals, matrix, plane, shortened, told
from steerkit.evaluation._formats import relative_score
from steerkit.evaluation._frozen import read_settled
from steerkit.evaluation._journal import read_records
from steerkit.evaluation._judges import Judge, compares
from steerkit.evaluation._judging import parser_of
from steerkit.evaluation._records import Answer, Verdict
from steerkit.evaluation._study_found import Study
from steerkit.evaluation._subjects import Subject

_PARTS = Path(__file__).parent / "page"

PANELS = 8
"""So many layers of a suite are drawn as planes, evenly spaced; the distances are drawn of all."""

_SHARES = {"unsafe": "unsafe", "not_safe": "not known to be safe", "over_refusal": "harmless requests refused"}
_SHARES |= {"utility": "questions answered rightly", "relative": "score of answers over that of their references"}
_SHORT = {"not_safe": "not safe", "over_refusal": "over-refusal", "utility": "utility"}


@dataclass(frozen=True)
class Read:
    """An answer of the page.

    Attributes:
        answer: The answer.
        request: What was asked.
        said: What each judge said of it, the first counts.
    """

    answer: Answer
    request: str
    said: tuple[Verdict, ...]

    @property
    def verdict(self) -> str:
        """The first judge's word, or the parser's."""
        return _word(self.said[0]) if self.said else "unjudged"

    @property
    def differs(self) -> bool:
        """Whether two judges say different things of one part."""
        parts = ({getattr(each, part) for each in self.said} for part in ("refused", "harmful", "garbled"))
        return any({True, False} <= each for each in parts)

    @property
    def words(self) -> list[tuple[str, str, str]]:
        """Of each judge its name, its word and its own words."""
        return [(each.judge, _word(each), each.raw or each.error) for each in self.said]


def _word(said: Verdict) -> str:
    if said.right is not None:
        return "right" if said.right else "wrong"
    for part in ("harmful", "refused", "garbled"):
        if getattr(said, part):
            return part
    if not math.isnan(relative_score([said]).value):
        return "scored"
    return "unjudged" if said.refused is said.harmful is said.garbled is None else "answered"


def figures(study: Study) -> dict[str, Markup]:
    """The figures by name; the names begin with the letter of their analysis."""
    found: dict[str, Markup] = {}
    tested = [cell for cell in study.cells if cell.stage == "test"]
    for at, suite in enumerate(dict.fromkeys(cell.suite for cell in tested), 1):
        mine = [cell for cell in tested if cell.suite == suite]
        for letter, names in (("a", ("unsafe", "not_safe")), ("b", ("over_refusal", "utility", "relative"))):
            for name in names:
                rows = [(cell.label, cell.figures[name]) for cell in mine]
                if any(figure.unjudged < figure.n for _, figure in rows):
                    found[f"{letter}-{at}-{name}"] = intervals(f"{shortened(suite)}: {_SHARES[name]}", rows)
    tried = [cell for cell in study.cells if cell.stage == "dev"]
    for at, suite in enumerate(dict.fromkeys(cell.suite for cell in tried), 1):
        for number, method in enumerate(study.choice, 1):
            mine = [cell for cell in tried if (cell.suite, cell.method) == (suite, method)]
            start = [cell for cell in tried if (cell.suite, cell.condition) == (suite, "image")]
            whole = [*start, *(cell for cell in mine if cell.layers == mine[0].layers)]
            lines = {
                f"{_SHORT[name]}, n {whole[0].figures[name].n}": [
                    (c.strength, (f := c.figures[name]).value, f.low, f.high) for c in whole
                ]
                for name in _SHORT
            }
            found[f"c-{at}-{number}-strength"] = curves(
                f"{shortened(suite)}: {method}, {mine[0].layers}", "strength", lines, 1.0
            )
            rows = [
                (f"{c.layers} at {c.strength:g}, {_SHORT[name]}", c.figures[name])
                for c in mine
                for name in _SHORT
                if c.figures[name].n
            ]
            found[f"c-{at}-{number}-layers"] = intervals(f"{shortened(suite)}: {method}, by layers and strength", rows)
    first = next(iter(study.choice))
    moved = [
        cell for cell in study.cells if cell.stage == "transfer" or (cell.stage == "test" and cell.method == first)
    ]
    cells = {(cell.anchors, cell.suite): each for cell in moved if (each := cell.figures["not_safe"]).n}
    sets, suites = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    found["d-transfer"] = matrix(
        f"{first}, anchors (rows) by test (columns): not known to be safe", sets, suites, cells
    )
    for at, suite in enumerate(dict.fromkeys(each.suite for each in study.planes), 1):
        mine = [each for each in study.planes if each.suite == suite]
        far = {
            f"{name}, n {each.n}": [(float(p.layer), (f := p.distances[name]).value, f.low, f.high) for p in mine]
            for name, each in mine[0].distances.items()
            if name != "text only"
        }
        found[f"e-{at}-distances"] = curves(f"{shortened(suite)}: distance of the means from text only", "layer", far)
        step = max(1, round(len(mine) / PANELS))
        found |= {f"e-{at}-layer-{each.layer}": plane(each) for each in mine[step - 1 :: step]}
    return found


def notes(study: Study, reads: Sequence[Read], checks: Iterable[Check]) -> list[str]:
    """What a reader has to know before the figures: what no judge can tell, has told, or tells as others do."""
    found = []
    cells = [cell.figures["unsafe"] for cell in study.cells if cell.stage == "test" and cell.figures["unsafe"].n]
    if cells and all(each.unjudged == each.n for each in cells):
        found.append(
            "No judge here tells whether an answer is harmful, so “unsafe” was not measured: “not known to be safe” "
            "counts every answer to a harmful request that is no refusal. A judge that can tell: --judge-url."
        )
    for name in dict.fromkeys(each.said[0].judge for each in reads if each.said):
        mine = [each for each in reads if each.said and each.said[0].judge == name]
        left = sum(each.verdict == "unjudged" for each in mine)
        if left:
            weak = "NOT RELIABLE: " if left > MOST_LEFT * len(mine) else ""
            found.append(f"{weak}{name} left {left} of {len(mine)} answers unjudged.")
    return found + [check.title for check in checks if not check.good]


def write_report(found: Study, folder: Path, subjects: Sequence[Subject], given: Sequence[Judge]) -> Study:
    """Write `study.json`, the tables, the figures and the page, made from the records of the folder.

    Args:
        found: The study.
        folder: Its folder.
        subjects: What was tested.
        given: The judges; none: those of the suites.

    Returns:
        The study with its notes.
    """
    answers, verdicts = read_records(folder / ANSWERS, Answer), read_records(folder / VERDICTS, Verdict)
    said = {(each.answer, each.identity): each for each in verdicts}
    reads, checks = [], []
    for subject in subjects:
        mine = [answer for answer in answers if answer.suite == subject.test.name]
        judges = [each for each in given if not compares(each)] or [subject.test.judge]
        comparing = [each.identity for each in given if compares(each)][:1]
        for answer in mine:
            case = subject.test.named[answer.kind, answer.row]
            whose = [judge.identity for judge in judges]
            if answer.kind == "utility":
                whose = comparing if comparing and case.parser == "reference" else [parser_of(case)]
            words = tuple(word for each in whose if (word := said.get((answer.digest, each))))
            reads.append(Read(answer, case.request, words))
        for other in judges[1:]:
            both = [[each for each in verdicts if each.identity == judge.identity] for judge in (judges[0], other)]
            checks.append(side_by_side(judges[0].name, other.name, opinions(subject.test, mine, *both)))
    found = replace(found, notes=tuple(notes(found, reads, checks)))
    drawn = figures(found)
    files = {"study.json": json.dumps(found.as_json(), indent=1, allow_nan=False)}
    files |= {f"{name}.csv": text for name, text in found.tables().items()}
    files |= {f"figures/{name}.svg": str(figure) for name, figure in drawn.items()}
    written = read_settled(folder / "frozen.json")["written"]
    files["report.html"] = page(found, drawn, reads, checks, written)
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    return found


def page(
    study: Study, drawn: Mapping[str, Markup], reads: Sequence[Read], checks: Sequence[Check], written: str
) -> str:
    """The whole HTML page."""
    return sealed_page(
        _PARTS,
        "study",
        study=study,
        figures=drawn,
        notes=study.notes,
        reads=sorted(reads, key=lambda each: (each.answer.suite, each.answer.kind, each.answer.row)),
        checks=checks,
        written=written,
        told=told,
        suites=sorted({each.answer.suite for each in reads}),
        conditions=list(dict.fromkeys(each.answer.condition for each in reads)),
        verdicts=sorted({each.verdict for each in reads}),
    )
