"""What steering costs: steered against unsteered generation, and extraction against bare forward passes.

    python benchmarks/overhead.py [--preset 50m|7b] [--device cpu|cuda] [--rounds 15] [--tables TITLE ...] [--json FILE]

All variants of a table run interleaved, in a new order in every round; a ratio is the median over the rounds of
(time of the variant / time of the baseline in the same round), and its range is the quartiles; `undisturbed` is the
ratio of the fastest quarters of both. The model is a randomly
initialised LLaVA, so no weights are needed; answers are nonsense, times are not. Weights of the 7b preset are 14 GB.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from bare_passes import needed
from peers import peers
from rich.console import Console
from rich.table import Table

import steerkit as sk
from steerkit.demo import METHODS, anchors, model_path
from steerkit.evaluation import read_methods
from steerkit.vectors import MethodRecord, PackMetadata

PRESETS = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "50m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
NEW_TOKENS = 48
BATCH = 4


def build(preset: str, device: str) -> sk.VLM:
    """A randomly initialised LLaVA of the preset's size, with the demo model's processor."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    demo = sk.load(model_path("llava"), dtype="float32")
    sizes = PRESETS[preset]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**demo.model.config.vision_config.to_dict()),
        text_config=LlamaConfig(
            **sizes,
            num_key_value_heads=sizes["num_attention_heads"],
            vocab_size=32064 if preset == "7b" else 8192,
            max_position_embeddings=1024,
        ),
        image_token_index=demo.model.config.image_token_id,
        image_seq_length=demo.model.config.image_seq_length,
        vision_feature_layer=demo.model.config.vision_feature_layer,
        vision_feature_select_strategy=demo.model.config.vision_feature_select_strategy,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(previous)
    tokenizer = demo.processor.tokenizer
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, do_sample=False)
    return sk.wrap(model, demo.processor)


def random_vector(vlm: sk.VLM, phase: str) -> sk.SteeringVector:
    """Small random directions at every layer."""
    generator = torch.Generator().manual_seed(0)
    record = vlm.record
    return sk.SteeringVector(
        {sk.Key(i): 0.05 * torch.randn(record.hidden_size, generator=generator) for i in range(record.layer_count)},
        PackMetadata(method=MethodRecord(name="random"), interventions=(sk.Intervention(phase=phase),), model=record),
    )


@contextmanager
def plain_hooks(vlm: sk.VLM, vector: sk.SteeringVector, every_step: bool) -> Iterator[None]:
    """The least that any steering with torch hooks must do."""
    with ExitStack() as stack:
        for layer, block in enumerate(vlm.model.get_submodule(vlm.architecture.layers)):
            direction = vector.directions[layer].to(vlm.device, vlm.dtype)

            def hook(module: Any, args: Any, h: torch.Tensor, direction: torch.Tensor = direction) -> Any:
                if h.shape[1] == 1:
                    return h + direction if every_step else None
                h = h.clone()
                h[:, -1] += direction
                return h

            stack.callback(block.register_forward_hook(hook).remove)
        yield


