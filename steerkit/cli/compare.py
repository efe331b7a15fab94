"""`steerkit compare`: several methods on one model and one set of prompts, in one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from math import isnan
from pathlib import Path
from typing import Any

import steerkit as sk
from steerkit._internal.files import write_atomically
from steerkit.cli import options as opt
from steerkit.cli.command import Result, show
from steerkit.cli.console import say, table
from steerkit.errors import OptionError
from steerkit.policy import Policy

DEFAULT = ("cmrm", "shiftdc", "adasteer", "refusal_direction")
"""Those that take anchors labelled harmful and harmless as they are."""


def compare(
    model: str,
    anchors: Path | None = None,
    *,
    prompts: opt.Prompts,
    methods: Path | None = None,
    method: list[str] | None = None,
    set_: list[str] | None = None,
    vector: list[Path] | None = None,
    sweep: str = "",
    output: Path | None = None,
    policy: Policy = "strict",
    ray: bool = False,
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
        ray: Let the workers of a Ray cluster fit and answer.
        loading: How the model is loaded.
        batch_size: Samples per batch.
    """
    from steerkit.cli.loading import import_libraries, load_model
    from steerkit.cli.progress import progress

    strengths = opt.numbers(sweep, "--sweep", float)
    for name in ("compare.json", "compare.csv", "compare.png"):
        if output is not None:
            opt.output(output / name, force=True, ANCHORS=anchors, PROMPTS=prompts.prompts, METHODS=methods)
    import_libraries()
    from steerkit.demo import bundled

    listed = {name: sk.evaluation.MethodSettings(method=name) for name in method or DEFAULT}
    if methods is not None:
        rows = sk.evaluation.read_methods(bundled(str(methods)))
        listed = {name: rows.get(name, each) for name, each in listed.items()} if method else rows
    opt.refuse_repeated([*(method or listed), *(path.stem for path in vector or ())])
    packs = {path.stem: sk.load_vector(path, policy=policy) for path in vector or ()}
    suite = prompts.suite()
    if anchors is None:
        raise OptionError("ANCHORS is missing", expected="an anchor set", fix="demo/anchors is one, for demo models")
    samples = opt.SampleFile().read(Path(bundled(str(anchors))))
    options = _by_method(opt.settings(set_), listed)
    entries = {name: each.entry(samples, **options[name]) for name, each in listed.items()}
    vlm = load_model(model, loading.given())
    finished: list[sk.evaluation.Comparison] = []

    def keep(found: sk.evaluation.Comparison) -> None:
        finished[:] = [found]
        if output is not None:
            write_atomically(output / "compare.json", json.dumps(found.as_json(), indent=2, allow_nan=False).encode())
            write_atomically(output / "compare.csv", found.as_csv().encode())

    try:
        with progress("Comparing", total=1) as report, opt.cluster(ray, model, loading.given()) as cluster:
            sk.compare(
                vlm,
                {**entries, **packs},
                suite,
                samples,
                sweep=strengths,
                folder=output,
                batch_size=batch_size,
                progress=report,
                policy=policy,
                on_row=keep,
                cluster=cluster,
            )
        (found,) = finished
        if output is not None and found.sweep:
            found.draw(output / "compare.png")
    except BaseException:  # a run that is stopped, or whose files can't be written, has still measured what it has
        for found in finished:
            show(Result(found, _tables(found)))
        raise
    if failed := [row.name for row in found.rows if row.error]:
        say(f"failed: {', '.join(failed)}")
    return Result(found, _tables(found), code=1 if failed else 0)


def _tables(found: sk.evaluation.Comparison) -> Iterator[Any]:
    """The table, and the trade-off over strength."""
    yield found.table()
    if found.sweep:
        heads = ("", "strength", "not safe %", "over-refusal %", "utility %")
        rows = (
            (p.name, p.strength, *(None if isnan(share) else round(100 * share) for share in p.shares))
            for p in found.sweep
        )
        yield table(heads, rows, title="by strength")


def _by_method(given: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in given.items():
        name, dot, option = key.partition(".")
        if not dot or name not in found:
            raise OptionError(f"--set {key}=...", expected="METHOD.KEY=VALUE with a method of " + ", ".join(found))
        found[name][option] = value
    return found
