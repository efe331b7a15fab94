"""What the activation fingerprint tells apart: the table of docs/trust.md.

    python benchmarks/fingerprint.py [--models FOLDER ...] [--seeds FOLDER ...] [--libraries FOLDER ...] [--json FILE]

`--models`: trained models, each compared with changed copies of itself; default: the demo models that ship with the
package. `--seeds`: the same trainings from other seeds; each is compared with the models of its type. `--libraries`:
other releases of transformers, installed with `pip install --no-deps --target FOLDER`. Random models of tests/tiny are
always measured.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

import tiny  # noqa: E402

import steerkit as sk  # noqa: E402
from steerkit.analysis import Response, check_fingerprint, fingerprint, probes, responses, state_cosines  # noqa: E402
from steerkit.demo import MODELS, anchors, model_path  # noqa: E402
from steerkit.engines.capturing import call_target, capture  # noqa: E402
from steerkit.errors import SteerKitError  # noqa: E402
from steerkit.steering import check_applied  # noqa: E402
from steerkit.vectors import Fingerprint, MethodRecord, PackMetadata  # noqa: E402

FAMILIES = ("llava", "vipllava", "llava_next", "qwen2_vl", "qwen2_5_vl", "instructblip-llama", "instructblip-t5")
SEEDED = ("llava", "qwen2_5_vl", "instructblip-llama")


def int8_dynamic(model: nn.Module) -> nn.Module:
    """Weights and activations of every linear layer in 8 bits, one scale for each tensor: the coarsest there is."""
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def int8_weights(model: nn.Module) -> nn.Module:
    """Weights in 8 bits, one scale for each output, by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8WeightOnlyConfig())
    return quantised


class LowRank(nn.Module):
    """A linear layer with a trainable update of rank 4."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, inner.in_features) / inner.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(inner.out_features, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gives, and the update."""
        return self.inner(x) + x @ self.down.T @ self.up.T


def tuned(vlm: sk.VLM, *, low_rank: bool, rate: float, steps: int) -> nn.Module:
    """A copy that was trained further, as a language model, on the text of 32 prompts."""
    torch.manual_seed(0)
    model = copy.deepcopy(vlm.model)
    if low_rank:
        model.requires_grad_(False)
        blocks = model.get_submodule(vlm.architecture.layers)
        for name, module in list(blocks.named_modules()):
            if name.endswith(("q_proj", "v_proj")) and isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(blocks.get_submodule(parent), child, LowRank(module))
    inputs = sk.wrap(model, vlm.processor).inputs(list(anchors(16)), images=False)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)[:, 1:]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    for _ in range(steps):
        logits = call_target(model, inputs, vlm.architecture)(**inputs).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def left_padded(vlm: sk.VLM, theirs: Fingerprint) -> float:
    """The smallest cosine where each probe stands in a batch behind a longer prompt, so that it is padded."""
    ours: dict[str, Response] = {}
    layers = range(vlm.architecture.layer_count)
    for name, sample in probes().items():
        longer = sk.Sample(f"{sample.text} {sample.text} {sample.text}", images=sample.images)
        inputs = vlm.inputs([sample, longer])
        found = capture(vlm.model, inputs, vlm.architecture, layers, "resid_post")
        states = torch.stack([found[layer][0].float() for layer in layers])
        ours[name] = Response("", (), responses(vlm)[name].pixels, states)
    return min(state_cosines(theirs, ours).values())


