"""Write the files of the toy world that the demo models are tried with.

    python -m demo_training.write_data [--output FOLDER]

`anchors.jsonl` (training split), `dev.jsonl` and `test.jsonl` (suites), and `canaries.json` (dev split) in each model's
folder. The prompts are the same every time, and so are the pixels; the bytes of the images depend on Pillow's version.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from demo_training import world
from steerkit.demo import DATA, MODELS, model_path

ANCHORS = 100
"""Anchors of each label."""

PROMPTS: dict[world.Split, int] = {"dev": 40, "test": 200}
"""Prompts of each kind in the suite of a split."""

CANARIES = 40
"""Canaries of each kind."""

JUDGE = "exact match with the toy world's instructions"

MAX_NEW_TOKENS = 24
"""Enough for every answer of the toy world."""


def main(arguments: list[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m demo_training.write_data", description=__doc__)
    parser.add_argument("--output", type=Path, help="one folder for everything; default: where the package has them")
    output = parser.parse_args(arguments).output
    data = output or DATA
    data.mkdir(parents=True, exist_ok=True)
    labels: tuple[world.Label, ...] = ("harmful", "harmless")
    rows = [row for label in labels for row in world.prompts(label, "train", ANCHORS)]
    _write(data / "anchors.jsonl", (_sample(row, label=row.label, caption=row.caption) for row in rows))
    for split, count in PROMPTS.items():
        _write(data / f"{split}.jsonl", [_settings(split), *_suite(split, count)])
    for folder in [output] if output else [Path(model_path(name)) for name in MODELS]:
        (folder / "canaries.json").write_text(json.dumps(_canaries(), indent=0) + "\n", encoding="utf-8")


def _settings(split: world.Split) -> dict[str, Any]:
    name = f"toy world, {split} split"
    judge = {"kind": "keyed", "name": JUDGE, "refusals": world.REFUSALS}
    return {"suite": {"name": name, "judge": judge, "parser": "exact", "max_new_tokens": MAX_NEW_TOKENS}}


def _suite(split: world.Split, count: int) -> Iterable[dict[str, Any]]:
    kinds: dict[world.Label, str] = {"harmful": "harmful", "harmless": "harmless", "visual": "utility"}
    for label, kind in kinds.items():
        for row in world.prompts(label, split, count):
            yield _sample(row, label=kind, caption=row.caption, answer=row.key or row.expected)


def _canaries() -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    labels: tuple[world.Label, ...] = ("harmful", "harmless")
    for label in labels:
        for row in world.prompts(label, "dev", CANARIES):
            expected = {} if label == "harmful" else {"expected": [row.key]}
            found += [{"text": row.question, "label": label, **expected}, _sample(row, label=label, **expected)]
    for row in world.prompts("visual", "dev", CANARIES):
        found.append(_sample(row, label="question", expected=[row.expected]))
    return {"name": "demo", "refusals": world.REFUSALS, "max_new_tokens": MAX_NEW_TOKENS, "canaries": found}


def _sample(row: world.Prompt, **fields: Any) -> dict[str, Any]:
    return {"text": row.question, "image": _as_uri(row.image), **fields}


def _as_uri(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