def compare(variants: dict[str, Callable[[], Any]], baseline: str, rounds: int, device: str) -> list[dict[str, Any]]:
    """Interleaved rounds; the median ratio of each variant to the baseline."""
    order = list(variants)
    times: dict[str, list[float]] = {name: [] for name in order}
    shuffler = random.Random(0)
    for number in range(rounds + 2):
        shuffler.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            variants[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                times[name].append(time.perf_counter() - begin)
    rows = []
    for name, found in times.items():
        ratios = sorted(mine / base for mine, base in zip(found, times[baseline], strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "variant": name,
                "seconds": statistics.median(found),
                "ratio": statistics.median(ratios),
                "quartiles": [low, high],
                "undisturbed": fastest(found) / fastest(times[baseline]),
            }
        )
    return sorted(rows, key=lambda row: list(variants).index(row["variant"]))


def fastest(times: list[float]) -> float:
    """The mean of the fastest quarter: whatever else a machine does only ever adds to a time."""
    return statistics.fmean(sorted(times)[: max(len(times) // 4, 1)])


def generation(vlm: sk.VLM, rounds: int, device: str) -> list[dict[str, Any]]:
    """Generation with every layer steered: at the last prompt token, and at every step."""
    samples = anchors(BATCH, ("harmful",))

    def run() -> None:
        vlm.generate(samples, batch_size=BATCH, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)

    def inside(context: Callable[[], Any]) -> Callable[[], None]:
        def steered() -> None:
            with context():
                run()

        return steered

    prompt, both = random_vector(vlm, "prompt"), random_vector(vlm, "both")
    sample = sk.CMRM(level="sample").fit(vlm)
    variants = {
        "unsteered": run,
        "plain hooks, every step": inside(lambda: plain_hooks(vlm, both, True)),
        "steerkit hooks, every step": inside(lambda: sk.steer(vlm, both)),
        "steerkit hooks, prompt only": inside(lambda: sk.steer(vlm, prompt)),
        "steerkit hooks, sample level": inside(lambda: sk.steer(vlm, sample)),
        "steerkit nnsight, every step": inside(lambda: sk.steer(vlm, both, engine="nnsight")),
        "steerkit nnsight, prompt only": inside(lambda: sk.steer(vlm, prompt, engine="nnsight")),
    }
    rows = compare(variants, "unsteered", rounds, device)
    for row in rows:
        row["tokens_per_second"] = BATCH * NEW_TOKENS / row["seconds"]
    return rows


def composition(vlm: sk.VLM, rounds: int, device: str) -> list[dict[str, Any]]:
    """Generation with one, three and ten vectors, every layer steered at every step."""
    samples = anchors(BATCH, ("harmful",))

    def run() -> None:
        vlm.generate(samples, batch_size=BATCH, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)

    def steered(count: int, **intervention: Any) -> Callable[[], None]:
        one = random_vector(vlm, "both")
        changed = (one.interventions[0].model_copy(update=intervention),)
        vectors = [sk.SteeringVector(one.tensors, one.metadata.model_copy(update={"interventions": changed}))] * count

        def call() -> None:
            with sk.steer(vlm, vectors, strength=1 / count):
                run()

        return call

    variants: dict[str, Callable[[], Any]] = {"unsteered": run}
    variants |= {f"{count} added": steered(count) for count in (1, 3, 10)}
    variants |= {f"{count} norm preserving, not summed": steered(count, norm_preserving=True) for count in (1, 3, 10)}
    return compare(variants, "unsteered", rounds, device)


def fitting(vlm: sk.VLM, rounds: int, device: str) -> list[dict[str, Any]]:
    """Fitting each method, against the bare forward passes that it needs.

    The fingerprint of the model, three more passes, is taken by the first fit and kept until the model changes.
    """
    samples = anchors(32, ("harmful", "harmless"))
    rows: list[dict[str, Any]] = []
    for name, each in read_methods(METHODS).items():
        method: Any
        method, chosen = each.entry(samples)
        if name == "astra":  # each sample is answered, and costs two passes for each mask
            method = method.model_copy(update={"masks": 8})
        if not method.plan(vlm, chosen).measures:
            continue

        def fit(method: Any = method, chosen: Any = chosen) -> None:
            method.fit(vlm, chosen)

        bare = f"{name}: bare forward passes"
        rows += compare({bare: needed(vlm, fit), f"{name}: fit": fit}, bare, rounds, device)
    return rows


def extraction(vlm: sk.VLM, rounds: int, device: str) -> list[dict[str, Any]]:
    """Capturing the last prompt token at every layer, against forward passes of the backbone alone."""
    samples = anchors(16, ("harmful",))
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                vlm.model.model(**vlm.inputs(batch), use_cache=False)

    def hooked() -> None:
        kept: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for layer, block in enumerate(vlm.model.get_submodule(vlm.architecture.layers)):

                def hook(module: Any, args: Any, h: torch.Tensor, layer: int = layer) -> None:
                    kept[layer] = h[:, -1].clone()

                stack.callback(block.register_forward_hook(hook).remove)
            bare()

    variants: dict[str, Callable[[], Any]] = {
        "bare forward passes": bare,
        "plain hooks": hooked,
        "steerkit hooks": lambda: vlm.capture(samples, batch_size=BATCH, engine="hooks"),
        "steerkit nnsight": lambda: vlm.capture(samples, batch_size=BATCH, engine="nnsight"),
    }
    return compare(variants, "bare forward passes", rounds, device)


def references(vlm: sk.VLM, rounds: int, device: str) -> list[dict[str, Any]]:
    """The two reference passes of a sample-level prompt: one after the other, or in one padded batch."""
    from steerkit.engines import capturing

    samples = anchors(BATCH, ("harmful",))
    text, blank = vlm.inputs(samples, False), vlm.inputs(samples, "blank")
    layers = list(range(vlm.architecture.layer_count))
    width = blank["input_ids"].shape[1] - text["input_ids"].shape[1]
    joined = {
        "input_ids": torch.cat([torch.nn.functional.pad(text["input_ids"], (width, 0)), blank["input_ids"]]),
        "attention_mask": torch.cat(
            [torch.nn.functional.pad(text["attention_mask"], (width, 0)), blank["attention_mask"]]
        ),
        "pixel_values": blank["pixel_values"],
    }

    def capture(inputs: Any) -> None:
        capturing.capture(vlm.model, inputs, vlm.architecture, layers, "resid_post")

    def separate() -> None:
        capture(text)
        capture(blank)

    return compare({"separate": separate, "one batch": lambda: capture(joined)}, "separate", rounds, device)


def others(rounds: int) -> list[dict[str, Any]]:
    """Other libraries, where they are installed, on a plain Llama of the same size: every layer, every step.

    One that fails here, or that does not steer, is a row that says why.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = PRESETS["50m"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_key_value_heads=sizes["num_attention_heads"], vocab_size=8192)
    ).eval()
    ids = torch.randint(3, 8192, (BATCH, 40))
    directions = {i: 0.05 * torch.randn(sizes["hidden_size"]) for i in range(sizes["num_hidden_layers"])}

    def run(target: Any = model) -> None:
        target.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )

    vlm = sk.wrap(model)
    record = PackMetadata(method=MethodRecord(name="random"), interventions=(sk.Intervention(),), model=vlm.record)
    ours = sk.SteeringVector({sk.Key(layer): direction for layer, direction in directions.items()}, record)

    def with_steerkit() -> None:
        with sk.steer(model, ours, policy="off"):
            run()

    def with_plain_hooks() -> None:
        with plain_hooks(vlm, ours, True):
            run()

    variants: dict[str, Callable[[], Any]] = {
        "unsteered": run,
        "plain hooks": with_plain_hooks,
        "steerkit hooks": with_steerkit,
    }
    working, failing = peers(model, directions, run)
    rows = compare(variants | working, "unsteered", rounds, "cpu")
    return rows + [{"variant": f"{name} can't run here: {why}"} for name, why in failing.items()]


class Endless(Sequence[sk.Sample]):
    """An anchor set that makes its samples when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.few = anchors(8)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> sk.Sample:  # type: ignore[override]
        return self.few[index % len(self.few)]


def memory(sizes: Sequence[int] = (64, 256, 1024)) -> list[dict[str, Any]]:
    """Peak memory of a whole extraction on the demo model, each in a process of its own."""
    rows = []
    for size in sizes:
        command = [sys.executable, __file__, "--extract-only", str(size)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        rows.append({"anchors": size, "peak_mib": peak / 1024})
    return rows


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for head in rows[0]:
        table.add_column(head.replace("_", " "), justify="left" if head == "variant" else "right")
    for row in rows:
        values = [row.get(head, "") for head in rows[0]]
        table.add_row(
            *(
                f"{v:.3f}" if isinstance(v, float) else f"{v[0]:.3f}-{v[1]:.3f}" if isinstance(v, list) else str(v)
                for v in values
            )
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=PRESETS, default="50m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tables", nargs="*", help="some of the tables, by title; default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--extract-only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.extract_only:
        vlm = sk.load(model_path("llava"), dtype="float32")
        sk.CMRM(aggregate="pca").fit(vlm, Endless(options.extract_only), batch_size=16)
        # not ru_maxrss: a child begins with its parent's
        status = Path("/proc/self/status").read_text(encoding="ascii")
        sys.stdout.write(status.split("VmHWM:")[1].split()[0] + "\n")
        return
    vlm = build(options.preset, options.device)
    parameters = sum(p.numel() for p in vlm.model.parameters())
    rounds, device = options.rounds, options.device
    tables: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "generation": lambda: generation(vlm, rounds, device),
        "composition": lambda: composition(vlm, rounds, device),
        "fitting": lambda: fitting(vlm, max(rounds // 3, 3), device),
        "extraction": lambda: extraction(vlm, rounds, device),
        "references": lambda: references(vlm, rounds, device),
        "others": lambda: others(rounds) if device == "cpu" and options.preset == "50m" else [],
        "memory": memory,
    }
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {device}"
    found: dict[str, Any] = {"machine": machine, "parameters": parameters}
    console = Console()
    console.print(f"{parameters / 1e6:.1f} M parameters, {machine}")
    for title in options.tables or tables:
        if rows := tables[title]():
            found[title] = rows
            show(console, title, rows)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
