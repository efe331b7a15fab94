"""What the tests serve: the demo model with larger heads, packs of every kind, and transformers' own answers."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import steerkit as sk
from steerkit import demo
from steerkit.evaluation import load_suite
from steerkit.interventions import (
    Ablate,
    Add,
    AddProjection,
    Clamp,
    Gate,
    Gates,
    Intervention,
    LinearStrength,
    Measure,
    MeasuredContrast,
    Scale,
    StoredDirection,
)
from steerkit.models import open_image
from steerkit.vectors import Key, SteeringVector

DEMO = Path(demo.model_path("llava"))
TOKENS = 24
HEAD = 32
"""vLLM's CPU attention has no kernel for the demo's heads of 24."""


def padded(source: Path, target: Path) -> Path:
    """The same model with larger heads: zeros beside the old entries, and queries scaled for the longer dot product."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, target / file.name) if file.is_file() else shutil.copytree(file, target / file.name)
    config = json.loads((source / "config.json").read_text())
    text = config["text_config"]
    old, heads, groups = text["head_dim"], text["num_attention_heads"], text["num_key_value_heads"]
    text["head_dim"] = HEAD
    text["rope_parameters"]["partial_rotary_factor"] = old / HEAD
    (target / "config.json").write_text(json.dumps(config))
    found = {}
    for key, weight in load_file(source / "model.safetensors").items():
        of_heads = heads if ".q_proj." in key else groups if ".k_proj." in key or ".v_proj." in key else 0
        if "language_model" in key and of_heads:
            wide = torch.zeros(of_heads, HEAD, *weight.shape[1:])
            wide[:, :old] = weight.view(of_heads, old, *weight.shape[1:])
            weight = wide.reshape(of_heads * HEAD, *weight.shape[1:])
            weight = weight * (HEAD / old) ** 0.5 if ".q_proj." in key else weight
        elif "language_model" in key and ".o_proj.weight" in key:
            wide = torch.zeros(weight.shape[0], heads, HEAD)
            wide[:, :, :old] = weight.view(weight.shape[0], heads, old)
            weight = wide.reshape(weight.shape[0], heads * HEAD)
        if "vision_tower." in key and ".vision_model." not in key:
            key = key.replace("vision_tower.", "vision_tower.vision_model.")  # where vLLM looks for them
        found[key] = weight.contiguous()
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    return target


def prompts() -> list[sk.Sample]:
    """16 prompts, every other one with its image."""
    suite = load_suite(demo.SUITES["test"])
    chosen = [each.sample for each in (*suite.harmful[:8], *suite.utility[:4], *suite.harmless[:4])]
    return [sk.Sample(each.text, images=each.images if at % 2 == 0 else ()) for at, each in enumerate(chosen)]


