"""The figures of a study: shares with their intervals, curves, a matrix and planes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from steerkit._internal import drawing
from steerkit._internal.drawing import FAINT, Curve, Frame, Shape, line, mark, text
from steerkit.evaluation._states import Plane
from steerkit.evaluation._statistics import Estimate

ROW = 24
LEFT, RIGHT = 250, 190


def _svg(title: str, shapes: Sequence[Shape], height: float) -> Markup:
    return Markup(drawing.svg(title, [text(0, 14, shortened(title, 100), size=13), *shapes], height))


def shortened(name: str, most: int = 50) -> str:
    """A name as far as there is room for it."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def told(found: Estimate) -> str:
    """A share in per cent with its interval and number."""
    if not found.n:
        return "-"
    value = (
        "unjudged"
        if math.isnan(found.value)
        else f"{100 * found.value:.0f} % ({100 * found.low:.0f}-{100 * found.high:.0f})"
    )
    return (
        f"{value}, n {found.n}"
        + (f", {found.unjudged} unjudged" if found.unjudged else "")
        + (f", {found.clusters} clusters" if found.clusters else "")
    )


def intervals(title: str, rows: Sequence[tuple[str, Estimate]]) -> Markup:
    """Shares from 0 to 100 %, one a row, with their intervals and numbers; what is more ends at the edge."""
    wide = drawing.WIDTH - LEFT - RIGHT
    across = lambda share: LEFT + wide * min(share, 1.0)  # noqa: E731
    height = 44 + ROW * len(rows)
    shapes: list[Shape] = []
    for share in (0, 25, 50, 75, 100):
        x = LEFT + wide * share / 100
        shapes += [line((x, 24), (x, height - 18), opacity=FAINT), text(x, height - 4, f"{share} %", "middle", 11)]
    for at, (name, found) in enumerate(rows):
        y = 36 + ROW * at
        shapes.append(text(LEFT - 10, y + 4, shortened(name, 35), "end"))
        shapes.append(text(LEFT + wide + 12, y + 4, told(found), size=11))
        if found.n:
            shapes.append(line((across(found.low), y), (across(found.high), y), color=drawing.COLORS[0], size=3))
        if found.value == found.value:
            shapes.append(mark(across(found.value), y, 0, told(found), 5))
    return _svg(title, shapes, height)


def curves(
    title: str, below: str, lines: Mapping[str, Sequence[tuple[float, float, float, float]]], top: float = 0.0
) -> Markup:
    """Values with intervals over numbers: `{name: [(x, value, low, high)]}`; with a `top` of 1, they are shares."""
    kept = {name: tuple(sorted(each for each in given if each[1] == each[1])) for name, given in lines.items()}
    if not any(kept.values()):
        return _svg(f"{title}: nothing was measured", [], 30)
    drawn = [Curve(name, points, percent=top == 1.0) for name, points in kept.items()]
    frame = Frame(60, 40, drawing.WIDTH - RIGHT, 256)
    return Markup(drawing.svg(title, drawing.curves(frame, shortened(title, 100), below, drawn, least=(0.0, top)), 296))


def matrix(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], Estimate]
) -> Markup:
    """Shares by row and column, darker where they are larger."""
    wide, high = (drawing.WIDTH - LEFT) / max(len(columns), 1), 46
    names = (shortened(name, int(wide / 7)) for name in columns)
    shapes = [text(LEFT + wide * (at + 0.5), 36, name, "middle", 11) for at, name in enumerate(names)]
    for down, row in enumerate(rows):
        y = 44 + high * down
        shapes.append(text(LEFT - 10, y + 27, shortened(row, 35), "end"))
        for at, column in enumerate(columns):
            if (found := cells.get((row, column))) is not None:
                x, shade = LEFT + wide * at, 0.0 if found.value != found.value else found.value
                ends = ((x + 2, y + 2), (x + wide - 2, y + high - 2))
                shapes.append(Shape("box", ends, drawing.COLORS[1], opacity=0.08 + 0.5 * shade))
                shapes.append(text(x + wide / 2, y + 27, told(found), "middle"))
    return _svg(title, shapes, 52 + high * len(rows))


def plane(found: Plane) -> Markup:
    """The prompts of a layer in the plane of its first two components; a larger mark is a mean."""
    places = [point for points in found.points.values() for point in points]
    spans = [(min(p[axis] for p in places), max(p[axis] for p in places)) for axis in (0, 1)]
    scale = min(440 / max(spans[0][1] - spans[0][0], 1e-9), 260 / max(spans[1][1] - spans[1][0], 1e-9))
    middle = [sum(span) / 2 for span in spans]
    shares = " and ".join(f"{100 * share:.0f} %" for share in found.explained)
    title = f"{shortened(found.suite)}, layer {found.layer}"
    at = {
        name: [(230 + scale * (x - middle[0]), 172 - scale * (y - middle[1])) for x, y in points]
        for name, points in found.points.items()
    }
    shapes = [mark(x, y, number, size=3, opacity=0.45) for number, points in enumerate(at.values()) for x, y in points]
    for number, (name, points) in enumerate(at.items()):
        x, y = (sum(each) / len(points) for each in zip(*points, strict=True))
        down = 60 + 50 * number
        far, here = (
            f"{each.value:.2g} ({each.low:.2g} to {each.high:.2g})"
            for each in (found.distances[name], found.in_plane[name])
        )
        shapes += [mark(x, y, number, f"mean of {name}", 8), mark(500, down, number)]
        shapes += [text(512, down + 4, shortened(f"{name}, n {len(points)}", 36))]
        shapes += [text(512, down + 19, f"{far} from text only", size=11)]
        shapes += [text(512, down + 33, f"{here} in this plane", size=11)]
    height = max(336, 78 + 50 * len(at))
    shapes.append(
        text(0, height - 8, f"across and up: the first two components, which explain {shares} of the variance", size=11)
    )
    return _svg(title, shapes, height)
