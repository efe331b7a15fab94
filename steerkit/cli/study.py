"""`steerkit study`: the five analyses of the CMRM paper, with tables, figures and a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit._text import one_line
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import say, table

if TYPE_CHECKING:
    from steerkit.evaluation import Estimate, Judge, Study, Suite


def study(
    model: str,
    *,
    suites: list[str],
    anchors: list[Path] | None = None,
    dev: list[str] | None = None,
    output: Path,
    baseline: list[str] | None = None,
    set_: list[str] | None = None,
    alphas: str = "0.5,1,1.5",
    judge_url: str | None = None,
    judge_model: str | None = None,
    count: int | None = None,
    max_new_tokens: int | None = None,
    workers: int = 1,
    ray: bool = False,
    loading: opt.Loading,
    batch_size: int = 16,
) -> Result:
    """Run the paper's five analyses, with tables, figures and a report.

    Safety, utility and over-refusal, strength and layers, transfer between anchor sets, hidden states: text only, with
    the image, steered at the dataset and at the sample level, beside a random direction. Strength and layers are chosen
    on dev and frozen before a test prompt is answered. The same command goes on with a study that was interrupted.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        suites (SUITE): What is tested: a file, demo/test, or a data set as NAME=FOLDER, NAME/PART=FOLDER or
            NAME/PART=FOLDER,IMAGES where its images are elsewhere; xstest=,IMAGES comes with steerkit, and its prompts
            stand beside your pictures.
        anchors: Anchors for all suites, or one file for each. Default: a fifth of each suite.
        dev (SUITE): Prompts to choose on, for all suites, or for each. Default: a fifth of each suite.
        output: Folder of the study.
        baseline (MODEL): Another checkpoint to compare with, such as a tuned one.
        set_ (KEY=VALUE): An option of CMRM, at both levels.
        alphas: The strengths to try, with commas.
        judge_url (URL): An OpenAI-compatible endpoint to judge requests, in place of the suites' judges, and to score
            answers that have a reference.
        judge_model (NAME): The model's name there; the key is read from OPENAI_API_KEY.
        count: Only the first prompts of each kind, as many.
        max_new_tokens: Length of the answers. Default: that of the file, or 64.
        workers: How many answers the judge is asked about at once.
        ray: Let the workers of a Ray cluster fit and answer.
        loading: How the model is loaded.
        batch_size: Prompts per batch.
    """
    from steerkit.cli.loading import import_libraries, load_model
    from steerkit.cli.progress import progress

    strengths, options = opt.numbers(alphas, "--alphas", float), opt.settings(set_)
    import_libraries()
    import steerkit as sk
    from steerkit.demo import bundled
    from steerkit.evaluation import LLAVA_BENCH, PhraseJudge

    methods = {f"{level} level": sk.CMRM(**{"level": level, **options}) for level in ("dataset", "sample")}
    tested, tried = ([_suite(each, count, max_new_tokens) for each in given or ()] for given in (suites, dev))
    samples = [opt.SampleFile().read(Path(bundled(str(each)))) for each in anchors or ()]
    own = {each.judge.identity: each.judge for each in (*tested, *tried)}
    judge = opt.endpoint(judge_url, judge_model)
    judges: list[Judge] = [] if judge is None else [judge]
    judges += list(own.values()) if len(own) == 1 else [PhraseJudge()] if judges else []
    if judge is not None and any(case.parser == "reference" for each in tested for case in each.utility):
        judges.append(replace(judge, format=LLAVA_BENCH))
    given = loading.given()
    vlm = load_model(model, given)
    try:
        with progress("Studying") as report, opt.cluster(ray, model, given) as cluster:
            found = sk.evaluation.study(
                vlm,
                tested,
                samples,
                tried,
                folder=output,
                methods=methods,
                alphas=strengths,
                baselines={each: lambda each=each: load_model(each, given) for each in baseline or ()},
                judges=judges,
                batch_size=batch_size,
                workers=workers,
                cluster=cluster,
                progress=lambda what, done, total: report(done, total),
            )
    except BaseException:
        if output.is_dir():
            say(f"What was done is kept in {output}: the same command goes on from there.")
        raise
    say(f"Wrote {output / 'report.html'}, and the tables and figures beside it")
    for note in found.notes:
        say(f"Note: {one_line(note)}")
    return Result(found, _tables(found))


def _suite(text: str, count: int | None, max_new_tokens: int | None) -> Suite:
    from steerkit.demo import bundled
    from steerkit.evaluation import DATASETS, load_suite

    name, equals, root = text.partition("=")
    data, _, part = name.partition("/")
    given: dict[str, Any] = {}
    if equals and data in DATASETS:
        folder, _, images = (root, "", "") if Path(root).exists() else root.partition(",")
        given = {"root": folder or None, "part": part or None, "images": images or None}
    suite = load_suite(data if given else bundled(text), max_new_tokens=max_new_tokens, **given)
    return suite if count is None else suite.first(count)


def _tables(found: Study) -> Iterator[Any]:
    """A table for each suite; the comparisons are in the files."""
    shown = {"unsafe": "unsafe %", "not_safe": "not safe %", "over_refusal": "over-refusal %", "utility": "utility %"}
    shown["relative"] = "of the references' score %"
    tested = [cell for cell in found.cells if cell.stage == "test"]
    for suite in dict.fromkeys(cell.suite for cell in tested):
        mine = [cell for cell in tested if cell.suite == suite]
        names = [name for name in shown if any(cell.figures[name].n for cell in mine)]
        rows = [
            (c.method or c.condition, f"{c.strength:g}", *(_shown(c.figures[name]) for name in names)) for c in mine
        ]
        heads = ("", "strength", *(shown[name] for name in names))
        yield table(heads, rows, title=f"{one_line(suite)}, frozen by {found.digest[:12]}")


def _shown(found: Estimate) -> str:
    if found.value != found.value:
        return "unjudged" if found.unjudged else "-"
    unjudged = f", {found.unjudged} unjudged" if found.unjudged else ""
    return f"{100 * found.value:.0f} ({100 * found.low:.0f}-{100 * found.high:.0f}){unjudged}"
