"""`steerkit compare`: several methods on one model and one set of prompts, in one table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.cli import options as opt
from steerkit.cli.command import Result, show
from steerkit.cli.console import say, table
from steerkit.cli.suites import Prompts, is_demo, refuse_repeated
from steerkit.errors import OptionError
from steerkit.policy import Policy

if TYPE_CHECKING:
    from steerkit.evaluation import Comparison, Point, Suite
    from steerkit.models import Sample
    from steerkit.vlm import VLM

METHODS = ("cmrm", "shiftdc", "adasteer", "refusal_direction")
"""Those that take anchors labelled harmful and harmless as they are."""


def compare(
    model: str,
    anchors: Path | None = None,
    *,
    prompts: Prompts,
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
    fitting, with intervals of 95 %. The name of a demo model in place of MODEL compares every built-in method on the
    toy world.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        anchors (ANCHORS): Anchor set, .jsonl or .csv; none for a demo model.
        prompts: The suite of prompts.
        method: A method to compare. Default: those that fit the labels.
        set_ (METHOD.KEY=VALUE): An option of one method.
        vector: A pack to compare as well.
        sweep: Strengths of a second table, and of the picture in --output, with commas.
        output: Folder for compare.json, compare.csv and compare.png.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        loading: How the model is loaded.
        batch_size: Samples per batch.
    """
    from steerkit.cli.loading import import_libraries
    from steerkit.cli.progress import progress

    strengths, given = opt.numbers(sweep, "--sweep", float), loading.given()
    own = {f"--{key.replace('_', '-')}": value for key, value in vars(loading).items()}
    prompts.check(model, {"ANCHORS": anchors, "--set": set_, **own})
    for name in ("compare.json", "compare.csv", "compare.png"):
        if output is not None:
            opt.output(output / name, force=True, ANCHORS=anchors, PROMPTS=prompts.prompts)
    import_libraries()
    import steerkit as sk
    from steerkit.evaluation import plotting

    if output is not None and strengths:
        plotting()
    packs = {path.stem: sk.load_vector(path, policy=policy) for path in vector or ()}
    names = [path.stem for path in vector or ()]
    vlm, suite, chosen, methods = _prepared(model, anchors, prompts, method, names, opt.settings(set_), given)
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
                {**methods, **packs},
                suite,
                chosen,
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


def _prepared(
    model: str,
    anchors: Path | None,
    prompts: Prompts,
    names: list[str] | None,
    packs: list[str],
    settings: dict[str, Any],
    given: dict[str, Any],
) -> tuple[VLM, Suite, list[Sample], dict[str, Any]]:
    """The model, its suite, the anchors and the methods, of a demo model or the user's own; `packs` are names too.

    Raises:
        OptionError: Something is missing, or two of what is compared have one name.
    """
    from steerkit.cli.loading import load_model

    if is_demo(model):
        import torch

        from steerkit.demo import ANCHORS, SUITES
        from steerkit.demo.methods import entries
        from steerkit.evaluation import load_suite
        from steerkit.models import read_samples

        torch.set_num_threads(1)  # matrices this small are slower on several
        chosen = read_samples(ANCHORS)
        methods: dict[str, Any] = {**entries(chosen)}
        refuse_repeated([*(names or methods), *packs])
        if unknown := [name for name in names or () if name not in methods]:
            raise OptionError(f"the demo has no method {unknown[0]!r}", expected="one of " + ", ".join(methods))
        methods = {name: methods[name] for name in names or methods}
        suite = load_suite(SUITES["test"]).first(prompts.count or 100)
        return load_model(model, {"dtype": "float32"}), suite, chosen, methods
    refuse_repeated([*(names or METHODS), *packs])
    made = prompts.suite(model)
    if anchors is None:
        raise OptionError(f"{model!r} is compared without anchors", expected="an anchor set, or a demo model")
    samples = opt.SampleFile().read(anchors)
    options = _by_method(settings, names or METHODS)
    methods = {name: opt.method(name, options[name]) for name in names or METHODS}
    return load_model(model, given), made, samples, methods


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
