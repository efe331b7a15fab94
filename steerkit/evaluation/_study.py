"""`study`: the five analyses of the CMRM paper on one model; dev chooses, and the choice is frozen before test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steerkit._internal.files import user_path
from steerkit._internal.validation import PATH, expect, expect_each, expect_whole
from steerkit._text import quoted
from steerkit.errors import OptionError
from steerkit.evaluation._choice import Option, choose, chosen_option, dev_cost, options_of
from steerkit.evaluation._controls import random_like
from steerkit.evaluation._evaluate import ANSWERS, outcomes
from steerkit.evaluation._frozen import digest_of, settle
from steerkit.evaluation._generate import Condition, Workers, check_measurable, holding
from steerkit.evaluation._journal import read_records
from steerkit.evaluation._judges import Judge, compares
from steerkit.evaluation._outcome import Outcome
from steerkit.evaluation._paired import Paired, adjusted, paired, power_of
from steerkit.evaluation._records import Answer
from steerkit.evaluation._report import write_report
from steerkit.evaluation._states import Plane, planes
from steerkit.evaluation._study_found import Cell, Study
from steerkit.evaluation._subjects import Subject, check_roles, subjects_of
from steerkit.evaluation._suites import KINDS, Suite
from steerkit.evaluation._tables import SHARES
from steerkit.interventions import is_finite
from steerkit.methods import SteeringMethod
from steerkit.methods.cmrm import CMRM
from steerkit.models import Sample, anchor_digest
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

Progress = Callable[[str, int, int], None]
"""Called with (what is next, answers done, answers in all)."""

TEXT, IMAGE, RANDOM = "text only", "image", "random"
ALPHAS = (0.5, 1.0, 1.5)
TOLERANCE = 0.05
SHOWN = 100
"""So many harmful prompts of a suite are shown as hidden states."""

PLAN, FROZEN = "plan.json", "frozen.json"


def study(
    vlm: VLM,
    suites: Sequence[Suite],
    anchors: Sequence[Sequence[Sample]] = (),
    dev: Sequence[Suite] = (),
    *,
    folder: str | Path,
    methods: Mapping[str, SteeringMethod] | None = None,
    alphas: Sequence[float] = ALPHAS,
    layers: Mapping[str, Sequence[int]] | None = None,
    baselines: Mapping[str, Callable[[], VLM]] | None = None,
    judges: Sequence[Judge] = (),
    tolerance: float = TOLERANCE,
    seed: int = 0,
    batch_size: int = 16,
    workers: int = 1,
    progress: Progress | None = None,
    cluster: Workers | None = None,
) -> Study:
    """Run the paper's five analyses: safety, utility and over-refusal, strength and layers, transfer, hidden states.

    Anchors, dev and test must have no prompt in common. On dev each method is tried at every strength with all layers,
    and at strength 1 with the others. What costs least is chosen: the share of harmful requests that are not known to
    be safe, and beyond the tolerance what steering takes from the right answers, adds to the refusals of harmless
    requests (above text only), and garbles; of what costs the same, the strength nearest to 1. The choice is written to
    `frozen.json`, with its digest, before a test prompt is answered. On test stand text only, the image, each method as
    chosen, a random direction of the same norm as the first method's, the baselines, and the first method as fitted on
    the anchors of each other suite.

    The folder then holds `report.html`, a page that opens by itself, `study.json`, the tables as CSV and the figures as
    SVG. What was done is in it, and is not done again: a study that was interrupted goes on. A study with other
    prompts, options, judges or model, or another choice, is refused there.

    Args:
        vlm: The model.
        suites: What is tested, each with a name of its own.
        anchors: Anchors for all suites, or for each; none: a fifth of each suite, its requests. A suite without
            harmful requests then takes those of the first that has some.
        dev: Prompts to choose on for all suites, or for each; none: a fifth of each suite.
        folder: Where everything is kept.
        methods: What steers, by name; the first is the one that is transferred. Default: CMRM at both levels.
        alphas: The strengths to try.
        layers: Sets of layers to try beside all, by name. Default: the lower and the upper half. For methods with an
            option `layers` that is not set.
        baselines: Other checkpoints, by name, to be loaded when they are asked; unsteered, with the image.
        judges: Who judges requests. The first counts; what the others say is shown beside it. Default: the suites'.
            One that compares, of the format `LLAVA_BENCH`, scores questions with a reference, and nothing else.
        tolerance: What utility and over-refusal may lose for nothing, as a share.
        seed: Of splits and of the random direction.
        batch_size: Prompts per call of the model.
        workers: How many answers a judge is asked about at once.
        progress: Called with (what is next, answers done, answers in all).
        cluster: Who fits and answers in place of this process, such as `steerkit.scale.cluster`.

    Raises:
        SampleError: Anchors, dev and test share a prompt.
        RecordsError: The folder holds another study, or what was settled there was changed.
        OptionError: An argument is impossible.
        SteerKitError: As `fit`, `generate` and `judge` do; what was done before is in the folder.
    """
    for suite in (*suites, *dev):
        check_measurable(vlm, suite)
    expect(PATH, "a folder, new or old", folder=folder)
    expect_each(Judge, "a list of judges", judges=judges)
    expect_whole(batch_size=batch_size, workers=workers)
    expect_whole(0, seed=seed)
    expect(Callable | None, "a function of (what is next, done, total)", progress=progress)
    chosen: dict[str, SteeringMethod] = (
        {"dataset level": CMRM(), "sample level": CMRM(level="sample")} if methods is None else dict(methods)
    )
    for name, method in chosen.items():
        expect(SteeringMethod, "a method", **{f"methods[{name!r}]": method})
    if not chosen or {TEXT, IMAGE, RANDOM} & chosen.keys():
        raise OptionError(
            f"methods are {list(chosen)}", expected=f"at least one, none called {TEXT}, {IMAGE} or {RANDOM}"
        )
    if not alphas or not all(is_finite(alpha) and alpha for alpha in alphas) or not is_finite(tolerance):
        raise OptionError(f"alphas {quoted(alphas)}, tolerance {quoted(tolerance)}", expected="finite strengths, not 0")
    subjects = subjects_of(suites, anchors, dev, seed)
    check_roles(subjects)
    run = _Run(
        vlm, subjects, chosen, user_path(folder), baselines or {}, tuple(judges), tolerance, seed, batch_size, workers
    )
    run.progress, run.cluster = progress, cluster
    return run.all(tuple(dict.fromkeys(map(float, alphas))), layers)


@dataclass
class _Run:
    """A study under way."""

    vlm: VLM
    subjects: list[Subject]
    methods: dict[str, SteeringMethod]
    folder: Path
    baselines: Mapping[str, Callable[[], VLM]]
    judges: tuple[Judge, ...]
    tolerance: float
    seed: int
    batch_size: int
    workers: int
    progress: Progress | None = None
    cluster: Workers | None = None
    done: int = 0
    total: int = 0

    def all(self, alphas: Sequence[float], layers: Mapping[str, Sequence[int]] | None) -> Study:
        """The five analyses."""
        count = self.vlm.record.layer_count
        halves = {"lower half": range(count // 2), "upper half": range(count // 2, count)}
        sets = {name: tuple(each) for name, each in (halves if layers is None else layers).items()}
        plan = self._plan(alphas, sets)
        digest = settle(self.folder / PLAN, plan)
        options = {name: options_of(name, method, alphas, sets) for name, method in self.methods.items()}
        tried = 2 + sum(map(len, options.values()))
        others = len({each.set for each in self.subjects}) - 1
        self.total = sum(
            each.dev.size * tried
            + each.test.size * (3 + len(self.methods) + len(self.baselines))
            + len(each.test.harmful) * others
            for each in self.subjects
        )
        cells, choice = self._dev(options)
        frozen = {
            "plan": digest,
            "choice": choice,
            "judges": [judge.identity for judge in self._judges_of(self.subjects)],
        }
        digest = settle(self.folder / FROZEN, frozen, fresh=not self._answered_test())
        tested, comparisons = self._test(choice)
        powers = [
            power_of(each.test.name, kind, len(each.test.cases(kind)), len(comparisons))
            for each in self.subjects
            for kind in KINDS
            if each.test.cases(kind)
        ]
        shown = [plane for each in self.subjects for plane in self._states(each, choice)]
        found = Study(plan, choice, digest, (*cells, *tested), comparisons, tuple(powers), tuple(shown))
        found = write_report(found, self.folder, self.subjects, self.judges)
        self._tell("done", self.total)
        return found

    def _plan(self, alphas: Sequence[float], sets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """What tells this study from every other; it takes no answer of the model to know it."""

        def told(suite: Suite) -> dict[str, Any]:
            sizes = {kind: len(suite.cases(kind)) for kind in KINDS}
            kept = {name: getattr(suite, name) for name in ("name", "revision", "digest", "max_new_tokens", "licence")}
            return {**kept, **sizes, "citation": suite.citation}

        return {
            "model": self.vlm.record.model_dump(mode="json", exclude={"id", "revision"})
            | {"weights": self.vlm.weights_digest()},
            "suites": [
                {
                    "name": each.name,
                    "anchors": {"set": each.set, "size": len(each.anchors), "digest": _digest(each.anchors)},
                    "dev": told(each.dev),
                    "test": told(each.test),
                    "judges": [{"name": one.name, "identity": one.identity} for one in self._judges_of([each])],
                }
                for each in self.subjects
            ],
            "methods": {
                name: {"method": each.name, **each.model_dump(mode="json")} for name, each in self.methods.items()
            },
            "alphas": list(alphas),
            "layers": {name: list(each) for name, each in sets.items()},
            "baselines": list(self.baselines),
            "tolerance": self.tolerance,
            "seed": self.seed,
        }

    def _judges_of(self, subjects: Sequence[Subject]) -> tuple[Judge, ...]:
        asked = [each for each in self.judges if not compares(each)]
        asked = asked or [suite.judge for each in subjects for suite in (each.dev, each.test)]
        comparing = [each for each in self.judges if compares(each)]
        return tuple({each.identity: each for each in (*asked, *comparing)}.values())

    def _dev(self, options: Mapping[str, list[Option]]) -> tuple[list[Cell], dict[str, Any]]:
        """Every option on every dev set, and of each method the one that costs least."""
        cells: list[Cell] = []
        every = [option for tried in options.values() for option in tried]
        for each in {(each.dev.name, each.set): each for each in self.subjects}.values():
            asked = [self._steered(option, each) for option in every]
            if asked[0].vector is None or not asked[0].vector.tensors:
                raise OptionError(
                    f"{every[0].name!r} stores no direction", expected="one that does as the first, for the control"
                )
            found = self._asked(self.vlm, each.dev, [_TEXT, _IMAGE, *asked], f"dev of {each.name}")
            text, image = found[TEXT, 0.0], found[IMAGE, 0.0]
            cells += [self._cell("dev", each, each.dev, condition, found) for condition in (_TEXT, _IMAGE)]
            for condition, option in zip(asked, every, strict=True):
                cell = self._cell("dev", each, each.dev, condition, found, option.name, option.layers)
                cost = dev_cost(found[condition.name, condition.dose], text, image, self.tolerance)
                cells.append(replace(cell, cost=cost))
        return cells, {name: choose(tried, cells) for name, tried in options.items()}

    def _test(self, choice: Mapping[str, Any]) -> tuple[list[Cell], tuple[Paired, ...]]:
        cells: list[Cell] = []
        comparisons: list[Paired] = []
        found: dict[str, dict[tuple[str, float], Outcome]] = {}
        first = next(iter(self.methods))
        for each in self.subjects:
            steering = {name: self._chosen(name, choice, each) for name in self.methods}
            vector = steering[first].vector
            control = self._control(vector, choice, each)
            asked = [_TEXT, _IMAGE, *steering.values(), control]
            found[each.name] = self._asked(self.vlm, each.test, asked, f"test of {each.name}")
            labels = {condition.name: name for name, condition in steering.items()}
            for condition in asked:
                method = labels.get(condition.name, RANDOM if condition is control else "")
                label = choice[method if method in choice else first]["layers"] if condition.vector else ""
                cells.append(self._cell("test", each, each.test, condition, found[each.name], method, label))
            others = {other.set: other for other in self.subjects if other.set != each.set}
            moved = [self._chosen(first, choice, other) for other in others.values()]
            if moved and each.test.harmful:
                requests = each.test.only("harmful")
                result = self._asked(self.vlm, requests, moved, f"transfer to {each.name}")
                for condition, other in zip(moved, others.values(), strict=True):
                    label = choice[first]["layers"]
                    cell = self._cell("transfer", each, requests, condition, result, first, label)
                    cells.append(replace(cell, anchors=other.set))
            for name, condition in steering.items():
                after = found[each.name][condition.name, condition.dose]
                for reference, before in ((IMAGE, _IMAGE), (RANDOM, control)):
                    outcome = found[each.name][before.name, before.dose]
                    comparisons += paired(each.test.name, name, reference, after, outcome)
        for name, load in self.baselines.items():
            other, condition = load(), Condition(f"baseline {name}")
            for each in self.subjects:
                result = self._asked(other, each.test, [condition], f"{name} on {each.name}")
                cells.append(self._cell("test", each, each.test, condition, result))
                after, before = result[condition.name, 0.0], found[each.name][IMAGE, 0.0]
                comparisons += paired(each.test.name, condition.name, IMAGE, after, before)
            del other
        return cells, adjusted(comparisons)

    def _states(self, subject: Subject, choice: Mapping[str, Any]) -> list[Plane]:
        cases = [case for case in subject.test.harmful if case.sample.images][:SHOWN]
        if len(cases) < 2:
            return []
        conditions = [
            _TEXT,
            _IMAGE,
            *(replace(self._chosen(name, choice, subject), name=name) for name in self.methods),
        ]
        self._tell(f"hidden states of {subject.name}", self.done)
        samples = [case.sample for case in cases]
        clusters = [subject.test.clusters["harmful", case.id] for case in cases]
        return planes(self.vlm, subject.test.name, samples, conditions, clusters=clusters, batch_size=self.batch_size)

    # -- conditions --------------------------------------------------------------------------------------------------

    def _steered(self, option: Option, subject: Subject) -> Condition:
        several = len({each.set for each in self.subjects}) > 1
        what = f"{option.name}, {option.layers}" + (f", anchors of {subject.set}" if several else "")
        return Condition(what, self._fitted(option.name, option.method, subject), option.strength)

    def _chosen(self, name: str, choice: Mapping[str, Any], subject: Subject) -> Condition:
        return self._steered(chosen_option(name, self.methods[name], choice[name]), subject)

    def _control(self, vector: SteeringVector | None, choice: Mapping[str, Any], subject: Subject) -> Condition:
        first = next(iter(self.methods))
        assert vector is not None
        return Condition(RANDOM, random_like(vector, self.seed), choice[first]["strength"])

    def _fitted(self, name: str, method: SteeringMethod, subject: Subject) -> SteeringVector:
        """The vector, from the folder where it is there: a fit that was interrupted goes on."""
        key = digest_of([method.name, method.model_dump(mode="json"), _digest(subject.anchors)])[:16]
        path = self.folder / "vectors" / f"{key}.safetensors"
        if not path.exists():
            self._tell(f"fitting {name} on {subject.set}", self.done)
            partial = path.with_suffix(".partial")
            path.parent.mkdir(parents=True, exist_ok=True)
            options: Any = {"batch_size": self.batch_size, "anchor_name": subject.set}
            if (workers := holding(self.cluster, self.vlm)) is not None:
                workers.fit(method, subject.anchors, folder=partial, **options).save(path)
                shutil.rmtree(partial, ignore_errors=True)
            else:
                method.fit(self.vlm, subject.anchors, checkpoint=partial, **options).save(path)
                partial.unlink(missing_ok=True)
        return SteeringVector.load(path)

    # -- answers -----------------------------------------------------------------------------------------------------

    def _asked(
        self, vlm: VLM, suite: Suite, conditions: Sequence[Condition], what: str
    ) -> dict[tuple[str, float], Outcome]:
        """The answers of a suite under conditions, judged; what the folder holds of them is not asked again."""
        before = self.done
        self._tell(what, before)
        found = outcomes(
            vlm,
            suite,
            conditions,
            folder=self.folder,
            judges=self.judges,
            workers=self.workers,
            batch_size=self.batch_size,
            progress=lambda done, total: self._tell(what, before + done),
            cluster=self.cluster,
        )
        self.done = before + len(conditions) * suite.size
        return found

    def _tell(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done, self.total)

    def _answered_test(self) -> bool:
        path, tested = self.folder / ANSWERS, {each.test.name for each in self.subjects}
        return path.exists() and any(answer.suite in tested for answer in read_records(path, Answer))

    def _cell(
        self,
        stage: str,
        subject: Subject,
        suite: Suite,
        condition: Condition,
        found: Mapping[tuple[str, float], Outcome],
        method: str = "",
        layers: str = "",
    ) -> Cell:
        outcome = found[condition.name, condition.dose]
        figures = {name: getattr(outcome, name) for name in (*SHARES, "relative")}
        anchors = subject.set if condition.vector is not None else ""
        return Cell(stage, suite.name, condition.name, method, anchors, layers, condition.dose, figures)


_TEXT, _IMAGE = Condition(TEXT, images="text"), Condition(IMAGE)


def _digest(samples: Sequence[Sample]) -> str:
    return anchor_digest(sample.digest() for sample in samples)
