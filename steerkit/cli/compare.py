"""`steerkit compare`: several methods on one model and one set of prompts, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import clean, console, print_json
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit.evaluation import Suite
    from steerkit.samples import Sample
    from steerkit.vlm import VLM

METHODS = ("cmrm", "shiftdc", "adasteer", "refusal_direction")
"""Those that take anchors labelled harmful and harmless as they are."""

Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Prompts, .jsonl: {"text", "image", "label": "harmful", "harmless" or "utility", "answer"} on each line.',
    ),
]


def compare(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Repository id or folder, or the name of a demo model.")
    ],
    anchors: Annotated[
        Path | None, typer.Argument(metavar="ANCHORS", help="Anchor set, .jsonl or .csv; none for a demo model.")
    ] = None,
    *,
    prompts: Prompts = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method to compare. Repeat for more. Default: those that fit the labels.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KEY=VALUE", help="An option of one method. Repeat for more."),
    ] = None,
    vector: Annotated[list[Path] | None, typer.Option(help="A pack to compare as well. Repeat for more.")] = None,
    sweep: Annotated[str, typer.Option(help="Strengths of the picture, with commas; empty for none.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Prompts of each kind, of a demo model.")] = 100,
    refusal: Annotated[
        list[str] | None,
        typer.Option(help="A phrase by which a refusal is told. Repeat for more. Default: common ones."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers.")] = 64,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for compare.json, compare.csv and compare.png.")
    ] = None,
    batch_size: opt.BatchSize = 16,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    revision: opt.Revision = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Fit several methods on a model, let it answer prompts under each, and print one table.

    Unsafe rate, over-refusal, garbled answers, utility, fluency, cost per token and cost of fitting, with intervals of
    95 %. The name of a demo model in place of MODEL compares every built-in method on the toy world.
    """
    from steerkit.cli.loading import import_libraries

    strengths = _numbers(sweep)
    import_libraries()
    import steerkit as sk
    from steerkit.cli.progress import progress
    from steerkit.vector import SteeringVector

    packs = {path.stem: SteeringVector.load(path) for path in vector or ()}
    vlm, suite, chosen, methods = prepared(
        model, anchors, prompts, method, set_, count, refusal, max_new_tokens, (dtype, device_map, revision)
    )
    with progress("Comparing", total=1) as report:
        found = sk.compare(
            vlm,
            {**methods, **packs},
            suite,
            chosen,
            sweep=strengths,
            batch_size=batch_size,
            progress=lambda what, done, total: report(done, total),
        )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "compare.json").write_text(json.dumps(found.as_json(), indent=2))
        (output / "compare.csv").write_text(found.as_csv())
        if strengths:
            found.draw(output / "compare.png")
    if as_json:
        print_json(found.as_json())
        return
    console().print(found.table())


def prepared(
    model: str,
    anchors: Path | None,
    prompts: Path | None,
    names: list[str] | None,
    set_: list[str] | None,
    count: int,
    refusals: list[str] | None,
    max_new_tokens: int,
    loading: tuple[str | None, str | None, str | None],
) -> tuple[VLM, Suite, list[Sample], dict[str, Any]]:
    """The model, its suite, the anchors and the methods, of a demo model or the user's own."""
    from steerkit.cli.loading import load_model, load_options
    from steerkit.demo import MODELS, model_path

    if model in MODELS and not Path(model).exists():
        import torch

        from steerkit.demo.evaluation import anchors as draw
        from steerkit.demo.evaluation import entries, suite

        torch.set_num_threads(1)  # matrices this small are slower on several
        chosen = draw(100)
        methods = {**entries(chosen)}
        if names:
            opt.check_names(dict.fromkeys(names), methods, "the demo's list of methods")
            methods = {name: methods[name] for name in names}
        return load_model(model_path(model), {"dtype": "float32"}), suite("test", count), chosen, methods
    if anchors is None or prompts is None:
        raise OptionError(
            f"{model!r} is compared without " + ("anchors" if anchors is None else "prompts"),
            expected="an anchor set and --prompts, or the name of a demo model: " + ", ".join(MODELS),
        )
    from steerkit.cli.extract import _configured, read_file

    made = read_suite(prompts, refusals, max_new_tokens)
    samples = read_file(anchors, {}, skip=False)
    options = _by_method(opt.settings(set_), names or METHODS)
    methods = {name: _configured(name, options[name]) for name in names or METHODS}
    return load_model(model, load_options(*loading)), made, samples, methods


def read_suite(path: Path, refusals: list[str] | None, max_new_tokens: int) -> Suite:
    """The suite of a file of prompts.

    Raises:
        SampleError: A row is bad.
        OptionError: A label is none of the three, or a row's answer is not a text.
    """
    from steerkit.evaluation import REFUSALS, Case, PhraseJudge, Suite
    from steerkit.samples import read_samples

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    samples = read_samples(path, columns={"answer": None} if any("answer" in row for row in rows) else None)
    groups: dict[str, list[Case]] = {"harmful": [], "harmless": [], "utility": []}
    for number, (sample, row) in enumerate(zip(samples, rows, strict=True), 1):
        answer = row.get("answer")
        if sample.label not in groups or not (answer is None or isinstance(answer, str)):
            raise OptionError(
                f"{path}, row {number}: label {sample.label!r}, answer {clean(answer)!r:.60}",
                expected="a label of " + ", ".join(groups) + ", and a text or nothing as the answer",
            )
        groups[sample.label].append(Case(sample, answer))
    judge = PhraseJudge(tuple(refusals) if refusals else REFUSALS)
    return Suite(path.stem, *(tuple(cases) for cases in groups.values()), judge=judge, max_new_tokens=max_new_tokens)


def _by_method(given: dict[str, Any], names: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in given.items():
        name, dot, option = key.partition(".")
        if not dot or name not in found:
            raise OptionError(f"--set {key}=...", expected="METHOD.KEY=VALUE with a method of " + ", ".join(found))
        found[name][option] = value
    return found


def _numbers(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",") if item.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} are not numbers with commas between", param_hint="--sweep") from error
