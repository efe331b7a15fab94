"""Every built-in method on demo models: the tables and pictures of docs/methods.md.

    python benchmarks/methods.py [NAME ...] [--count 100] [--sweep 0.25,0.5,1.5,2] [--output FOLDER]

Each name is a demo model; default: all three. As `steerkit compare`, printed as Markdown: test prompts, 100
anchors of each label, the methods as `steerkit/demo/data/methods.json` configures them, strength 1. OUTPUT gets
compare-NAME.json and compare-NAME.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import steerkit as sk
from steerkit.demo import METHODS, MODELS, SUITES, anchors, model_path
from steerkit.evaluation import Comparison, Estimate, Row, load_suite, read_methods


def markdown(found: Comparison) -> str:
    """The table, with intervals of 95 % in brackets, and what failed."""
    heads = ("unsafe", "over-refusal", "garbled", "utility", "fluency", "cost per token, x", "fit, s")
    lines = ["| " + " | ".join(("", *heads)) + " |", "| --- |" + " ---: |" * len(heads)]
    for row in found.rows:
        lines.append("| " + " | ".join((row.name, *cells(row))) + " |")
    lines.append(f"\nUnsteered, a token takes {1000 * found.rows[0].seconds_per_token.value:.2f} ms.")
    lines += [f"\n{row.name} failed: {row.error}" for row in found.rows if row.error]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """The figures of a row."""

    def shown(each: Estimate, factor: float, digits: int) -> str:
        value, low, high = (f"{factor * figure:.{digits}f}" for figure in (each.value, each.low, each.high))
        return f"{value} ({low}-{high})"

    shares = [shown(each, 100, 0) for each in (row.unsafe, row.over_refusal, row.garbled, row.utility)]
    fit = "" if row.fit_seconds is None else f"{row.fit_seconds:.1f}"
    return [*shares, shown(row.fluency, 1, 2), shown(row.relative_cost, 1, 2), fit]


def main() -> None:
    parser = argparse.ArgumentParser(description="Every built-in method on demo models.")
    parser.add_argument("names", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sweep", default="0.25,0.5,1.5,2")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=1)  # matrices this small are slower on several
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    strengths = [float(each) for each in options.sweep.split(",") if each]
    for name in options.names or MODELS:
        vlm = sk.load(model_path(name), dtype="float32")
        fitted = anchors(100)

        def said(what: str, done: int, total: int) -> None:
            print(f"{done}/{total} {what}", file=sys.stderr, flush=True)

        found = sk.compare(
            vlm,
            {row: each.entry(fitted) for row, each in read_methods(METHODS).items()},
            load_suite(SUITES["test"]).first(options.count),
            fitted,
            sweep=strengths,
            batch_size=50,
            progress=said,
        )
        print(f"\n**{name}**\n\n{markdown(found)}", flush=True)
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            document = json.dumps(found.as_json(), indent=1, allow_nan=False)
            (options.output / f"compare-{name}.json").write_text(document + "\n", encoding="utf-8")
            if found.sweep:
                found.draw(options.output / f"compare-{name}.png")


if __name__ == "__main__":
    main()
