"""`steerkit compare`: several methods on one model and one set of prompts, in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import console, print_json, say
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from steerkit.evaluation import Comparison, Point, Suite
    from steerkit.models import Sample
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
Refusals = Annotated[
    list[str] | None,
    typer.Option("--refusal", help="A phrase by which a refusal is told. Repeat for more. Default: common ones."),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Length of the answers. Default: 64.")]


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
    sweep: Annotated[
        str, typer.Option(help="Strengths of a second table, and of the picture in --output, with commas.")
    ] = "",
    count: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind, of a demo model. Default: 100.")
    ] = None,
    refusal: Refusals = None,
    max_new_tokens: MaxNewTokens = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for compare.json, compare.csv and compare.png.")
    ] = None,
    policy: opt.PolicyOption = "strict",
    batch_size: opt.BatchSize = 16,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    revision: opt.Revision = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Fit several methods on a model, let it answer prompts under each, and print one table.

    Unsafe rate, over-refusal, garbled answers, utility, fluency, cost per token relative to unsteered and cost of
    fitting, with intervals of 95 %. The name of a demo model in place of MODEL compares every built-in method on the
    toy world.
    """
    from steerkit.cli.loading import import_libraries

    strengths, allowed = _numbers(sweep), opt.policy(policy)
    own = {"ANCHORS": anchors, "--prompts": prompts, "--set": set_, "--refusal": refusal}
    own |= {"--max-new-tokens": max_new_tokens, "--dtype": dtype, "--device-map": device_map, "--revision": revision}
    check_arguments(model, own, count)
    if output is not None:
        for name in ("compare.json", "compare.csv", "compare.png"):
            opt.check_output(output / name, force=True)
    import_libraries()
    import steerkit as sk
    from steerkit.cli.progress import progress
    from steerkit.evaluation import plotting
    from steerkit.vectors import SteeringVector

    if output is not None and strengths:
        plotting()
    stems = [path.stem for path in vector or ()]
    packs = {path.stem: SteeringVector.load(path) for path in vector or ()}
    vlm, suite, chosen, methods = prepared(
        model, anchors, prompts, method, stems, set_, count, refusal, max_new_tokens, (dtype, device_map, revision)
    )
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
                policy=allowed,
                on_row=keep,
            )
    finally:  # a run that is stopped, or whose files can't be written, has still measured what it has
        for found in finished:
            _show(found, as_json=as_json)
    (found,) = finished
    if output is not None and found.sweep:
        found.draw(output / "compare.png")
    if failed := [row.name for row in found.rows if row.error]:
        say(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


def _show(found: Comparison, *, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
        return
    console().print(found.table())
    if found.sweep:
        console().print(_swept(found.sweep))


def prepared(
    model: str,
    anchors: Path | None,
    prompts: Path | None,
    names: list[str] | None,
    stems: list[str],
    set_: list[str] | None,
    count: int | None,
    refusals: list[str] | None,
    max_new_tokens: int | None,
    loading: tuple[str | None, str | None, str | None],
) -> tuple[VLM, Suite, list[Sample], dict[str, Any]]:
    """The model, its suite, the anchors and the methods, of a demo model or the user's own; `stems` names the packs.

    Raises:
        OptionError: Something is missing, or two of what is compared have one name.
    """
    from steerkit.cli.loading import load_model, load_options
    from steerkit.demo import MODELS, model_path

    if is_demo(model):
        import torch

        from steerkit.demo.evaluation import anchors as draw
        from steerkit.demo.evaluation import entries, suite

        torch.set_num_threads(1)  # matrices this small are slower on several
        chosen = draw(100)
        methods = {**entries(chosen)}
        refuse_repeated([*(names or methods), *stems])
        if names:
            opt.check_names(dict.fromkeys(names), methods, "the demo's list of methods")
            methods = {name: methods[name] for name in names}
        return load_model(model_path(model), {"dtype": "float32"}), suite("test", count or 100), chosen, methods
    if anchors is None or prompts is None:
        raise OptionError(
            f"{model!r} is compared without " + ("anchors" if anchors is None else "prompts"),
            expected="an anchor set and --prompts, or the name of a demo model: " + ", ".join(MODELS),
        )
    from steerkit.cli.extract import _configured, read_file

    refuse_repeated([*(names or METHODS), *stems])
    made = read_suite(prompts, refusals, max_new_tokens)
    samples = read_file(anchors, {}, skip=False)
    options = _by_method(opt.settings(set_), names or METHODS)
    methods = {name: _configured(name, options[name]) for name in names or METHODS}
    return load_model(model, load_options(*loading)), made, samples, methods


def is_demo(model: str) -> bool:
    """Whether this is the name of a demo model, and no folder."""
    from steerkit.demo import MODELS

    return model in MODELS and not Path(model).exists()


def check_arguments(model: str, own: Mapping[str, object], count: int | None) -> None:
    """Refuse what would be ignored: for a demo model what belongs to a model of one's own, and the other way round.

    Raises:
        OptionError: Something of it was given.
    """
    if is_demo(model):
        refuse_given(own, f"the demo model {model!r}", "leave it out, or name a folder or a repository as MODEL")
    else:
        refuse_given({"--count": count}, "a model of your own", "leave it out: every prompt of the file is used")


def refuse_given(given: Mapping[str, object], where: str, fix: str) -> None:
    """Refuse what was given and would be ignored; None, or an empty list, is what was not given.

    Raises:
        OptionError: Something was given.
    """
    names = [name for name, value in given.items() if value is not None and value != []]
    if names:
        raise OptionError(f"{', '.join(names)} with {where}", expected="only what has an effect there", fix=fix)


def refuse_repeated(names: Sequence[str]) -> None:
    """Refuse a name that occurs twice: one row would take the other's place.

    Raises:
        OptionError: One does.
    """
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise OptionError(
            "given twice: " + ", ".join(map(repr, repeated)),
            expected="a name of its own for each method and each pack",
            fix="rename the file, or choose the methods with --method",
        )


def read_suite(path: Path, refusals: list[str] | None, max_new_tokens: int | None) -> Suite:
    """The suite of a file of prompts; see `steerkit.evaluation.load_suite`."""
    from steerkit.evaluation import load_suite

    return load_suite(path, refusals=refusals or None, max_new_tokens=max_new_tokens)


def _swept(points: Sequence[Point]) -> Table:
    """The trade-off over strength: a section for each method, a row for each strength."""
    from rich.table import Table

    table = Table(title="by strength")
    for head in ("", "strength", "unsafe %", "over-refusal %", "utility %"):
        table.add_column(head, justify="right" if head else "left")
    before = None
    for point in points:
        if before not in (None, point.name):
            table.add_section()
        shares = (f"{100 * share:.0f}" for share in (point.unsafe, point.over_refusal, point.utility))
        table.add_row("" if point.name == before else point.name, f"{point.strength:g}", *shares)
        before = point.name
    return table


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
