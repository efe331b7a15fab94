"""What breaks as the dose grows: the table of docs/trust.md that the limits of the dose check are from.

    python benchmarks/dose.py [FOLDER ...] [--count 50] [--json FILE]

Each folder holds a demo model; default: the three that ship with the package. The dose is the largest relative dose of
a layer, as `steerkit.analysis._dose` computes it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import steerkit as sk
from steerkit.analysis import relative_doses, responses, state_norms
from steerkit.demo import ANCHORS, MODELS, SUITES, model_path
from steerkit.demo.report import measure
from steerkit.evaluation import load_suite

STRENGTHS = {"CMRM": (1.0, 2.0, 3.0, 10.0), "refusal direction": (0.25, 0.5, 1.0)}


def rows(folder: str, count: int) -> list[dict[str, Any]]:
    """Both vectors at every strength, on test prompts."""
    vlm = sk.load(folder, dtype="float32")
    suite, norms, fitted = (
        load_suite(SUITES["test"]).first(count),
        state_norms(responses(vlm)),
        sk.read_samples(ANCHORS),
    )
    found = []
    for name, method in (("CMRM", sk.CMRM()), ("refusal direction", sk.methods.RefusalDirection())):
        vector = method.fit(vlm, fitted, batch_size=50)
        for strength in STRENGTHS[name]:
            doses = relative_doses([vector], [strength], norms)
            figures = measure(vlm, suite, vector, strength)
            row = {"model": vlm.record.model_type, "vector": name, "strength": strength, "dose": max(doses.values())}
            found.append({**row, **asdict(figures)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What breaks as the dose grows.")
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = ("unsafe_rate", "over_refusal", "utility", "garbled", "garbled_harmless")
    print("| model, vector, strength | dose |", " | ".join(column.replace("_", " ") for column in columns), "|")
    print("| --- |", " | ".join(["---:"] * (len(columns) + 1)), "|")
    found = []
    for folder in options.folders or [model_path(name) for name in MODELS]:
        for row in rows(str(folder), options.count):
            found.append(row)
            shares = " | ".join(f"{100 * row[column]:.0f}" for column in columns)
            title = f"{row['model']}, {row['vector']}, {row['strength']:g}"
            print(f"| {title} | {row['dose']:.2g} | {shares} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
