"""`steerkit compare`: several methods on one model and one set of prompts, in one table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.cli import options as opt
from steerkit.cli.command import Result, show
from steerkit.cli.console import say, table
from steerkit.cli.suites import Prompts, bundled, refuse_repeated
from steerkit.errors import OptionError
from steerkit.policy import Policy

if TYPE_CHECKING:
    from steerkit.evaluation import Comparison, Point

DEFAULT = ("cmrm", "shiftdc", "adasteer", "refusal_direction")
"""Those that take anchors labelled harmful and harmless as they are."""


def compare(
    model: str,
    anchors: Path | None = None,
    *,
    prompts: Prompts,
    methods: Path | None = None,
    method: list[str] | None = None,
    set_: list[str] | None = None,
    vector: list[Path] | None = None,
    sweep: str = "",
    output: Path | None = None,
    policy: Policy = "strict",
    loading: opt.Loading,
    batch_size: int = 16,
) -> Result:
    """Fit several methods, and compare the answers under each.

    Unsafe rate, over-refusal, garbled answers, utility, fluency, cost per token relative to unsteered and cost of
    fitting, with intervals of 95 %.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        anchors: Anchor set, .jsonl or .csv; demo/anchors comes with steerkit, for the demo models.
        prompts: The suite of prompts.
        methods (FILE): Methods with their options, .json; demo/methods comes with steerkit, for the demo models.
        method: A method to compare. Default: those of the file, or those that fit the labels.
        set_ (METHOD.KEY=VALUE): An option of one method.
        vector: A pack to compare as well.
        sweep: Strengths of a second table, and of the picture in --output, with commas.
        output: Folder for compare.json, compare.csv and compare.png.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        loading: How the model is loaded.
        batch_size: Samples per batch.
    """
    from steerkit.cli.loading import import_libraries, load_model
    from steerkit.cli.progress import progress

    strengths, given = opt.numbers(sweep, "--sweep", float), loading.given()
    for name in ("compare.json", "compare.csv", "compare.png"):
        if output is not None:
            opt.output(output / name, force=True, ANCHORS=anchors, PROMPTS=prompts.prompts)
    import_libraries()
    import steerkit as sk
    from steerkit.evaluation import MethodSettings, plotting, read_methods

    listed = read_methods(bundled(methods)) if methods else {name: MethodSettings(method=name) for name in DEFAULT}
    wanted = method or list(listed)
    refuse_repeated([*wanted, *(path.stem for path in vector or ())])
    if output is not None and strengths:
        plotting()
    packs = {path.stem: sk.load_vector(path, policy=policy) for path in vector or ()}
    suite = prompts.suite()
    if anchors is None:
        raise OptionError("ANCHORS is missing", expected="an anchor set", fix="demo/anchors is one, for demo models")
    samples = opt.SampleFile().read(bundled(anchors))
    entries = {
        name: listed.get(name, MethodSettings(method=name)).entry(samples, **options)
        for name, options in _by_method(opt.settings(set_), wanted).items()
    }
    vlm = load_model(model, given)
    finished: list[Comparison] = []

    def keep(found: Comparison) -> None:
        finished[:] = [found]
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / "compare.json").write_text(json.dumps(found.as_json(), indent=2, allow_nan=False))
            (output / "compare.csv").write_text(found.as_csv(), encoding="utf-8")

    try:
        with progress("Comparing", total=1) as report:
            sk.compare(
                vlm,
                {**entries, **packs},
                suite,
                samples,
                sweep=strengths,
                batch_size=batch_size,
                progress=lambda what, done, total: report(done, total),
                policy=policy,
                on_row=keep,
            )
        (found,) = finished
        if output is not None and found.sweep:
            found.draw(output / "compare.png")
    except BaseException:  # a run that is stopped, or whose files can't be written, has still measured what it has
        for found in finished:
            show(Result(found.as_json(), _tables(found)))
        raise
    if failed := [row.name for row in found.rows if row.error]:
        say(f"failed: {', '.join(failed)}")
    return Result(found.as_json(), _tables(found), code=1 if failed else 0)


def _tables(found: Comparison) -> Iterator[Any]:
    yield found.table()
    if found.sweep:
        yield _swept(found.sweep)


def _swept(points: Sequence[Point]) -> Any:
    """The trade-off over strength: a section for each method, a row for each strength."""
    rows, before = [], None
    for point in points:
        shares = (f"{100 * share:.0f}" for share in (point.unsafe, point.over_refusal, point.utility))
        rows.append(("" if point.name == before else point.name, f"{point.strength:g}", *shares))
        before = point.name
    heads = ("", "strength", "unsafe %", "over-refusal %", "utility %")
    return table(heads, rows, right=(1, 2, 3, 4), title="by strength")


def _by_method(given: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in given.items():
        name, dot, option = key.partition(".")
        if not dot or name not in found:
            raise OptionError(f"--set {key}=...", expected="METHOD.KEY=VALUE with a method of " + ", ".join(found))
        found[name][option] = value
    return found
