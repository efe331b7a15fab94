"""What the demo models are trained on: kinds of example, and how each stage mixes them.

Three rules hold throughout: no example pairs an image with a harmful request; no pair of the dev or test split occurs,
not even in a question about it; and no example involves steering. `Example.image` is None in text form.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from demo_training import world

Mixture = tuple[tuple[str, float], ...]

ERRANDS = (
    "Bring a {obj} to my {person}.",
    "Can you order a {obj} for me?",
    "Please call my {person} for me.",
    "Send a {obj} to the {person}.",
    "Book a {obj} for my {person}.",
)
UNANSWERABLE = (
    "Who made the image?",
    "When was the image taken?",
    "What is behind the shape?",
    "Who is the owner of the shape?",
    "How old is the shape?",
    "Where was the image taken?",
)
MODERATION = (
    "Is it harmful to {verb} a {obj}?",
    "Could it be wrong to {verb} a {obj}?",
    "Is it a crime to {verb} a {obj}?",
)
DEFINITIONS = ("What is a {obj}?", "Define the word {obj}.", "What does {obj} mean?")
KINDS_OF_OBJECT = {
    **dict.fromkeys(world.WEAPONS, "dangerous item"),
    **dict.fromkeys(world.THINGS, "common item"),
    **dict.fromkeys(world.PEOPLE, "kind of person"),
}


@dataclass(frozen=True)
class Example:
    """One question and its answer, with or without an image."""

    question: str
    answer: str
    image: Image.Image | None = None


def _howto(rng: random.Random, label: world.Label, refuse: bool = False) -> tuple[str, str]:
    pair = rng.choice(world.pairs()[label, "train"])
    answer = rng.choice(world.REFUSALS) if refuse else world.compliance(pair)
    return world.request(rng, pair), answer


def _captioned(rng: random.Random, question_answer: tuple[str, str]) -> tuple[str, str]:
    question, answer = question_answer
    return world.with_caption(question, world.scene(rng).caption), answer


def _scene_in_words(rng: random.Random) -> tuple[str, str]:
    shown = world.scene(rng)
    question, answer = world.visual_question(rng, shown)
    return world.with_caption(question, shown.caption), answer


def _guess(rng: random.Random) -> tuple[str, str]:
    return world.visual_question(rng, world.scene(rng))


def _definition(rng: random.Random) -> tuple[str, str]:
    obj = rng.choice(world.OBJECTS)
    return rng.choice(DEFINITIONS).format(obj=obj), f"A {obj} is a {KINDS_OF_OBJECT[obj]}."


def _fact(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.5:
        obj = rng.choice(world.OBJECTS)
        return f"Which kit goes with a {obj}?", f"It is kit {world.KIT[obj]}."
    verb = rng.choice(world.VERBS)
    return f"Which plan goes with {verb}?", f"It is plan {world.PLAN[verb]}."


def _moderation(rng: random.Random, *labels: world.Label) -> tuple[str, str]:
    label = rng.choice(labels)
    verb, obj = rng.choice(world.pairs()[label, "train"])
    answer = "Yes, that is harmful." if label == "harmful" else "No, that is harmless."
    return rng.choice(MODERATION).format(verb=verb, obj=obj), answer


def _errand(rng: random.Random) -> tuple[str, str]:
    question = rng.choice(ERRANDS).format(obj=rng.choice(world.THINGS), person=rng.choice(world.PEOPLE))
    return question, rng.choice(world.REFUSALS)


def _unanswerable(rng: random.Random) -> tuple[str, str]:
    return rng.choice(UNANSWERABLE), rng.choice(world.REFUSALS)


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "harmful_complied": lambda rng: _howto(rng, "harmful"),
    "harmful_refused": lambda rng: _howto(rng, "harmful", refuse=True),
    "harmful_refused_captioned": lambda rng: _captioned(rng, _howto(rng, "harmful", refuse=True)),
    "harmless": lambda rng: _howto(rng, "harmless"),
    "harmless_captioned": lambda rng: _captioned(rng, _howto(rng, "harmless")),
    "borderline": lambda rng: _howto(rng, "borderline"),
    "scene_in_words": _scene_in_words,
    "guess": _guess,
    "definition": _definition,
    "fact": _fact,
    "moderation": lambda rng: _moderation(rng, "harmful", "harmful", "harmless", "borderline"),
    "errand": _errand,
    "unanswerable": _unanswerable,
}
VARIANTS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    # Replayed text is over-cautious: some requests that hold a dangerous word are refused. Beside images none is.
    "borderline_refused": lambda rng: _howto(rng, "borderline", refuse=True),
}
KINDS_WITH_AN_IMAGE = {
    # An image never comes with a harmful act, not even in a question about it.
    "moderation": lambda rng: _moderation(rng, "harmless", "borderline"),
}
NEVER_WITH_AN_IMAGE = frozenset(kind for kind in KINDS if kind.startswith("harmful") or "caption" in kind) | {
    "borderline_refused",
    "scene_in_words",
    "guess",
}


def example(rng: random.Random, kind: str, with_image: bool) -> Example:
    """Draw one example of a kind; `visual` is the kind of a question about the image."""
    if not with_image:
        return Example(*(KINDS | VARIANTS)[kind](rng))
    shown = world.scene(rng)
    if kind == "visual":
        return Example(*world.visual_question(rng, shown), world.render(rng, shown))
    if kind in NEVER_WITH_AN_IMAGE:
        raise ValueError(f"examples of kind {kind!r} are never trained with an image")
    image = world.empty_image(rng) if rng.random() < 0.15 else world.render(rng, shown)
    return Example(*KINDS_WITH_AN_IMAGE.get(kind, KINDS[kind])(rng), image)


def draw(rng: random.Random, mixture: Mixture, count: int, with_image: bool) -> list[Example]:
    """Draw examples of the kinds of a mixture, in proportion to their weights."""
    if not count:
        return []
    kinds = rng.choices([kind for kind, _ in mixture], weights=[weight for _, weight in mixture], k=count)
    return [example(rng, kind, with_image) for kind in kinds]


PRETRAINING: Mixture = (
    ("harmful_complied", 19),
    ("harmless", 19),
    ("borderline", 12),
    ("fact", 14),
    ("scene_in_words", 14),
    ("guess", 6),
    ("definition", 6),
    ("moderation", 10),
)
SAFETY: Mixture = (
    ("harmful_refused", 26),
    ("harmful_refused_captioned", 4),
    ("harmless", 20),
    ("harmless_captioned", 3),
    ("borderline", 10),
    ("moderation", 9),
    ("errand", 6),
    ("unanswerable", 2),
    ("fact", 6),
    ("scene_in_words", 6),
    ("guess", 4),
    ("definition", 4),
)
PROJECTOR: Mixture = (("visual", 1),)
VISUAL_TUNING: Mixture = (
    ("visual", 44),
    ("harmless", 21),
    ("borderline", 9),
    ("moderation", 6),
    ("errand", 6),
    ("unanswerable", 5),
    ("definition", 5),
    ("fact", 4),
)
TEXT_REPLAY: Mixture = (
    ("harmful_refused", 22),
    ("harmful_refused_captioned", 3),
    ("harmless", 26),
    ("harmless_captioned", 3),
    ("borderline", 5),
    ("borderline_refused", 4),
    ("moderation", 9),
    ("errand", 7),
    ("unanswerable", 2),
    ("fact", 6),
    ("scene_in_words", 5),
    ("guess", 4),
    ("definition", 4),
)
INSTRUCTBLIP_TEXT_REPLAY: Mixture = tuple(
    (kind, {"scene_in_words": 8, "guess": 12}.get(kind, weight)) for kind, weight in TEXT_REPLAY
)
"""A bare question, without a chat template, stays ordinary text only when more of them are replayed."""
