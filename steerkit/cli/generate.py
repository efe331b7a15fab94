"""`steerkit generate`: answers without and with steering vectors, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.cli.command import Result
from steerkit.cli.console import table
from steerkit.errors import OptionError
from steerkit.policy import Policy


def generate(
    model: str,
    prompt: str | None = None,
    *,
    image: list[str] | None = None,
    samples: Path | None = None,
    vector: list[str] | None = None,
    strength: list[float] | None = None,
    policy: Policy = "strict",
    max_new_tokens: int = 128,
    rows: opt.SampleFile,
    loading: opt.Loading,
    batch_size: int = 8,
) -> Result:
    """Answer prompts without and with steering vectors.

    Answers are greedy and are shown side by side, with a receipt of what the steering changed.

    Args:
        model: Repository id or folder of the model, or the name of a demo model.
        prompt (PROMPT): The prompt.
        image: An image of the prompt: a path, or an address.
        samples: Prompts from a .jsonl, .json, .csv, .tsv or .parquet file instead.
        vector (REF): A pack to steer with, as for `pull`: a file, a name, hf://...
        strength: Strength of all vectors, or of each in order. Default: what each pack recommends.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        max_new_tokens: Tokens to generate at most.
        rows: How the sample file is read.
        loading: How the model is loaded.
        batch_size: Samples per batch.
    """
    if (prompt is None) == (samples is None):
        raise typer.BadParameter("give either a PROMPT or --samples", param_hint="PROMPT")
    if samples is not None and image:
        raise typer.BadParameter("the sample file names its own images", param_hint="--image")
    from steerkit.cli.loading import check_without_weights, import_libraries, load_model

    asked = rows.read(samples) if samples is not None else [_sample(prompt or "", image or [], rows.download)]
    given = loading.given()
    import_libraries()
    from steerkit.steering import check_match

    refs = vector or []
    if strength and not refs:
        raise OptionError("--strength is given without a vector", expected="--vector REF")
    opt.finite(strength or [], "--strength")
    vectors = [sk.load_vector(ref) for ref in refs]
    doses = opt.strengths(strength, vectors)
    check_without_weights(model, given, lambda skeleton: [check_match(each, skeleton, policy) for each in vectors])
    vlm = load_model(model, given)
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    plain = _answer(vlm, asked, "Generating", options)
    steered, receipt = [None] * len(asked), None
    if vectors:
        with sk.steer(vlm, vectors, strength=doses, policy=policy) as receipt:
            steered = _answer(vlm, asked, "Generating, steered", options)
    document = {
        "model": model,
        "vectors": [
            {"vector": ref, "source": each.source, "method": each.metadata.method.name, "strength": dose}
            | {"sha256": each.digest()}
            for ref, each, dose in zip(refs, vectors, doses, strict=True)
        ],
        "answers": [
            {
                "prompt": each.text if isinstance(each.text, str) else each.turns,
                "images": [_named(image) for image in each.images],
                "unsteered": before,
                "steered": after,
            }
            for each, before, after in zip(asked, plain, steered, strict=True)
        ],
        "receipt": None if receipt is None else _receipt(receipt),
    }
    return Result(document, _side_by_side(asked, document, receipt))


def _sample(prompt: str, images: list[str], download: bool) -> sk.Sample:
    models = sk.models
    given = tuple(models.download_image(each) if download and models.web_address(each) else each for each in images)
    for image in given:
        models.open_image(image)
    return sk.Sample(prompt, images=given)


def _named(image: Any) -> str:
    """A path or an address as it was given, of anything else a few words."""
    plain = isinstance(image, Path) or (isinstance(image, str) and not image.lower().startswith("data:"))
    return str(image) if plain else f"an image {sk.models.image_name(image)}"


def _answer(vlm: sk.VLM, asked: list[sk.Sample], label: str, options: dict[str, Any]) -> list[str]:
    from steerkit.cli.progress import TokenProgress, progress

    with progress(label, total=len(asked)) as report:
        tokens = TokenProgress(report, len(asked), options["max_new_tokens"])
        return vlm.generate(asked, progress=tokens.batch_done, streamer=tokens, **options)


def _receipt(receipt: sk.Receipt) -> dict[str, Any]:
    sites = []
    for (layer, site), count in sorted(receipt.sites.items()):
        change = count.relative_change if math.isfinite(count.relative_change) else None
        tokens = {name: getattr(count, name) for name in ("prompt_tokens", "generated_tokens")}
        sites.append({"layer": layer, "site": site, **tokens, "relative_change": change})
    whole = {name: getattr(receipt, name) for name in ("layers", "prompt_tokens", "generated_tokens", "checks")}
    return {**whole, "sites": sites}


def _side_by_side(asked: list[sk.Sample], document: dict[str, Any], receipt: sk.Receipt | None) -> Iterator[Any]:
    steering = " + ".join(f"{_short(each['vector'])} x {each['strength']:g}" for each in document["vectors"])
    heads = ["unsteered", steering] if steering else ["unsteered"]
    for sample, answer in zip(asked, document["answers"], strict=True):
        title = sample.turns[-1][1] + "".join(f"  [{Path(each).name}]" for each in answer["images"])
        cells = [answer["unsteered"], answer["steered"]][: len(heads)]
        yield table(heads, [cells], title=title, title_justify="left", expand=True)
    if receipt is not None:
        yield str(receipt)


def _short(ref: str) -> str:
    """A reference in the head of a column: the last part of its path, without the digest."""
    return ref.partition("#sha256=")[0].rstrip("/").rpartition("/")[2]
