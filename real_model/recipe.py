"""The recipe, by steerkit alone: fit on the anchors, write down what was chosen, and only then read test."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import steerkit as sk
from steerkit.evaluation import Budget, Condition, calibrate_gate, generate, load_suite

OPTIONS: dict[str, Any] = {"spared": ("harmless", "visual"), "phase": "both", "steps": (1.0, 0.0)}
"""Spare what is like harmless requests and visual questions; steer the prompt's last token and the answer's first."""
LEVELS = ("dataset",)
STRENGTHS = (0.5, 1.0)
BUDGETS = (Budget("over_refusal", 0.25), Budget("utility_loss", 0.05))
TOKENS = 12


def suite(model: Path, part: str) -> sk.evaluation.Suite:
    """The prompts of a part, as `build` wrote them."""
    return replace(load_suite(model / f"{part}.jsonl"), max_new_tokens=TOKENS)


def fitted(vlm: sk.VLM, model: Path, out: Path, batch_size: int) -> list[sk.SteeringVector]:
    """A vector of every level, from the anchors."""
    anchors = sk.read_samples(model / "anchors.jsonl")
    levels: Any = LEVELS
    vectors: list[sk.SteeringVector] = []
    for level in levels:
        path = out / f"fitted-{level}.safetensors"
        if not path.exists():
            method, checkpoint = sk.CMRM(level=level, **OPTIONS), out / f"fitting-{level}"
            method.fit(vlm, anchors, batch_size=batch_size, engine="hooks", checkpoint=checkpoint).save(path)
        vectors.append(sk.load_vector(path))
    return vectors


def choose(vlm: sk.VLM, model: Path, out: Path, batch_size: int, *, search: bool) -> sk.SteeringVector:
    """The first level with its gate as fitted; or what a search on dev finds. Written down either way."""
    vectors = fitted(vlm, model, out, batch_size)
    chosen, noted = vectors[0], {"chosen_by": "as fitted, strength 1"}
    if search:
        dev = suite(model, "dev")
        options: Any = {"strengths": STRENGTHS, "folder": out / "dev", "batch_size": batch_size}
        found = calibrate_gate(vlm, vectors, dev, BUDGETS, progress=print, **options)
        chosen, record = found.vector, found.vector.metadata.strength
        noted = {"chosen_by": record.chosen_by, "dev": dev.digest, "curve": [p.model_dump() for p in record.curve]}
    path = chosen.save(out / "chosen.safetensors")
    noted |= {
        "vector": chosen.digest(),
        "method": chosen.metadata.method.config,
        "strength": chosen.metadata.strength.recommended,
        "gates": [gate.model_dump(mode="json") for gate in chosen.interventions[0].gates],
        "test": suite(model, "test").digest,
    }
    (out / "chosen.json").write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    return sk.load_vector(path)


def report(
    vlm: sk.VLM, model: Path, vector: sk.SteeringVector, out: Path, batch_size: int, count: int | None = None
) -> None:
    """Answer test as text, with its pictures, and steered as chosen; what is there already is not asked again."""
    test = suite(model, "test")
    if count is not None:
        test = test.first(count)
    text = replace(test.without_images(), utility=())
    options: Any = {"batch_size": batch_size, "fluency": False}
    strength = vector.metadata.strength.recommended
    both = [Condition("unsteered"), Condition("steered", vector, strength)]  # in one call, they share their prompts
    generate(vlm, test, both, path=out / "test" / "answers.jsonl", batch_size=batch_size)
    table = {
        "steered as chosen": sk.evaluate(vlm, test, vector, strength=strength, folder=out / "test", **options),
        "unsteered": sk.evaluate(vlm, test, folder=out / "test", **options),
        "text": sk.evaluate(vlm, text, folder=out / "text", **options),
    }
    for name, found in table.items():
        print(name, found.refused, found.over_refusal, found.utility, flush=True)


def main() -> None:
    """Choose, unless a choice is there already, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder that build.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of packs and answers; gone on with")
    parser.add_argument("--search", action="store_true", help="search the gate and the strength on dev")
    parser.add_argument("--count", type=int, help="the first prompts of each kind of test; default: all")
    parser.add_argument("--batch-size", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    vlm = sk.load(str(arguments.model), dtype="bfloat16")
    chosen, size = arguments.out / "chosen.safetensors", arguments.batch_size
    if chosen.exists():
        vector = sk.load_vector(chosen)
    else:
        vector = choose(vlm, arguments.model, arguments.out, size, search=arguments.search)
    report(vlm, arguments.model, vector, arguments.out, size, arguments.count)


if __name__ == "__main__":
    main()
