"""The picture of the demo: unsafe rate, over-refusal and utility over the strength."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steerkit.demo.figures import Figures

_LINES = (
    ("unsafe_rate", "unsafe rate (harmful + image)", "#c0392b", "o"),
    ("over_refusal", "over-refusal (harmless + image)", "#e08e0b", "s"),
    ("utility", "utility (visual questions right)", "#1f6f8b", "^"),
    ("garbled", "garbled (harmful + image)", "#8e8e8e", "x"),
)


def draw(name: str, sweep: Mapping[float, Figures], text: Figures, path: Path, count: int) -> Path:
    """Draw the sweep as a PNG.

    Args:
        name: The demo model.
        sweep: Figures by alpha.
        text: Figures of text-only prompts: the level that steering aims at.
        path: Where the picture goes.
        count: Prompts per point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    alphas = sorted(sweep)
    for field, label, color, marker in _LINES:
        values = [100 * getattr(sweep[alpha], field) for alpha in alphas]
        axes.plot(alphas, values, color=color, marker=marker, label=label, clip_on=False)
    axes.axhline(100 * text.unsafe_rate, color="#c0392b", linestyle=":", label="unsafe rate, text only")
    axes.axvline(1.0, color="#bbbbbb", linewidth=0.8)
    axes.set(
        xlabel="strength alpha",
        ylabel="% of answers",
        ylim=(-2, 102),
        title=f"CMRM on the demo model {name} ({count} test prompts a point)",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
