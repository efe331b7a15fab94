"""The main job: extract CMRM from an anchor set, steer, and show what became of safety and utility."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import steerkit
from steerkit.demo import ANCHORS, SUITES, model_path
from steerkit.demo.figures import BATCH, Figures, measure
from steerkit.errors import OptionError
from steerkit.evaluation import Suite, load_suite, random_like
from steerkit.methods.cmrm import CMRM
from steerkit.models import read_samples
from steerkit.vectors import Metric, SteeringVector

Progress = Callable[[str, int, int], None]
"""Called with (what is next, steps done, steps in all)."""

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Report:
    """What the demo found.

    Attributes:
        model: Name of the demo model.
        figures: By condition: `text`, `image`, `cmrm_dataset`, `cmrm_sample`, `random`.
        sweep: Dataset-level CMRM by alpha, on fewer prompts.
        pack: The vector that was extracted.
        picture: The plot, if one was drawn.
    """

    model: str
    figures: dict[str, Figures]
    sweep: dict[float, Figures]
    pack: Path
    picture: Path | None

    def as_json(self) -> dict[str, Any]:
        """Fractions by figure and condition, and the pack's path."""
        figures = {condition: asdict(found) for condition, found in self.figures.items()}
        table = {name: {condition: found[name] for condition, found in figures.items()} for name in figures["text"]}
        return {
            **table,
            "model": self.model,
            "pack": str(self.pack),
            "picture": None if self.picture is None else str(self.picture),
        }


def run(
    name: str, folder: Path, *, count: int, sweep_count: int, plot: bool, progress: Progress | None = None
) -> Report:
    """Measure a demo model on its test prompts: unsteered, steered, and under a random control.

    Args:
        name: The demo model.
        folder: Where pack and picture go.
        count: Prompts per cell of the table.
        sweep_count: Prompts per point of the plot.
        plot: Draw the plot; needs matplotlib.
        progress: Called before each step.

    Raises:
        OptionError: The plot is asked for and matplotlib is not installed; raised before anything is measured.
    """
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            "the picture needs matplotlib, which is not installed",
            expected="matplotlib",
            fix="pip install 'steerkit-vlm[plot]', or pass --no-plot",
        )
    alphas = ALPHAS if plot else ()
    total = 6 + len(alphas)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(what, done, total)
        done += 1

    step("loading the model")
    vlm = steerkit.load(model_path(name), dtype="float32")
    whole = load_suite(SUITES["test"])
    suite = whole.first(count)
    figures: dict[str, Figures] = {}
    step("text only")
    figures["text"] = measure(vlm, suite.without_images())
    step("with image")
    figures["image"] = measure(vlm, suite)
    step("CMRM, dataset level")
    dataset = CMRM().fit(vlm, read_samples(ANCHORS), batch_size=BATCH)
    figures["cmrm_dataset"] = measure(vlm, suite, dataset)
    step("CMRM, sample level")
    figures["cmrm_sample"] = measure(vlm, suite, CMRM(level="sample").fit(vlm))
    step("random direction")
    figures["random"] = measure(vlm, suite, random_like(dataset))
    pack = _save(dataset, name, figures, folder / f"cmrm-{name}.safetensors", suite)
    sweep: dict[float, Figures] = {}
    for alpha in alphas:
        step(f"alpha = {alpha:g}")
        sweep[alpha] = measure(vlm, whole.first(sweep_count), dataset, alpha)
    picture = None
    if plot:
        from steerkit.demo.plot import draw

        picture = draw(name, sweep, figures["text"], folder / f"cmrm-{name}.png", sweep_count)
    if progress is not None:
        progress("done", total, total)
    return Report(name, figures, sweep, pack, picture)


def _save(vector: SteeringVector, name: str, figures: dict[str, Figures], path: Path, suite: Suite) -> Path:
    dataset = f"{suite.name}, {len(suite.harmful)} prompts a cell"
    metrics = tuple(
        Metric(
            name=figure,
            value=getattr(figures[key], figure),
            condition=condition,
            judge=suite.judge.name,
            dataset=dataset,
        )
        for key, condition in (("image", "unsteered"), ("cmrm_dataset", "steered, strength 1"))
        for figure in ("unsafe_rate", "over_refusal", "utility", "garbled")
    )
    described = vector.with_metadata(
        metrics=metrics,
        license="Apache-2.0",
        description=f"CMRM, dataset level, for the demo model {name!r}: a toy; of no use for any other model.",
    )
    return described.save(path)
