"""Every form of CMRM on demo models: the tables of docs/demo-models.md.

    python benchmarks/demo_models.py FOLDER [FOLDER ...] [--split test|dev] [--count 200] [--core] [--json FILE]

Each folder holds one trained model (`python -m demo_training.train --family llava --seed 0 --out FOLDER`); without
folders, the three that ship with the package. Several folders of one family are its training seeds: the table then
gives the mean and the range.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import steerkit as sk
from demo_training import world
from steerkit.demo import MODELS, SUITES, anchors, model_path
from steerkit.demo.report import Figures, measure
from steerkit.evaluation import load_suite, random_like

COLUMNS = ("unsafe_rate", "over_refusal", "utility", "garbled", "garbled_harmless")
ANCHORS = 100


def conditions(vlm: sk.VLM, *, core: bool) -> Iterator[tuple[str, sk.SteeringVector | None, float, bool]]:
    """`(name, vector, strength, with image)` of every row of the table, or of the five that matter most."""
    mixed = anchors(ANCHORS)
    harmful = anchors(ANCHORS, ("harmful",))
    visual = [*mixed, *world.samples(world.prompts("visual", "train", ANCHORS))]
    depth = vlm.architecture.layer_count
    yield "text only", None, 1.0, False
    yield "image, unsteered", None, 1.0, True
    dataset = sk.CMRM().fit(vlm, mixed, batch_size=50)
    yield "dataset (default)", dataset, 1.0, True
    yield "sample (default)", sk.CMRM(level="sample").fit(vlm), 1.0, True
    yield "random direction, same norms", random_like(dataset), 1.0, True
    if core:
        return
    for counterpart in ("original", "blank", "noise"):
        name = f"counterpart {counterpart}"
        yield f"dataset, {name}", sk.CMRM(counterpart=counterpart).fit(vlm, mixed, batch_size=50), 1.0, True
        yield f"sample, {name}", sk.CMRM(level="sample", counterpart=counterpart).fit(vlm), 1.0, True
    yield "dataset, harmful anchors only", sk.CMRM().fit(vlm, harmful, batch_size=50), 1.0, True
    yield "dataset, anchors with visual questions", sk.CMRM().fit(vlm, visual, batch_size=50), 1.0, True
    literal = sk.CMRM(form="literal").fit(vlm, mixed, batch_size=50)
    yield "dataset, literal", literal, 1.0, True
    yield "dataset, literal, alpha 1 / layers", literal, 1 / depth, True
    yield "dataset, literal, harmful anchors", sk.CMRM(form="literal").fit(vlm, harmful, batch_size=50), 1.0, True
    yield "sample, literal", sk.CMRM(level="sample", form="literal").fit(vlm), 1.0, True
    yield "dataset, every step", sk.CMRM(phase="both").fit(vlm, mixed, batch_size=50), 1.0, True
    yield "dataset, PCA", sk.CMRM(aggregate="pca").fit(vlm, mixed, batch_size=50), 1.0, True
    yield "dataset, PCA, centred", sk.CMRM(aggregate="pca", center=True).fit(vlm, mixed, batch_size=50), 1.0, True
    for alpha in (0.25, 0.5, 0.75, 1.25, 1.5, 2.0):
        yield f"dataset, alpha {alpha:g}", dataset, alpha, True


def evaluate(folder: str, split: str, count: int, core: bool, console: Console) -> tuple[str, dict[str, Figures]]:
    """All conditions on one model."""
    vlm = sk.load(folder, dtype="float32")
    suite = load_suite(SUITES[split]).first(count)
    found: dict[str, Figures] = {}
    for name, vector, strength, images in conditions(vlm, core=core):
        found[name] = measure(vlm, suite if images else suite.without_images(), vector, strength)
        console.print(f"{folder} {name}: " + ", ".join(f"{c} {getattr(found[name], c):.3f}" for c in COLUMNS))
    return vlm.record.model_type, found


def cell(values: list[float]) -> str:
    """Mean in percent, and the range where there are several."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f}-{100 * max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Every form of CMRM on demo models.")
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--core", action="store_true", help="text, image, both levels of CMRM, and the control only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress, console = Console(stderr=True), Console(width=150)
    families: dict[str, list[dict[str, Figures]]] = defaultdict(list)
    for folder in options.folders or [model_path(name) for name in MODELS]:
        family, found = evaluate(folder, options.split, options.count, options.core, progress)
        families[family].append(found)
    for family, models in families.items():
        table = Table(
            title=f"{family}: {len(models)} model(s), {options.split} split, {options.count} prompts a cell, %"
        )
        table.add_column("condition")
        for column in COLUMNS:
            table.add_column(column.replace("_", " "), justify="right")
        for name in models[0]:
            table.add_row(name, *(cell([getattr(found[name], column) for found in models]) for column in COLUMNS))
        console.print(table)
    if options.json:
        document = {
            family: [{name: asdict(figures) for name, figures in found.items()} for found in models]
            for family, models in families.items()
        }
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
