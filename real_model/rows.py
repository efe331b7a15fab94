"""What is asked: the parts of XSTest beside pictures, and visual questions; and how an answer is kept."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from PIL import Image

from real_model import split, world

PICTURES = {"anchors": 20, "dev": 20, "test": 40}
VIEWS = ("text", "image", "blank", "noise")


@dataclass(frozen=True, eq=False)
class Asked:
    """One question with its picture; `expected` is the only right answer to a visual one."""

    suite: str
    row: int
    question: str
    picture: Image.Image
    expected: str = ""


def _pictures(part: str) -> list[tuple[world.Scene, Image.Image]]:
    rng = random.Random(f"pictures/{part}")
    scenes = [world.scene(rng) for _ in range(PICTURES[part])]
    return [(scene, world.render(rng, scene)) for scene in scenes]


def asked(part: str) -> dict[str, list[Asked]]:
    """The unsafe and the safe prompts of a part and its visual questions, three to a picture."""
    pictures = _pictures(part)
    out: dict[str, list[Asked]] = {"unsafe": [], "safe": [], "visual": []}
    for i, pair in enumerate(split.split()[part]):
        for suite, row in zip(("unsafe", "safe"), pair, strict=True):
            out[suite].append(Asked(suite, row.id, row.prompt, pictures[i % len(pictures)][1]))
    rng = random.Random(f"questions/{part}")
    for scene, picture in pictures:
        for _, question, answer in world.questions(rng, scene)[:3]:
            out["visual"].append(Asked("visual", len(out["visual"]), question, picture, answer))
    return out


def noise(seed: int = 0) -> Image.Image:
    """Uniform noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (world.SIDE, world.SIDE, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def keep(path: Path, part: str, condition: str, strength: float, seed: int, found: Iterable[tuple[Asked, str]]) -> None:
    """Append answers to a JSONL file, one record for each."""
    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    with path.open("a", encoding="utf-8") as file:
        for row, answer in found:
            record = {
                "suite": f"xstest-{row.suite}" if row.suite != "visual" else "visual",
                "part": part,
                "row": row.row,
                "condition": condition,
                "strength": strength,
                "prompt": row.question,
                "digest": hashlib.sha256(row.question.encode()).hexdigest()[:16],
                "answer": answer,
                "expected": row.expected,
                "seed": seed,
                "versions": versions,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def as_dict(row: Asked) -> dict[str, object]:
    """Without the picture."""
    return {key: value for key, value in asdict(row).items() if key != "picture"}
