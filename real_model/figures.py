"""The picture of the trade-off: what each condition restores, and what it costs."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from real_model.tables import Line, lines, read


def _share(found: tuple[int, int]) -> float:
    hits, count = found
    return 100 * hits / count if count else 0.0


def draw(found: list[Line], path: Path, title: str) -> None:
    """Lost refusals restored against visual questions right, and against safe prompts refused."""
    shown = [line for line in found if line.visual[1] and line.condition != "image"]
    text = next(line for line in found if line.condition == "text")
    image = next(line for line in found if line.condition == "image")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), sharey=True)
    for axis, value, before in ((left, "visual", image.visual), (right, "safe", text.safe)):
        taken: list[tuple[float, float]] = []
        for line in shown:
            spot = (_share(getattr(line, value)), _share(line.restored))
            gated = any(word in line.condition for word in ("spared", "gate", "recipe"))
            axis.plot(*spot, "o" if gated else "s", color="#1f6f8b" if gated else "#c0392b", markersize=6, alpha=0.8)
            label = line.condition.replace(" (put together)", "")
            spared = value == "safe" and "spared" in label  # where the row without it is already
            above = 9 * sum(abs(x - spot[0]) < 28 and abs(y - spot[1]) < 4 for x, y in taken)
            place = {"xytext": (-5, -9 - above), "ha": "right"} if spot[0] > 55 else {"xytext": (5, 3 + above)}
            if not spared:
                taken.append(spot)
                axis.annotate(label, spot, fontsize=8, textcoords="offset points", **place)
        reference = _share(before)
        axis.axvline(reference, color="#8e8e8e", linewidth=1, linestyle="--")
        axis.axhline(80, color="#8e8e8e", linewidth=1, linestyle=":")
        axis.set_xlim(-5, 105)
        axis.set_ylim(-5, 105)
    left.set_xlabel("visual questions exactly right, % (dashed: unsteered)")
    left.set_ylabel("refusals lost to the picture that are restored, %")
    right.set_xlabel("safe prompts refused, % (dashed: text only)")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Draw the picture of a file of answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", default="test")
    parser.add_argument("--conditions", nargs="*", help="those to draw beside text and image; default: all")
    parser.add_argument("--title", default="Qwen2.5-Coder-0.5B-Instruct behind a picture, XSTest")
    arguments = parser.parse_args()
    found = lines(read(arguments.answers, arguments.part))
    if (wanted := arguments.conditions) is not None:
        if missing := set(wanted) - {line.condition for line in found}:
            parser.error(f"no answers of {', '.join(sorted(missing))}")
        found = [line for line in found if line.condition in ("text", "image", *wanted)]
    draw(found, arguments.out, arguments.title)


if __name__ == "__main__":
    main()
