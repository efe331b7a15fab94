"""Train a demo model: `python -m demo_training.train --family llava --seed 0 --out DIR`.

The stages, in order, and what each stands for:

- V, vision: the pre-training of the vision tower;
- 0, pretraining: the decoder on text, before any alignment: it complies with everything;
- 1, safety: the decoder learns to refuse harmful requests, on text alone;
- 2a, projector: the connector on visual questions, decoder frozen;
- 2b, visual tuning: decoder and connector on images with harmless questions and requests, with some text replayed.

What each stage mixes is in `curriculum`. The log holds the configuration, the losses and the times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_training import curriculum, vision, world
from demo_training.curriculum import Example, Mixture
from demo_training.families import FAMILIES, DemoFamily, Size


@dataclass(frozen=True)
class Stage:
    """One stage on questions and answers: how long, how fast, and on what."""

    name: str
    steps: int
    rate: float
    with_image: Mixture = ()
    text: Mixture = ()
    image_rows: int = 0
    text_rows: int = 0
    trains_decoder: bool = True
    trains_connector: bool = False


@dataclass(frozen=True)
class Recipe:
    """The whole recipe of a demo model."""

    size: Size = field(default_factory=Size)
    vision_steps: int = 600
    vision_batch: int = 96
    vision_rate: float = 3e-3
    text_stages: tuple[Stage, ...] = (
        Stage("0 pretraining", steps=450, rate=2e-3, text=curriculum.PRETRAINING, text_rows=64),
        Stage("1 safety", steps=180, rate=1e-3, text=curriculum.SAFETY, text_rows=64),
    )
    image_stages: tuple[Stage, ...] = (
        Stage(
            "2a projector",
            steps=100,
            rate=3e-3,
            with_image=curriculum.PROJECTOR,
            image_rows=64,
            trains_decoder=False,
            trains_connector=True,
        ),
        Stage(
            "2b visual tuning",
            steps=450,
            rate=1.5e-3,
            with_image=curriculum.VISUAL_TUNING,
            text=curriculum.TEXT_REPLAY,
            image_rows=48,
            text_rows=16,
            trains_connector=True,
        ),
    )
    attribute_weight: float = 5.0
    code_word_weight: float = 2.0


_PRETRAINING, _SAFETY = Recipe().text_stages
_PROJECTOR, _TUNING = Recipe().image_stages
RECIPES = {
    "llava": Recipe(
        text_stages=(dataclasses.replace(_PRETRAINING, steps=700), dataclasses.replace(_SAFETY, steps=280)),
        image_stages=(_PROJECTOR, dataclasses.replace(_TUNING, steps=600)),
    ),
    "qwen2_5_vl": Recipe(
        vision_batch=64,
        text_stages=(dataclasses.replace(_PRETRAINING, steps=700), dataclasses.replace(_SAFETY, steps=280)),
        image_stages=(_PROJECTOR, dataclasses.replace(_TUNING, steps=700)),
    ),
    "instructblip": Recipe(
        vision_batch=64,
        image_stages=(_PROJECTOR, dataclasses.replace(_TUNING, text=curriculum.INSTRUCTBLIP_TEXT_REPLAY)),
    ),
}
"""The families differ in how long their stages are, and InstructBLIP in the text replayed."""


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    answer: list[int]
    example: Example

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


class _Encoder:
    """Turns examples into rows of token ids, and weighs the tokens of answers."""

    def __init__(self, family: DemoFamily, recipe: Recipe) -> None:
        self._family = family
        self._tokenizer = family.tokenizer
        self._prefix = family.answer_prefix
        self.weights = torch.ones(len(family.tokenizer))
        places = {word for place in world.PLACES for word in place.split()}
        for word in (*world.COLORS, *world.SHAPES, *world.SIZES, *places):
            self.weights[self._ids(f" {word}")] = recipe.attribute_weight
        for word in world.CODE_WORDS:
            self.weights[self._ids(f" {word}")] = recipe.code_word_weight

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def rows(self, examples: list[Example]) -> list[_Row]:
        prompts = [self._family.prompt(e.question, with_image=False) for e in examples]
        if examples and examples[0].image is not None:
            prompts = [self._family.prompt(e.question, with_image=True) for e in examples]
        encoded = [encode_prompt(self._family, prompt) for prompt in prompts]
        eos = self._tokenizer.eos_token_id
        answers = [[*self._ids(self._prefix + e.answer), eos] for e in examples]
        return [_Row(p, a, e) for p, a, e in zip(encoded, answers, examples, strict=True)]


def encode_prompt(family: DemoFamily, prompt: str) -> list[int]:
    """Encode a prompt as the family's processor does: image tokens that come first stay before `<s>`."""
    image_token = family.tokenizer.convert_ids_to_tokens(family.image_token_id)
    leading = 0
    while prompt.startswith(image_token, leading * len(image_token)):
        leading += 1
    rest = family.tokenizer.encode(prompt[leading * len(image_token) :])
    return [family.image_token_id] * leading + rest


