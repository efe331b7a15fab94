"""What it costs to load and audit a pack, beside `safetensors.torch.load_file` of the same file.

    python benchmarks/load.py [--layers 32] [--hidden 4096] [--dtype float32] [--rounds 200] [--json FILE]

The readers take turns in a new order in every round; the file stands in the page cache, and imports are not counted.
Times are medians with quartiles; the difference is the median over the rounds of the difference within a round. The
processor time is what the process itself used: on a machine that does other work, it is the one to look at.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table

import steerkit as sk
from steerkit.vectors import AnchorRecord, MethodRecord, Metric, ModelRecord, PackMetadata
from steerkit.vectors.formats import read_pack

BASELINE = "safetensors.torch.load_file"


def a_pack(folder: Path, layers: int, hidden: int, dtype: Any) -> Path:
    """A pack of LLaVA-1.5's shape with a document as `fit` writes it."""
    generator = torch.Generator().manual_seed(0)
    metadata = PackMetadata(
        method=MethodRecord(name="cmrm", config={"alpha": 1.0}, paper="arXiv 2410.09047"),
        interventions=(sk.Intervention(phase="prompt"),),
        model=ModelRecord(
            id="llava-hf/llava-1.5-7b-hf",
            architecture="LlavaForConditionalGeneration",
            model_type="llava",
            hidden_size=hidden,
            layer_count=layers,
        ),
        anchors=AnchorRecord(name="anchors", sha256="0" * 64, size=200, labels={"harmful": 100, "harmless": 100}),
        metrics=tuple(Metric(name=f"metric {index}", value=0.5, judge="exact match") for index in range(6)),
    )
    directions = {sk.Key(layer): torch.randn(hidden, generator=generator) for layer in range(layers)}
    return sk.SteeringVector(directions, metadata).save(folder / "pack.safetensors", dtype=dtype)


def measure(readers: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """Interleaved rounds, ten of them to warm up."""
    order = list(readers)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in order}
    shuffler = random.Random(0)
    for number in range(rounds + 10):
        shuffler.shuffle(order)
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            readers[name]()
            if number >= 10:
                times[name].append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))
    rows: list[dict[str, Any]] = []
    for name, found in times.items():
        rows.append({"reader": name})
        for clock, kind in enumerate(("wall", "processor")):
            mine, base = [each[clock] for each in found], [each[clock] for each in times[BASELINE]]
            rows[-1][f"{kind}_ms"] = quartiles(mine)
            rows[-1][f"{kind}_beyond_ms"] = quartiles([a - b for a, b in zip(mine, base, strict=True)])
    return rows


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = a_pack(Path(folder), given.layers, given.hidden, given.dtype)
        readers = {
            BASELINE: lambda: safetensors.torch.load_file(path),
            "steerkit, parse and audit (`read_pack`)": lambda: read_pack(path),
            "steerkit, `SteeringVector.load`": lambda: sk.SteeringVector.load(path),
            "steerkit, `load_vector`": lambda: sk.load_vector(path),
        }
        rows = measure(readers, given.rounds)
        size = path.stat().st_size
    columns = ("wall_ms", "wall_beyond_ms", "processor_ms", "processor_beyond_ms")
    table = Table("reader", *columns, title=f"{given.layers} x {given.hidden}, {given.dtype}")
    for row in rows:
        cells = [row[column] for column in columns]
        shown = [f"{each['median']:.2f} ({each['low']:.2f}-{each['high']:.2f})" for each in cells]
        table.add_row(row["reader"], *shown)
    Console(width=140).print(table)
    document = {
        "layers": given.layers,
        "hidden": given.hidden,
        "dtype": given.dtype,
        "file_bytes": size,
        "rounds": given.rounds,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
        "readers": rows,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
