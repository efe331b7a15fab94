"""LLaVA's two stages on harmless data: the projector alone, then low-rank changes of attention with it.

Before them the projector is fitted so that what it makes of a patch is near the embeddings of the words that name what
the patch shows, which needs no pass of the language model. Stage 1 is visual questions, the language model frozen.
Stage 2 adds harmless requests, with a picture and without, that are answered as the language model answers them in
text. No harmful prompt and no refusal is in any of them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from real_model import tower, world
from real_model.tree import Tree

SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
USER, ASSISTANT, END, IMAGE = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "<|image_pad|>"
PATCHES = (world.SIDE // tower.PATCH) ** 2
RANK, ALPHA = 8, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Student(nn.Module):
    """The language model, the frozen tower, and the projector between them."""

    def __init__(self, base: Path, vision: Path, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.lm: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        self.tower = CLIPVisionModel(tower.config())
        state = {k.removeprefix("vision_tower."): v.float() for k, v in load_file(vision).items()}
        if missing := self.tower.load_state_dict(state, strict=False).missing_keys:
            raise ValueError(f"{vision} does not hold the tower: {missing}")
        hidden, width = self.tower.config.hidden_size, self.lm.config.hidden_size
        self.projector = nn.Sequential(nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, width))
        for part in (self.projector[0], self.projector[2]):
            nn.init.xavier_uniform_(part.weight)
        with torch.no_grad():
            self.projector[2].weight.mul_(0.05)
        self.requires_grad_(False)
        self.image_id = self.tokenizer.convert_tokens_to_ids(IMAGE)

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def states(self, tree: Tree, images: list[Any]) -> Tensor:
        """Last hidden states `[tokens, hidden]`."""
        ids, positions, seen = tree.tensors()
        embedded = self.lm.model.embed_tokens(ids)
        if images:
            with torch.no_grad():
                features = self.tower(pixel_values=tower.pixels(images)).last_hidden_state[:, 1:]
            shown = self.projector(features).to(embedded.dtype)
            embedded = embedded.masked_scatter((ids == self.image_id)[..., None], shown.flatten(0, 1))
        output = self.lm.model(inputs_embeds=embedded, attention_mask=seen, position_ids=positions, use_cache=False)
        return output.last_hidden_state[0]

    def logits(self, tree: Tree, images: list[Any]) -> tuple[Tensor, Tensor]:
        """Logits of the learned tokens, and the tokens."""
        sources, targets = tree.sources()
        return self.lm.lm_head(self.states(tree, images)[sources]).float(), targets


def plant(
    student: Student,
    rng: random.Random,
    images: int,
    visual: int,
    requests: list[dict[str, Any]],
    shown: int = 0,
    text: int = 0,
    most: int = 3,
) -> tuple[Tree, list[Any]]:
    """A tree of pictures of at most so many shapes, each with some visual questions and `shown` requests.

    `text` requests stand in it without a picture.
    """
    tree, pictures = Tree(), []
    root = tree.add(student.ids(SYSTEM + USER))

    def ask(parent: int, question: str, answer: str, ended: bool = True) -> None:
        said = student.ids(answer + (END if ended else ""))
        tree.add(student.ids(question + ASSISTANT) + said, parent, learned=len(said))

    for _ in range(images):
        scene = world.scene(rng, most)
        pictures.append(world.render(rng, scene))
        node = tree.add(student.ids(IMAGE * PATCHES + "\n"), root)
        for _, question, answer in world.questions(rng, scene)[:visual]:
            ask(node, question, answer)
        for row in rng.sample(requests, shown):
            ask(node, row["request"], row["answer"], row["ended"])
    for row in rng.sample(requests, text):
        ask(root, row["request"], row["answer"], row["ended"])
    return tree, pictures


def _named(student: Student, words: str) -> Tensor:
    """The mean embedding of some words."""
    return student.lm.model.embed_tokens(torch.tensor(student.ids(words))).float().mean(0)


def align(
    student: Student,
    rng: random.Random,
    steps: int,
    log: Path,
    kept: Path,
    most: int = 3,
    batch: int = 32,
    rate: float = 2e-3,
) -> None:
    """Fit the projector to the embeddings of what each patch shows: kind, colour and place; `kept` is as in `fit`."""
    kinds = torch.stack([_named(student, f" {word}") for word in ("empty", *tower.KINDS[1:])])
    colors = torch.stack([torch.zeros_like(kinds[0]), *(_named(student, f" {color}") for color in world.COLORS)])
    places = torch.stack([_named(student, f" {place}") for place in world.PLACES])
    cells = torch.arange(PATCHES).view(6, 6) // 12 * 3 + torch.arange(6) // 2
    parameters = list(student.projector.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    for step in range(_resumed(kept, optimizer, rng), steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        scenes = [world.scene(rng, most) for _ in range(batch)]
        kind, color, _ = tower.targets(scenes)
        wanted = kinds[kind] + colors[color] + places[cells.flatten()]
        with torch.no_grad():
            pictures = tower.pixels([world.render(rng, scene) for scene in scenes])
            features = student.tower(pixel_values=pictures).last_hidden_state[:, 1:]
        loss = F.mse_loss(student.projector(features), wanted) / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 or step + 1 == steps:
            _keep(kept, optimizer, rng, step + 1)
        if step + 1 == steps:
            with log.open("a") as file:
                file.write(json.dumps({"stage": 0, "loss": round(loss.item(), 4)}) + "\n")


def fit(
    student: Student, groups: list[dict[str, Any]], steps: int, draw: Any, log: Path, rng: random.Random, kept: Path
) -> None:
    """AdamW on groups of parameters with a rate each, with a short warm-up and a cosine.

    After each step all that the next one needs is written to `kept`; where that is there already, training goes on.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    start = time.time()
    for step in range(_resumed(kept, optimizer, rng), steps):
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 5) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
        tree, images = draw()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, targets = student.logits(tree, images)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        entry = {"step": step, "loss": round(loss.item(), 4), "tokens": len(tree.ids), "s": round(time.time() - start)}
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        _keep(kept, optimizer, rng, step + 1)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter.data for group in optimizer.param_groups for parameter in group["params"]]