def vectors(vlm: Any) -> dict[str, SteeringVector]:
    """A pack of every operation, site, selection, gate and strength that is served."""
    base = sk.load_vector("cmrm-llava-demo")
    noise = torch.Generator().manual_seed(5)
    layers, hidden = range(8), 96
    one = {layer: torch.randn(hidden, generator=noise) for layer in layers}
    two = {layer: torch.randn(2, hidden, generator=noise) for layer in layers}
    add = {Key(layer): 0.6 * one[layer] for layer in layers}
    few = {Key(layer): one[layer] for layer in (3, 5)}

    def at(site: Any) -> dict[Key, torch.Tensor]:
        return {Key(layer, site): 0.6 * one[layer] for layer in layers}

    def gate(threshold: float, **measure: Any) -> Gate:
        return Gate(measure=Measure(**measure), threshold=threshold)

    cosine = {"kind": "cosine"}
    early = {"layer": 3, "direction": StoredDirection(layer=3)}
    text_minus_blank = MeasuredContrast()
    state = MeasuredContrast(positive="original", negative=None, form="literal")
    made: dict[str, tuple[dict[Key, torch.Tensor], tuple[Intervention, ...]]] = {
        "last": (add, (Intervention(tokens="last"),)),
        "all": (add, (Intervention(tokens="all", strength=0.5),)),
        "image": (add, (Intervention(tokens="image", strength=8.0),)),
        "text": (add, (Intervention(tokens="text", strength=0.5),)),
        "after_image": (add, (Intervention(tokens="after_image", strength=0.7),)),
        "generated": (add, (Intervention(tokens="generated"),)),
        "system": (add, (Intervention(tokens="system", strength=2.0),)),
        "without_image": (add, (Intervention(tokens="last", prompts="without_image"),)),
        "positions": (add, (Intervention(tokens="all", positions=(0, (2, 5), -1)),)),
        "steps": (add, (Intervention(tokens="generated", steps=(1.0, 0.0, 2.0, 0.5)),)),
        "by_layer": (add, (Intervention(tokens="last", strength={2: 1.5, 4: -1.0}),)),
        "mlp": (at("mlp_out"), (Intervention(site="mlp_out", tokens="all", strength=0.5),)),
        "attention": (at("attn_out"), (Intervention(site="attn_out", tokens="all", strength=0.5),)),
        "relative": (add, (Intervention(operation=Add(relative=True), tokens="all", strength=0.25),)),
        "ablate": ({Key(k): v for k, v in two.items()}, (Intervention(operation=Ablate(), tokens="all"),)),
        "ablate_kept": (
            {Key(k): v for k, v in two.items()},
            (
                Intervention(
                    operation=Ablate(),
                    tokens="all",
                    norm_preserving=True,
                    gate=gate(0.0, **cosine, direction=StoredDirection(name="w")),
                ),
            ),
        ),
        "clamp": (few, (Intervention(operation=Clamp(minimum=-0.5, maximum=0.5), tokens="all"),)),
        "scale": (few, (Intervention(operation=Scale(factor=-3.0), tokens="all"),)),
        "kept": (add, (Intervention(tokens="all", norm_preserving=True),)),
        "gate_token": (few, (Intervention(tokens="all", strength=3.0, gate=gate(0.0, **cosine)),)),
        "gates_token": (
            few,
            (
                Intervention(
                    tokens="all",
                    strength=3.0,
                    gate=Gates(combine="all", gates=(gate(-0.05, **cosine), gate(-0.1, kind="tanh_cosine"))),
                ),
            ),
        ),
        "gate_prompt": (
            few,
            (Intervention(tokens="last", strength=3.0, layers=(5,), gate=gate(-0.2, kind="projection", **early)),),
        ),
        "gate_prompt_all": (
            few,
            (Intervention(tokens="all", strength=3.0, layers=(5,), gate=gate(0.0, kind="tanh_cosine", **early)),),
        ),
        "linear_token": (
            few,
            (
                Intervention(
                    operation=Add(relative=True),
                    tokens="all",
                    strength=LinearStrength(
                        measure=Measure(**cosine), slope=8.0, intercept=0.1, minimum=0.0, maximum=1.0
                    ),
                ),
            ),
        ),
        "linear_prompt": (
            few,
            (
                Intervention(
                    layers=(5,),
                    tokens="all",
                    strength=LinearStrength(
                        measure=Measure(kind="projection", state=state, **early),
                        slope=1.0,
                        intercept=0.3,
                        minimum=-2.0,
                        maximum=2.0,
                    ),
                ),
            ),
        ),
        "two": (
            add,
            (
                Intervention(tokens="last", phase="prompt"),
                Intervention(operation=Scale(factor=0.2), tokens="generated", layers=(2, 4)),
            ),
        ),
        "shift": (
            few,
            (
                Intervention(
                    operation=AddProjection(contrast=MeasuredContrast(form="literal")),
                    tokens="all",
                    prompts="with_image",
                    layers=(3, 5),
                    strength=60.0,
                ),
            ),
        ),
        "sample": (
            {},
            (Intervention(operation=Add(direction=text_minus_blank), layers=tuple(layers), prompts="with_image"),),
        ),
    }
    made["ablate_kept"][0].update({Key(layer, "resid_post", "w"): one[layer] for layer in layers})
    found = {"cmrm": base}
    for name, (directions, interventions) in made.items():
        metadata = base.metadata.model_copy(update={"interventions": interventions, "fingerprint": None})
        found[name] = SteeringVector(directions, metadata)
    return found


ONLY_ONCE = ("ablate", "ablate_kept", "clamp", "sample", "shift", "linear_prompt")
"""Packs whose strength does not say how much."""


