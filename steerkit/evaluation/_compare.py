"""`compare`: several methods on one model and one suite of prompts, in one table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from steerkit._internal.drawing import WIDTH, Curve, Frame, curves, png
from steerkit._internal.faults import about
from steerkit._internal.files import user_path, write_atomically
from steerkit._internal.validation import expect, expect_each, expect_whole
from steerkit._text import one_line
from steerkit.errors import OptionError, RecordsError
from steerkit.evaluation._agreement import MOST_LEFT
from steerkit.evaluation._disjoint import check_unseen
from steerkit.evaluation._evaluate import ANSWERS, cost_per_token, outcomes
from steerkit.evaluation._generate import Condition, Workers, check_measurable, check_vectors, generate, holding
from steerkit.evaluation._outcome import Outcome
from steerkit.evaluation._statistics import Estimate
from steerkit.evaluation._suites import Suite
from steerkit.evaluation._tables import SHARES, as_csv, as_plain
from steerkit.interventions import is_finite
from steerkit.methods import SteeringMethod
from steerkit.models import Sample, as_samples
from steerkit.policy import Policy
from steerkit.vectors import SteeringVector
from steerkit.vlm import VLM

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, int, int], None]
"""Called with (what is next, steps done, steps in all)."""

Entry = SteeringMethod | SteeringVector | tuple[SteeringMethod, Sequence[Sample]]
"""A method for the common anchors, one with anchors of its own, or a vector that is fitted already."""

UNSTEERED = "unsteered"
FIGURES = (*SHARES, "fluency", "seconds_per_token", "relative_cost")
SWEEP = (0.25, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Row:
    """One method at strength 1.

    Attributes:
        name: As given.
        unsafe: Share of harmful requests whose answer is harmful; phrases can't tell.
        not_safe: Share of harmful requests whose answer is not known to be safe; see `Outcome`.
        refused: Share of harmful requests refused.
        over_refusal: Share of harmless requests refused.
        garbled: Share of requests whose answer answers nothing.
        utility: Share of questions answered rightly.
        truncated: Share of answers cut at the length allowed.
        fluency: Mean negative log-likelihood per token of the answers under the unsteered model, in nats.
        seconds_per_token: Time for one generated token of one prompt, in batches of up to four.
        relative_cost: Its ratio to the time without steering, both measured in turns.
        fit_seconds: What fitting took, in one run; None where nothing was fitted.
        anchors: On how many samples.
        error: What failed, where something did; figures that were not measured are NaN.
    """

    name: str
    unsafe: Estimate
    not_safe: Estimate
    refused: Estimate
    over_refusal: Estimate
    garbled: Estimate
    utility: Estimate
    truncated: Estimate
    fluency: Estimate
    seconds_per_token: Estimate
    relative_cost: Estimate
    fit_seconds: float | None
    anchors: int
    error: str | None = None


@dataclass(frozen=True)
class Point:
    """One method at one strength of the sweep; `not_safe` as in `Outcome`."""

    name: str
    strength: float
    not_safe: float
    over_refusal: float
    utility: float

    @property
    def shares(self) -> tuple[float, float, float]:
        """Not safe, over-refusal, utility."""
        return self.not_safe, self.over_refusal, self.utility


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; intervals are of 95 %, Wilson's for shares and bootstrapped for means.

    Attributes:
        model: Class and sizes of the model.
        suite: Name of the suite, and how many prompts of each kind.
        judge: Its name.
        rows: The unsteered model first, then the methods as given.
        sweep: The safety-utility trade-off over strength.
    """

    model: str
    suite: str
    judge: str
    rows: tuple[Row, ...]
    sweep: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values; None for what is NaN."""
        return {**as_plain(self), "notes": self.notes}

    @property
    def notes(self) -> list[str]:
        """Why the judge is not to be believed, and what failed."""
        judged = [each for row in self.rows for each in (row.refused, row.over_refusal) if row.error is None]
        left, count = sum(each.unjudged for each in judged), sum(each.n for each in judged)
        weak = left > MOST_LEFT * count
        found = [f"NOT RELIABLE: {self.judge} left {left} of {count} answers to requests unjudged"] if weak else []
        return found + [f"{row.name} failed: {row.error}" for row in self.rows if row.error]

    def as_csv(self) -> str:
        """The table: a row per method; of a figure a column each for value, low, high, and the numbers it is of."""
        return as_csv(list(map(asdict, self.rows)))

    def table(self) -> Table:
        """The table, for a rich console; names of others are text there and no markup."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(one_line(f"{self.model} on {self.suite} (judge: {self.judge})")))
        table.box, table.padding = SIMPLE_HEAD, 0  # fits into 80 characters
        table.add_column("", overflow="fold")
        heads = (
            "unsafe %",
            "refused %",
            "over-\nrefusal %",
            "garbled %",
            "utility %",
            "fluency nats",
            "cost x",
            "fit s",
        )
        for head in heads:
            table.add_column(head.replace(" ", "\n"), justify="right", overflow="fold")
        for row in self.rows:
            fit = "" if row.fit_seconds is None else f"{row.fit_seconds:.1f}"
            shares = (row.unsafe, row.refused, row.over_refusal, row.garbled, row.utility)
            cells = [*(_shown(each, 100, 0) for each in shares), _shown(row.fluency, 1, 2)]
            table.add_row(Text(one_line(row.name)), *cells, _shown(row.relative_cost, 1, 2), fit)
        notes = [
            "below each figure its interval of 95 %; fluency: mean negative log-likelihood of the answers under the "
            "unsteered model; cost: time per token, x unsteered "
            f"({1000 * self.rows[0].seconds_per_token.value:.1f} ms); fit: one run"
        ]
        table.caption = Text("\n".join(map(one_line, [*notes, *self.notes])))
        return table

    def draw(self, path: str | Path) -> Path:
        """Draw the trade-off as a PNG: utility and safety of each method as the strength grows.

        Raises:
            OptionError: Nothing was swept.
            FileWriteError: The file can't be written.
        """
        if not self.sweep:
            raise OptionError("nothing was swept", expected="strengths to draw", fix="compare(..., sweep=(0.5, 1, 2))")
        row = self.rows[0]
        start = (row.not_safe.value, _helpful(row.utility.value, row.over_refusal.value))
        found = {UNSTEERED: [start]}
        for name in dict.fromkeys(point.name for point in self.sweep):
            mine = sorted((p for p in self.sweep if p.name == name), key=lambda point: point.strength)
            found[name] = [start, *((p.not_safe, _helpful(p.utility, p.over_refusal)) for p in mine)]
        measured = {name: tuple(p for p in points if not any(map(math.isnan, p))) for name, points in found.items()}
        lines = [Curve(name, points, percent=True) for name, points in measured.items()]
        height = 160 + max(280, 20 * len(lines))
        most = max(point.strength for point in self.sweep)
        title = f"Mean of utility and harmless requests not refused, to strength {most:g}: {self.model}"
        below = "share of harmful requests whose answer is not known to be safe"
        shapes = curves(Frame(60, 40, WIDTH - 190, height - 50), title, below, lines, least=(1.0, 1.0))
        write_atomically(user_path(path), png([shapes], height))
        return user_path(path)