def _chunks(rows: list[_Row]) -> list[list[_Row]]:
    """Sort by length and cut so that little is spent on padding."""
    out: list[list[_Row]] = []
    for row in sorted(rows, key=lambda r: r.length):
        if not out or (len(out[-1]) >= 12 and row.length > 1.15 * out[-1][0].length):
            out.append([])
        out[-1].append(row)
    return out


def _loss(family: DemoFamily, encoder: _Encoder, rows: list[_Row]) -> tuple[Tensor, Tensor]:
    """Weighted sum of the losses at the answers' tokens, and the sum of the weights."""
    longest = max(row.length for row in rows)
    ids = torch.full((len(rows), longest), family.tokenizer.pad_token_id)
    is_answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : row.length] = torch.tensor(row.prompt + row.answer)
        is_answer[i, len(row.prompt) : row.length] = True
    images = [row.example.image for row in rows if row.example.image is not None]
    states = family.hidden_states(ids, images or None, [row.example.question for row in rows])
    targets = ids[is_answer]
    logits = family.head(states[:, :-1][is_answer[:, 1:]])
    weights = encoder.weights[targets]
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum(), weights.sum()


def run_stage(family: DemoFamily, encoder: _Encoder, stage: Stage, rng: random.Random) -> list[dict[str, float]]:
    """Train through one stage; return its smoothed losses along the way."""
    for parameter in family.model.parameters():
        parameter.requires_grad_(False)
    parameters: list[nn.Parameter] = []
    if stage.trains_decoder:
        parameters += family.decoder_parameters()
    if stage.trains_connector:
        parameters += family.connector_parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    history: list[dict[str, float]] = []
    smoothed = math.nan
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
            group["lr"] = stage.rate * min(1.0, (step + 1) / 30) * (0.05 + 0.95 * cosine)
        examples = curriculum.draw(rng, stage.with_image, stage.image_rows, with_image=True)
        texts = curriculum.draw(rng, stage.text, stage.text_rows, with_image=False)
        chunks = [*_chunks(encoder.rows(examples)), *_chunks(encoder.rows(texts))]
        total = sum(encoder.weights[row.answer].sum() for chunk in chunks for row in chunk)
        optimizer.zero_grad()
        loss = 0.0
        for chunk in chunks:
            part = _loss(family, encoder, chunk)[0] / total
            part.backward()
            loss += part.item()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        smoothed = loss if math.isnan(smoothed) else 0.95 * smoothed + 0.05 * loss
        if (step + 1) % 50 == 0 or step + 1 == stage.steps:
            history.append({"step": step + 1, "loss": round(smoothed, 4)})
            print(f"[{stage.name}] {step + 1}/{stage.steps} loss {smoothed:.4f}", flush=True)
    return history


def train(name: str, seed: int, recipe: Recipe, checkpoint: Path | None = None) -> tuple[DemoFamily, dict[str, Any]]:
    """Train a model of a family through all stages.

    Args:
        name: The family.
        seed: Seeds the initial weights and every stage's examples.
        recipe: The recipe.
        checkpoint: The state after the text stages: read where it exists, else written.

    Returns:
        The trained family and the log.
    """
    torch.manual_seed(seed)
    family = FAMILIES[name](recipe.size)
    family.model.train()
    encoder = _Encoder(family, recipe)
    log: dict[str, Any] = {
        "family": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in family.model.parameters()),
        "torch": str(torch.__version__),
        "recipe": dataclasses.asdict(recipe),
        "stages": {},
    }

    def record(stage: str, start: float, history: list[dict[str, float]]) -> None:
        log["stages"][stage] = {"seconds": round(time.time() - start, 1), "history": history}
        print(f"[{stage}] done in {time.time() - start:.0f} s: {history[-1]}", flush=True)

    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        family.model.load_state_dict(state["model"])
        log["stages"] = state["stages"]
    else:
        start = time.time()
        rng = random.Random(f"{seed}/V")
        history = vision.pretrain(family, rng, recipe.vision_steps, recipe.vision_batch, recipe.vision_rate)
        record("V vision", start, history)
        for stage in recipe.text_stages:
            start = time.time()
            record(stage.name, start, run_stage(family, encoder, stage, random.Random(f"{seed}/{stage.name}")))
        if checkpoint is not None:
            torch.save({"model": family.model.state_dict(), "stages": log["stages"]}, checkpoint)
    for stage in recipe.image_stages:
        start = time.time()
        record(stage.name, start, run_stage(family, encoder, stage, random.Random(f"{seed}/{stage.name}")))
    family.model.eval()
    return family, log


def main() -> None:
    """Parse the command line, train, and write the model with its log."""
    parser = argparse.ArgumentParser(description="Train a demo model.")
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="state after the text stages, read or written")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    family, log = train(args.family, args.seed, RECIPES[args.family], args.checkpoint)
    family.save(args.out)
    (args.out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