def recipes(found: dict[str, SteeringVector]) -> list[tuple[str, float]]:
    """Which packs are compared at which strengths."""
    return [
        (name, strength)
        for name in found
        for strength in ((0.5, 1.0, 2.0) if name == "cmrm" else (1.0,) if name in ONLY_ONCE else (1.0, 4.0))
    ]


@dataclass
class Lab:
    """A folder with a model, packs and the answers that transformers gives.

    Attributes:
        folder: Where everything is.
        samples: The prompts.
        ids: Their ids.
        answers: By recipe, one list of tokens for each prompt.
    """

    folder: Path
    samples: list[sk.Sample] = field(default_factory=prompts)
    ids: list[list[int]] = field(default_factory=list)
    answers: dict[str, list[list[int]]] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def packs(self) -> dict[str, str]:
        return {file.stem: str(file) for file in sorted((self.folder / "packs").glob("*.safetensors"))}

    def wanted(self, name: str | None, strength: float = 1.0) -> list[list[int]]:
        return self.answers["plain" if name is None else f"{name}@{strength:g}"]

    def prompt(self, at: int) -> dict[str, Any]:
        """A prompt as vLLM takes it."""
        sample = self.samples[at]
        mark = "<image>\n" if sample.images else ""
        given: dict[str, Any] = {"prompt": f"USER: {mark}{sample.text}\nASSISTANT:"}
        if sample.images:
            given["multi_modal_data"] = {"image": open_image(sample.images[0])}
        return given


def build(folder: Path, only: list[str] | None = None) -> Lab:
    """Make everything once, or some packs alone; what is there already is taken."""
    lab = Lab(folder)
    if not (folder / "answers.json").exists():
        torch.set_num_threads(1)
        for left in (lab.model, folder / "packs"):
            shutil.rmtree(left, ignore_errors=True)
        padded(DEMO, lab.model)
        vlm = sk.load(str(DEMO))
        found = {name: vector for name, vector in vectors(vlm).items() if only is None or name in only}
        (folder / "packs").mkdir()
        for name, vector in found.items():
            vector.save(folder / "packs" / f"{name}.safetensors")
        wanted = [("", 1.0), *recipes(found)]
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            parts = pool.map(_answers, [folder] * 2, [wanted[::2], wanted[1::2]])
            answers = {recipe: each for part in parts for recipe, each in part.items()}
        ids = [vlm.inputs([sample])["input_ids"][0].tolist() for sample in lab.samples]
        (folder / "answers.json").write_text(json.dumps({"ids": ids, "answers": answers}))
    kept = json.loads((folder / "answers.json").read_text())
    lab.ids, lab.answers = kept["ids"], kept["answers"]
    return lab


def _answers(folder: Path, wanted: list[tuple[str, float]]) -> dict[str, list[list[int]]]:
    """What transformers answers under some recipes, in a process of its own; prompts with and without images apart."""
    torch.set_num_threads(1)
    lab, vlm = Lab(folder), sk.load(str(DEMO))
    parts = [[at for at, sample in enumerate(lab.samples) if bool(sample.images) == images] for images in (True, False)]
    found = {}
    for name, strength in wanted:
        vector = sk.load_vector(lab.packs[name], policy="off") if name else None
        answers: dict[int, list[int]] = {}
        for part in parts:
            samples = [lab.samples[at] for at in part]
            said = _answer(vlm, samples) if vector is None else _steered(vlm, vector, strength, samples)
            answers.update(zip(part, said, strict=True))
        found[f"{name}@{strength:g}" if name else "plain"] = [answers[at] for at in range(len(lab.samples))]
    return found


def _answer(vlm: Any, samples: list[sk.Sample]) -> list[list[int]]:
    inputs = vlm.inputs(samples)
    with torch.no_grad():
        output = vlm.model.generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def _steered(vlm: Any, vector: SteeringVector, strength: float, samples: list[sk.Sample]) -> list[list[int]]:
    try:
        with sk.steer(vlm, vector, strength=strength, policy="off"):
            return _answer(vlm, samples)
    except sk.errors.NothingSteeredError:
        return _answer(vlm, samples)
