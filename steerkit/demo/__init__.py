"""Demo models whose safety alignment holds for text alone, and files of the toy world that they live in.

A demo is data: a model folder with canaries, suites and anchors, which the ordinary functions read.

    vlm = sk.load(demo.model_path("llava"))
    suite = sk.evaluation.load_suite(demo.SUITES["test"])
    vector = sk.CMRM().fit(vlm, demo.anchors())

How models and files were made is in `demo_training`, in the repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steerkit.errors import UnknownNameError

if TYPE_CHECKING:
    from steerkit.models import Sample

MODELS = ("llava", "qwen2_5_vl", "instructblip")
"""The bundled models, one per family."""

DATA = Path(__file__).parent / "data"

ANCHORS = DATA / "anchors.jsonl"
"""100 harmful and 100 harmless requests with an image, of the training split."""

SUITES = {"dev": DATA / "dev.jsonl", "test": DATA / "test.jsonl"}
"""40 and 200 prompts of each kind, of splits of their own."""

METHODS = DATA / "methods.json"
"""Every built-in method as it suits the toy world, for `steerkit.evaluation.read_methods`."""


def model_path(name: str = "llava") -> str:
    """The folder of a bundled demo model, for `steerkit.load`.

    Raises:
        UnknownNameError: There is no such model.
    """
    if name not in MODELS:
        raise UnknownNameError(f"no demo model {name!r}", expected="one of " + ", ".join(MODELS))
    return str(Path(__file__).parent / "models" / name)


def bundled(name: str) -> str:
    """What comes with steerkit under a name, a model such as `llava` or a file such as `demo/anchors`; else the name.

    A folder or file of that name on this machine comes first.
    """
    files = {f"demo/{each.stem}": str(each) for each in DATA.iterdir()}
    models = {each: model_path(each) for each in MODELS}
    found = (files | models).get(Path(name).as_posix())
    return name if found is None or Path(name).exists() else found


def anchors(count: int = 100, labels: Sequence[str] = ("harmful", "harmless")) -> list[Sample]:
    """The first samples of each label in `ANCHORS`."""
    from steerkit.models import read_samples

    found = read_samples(ANCHORS)
    return [each for label in labels for each in [s for s in found if s.label == label][:count]]
