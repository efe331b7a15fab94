"""`steerkit generate`: answers without and with steering vectors, side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli import options as opt
from steerkit.cli.console import clean, console, print_json
from steerkit.errors import OptionError

if TYPE_CHECKING:
    from steerkit.engines.receipt import Receipt
    from steerkit.models import Sample
    from steerkit.policy import Policy
    from steerkit.vectors import SteeringVector
    from steerkit.vlm import VLM


def generate(
    model: opt.Model,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt.", show_default=False)] = None,
    *,
    image: Annotated[list[Path] | None, typer.Option(help="An image of the prompt. Repeat for more.")] = None,
    samples: Annotated[Path | None, typer.Option(help="Prompts from a .jsonl or .csv file instead.")] = None,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF", help="A pack to steer with, as for `pull`: a file, a name, hf://... Repeat for more."
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(help="Strength of all vectors, or of each in order. Default: what each pack recommends."),
    ] = None,
    policy: opt.PolicyOption = "strict",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 128,
    batch_size: opt.BatchSize = 8,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    revision: opt.Revision = None,
    columns: opt.Columns = None,
    skip_bad_rows: opt.SkipBadRows = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Answer prompts without and with steering vectors.

    Answers are greedy and are shown side by side, with a receipt of what the steering changed.
    """
    if (prompt is None) == (samples is None):
        raise typer.BadParameter("give either a PROMPT or --samples", param_hint="PROMPT")
    if samples is not None and image:
        raise typer.BadParameter("the sample file names its own images", param_hint="--image")
    from steerkit.cli.loading import check_without_weights, import_libraries, load_model, load_options

    asked = _asked(prompt, image or [], samples, opt.columns(columns), skip=skip_bad_rows)
    import_libraries()
    from steerkit.steering import check_match

    allowed = opt.policy(policy)
    vectors = _vectors(vector or [])
    doses = _doses(vectors, strength or [])
    loading = load_options(dtype, device_map, revision)
    check_without_weights(model, loading, lambda skeleton: [check_match(each, skeleton, allowed) for each in vectors])
    vlm = load_model(model, loading)
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "do_sample": False}
    plain = _answer(vlm, asked, "Generating", options)
    steered, receipt = _steer(vlm, asked, vectors, doses, allowed, options)
    used = [
        {
            "vector": ref,
            "source": each.source,
            "method": each.metadata.method.name,
            "strength": dose,
            "sha256": each.digest(),
        }
        for ref, each, dose in zip(vector or [], vectors, doses, strict=True)
    ]
    if as_json:
        answers = [
            {
                "prompt": each.text if isinstance(each.text, str) else [list(turn) for turn in each.turns],
                "images": [str(path) for path in each.images],
                "unsteered": before,
                "steered": after,
            }
            for each, before, after in zip(asked, plain, steered or [None] * len(asked), strict=True)
        ]
        print_json({"model": model, "vectors": used, "answers": answers, "receipt": _receipt(receipt)})
    else:
        _show(asked, plain, steered, used, receipt)


def _asked(
    prompt: str | None, images: list[Path], samples: Path | None, columns: dict[str, str | None], *, skip: bool
) -> list[Sample]:
    from steerkit.cli.extract import read_file
    from steerkit.errors import SampleError
    from steerkit.models import Sample, open_image

    if samples is None:
        for path in images:
            open_image(path)
        return [Sample(prompt or "", images=tuple(images))]
    found = read_file(samples, columns, skip=skip)
    if not found:
        raise SampleError(f"{str(samples)!r} holds no samples", expected="at least one")
    return found


def _vectors(refs: list[str]) -> list[SteeringVector]:
    from steerkit_vectors_hub.load import load_vector

    return [load_vector(ref) for ref in refs]


def _doses(vectors: list[SteeringVector], given: list[float]) -> list[float]:
    if given and len(given) not in (1, len(vectors)):
        raise OptionError(
            f"{len(given)} strengths are given for {len(vectors)} vectors",
            expected="no --strength, one, or one for each --vector",
        )
    if bad := [dose for dose in given if not math.isfinite(dose)]:
        raise OptionError(f"--strength is {bad[0]}", expected="a finite number")
    if given and not vectors:
        raise OptionError("--strength is given without a vector", expected="--vector REF")
    if not given:
        return [each.metadata.strength.recommended for each in vectors]
    return given * len(vectors) if len(given) == 1 else given


def _answer(vlm: VLM, asked: list[Sample], label: str, options: dict[str, Any]) -> list[str]:
    from steerkit.cli.progress import progress
    from steerkit.cli.tokens import TokenProgress

    with progress(label, total=len(asked)) as report:
        tokens = TokenProgress(report, len(asked), options["max_new_tokens"])
        return vlm.generate(asked, progress=tokens.batch_done, stopping_criteria=tokens.criteria, **options)


def _steer(
    vlm: VLM,
    asked: list[Sample],
    vectors: list[SteeringVector],
    doses: list[float],
    policy: Policy,
    options: dict[str, Any],
) -> tuple[list[str] | None, Receipt | None]:
    if not vectors:
        return None, None
    from steerkit.steering import steer

    with steer(vlm, vectors, strength=doses, policy=policy) as receipt:
        answers = _answer(vlm, asked, "Generating, steered", options)
    return answers, receipt


def _receipt(receipt: Receipt | None) -> dict[str, Any] | None:
    if receipt is None:
        return None
    return {
        "layers": receipt.layers,
        "prompt_tokens": receipt.prompt_tokens,
        "generated_tokens": receipt.generated_tokens,
        "checks": [check.as_json() for check in receipt.checks],
        "sites": [
            {
                "layer": layer,
                "site": site,
                "prompt_tokens": count.prompt_tokens,
                "generated_tokens": count.generated_tokens,
                "relative_change": change if math.isfinite(change := count.relative_change) else None,
            }
            for (layer, site), count in sorted(receipt.sites.items())
        ],
    }


def _show(
    asked: list[Sample],
    plain: list[str],
    steered: list[str] | None,
    used: list[dict[str, Any]],
    receipt: Receipt | None,
) -> None:
    from rich.table import Table

    out = console()
    for index, sample in enumerate(asked):
        title = clean(sample.turns[-1][1]) + "".join(f"  [{Path(str(path)).name}]" for path in sample.images)
        table = Table(title=clean(title), title_justify="left", expand=True, show_lines=True)
        table.add_column("unsteered", ratio=1)
        cells = [clean(plain[index])]
        if steered is not None:
            table.add_column(clean(" + ".join(f"{_short(x['vector'])} x {x['strength']:g}" for x in used)), ratio=1)
            cells.append(clean(steered[index]))
        table.add_row(*cells)
        out.print(table)
    if receipt is not None:
        out.print(str(receipt), soft_wrap=True)


def _short(ref: str) -> str:
    """A reference in the head of a column: the last part of its path, without the digest."""
    return ref.partition("#sha256=")[0].rstrip("/").rpartition("/")[2]