def _fitted(
    vlm: VLM, method: SteeringMethod, anchors: Sequence[Sample], cluster: Workers | None, place: Any, batch_size: int
) -> SteeringVector:
    if cluster is None:
        return method.fit(vlm, anchors, batch_size=batch_size)
    if place is not None:
        place = user_path(place)
        place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="states-", dir=place) as states:  # beside the answers, where all workers see it
        return cluster.fit(method, as_samples(anchors), folder=states, batch_size=batch_size)


def compare(
    vlm: VLM,
    methods: Mapping[str, Entry],
    suite: Suite,
    anchors: Sequence[Sample] = (),
    *,
    sweep: Sequence[float] = (),
    folder: str | Path | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
    policy: Policy = "strict",
    on_row: Callable[[Comparison], None] | None = None,
    cluster: Workers | None = None,
) -> Comparison:
    """Fit several methods on one model, let it answer a suite under each, and judge.

    Every method is configured and checked against model and anchors, and every vector against the model, before the
    first method is fitted. Then all are fitted, and what differs from the prompt's last token on is answered together.
    One that fails, or whose answers the judge fails on, becomes a row that says so, and the others go on; where the
    model fails without steering, there is nothing to compare with, and the error is raised.

    Args:
        vlm: The model.
        methods: What to compare, by name: a method, a method with anchors of its own, or a vector.
        suite: The prompts and the judge; none of them may be an anchor.
        anchors: What methods are fitted on.
        sweep: Strengths for the picture of the trade-off; none by default.
        folder: Where every answer and verdict is kept, as by `evaluate`: a run that was interrupted goes on there. Fits
            are made again.
        batch_size: Prompts per call of the model.
        progress: Called with (what is next, done, total): fits, answers and rows of the table.
        policy: As for `steer`, for vectors that are fitted already; their dose is not judged.
        on_row: Called after each row with everything up to it, which would be lost if the run were stopped.
        cluster: Who fits and answers in place of this process, such as `steerkit.scale.cluster`.

    Raises:
        OptionError: There is nothing to compare, or an argument is of another type.
        SampleError: The suite holds anchors, or is the anchor set that a vector's record names.
        SteerKitError: A method does not fit model or anchors, a vector does not fit the model, or as `fit` and `steer`
            do.
    """
    check_measurable(vlm, suite)
    expect(Mapping, "{name: method, (method, anchors) or vector}", methods=methods)
    expect_each(Real, "a list of strengths", sweep=sweep)
    if not all(map(is_finite, sweep)):
        raise OptionError(f"sweep is {sweep!r:.80}", expected="finite strengths")
    expect_whole(batch_size=batch_size)
    expect(Callable | None, "a function of (what is next, done, total)", progress=progress)
    expect(Callable | None, "a function of the comparison so far", on_row=on_row)
    if not methods or UNSTEERED in methods:
        raise OptionError(
            f"methods are {list(methods)}",
            expected=f"at least one, and none called {UNSTEERED!r}, which is always there",
        )
    common = as_samples(anchors)
    fits: dict[str, tuple[SteeringMethod, Sequence[Sample]]] = {}
    vectors: dict[str, SteeringVector] = {}
    for name, entry in methods.items():
        if isinstance(entry, SteeringVector):
            with about(repr(name)):  # which of several it is, its message does not say
                check_unseen(suite, entry)
                check_vectors(vlm, [entry], policy)
            vectors[name] = entry
            continue
        method, chosen = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, common)
        expect(SteeringMethod, "a method, (method, anchors) or a vector", **{f"methods[{name!r}]": method})
        if method.plan(vlm, as_samples(chosen)).measures:
            check_unseen(suite, as_samples(chosen))
        fits[name] = method, chosen
    extra = [strength for strength in dict.fromkeys(map(float, sweep)) if strength not in (0.0, 1.0)]
    answers = suite.size * (1 + len(methods) * (1 + len(extra)))
    done, total, telling = 0, len(fits) + answers + 1 + len(methods), False

    def tell(what: str, done: int) -> None:
        nonlocal telling
        if progress is not None:
            telling = True
            progress(what, done, total)
            telling = False

    def failed(error: Exception) -> str:
        if telling or isinstance(error, RecordsError):
            raise error  # the caller's own function may want to stop the run; and a full disk stops every row
        return f"{type(error).__name__}: {error}"

    sizes = f"{len(suite.harmful)} harmful, {len(suite.harmless)} harmless, {len(suite.utility)} questions"
    head = repr(vlm), f"{suite.name} ({sizes})", suite.judge.name
    rows: dict[str, Row] = {name: _unmeasured(name) for name in (UNSTEERED, *methods)}
    fitting = holding(cluster, vlm) if fits else None
    for name, (method, chosen) in fits.items():
        tell(f"fitting {name}", done)
        start = time.perf_counter()
        try:
            vectors[name] = _fitted(vlm, method, chosen, fitting, folder, batch_size)
            seconds = time.perf_counter() - start
            rows[name] = replace(rows[name], fit_seconds=seconds, anchors=len(chosen))
        except Exception as error:  # whatever a method of somebody's own may raise
            rows[name] = replace(rows[name], error=failed(error))
        done += 1
    asked = {UNSTEERED: [Condition(UNSTEERED)]}
    asked |= {name: [Condition(name, vectors[name], s) for s in (1.0, *extra)] for name in methods if name in vectors}
    with TemporaryDirectory() if folder is None else nullcontext(folder) as kept:
        options: Any = {"batch_size": batch_size, "cluster": cluster}
        try:
            generate(
                vlm,
                suite,
                [each for some in asked.values() for each in some],
                path=user_path(kept) / ANSWERS,
                progress=lambda made, _: tell("answering", done + made),
                policy="off",
                **options,
            )
        except Exception as error:  # of which condition it is, is seen below, where each is asked by itself
            failed(error)
        done += answers
        points: list[Point] = []
        for at, (name, row) in enumerate(rows.items()):
            tell(name, done + at)
            tried: dict[float, Outcome] = {}
            try:
                for each in asked.get(name, ()):
                    first = not tried
                    (one,) = outcomes(vlm, suite, [each], folder=kept, fluency=first, **options).values()
                    tried[each.strength] = one
                    if first:
                        rows[name] = _measured(row, one, cost_per_token(vlm, suite, each.vector))
            except Exception as error:  # whatever a judge of somebody's own may raise
                if name == UNSTEERED:
                    raise
                rows[name] = replace(rows[name], error=failed(error))
            points += [
                Point(name, strength, one.not_safe.value, one.over_refusal.value, one.utility.value)
                for strength, one in sorted(tried.items())
                if sweep and name != UNSTEERED
            ]
            if on_row is not None:
                on_row(Comparison(*head, tuple(rows.values())[: at + 1], tuple(points)))
    tell("done", total)
    return Comparison(*head, tuple(rows.values()), tuple(points))


def _measured(row: Row, outcome: Outcome, cost: tuple[Estimate, Estimate]) -> Row:
    shares = {name: getattr(outcome, name) for name in (*SHARES, "fluency")}
    return replace(row, **shares, seconds_per_token=cost[0], relative_cost=cost[1])


def _unmeasured(name: str) -> Row:
    nothing = Estimate(math.nan, math.nan, math.nan)
    return Row(name, *[nothing] * len(FIGURES), fit_seconds=None, anchors=0)


def _shown(estimate: Estimate, factor: float, digits: int) -> str:
    if math.isnan(estimate.value):
        return "unjudged" if estimate.unjudged else "-"
    value, low, high = (f"{factor * each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
    return f"{value}\n{low}-{high}" + (f"\n{estimate.unjudged} of {estimate.n}\nunjudged" if estimate.unjudged else "")


def _helpful(utility: float, over_refusal: float) -> float:
    return 100 * (utility + 1 - over_refusal) / 2
