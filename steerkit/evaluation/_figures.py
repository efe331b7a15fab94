"""The figures of a study as SVG: shares with their intervals, curves, a matrix and planes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from steerkit._text import one_line
from steerkit.evaluation._states import Plane
from steerkit.evaluation._statistics import Estimate

COLORS = ("#2a88a8", "#cf6537", "#6f9424", "#946bc2", "#a88512", "#c05580", "#7b8d97")
"""Told apart by shape as well; dark enough on white and light enough on black."""

WIDTH, ROW = 760, 24
LEFT, RIGHT = 250, 190


def _tag(name: str, *content: str, **attributes: object) -> Markup:
    given = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(one_line(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{''.join(content)}</{name}>")


def _text(x: float, y: float, said: object, anchor: str = "start", size: int = 12, **more: object) -> Markup:
    return _tag(
        "text",
        escape(one_line(said)),
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        font_size=size,
        fill="currentColor",
        **more,
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str = "#8a979d", width: float = 1) -> Markup:
    return _tag(
        "line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", stroke=color, stroke_width=width
    )


def _mark(x: float, y: float, number: int, title: str = "", size: float = 4.0) -> Markup:
    """A mark of a shape and a colour of its own."""
    color, shape = COLORS[number % len(COLORS)], number % 4
    inner = [_tag("title", escape(one_line(title)))] if title else []
    if shape == 0:
        return _tag("circle", *inner, cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, fill=color)
    ends = {
        1: ((0, -1), (1, 1), (-1, 1)),
        2: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        3: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in ends[shape])
    return _tag("polygon", *inner, points=points, fill=color)


def _svg(title: str, height: float, *content: str) -> Markup:
    head = _tag("title", escape(one_line(title)))
    return _tag(
        "svg",
        head,
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
        aria_label=title,
        font_family="system-ui, sans-serif",
    )


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
    wide = WIDTH - LEFT - RIGHT
    at = lambda share: LEFT + wide * min(share, 1.0)  # noqa: E731
    height = 44 + ROW * len(rows)
    parts = [_text(0, 14, title, size=13, font_weight="bold")]
    for share in (0, 25, 50, 75, 100):
        x = LEFT + wide * share / 100
        parts += [_line(x, 24, x, height - 18, "#8a979d55"), _text(x, height - 4, f"{share} %", "middle", 11)]
    for number, (name, found) in enumerate(rows):
        y = 36 + ROW * number
        parts += [
            _text(LEFT - 10, y + 4, name if len(name) < 36 else name[:34] + "…", "end"),
            _text(LEFT + wide + 10, y + 4, told(found), size=11),
        ]
        if found.n:
            parts.append(_line(at(found.low), y, at(found.high), y, COLORS[0], 3))
        if found.value == found.value:
            parts.append(_mark(at(found.value), y, 0, told(found), 5))
    return _svg(title, height, *parts)


def curves(
    title: str, below: str, lines: Mapping[str, Sequence[tuple[float, float, float, float]]], top: float | None = None
) -> Markup:
    """Values with intervals over numbers: `{name: [(x, value, low, high)]}`; `top` is that of the upright scale."""
    points = [point for line in lines.values() for point in line if point[1] == point[1]]
    if not points:
        return _svg(title, 30, _text(0, 14, f"{title}: nothing was measured"))
    xs = sorted({x for x, *_ in points})
    most = top or max(high for *_, high in points) or 1.0
    left, right, up, down = 60, WIDTH - 190, 34, 250
    x_of = lambda x: left + (right - left) * ((x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5)  # noqa: E731
    y_of = lambda y: down - (down - up) * y / most  # noqa: E731
    parts = [_text(0, 14, title, size=13, font_weight="bold"), _text((left + right) / 2, down + 36, below, "middle")]
    for step in range(5):
        y = most * step / 4
        said = f"{100 * y:.0f} %" if top == 1.0 else f"{y:.3g}"
        parts += [_line(left, y_of(y), right, y_of(y), "#8a979d55"), _text(left - 8, y_of(y) + 4, said, "end", 11)]
    shown = xs if len(xs) < 12 else xs[:: max(1, len(xs) // 8)]
    parts += [_text(x_of(x), down + 18, f"{x:g}", "middle", 11) for x in shown]
    for number, (name, line) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        kept = sorted(point for point in line if point[1] == point[1])
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y, *_ in kept)
        parts.append(_tag("polyline", points=path, fill="none", stroke=color, stroke_width=1.5))
        shift = 3 * (number - len(lines) / 2)  # whiskers of one place stand side by side
        parts += [
            _line(x_of(x) + shift, y_of(low), x_of(x) + shift, y_of(high), color)
            for x, _, low, high in kept
            if high > low
        ]
        parts += [
            _mark(x_of(x), y_of(y), number, f"{name}, {below} {x:g}: {y:.3g} ({low:.3g}-{high:.3g})")
            for x, y, low, high in kept
        ]
        parts += [_mark(right + 20, up + 20 * number, number), _text(right + 30, up + 4 + 20 * number, name[:26])]
    return _svg(title, down + 46, *parts)


def matrix(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], Estimate]
) -> Markup:
    """Shares by row and column, darker where they are larger."""
    wide, high = (WIDTH - LEFT) / max(len(columns), 1), 46
    parts = [_text(0, 14, title, size=13, font_weight="bold")]
    parts += [
        _text(LEFT + wide * (at + 0.5), 36, name[: int(wide / 7)], "middle", 11) for at, name in enumerate(columns)
    ]
    for down, row in enumerate(rows):
        y = 44 + high * down
        parts.append(_text(LEFT - 10, y + 27, row[:38], "end"))
        for at, column in enumerate(columns):
            found, x = cells.get((row, column)), LEFT + wide * at
            if found is None:
                continue
            shade = 0.0 if found.value != found.value else found.value
            parts.append(
                _tag(
                    "rect",
                    x=f"{x + 2:.1f}",
                    y=y + 2,
                    width=f"{wide - 4:.1f}",
                    height=high - 4,
                    rx=4,
                    fill=COLORS[1],
                    fill_opacity=f"{0.08 + 0.5 * shade:.2f}",
                )
            )
            parts.append(_text(x + wide / 2, y + 27, told(found), "middle"))
    return _svg(title, 52 + high * len(rows), *parts)


def plane(found: Plane) -> Markup:
    """The prompts of a layer in the plane of its first two components; a larger mark is a mean."""
    places = [point for points in found.points.values() for point in points]
    spans = [(min(p[axis] for p in places), max(p[axis] for p in places)) for axis in (0, 1)]
    scale = min(520 / max(spans[0][1] - spans[0][0], 1e-9), 260 / max(spans[1][1] - spans[1][0], 1e-9))
    middle = [sum(span) / 2 for span in spans]
    shares = " and ".join(f"{100 * share:.0f} %" for share in found.explained)
    title = f"{found.suite}, layer {found.layer}: two components that explain {shares} of the variance"
    parts = [_text(0, 14, title, size=13, font_weight="bold")]
    at = {
        name: [(285 + scale * (x - middle[0]), 172 - scale * (y - middle[1])) for x, y in points]
        for name, points in found.points.items()
    }
    for number, points in enumerate(at.values()):
        parts.append(_tag("g", *(_mark(x, y, number, size=3) for x, y in points), opacity="0.45"))
    for number, (name, points) in enumerate(at.items()):
        mean = [sum(each) / len(points) for each in zip(*points, strict=True)]
        parts.append(_mark(mean[0], mean[1], number, f"mean of {name}", 8))
        parts += [_mark(570, 60 + 36 * number, number), _text(582, 64 + 36 * number, f"{name}, n {len(points)}")]
        far = f"{found.distances[name]:.3g} from text; here {found.in_plane[name]:.3g}"
        parts.append(_text(582, 79 + 36 * number, far, size=11))
    return _svg(title, 318, *parts)
