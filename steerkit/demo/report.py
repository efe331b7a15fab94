"""The main job: extract CMRM from an anchor set, steer, and show what became of safety and utility."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import steerkit as sk
from steerkit._internal.drawing import WIDTH, Curve, Frame, curves, png
from steerkit._internal.files import write_atomically
from steerkit.demo import SUITES, anchors, model_path
from steerkit.errors import OptionError
from steerkit.evaluation import evaluate, load_suite, random_like, rate

BATCH = 50
RECIPE: dict[str, Any] = {"spared": ("harmless", "visual"), "phase": "both", "steps": (1.0, 0.0)}
"""What the real model needs: see `docs/real-model.md`."""
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

_LINES = (
    ("unsafe_rate", "unsafe rate (harmful + image)"),
    ("over_refusal", "over-refusal (harmless)"),
    ("utility", "utility (questions right)"),
    ("garbled", "garbled (harmful + image)"),
)


@dataclass(frozen=True)
class Figures:
    """What one condition measured.

    Attributes:
        unsafe_rate: Harmful requests whose answer is not known to be safe: of the toys, those answered with the exact
            instructions; where phrases judge, those that are not refused.
        over_refusal: Harmless requests refused.
        utility: Visual questions answered with exactly the right words.
        garbled: Answers to harmful requests that neither comply nor refuse.
        garbled_harmless: Answers to harmless requests that neither comply nor refuse.
    """

    unsafe_rate: float
    over_refusal: float
    utility: float
    garbled: float
    garbled_harmless: float


@dataclass(frozen=True)
class Report:
    """What the demo found.

    Attributes:
        model: Name of the demo model.
        figures: By condition: `text`, `image`, `cmrm_dataset`, `cmrm_sample`, `random`.
        pack: The vector that was extracted.
        picture: The plot, if one was drawn.
    """

    model: str
    figures: dict[str, Figures]
    pack: Path
    picture: Path | None

    def as_json(self) -> dict[str, Any]:
        """Fractions by figure and condition, and the files."""
        found = {condition: asdict(figures) for condition, figures in self.figures.items()}
        table = {name: {condition: each[name] for condition, each in found.items()} for name in found["text"]}
        picture = None if self.picture is None else str(self.picture)
        return {**table, "model": self.model, "pack": str(self.pack), "picture": picture}


def measure(
    vlm: sk.VLM, suite: sk.evaluation.Suite, vector: sk.SteeringVector | None = None, strength: float = 1.0
) -> Figures:
    """Let a model answer a suite, steered or not."""
    found = evaluate(vlm, suite, vector, strength=strength, batch_size=BATCH, fluency=False, policy="off")
    garbled = (rate(each.verdict.garbled for each in found.of(kind)).value for kind in ("harmful", "harmless"))
    return Figures(found.not_safe.value, found.over_refusal.value, found.utility.value, *garbled)


def run(
    name: str,
    folder: Path,
    *,
    count: int,
    sweep_count: int,
    plot: bool,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    base: Path | None = None,
) -> Report:
    """Measure a demo model on its test prompts: unsteered, steered, and under a random control.

    Args:
        name: The demo model; `real` for the one in `base`.
        folder: Where pack and picture go.
        count: Prompts per cell of the table.
        sweep_count: Prompts per point of the plot.
        plot: Draw the plot.
        progress: Called before each step with (what is next, steps done, steps in all).
        base: A model with its `anchors.jsonl` and `test.jsonl`, as `real_model/build.py` of the repository writes it.

    Raises:
        OptionError: The real model is asked for without its folder, or a file of it is missing; raised before anything
            is measured.
    """
    alphas = ALPHAS if plot else ()
    total = 6 + len(alphas)
    progress("loading the model", 0, total)
    place = _real(base) if name == "real" or base is not None else None
    if place is None:
        vlm = sk.load(model_path(name), dtype="float32")
        whole, samples, options = load_suite(SUITES["test"]), anchors(), {}
    else:
        vlm = sk.load(str(place), dtype="bfloat16")
        whole, samples, options = load_suite(place / "test.jsonl"), sk.read_samples(place / "anchors.jsonl"), RECIPE
    suite = whole.first(count)
    figures: dict[str, Figures] = {}

    def measured(condition: str, prompts: sk.evaluation.Suite, fit: Callable[[], sk.SteeringVector | None]) -> Any:
        progress(condition, 1 + len(figures), total)
        vector = fit()
        figures[condition] = measure(vlm, prompts, vector)
        return vector

    measured("text", suite.without_images(), lambda: None)
    measured("image", suite, lambda: None)
    dataset = measured("cmrm_dataset", suite, lambda: sk.CMRM(**options).fit(vlm, samples, batch_size=BATCH))
    sample = sk.CMRM(level="sample", **options)
    measured("cmrm_sample", suite, lambda: sample.fit(vlm, samples if options else None, batch_size=BATCH))
    measured("random", suite, lambda: random_like(dataset))
    dataset = dataset.with_metadata(
        metrics=_metrics(figures, suite),
        license="Apache-2.0",
        description=f"CMRM, dataset level, for the demo model {name!r}; of no use for any other model.",
    )
    pack, picture = dataset.save(folder / f"cmrm-{name}.safetensors"), None
    sweep: dict[float, Figures] = {}
    for alpha in alphas:
        progress(f"alpha = {alpha:g}", 6 + len(sweep), total)
        sweep[alpha] = measure(vlm, whole.first(sweep_count), dataset, alpha)
    if plot:
        title = f"CMRM on the demo model {name} ({sweep_count} test prompts a point)"
        picture = draw(title, sweep, figures["text"], folder / f"cmrm-{name}.png")
    progress("done", total, total)
    return Report(name, figures, pack, picture)


def _real(base: Path | None) -> Path:
    """The folder of the real model, whole.

    Raises:
        OptionError: It is not given, or a file is missing.
    """
    missing = [name for name in ("config.json", "anchors.jsonl", "test.jsonl") if base and not (base / name).is_file()]
    if base is None or missing:
        raise OptionError(
            "--base is missing" if base is None else f"{str(base)!r:.300} has no {missing[0]}",
            expected="the folder of the real model, with its prompts",
            fix="make it from the folder of Qwen2.5-Coder-0.5B-Instruct, in a clone of the repository: "
            "python -m real_model.build --base BASE --parts real_model/stage1.safetensors --out FOLDER",
        )
    return base


def _metrics(figures: Mapping[str, Figures], suite: sk.evaluation.Suite) -> list[dict[str, Any]]:
    measured = {"judge": suite.judge.name, "dataset": f"{suite.name}, {len(suite.harmful)} prompts a cell"}
    return [
        {"name": name, "value": getattr(figures[key], name), "condition": condition, **measured}
        for key, condition in (("image", "unsteered"), ("cmrm_dataset", "steered, strength 1"))
        for name, _ in _LINES
    ]


def draw(title: str, sweep: Mapping[float, Figures], text: Figures, path: Path) -> Path:
    """Draw unsafe rate, over-refusal and utility over the strength as a PNG.

    Args:
        title: What stands above it.
        sweep: Figures by alpha.
        text: Figures of text-only prompts: the level that steering aims at.
        path: Where the picture goes.
    """
    lines = [
        Curve(label, tuple((alpha, getattr(found, field)) for alpha, found in sweep.items()), percent=True)
        for field, label in _LINES
    ]
    aim = tuple((alpha, text.unsafe_rate) for alpha in sweep)
    lines.append(Curve("unsafe rate, text only", aim, percent=True))
    shapes = curves(Frame(60, 40, WIDTH - 190, 350), title, "strength alpha", lines, least=(0.0, 1.0))
    write_atomically(path, png([shapes], 400))
    return path
