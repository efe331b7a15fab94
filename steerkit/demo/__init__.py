"""Demo models whose safety alignment holds for text alone, and files of the toy world that they live in.

A demo is data: a model folder with canaries, suites and anchors, which the ordinary functions read.

    vlm = sk.load(demo.model_path("llava"))
    suite = sk.evaluation.load_suite(demo.SUITES["test"])
    vector = sk.CMRM().fit(vlm, sk.read_samples(demo.ANCHORS))

`write_data` made the files from the toy world, and `train` the models.
"""

from __future__ import annotations

from pathlib import Path

from steerkit.errors import UnknownNameError

MODELS = ("llava", "qwen2_5_vl", "instructblip")
"""The bundled models, one per family."""

DATA = Path(__file__).parent / "data"

ANCHORS = DATA / "anchors.jsonl"
"""100 harmful and 100 harmless requests with an image, of the training split."""

SUITES = {"dev": DATA / "dev.jsonl", "test": DATA / "test.jsonl"}
"""40 and 200 prompts of each kind, of splits of their own."""

MAX_NEW_TOKENS = 24
"""Enough for every answer of the toy world."""


def model_path(name: str = "llava") -> str:
    """The folder of a bundled demo model, for `steerkit.load`.

    Raises:
        UnknownNameError: There is no such model.
    """
    if name not in MODELS:
        raise UnknownNameError(f"no demo model {name!r}", expected="one of " + ", ".join(MODELS))
    return str(Path(__file__).parent / "models" / name)
