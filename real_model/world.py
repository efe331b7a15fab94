"""Rendered pictures with questions that have one right answer: shapes, counts, colours, digits and written words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

SIDE, CELL = 72, 24
COLORS = {
    "red": (215, 40, 40),
    "green": (30, 150, 60),
    "blue": (50, 80, 225),
    "orange": (240, 150, 30),
    "purple": (150, 50, 190),
    "pink": (245, 130, 180),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
NUMBERS = ("no", "one", "two", "three", "four")
DIGITS = "0123456789"
WORDS = (
    "apple bread chair dance eagle flute grape house juice kite lemon music night ocean piano queen river stone tiger "
    "water"
).split()
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")


@dataclass(frozen=True)
class Item:
    """A shape, a digit or a word, in a colour, at a cell of the three by three grid."""

    kind: str
    color: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """What a picture shows: up to four shapes, or one digit, or one word."""

    subject: str
    items: tuple[Item, ...]


def scene(rng: random.Random, most: int = 3) -> Scene:
    """Draw a scene, of at most so many shapes; one in twenty is empty."""
    subject = rng.choices(("shapes", "digit", "word", "empty"), (13, 3, 3, 1))[0]
    color = rng.choice(list(COLORS))
    if subject == "digit":
        return Scene(subject, (Item(rng.choice(DIGITS), color, rng.randrange(9)),))
    if subject == "word":
        return Scene(subject, (Item(rng.choice(WORDS), color, rng.choice((1, 4, 7))),))
    cells = rng.sample(range(9), 0 if subject == "empty" else rng.randint(1, most))
    return Scene(subject, tuple(Item(rng.choice(SHAPES), rng.choice(list(COLORS)), cell) for cell in sorted(cells)))


@lru_cache(maxsize=32)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _background(rng: random.Random) -> tuple[int, ...]:
    shade = rng.randint(0, 45) if rng.random() < 0.5 else rng.randint(215, 255)
    return tuple(min(255, shade + rng.randint(0, 8)) for _ in range(3))


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, x: int, y: int, side: int, fill: tuple[int, ...]) -> None:
    if kind == "circle":
        draw.ellipse((x, y, x + side, y + side), fill=fill)
    elif kind == "square":
        draw.rectangle((x, y, x + side, y + side), fill=fill)
    elif kind == "triangle":
        draw.polygon([(x + side // 2, y), (x, y + side), (x + side, y + side)], fill=fill)
    elif kind == "star":
        draw.regular_polygon((x + side / 2, y + side / 2, side / 2), 3, fill=fill)
        draw.regular_polygon((x + side / 2, y + side / 2, side / 2), 3, rotation=180, fill=fill)
    else:
        third = side // 3
        draw.rectangle((x + third, y, x + side - third, y + side), fill=fill)
        draw.rectangle((x, y + third, x + side, y + side - third), fill=fill)


def render(rng: random.Random, shown: Scene) -> Image.Image:
    """Draw a scene on a dark or a light background, with jitter in colour, size, position and font."""
    image = Image.new("RGB", (SIDE, SIDE), _background(rng))
    draw = ImageDraw.Draw(image)
    for item in shown.items:
        fill = tuple(max(0, min(255, channel + rng.randint(-12, 12))) for channel in COLORS[item.color])
        left, top = item.cell % 3 * CELL, item.cell // 3 * CELL
        if shown.subject == "shapes":
            side = rng.randint(15, 20)
            x, y = left + rng.randint(1, CELL - side - 2), top + rng.randint(1, CELL - side - 2)
            _draw_shape(draw, item.kind, x, y, side, fill)
        else:
            font = _font(rng.choice(FONTS), rng.randint(21, 24) if shown.subject == "digit" else rng.randint(17, 20))
            middle = (left + CELL / 2 + rng.randint(-1, 1), top + CELL / 2 + rng.randint(-1, 1))
            draw.text(middle, item.kind, fill=fill, font=font, anchor="mm")
    return image


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def questions(rng: random.Random, shown: Scene) -> list[tuple[str, str, str]]:
    """Every question that a scene answers, as (kind, question, the only right answer), in a random order."""
    out: list[tuple[str, str, str]] = []
    if shown.subject in ("shapes", "empty"):
        count = len(shown.items)
        many = f"There is {NUMBERS[1]} shape." if count == 1 else f"There are {NUMBERS[count]} shapes."
        out.append(("count", rng.choice(("How many shapes are there?", "Count the shapes.")), many))
        kinds, colors = [item.kind for item in shown.items], [item.color for item in shown.items]
        for item in shown.items:
            if kinds.count(item.kind) == 1:
                out.append(("color", f"What color is the {item.kind}?", f"The {item.kind} is {item.color}."))
                where = f"The {item.kind} is at the {PLACES[item.cell]}."
                out.append(("place", f"Where is the {item.kind}?", where))
            if colors.count(item.color) == 1:
                out.append(("shape", f"Which shape is {item.color}?", f"The {item.color} shape is a {item.kind}."))
        asked = rng.choice(SHAPES)
        there = f"Yes, there is a {asked}." if asked in kinds else f"No, there is no {asked}."
        out.append(("presence", f"Is there a {asked} in the image?", there))
        if 1 <= count <= 2:
            listed = " and ".join(_article(f"{item.color} {item.kind}") for item in shown.items)
            out.append(("description", "Describe the image.", f"The image shows {listed}."))
    else:
        (item,) = shown.items
        what = "number" if shown.subject == "digit" else "word"
        asked = rng.choice(("What {} is shown?", "Read the {} in the image.", "Which {} do you see?")).format(what)
        out.append(("reading", asked, f"The {what} is {item.kind}."))
        out.append(("color", f"What color is the {what}?", f"The {what} is {item.color}."))
        out.append(("description", "Describe the image.", f"The image shows the {item.color} {what} {item.kind}."))
    rng.shuffle(out)
    return out


def blank() -> Image.Image:
    """A white picture."""
    return Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