def other_processors(vlm: sk.VLM) -> Iterator[tuple[str, Any]]:
    """Copies of the processor with one setting changed each."""

    def changed(apply: Callable[[Any], object]) -> Any:
        made = copy.deepcopy(vlm.processor)
        apply(made)
        return made

    def image(**fields: Any) -> Callable[[Any], object]:
        return lambda processor: [setattr(processor.image_processor, key, value) for key, value in fields.items()]

    if getattr(vlm.processor, "chat_template", None):
        template = "Be brief.\n" + vlm.processor.chat_template
        yield "other chat template", changed(lambda processor: setattr(processor, "chat_template", template))
    yield "image: other mean and std", changed(image(image_mean=[0.2] * 3, image_std=[0.3] * 3))
    yield "image: not normalised", changed(image(do_normalize=False))
    current = int(vlm.processor.image_processor.resample)
    yield "image: nearest instead of the resampling", changed(image(resample=0 if current != 0 else 2))
    size = vlm.processor.image_processor.size
    size = dict(size) if isinstance(size, dict) else {key: getattr(size, key) for key in ("longest_edge",)}
    if size.get("longest_edge"):
        kept = copy.deepcopy(vlm.processor.image_processor.size)
        half = {"shortest_edge": kept["shortest_edge"], "longest_edge": max(kept["longest_edge"] // 2, 1)}
        yield "image: half the pixels", changed(image(size=half))


def variants(vlm: sk.VLM, load: Callable[[torch.dtype], sk.VLM]) -> Iterator[tuple[str, str, Callable[[], sk.VLM]]]:
    """`(expected, what, how to make it)`."""

    def quantised(make: Callable[[nn.Module], nn.Module]) -> Callable[[], sk.VLM]:
        return lambda: sk.wrap(make(vlm.model), vlm.processor)

    yield "same", "float32", lambda: load(torch.float32)
    yield "same", "bfloat16", lambda: load(torch.bfloat16)
    yield "same", "float16", lambda: load(torch.float16)
    yield "same", "int8, dynamic, per tensor", quantised(int8_dynamic)
    yield "same", "int8, weights (torchao)", quantised(int8_weights)
    for what, options in (
        ("rank 4, 20 steps at 1e-3", {"low_rank": True, "rate": 1e-3, "steps": 20}),
        ("all weights, 20 steps at 1e-4", {"low_rank": False, "rate": 1e-4, "steps": 20}),
        ("all weights, 20 steps at 1e-5", {"low_rank": False, "rate": 1e-5, "steps": 20}),
    ):
        yield "warn", f"fine-tuned: {what}", lambda o=options: sk.wrap(tuned(vlm, **o), vlm.processor)
    for what, processor in other_processors(vlm):
        yield "refuse", what, lambda p=processor: sk.wrap(vlm.model, p)


def measured(theirs: Fingerprint, vlm: sk.VLM) -> dict[str, Any]:
    """Verdict and smallest cosine (also where the inputs already tell the two apart)."""
    ours = responses(vlm)
    check = check_fingerprint(theirs, ours)
    verdict = {"pass": "same", "warn": "warn", "fail": "refuse", "skip": "skip"}[check.status]
    return {"verdict": verdict, "cosine": min(state_cosines(theirs, ours).values()), "message": check.message}


def tried(theirs: Fingerprint, make: Callable[[], sk.VLM]) -> dict[str, Any]:
    """The same, or why it could not be measured here."""
    try:
        return measured(theirs, make())
    except ImportError as error:
        return {"verdict": "not measured", "message": str(error)}


def elsewhere(folder: str, library: str) -> tuple[str, Fingerprint]:
    """The fingerprint of a model in another release of transformers."""
    environment = {**os.environ, "PYTHONPATH": library}
    command = [sys.executable, "-W", "ignore", __file__, "--print-fingerprint", folder]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    version, document = out.strip().splitlines()[-2:]
    return version, Fingerprint.model_validate_json(document)


def other_family(theirs: Fingerprint, vlm: sk.VLM, other: sk.VLM) -> dict[str, Any]:
    """What `steer` says of a vector of one family on a model of another; a cosine where the states have one shape."""
    record = vlm.record.model_copy(update={"id": ""})  # the folder that it was loaded from is nobody's business
    metadata = PackMetadata(
        method=MethodRecord(name="none"), interventions=(sk.Intervention(),), model=record, fingerprint=theirs
    )
    vector = sk.SteeringVector({sk.Key(0): torch.ones(vlm.record.hidden_size)}, metadata)
    checks = check_applied([vector], [1e-3], other)
    failed = [check.message for check in checks if check.status == "fail"]
    row: dict[str, Any] = {"verdict": "refuse" if failed else "other", "message": "; ".join(failed)}
    same_shape = (vlm.record.hidden_size, vlm.record.layer_count) == (
        other.record.hidden_size,
        other.record.layer_count,
    )
    if same_shape:
        row["cosine"] = min(state_cosines(theirs, responses(other)).values())
    return row


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for folder in arguments.models or [model_path(name) for name in MODELS]:
        vlm = sk.load(folder, dtype="float32")
        kind = f"trained {vlm.record.model_type}"
        theirs = fingerprint(vlm)
        for expected, what, make in variants(vlm, lambda dtype, folder=folder: sk.load(folder, dtype=dtype)):
            yield {"model": kind, "change": what, "expected": expected, **tried(theirs, make)}
        yield padding(kind, vlm, theirs)
        for library in arguments.libraries:
            version, other = elsewhere(folder, library)
            row = {"model": kind, "change": f"transformers {version}", "expected": "same"}
            yield {**row, **measured(other, vlm)}
        for other in arguments.seeds:
            config = json.loads((Path(other) / "config.json").read_text())
            if config["model_type"] == vlm.record.model_type:
                found = measured(theirs, sk.load(other, dtype="float32"))
                yield {"model": kind, "change": "another training seed", "expected": "refuse", **found}
        for name in MODELS:
            other = sk.load(model_path(name), dtype="float32")
            if other.record.model_type != vlm.record.model_type:
                found = other_family(theirs, vlm, other)
                yield {"model": kind, "change": "another family", "expected": "refuse", **found}
    for family in SEEDED:
        vlm = sk.wrap(*tiny.build(family))
        kind, theirs = f"random {family}", fingerprint(vlm)

        def load(dtype: torch.dtype, vlm: sk.VLM = vlm) -> sk.VLM:
            return sk.wrap(copy.deepcopy(vlm.model).to(dtype), vlm.processor)

        for expected, what, make in variants(vlm, load):
            if expected == "warn":
                continue  # training random weights says nothing of fine-tuning
            yield {"model": kind, "change": what, "expected": expected, **tried(theirs, make)}
        yield padding(kind, vlm, theirs)
        model = copy.deepcopy(vlm.model)
        for seed in (1, 2):
            torch.manual_seed(seed)
            tiny.scatter(model)
            found = measured(theirs, sk.wrap(model, vlm.processor))
            yield {"model": kind, "change": "another seed", "expected": "refuse", **found}
        for other in FAMILIES:
            if other != family:
                found = other_family(theirs, vlm, sk.wrap(*tiny.build(other)))
                yield {"model": kind, "change": "another family", "expected": "refuse", **found}


def padding(kind: str, vlm: sk.VLM, theirs: Fingerprint) -> dict[str, Any]:
    return {
        "model": kind,
        "change": "left padding",
        "expected": "same",
        "verdict": "same" if (cosine := left_padded(vlm, theirs)) >= 0.99 else "other",
        "cosine": cosine,
        "message": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", default=[])
    parser.add_argument("--libraries", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--print-fingerprint", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.print_fingerprint:
        vlm = sk.load(arguments.print_fingerprint, dtype="float32")
        print(importlib.metadata.version("transformers"))
        print(fingerprint(vlm).model_dump_json())
        return
    found: list[dict[str, Any]] = []
    for row in rows(arguments):
        found.append(row)
        cosine = f"{row['cosine']:.4f}" if "cosine" in row else "-"
        line = f"{row['model']:24} {row['change']:44} {row['expected']:7} {row['verdict']:7} {cosine:>8}"
        print(line, row["message"][:60], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ranges: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in found:
        if "cosine" in row:
            ranges[row["expected"], row["change"]].append(row["cosine"])
    print("\n| expected | change | smallest | largest |\n| --- | --- | ---: | ---: |")
    for (expected, change), cosines in sorted(ranges.items()):
        print(f"| {expected} | {change} | {min(cosines):.4f} | {max(cosines):.4f} |")


if __name__ == "__main__":
    try:
        main()
    except SteerKitError as error:
        sys.exit(str(error))