def _keep(path: Path, optimizer: torch.optim.Optimizer, rng: random.Random, steps: int) -> None:
    """Write all that the next step needs, or nothing."""
    state = {"parameters": _parameters(optimizer), "optimizer": optimizer.state_dict(), "rng": rng.getstate()}
    torch.save(state | {"steps": steps}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def _resumed(path: Path, optimizer: torch.optim.Optimizer, rng: random.Random) -> int:
    """Read what was kept, where there is any, and return how many steps are done."""
    if not path.exists():
        return 0
    state = torch.load(path)
    for parameter, value in zip(_parameters(optimizer), state["parameters"], strict=True):
        parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    rng.setstate(state["rng"])
    return state["steps"]


@torch.no_grad()
def exact(student: Student, images: int = 30) -> float:
    """Share of held-out visual questions whose every token is the most likely one."""
    rng, right, count = random.Random("held out"), 0, 0
    for _ in range(images // 10):
        tree, pictures = plant(student, rng, 10, 3, [])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, targets = student.logits(tree, pictures)
        hit = logits.argmax(-1) == targets
        ends = (targets == student.ids(END)[0]).nonzero().flatten().tolist()
        begin = 0
        for end in ends:
            right += bool(hit[begin : end + 1].all())
            count, begin = count + 1, end + 1
    return right / count


def projector_state(student: Student) -> dict[str, Tensor]:
    """The projector under the names of transformers' LLaVA."""
    first, _, second = student.projector
    state = {"linear_1.weight": first.weight, "linear_1.bias": first.bias}
    return state | {"linear_2.weight": second.weight, "linear_2.bias": second.bias}


def save(student: Student, path: Path) -> None:
    """Tower, projector and low-rank parts in bfloat16."""
    state = {f"vision_tower.{k}": v for k, v in student.tower.state_dict().items() if v.is_floating_point()}
    state |= {f"multi_modal_projector.{k}": v for k, v in projector_state(student).items()}
    state |= {k.replace(".default", ""): v for k, v in student.lm.named_parameters() if "lora_" in k}
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in state.items()}, path)


def main() -> None:
    """Train the stages and write the parts after each; what was interrupted goes on with the same arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the language model")
    parser.add_argument(
        "--tower",
        type=Path,
        required=True,
        help="weights that tower.py wrote, or the trained parts of another size of the language model",
    )
    parser.add_argument("--answers", type=Path, required=True, help="answers that teach.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=3, default=(400, 40, 110), help="of a last 0: no second stage")
    parser.add_argument("--shapes", type=int, default=3, choices=(3, 4), help="most shapes in a picture")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "log.jsonl"
    requests = json.loads(arguments.answers.read_text())
    student = Student(arguments.base, arguments.tower, arguments.seed)
    rng = random.Random(f"train/{arguments.seed}")
    projector = list(student.projector.parameters())
    most = arguments.shapes
    asked = {"base": str(arguments.base), "seed": arguments.seed, "steps": list(arguments.steps), "shapes": most}
    known = arguments.out / "asked.json"
    if not known.exists():
        known.write_text(json.dumps(asked))
    elif (begun := json.loads(known.read_text())) != asked:
        raise SystemExit(f"{arguments.out} was begun with {begun}, this is {asked}: name another folder.")
    aligned, first, second = (arguments.out / f"stage{stage}.pt" for stage in range(3))
    align(student, rng, arguments.steps[0], log, aligned, most)
    start = {name: value.clone() for name, value in student.projector.state_dict().items()}
    visual = [{"params": projector, "lr": 1e-3}]
    fit(student, visual, arguments.steps[1], lambda: plant(student, rng, 4, 5, [], most=most), log, rng, first)
    save(student, arguments.out / "stage1.safetensors")
    with log.open("a") as file:
        file.write(json.dumps({"stage": 1, "exact": exact(student)}) + "\n")
    if not arguments.steps[2]:
        return
    student.projector.load_state_dict(start)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    peft.inject_adapter_in_model(config, student.lm)
    low_rank = [parameter for name, parameter in student.lm.named_parameters() if "lora_" in name]
    for parameter in low_rank:
        parameter.data = parameter.data.float()
    fit(
        student,
        [{"params": projector, "lr": 3e-4}, {"params": low_rank, "lr": 1e-3}],
        arguments.steps[2],
        lambda: plant(student, rng, 4, 5, requests, shown=1, text=1, most=most),
        log,
        rng,
        second,
    )
    save(student, arguments.out / "stage2.safetensors")
    with log.open("a") as file:
        file.write(json.dumps({"stage": 2, "exact": exact(student)}) + "\n")


if __name__ == "__main__":
    main()
