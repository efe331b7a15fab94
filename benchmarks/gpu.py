"""One run on a GPU, within 12 minutes: LLaVA-1.5-7B's shapes with random weights, in both engines.

    python benchmarks/gpu.py FOLDER [--preset 7b|50m|tiny] [--device cuda|cpu] [--only equality hooks serving]

It needs vLLM with steerkit-vllm, as docs/vllm.md says. `--preset tiny --device cpu` tries it without a GPU, in minutes;
what it prints then is no measurement. Three steps, each a process with a limit of its own, so that one
that hangs or fails leaves the others their time:

    equality  the demo model in vLLM, its graphs compiled and captured, beside transformers, token for token
    hooks     what steering costs in transformers: benchmarks/overhead.py
    serving   what it costs in vLLM: steerkit-vllm/benchmark.py

FOLDER holds the model, packs and every step's output; `gpu.json` says how each ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from overhead import PRESETS, build

import steerkit as sk
from steerkit.vectors import MethodRecord, PackMetadata

REPOSITORY = Path(__file__).parents[1]
PLUGIN = REPOSITORY / "steerkit-vllm"
PACKS = 8
KINDS = ["cmrm", "last", "all", "image", "relative", "ablate_kept", "gate_prompt", "sample", "mlp"]
"""Packs whose answers are compared: one of each sort."""
LIMITS = {"equality": 200, "hooks": 120, "serving": 300}
"""Seconds; 620 of the 720 together, the rest being for 14 GB of weights."""


def prepared(preset: str, device: str, folder: Path) -> list[str]:
    """Save a model with random weights and packs of one random direction for each layer; the packs as `NAME=FILE`."""
    sys.path.insert(0, str(PLUGIN / "tests"))
    from others import save

    vlm = build(preset, device)
    save(vlm, folder / "model")
    found = []
    for number in range(PACKS):
        noise = torch.Generator().manual_seed(number)
        directions = {
            sk.Key(layer): 0.05 * torch.randn(vlm.record.hidden_size, generator=noise)
            for layer in range(vlm.record.layer_count)
        }
        metadata = PackMetadata(
            method=MethodRecord(name="random"), interventions=(sk.Intervention(tokens="all"),), model=vlm.record
        )
        file = folder / f"pack{number}.safetensors"
        sk.SteeringVector(directions, metadata).save(file)
        found.append(f"pack{number}={file}")
    return found


def commands(folder: Path, preset: str, device: str) -> dict[str, list[str]]:
    """The command of each step."""
    cuda = device == "cuda"
    packs = prepared(preset, device, folder)
    if cuda:
        torch.cuda.empty_cache()
    options: dict[str, Any] = {
        "dtype": "bfloat16" if cuda else "float32",
        "max_model_len": 512,
        "max_num_seqs": 64,
        "limit_mm_per_prompt": {"image": 1},
        **({"gpu_memory_utilization": 0.4} if cuda else {"enforce_eager": True, "block_size": 32}),
    }
    lab = folder / "lab"
    lab.mkdir(exist_ok=True)
    job = {"parts": ["mixed"], "options": {"enforce_eager": not cuda}, "only": KINDS if cuda else ["last"]}
    (folder / "equality.in").write_text(json.dumps(job) + "\n")
    rounds, turns, tokens = ("5", "3", "32") if cuda else ("2", "1", "4")
    batches = ("1", "8", "64") if cuda else ("1", "2")
    python = sys.executable
    return {
        "equality": [python, str(PLUGIN / "tests" / "compare.py"), str(lab), "1"],
        "hooks": [
            *(python, str(REPOSITORY / "benchmarks" / "overhead.py"), "--preset", preset, "--device", device),
            *("--rounds", rounds, "--tables", "composition"),
        ],
        "serving": [
            *(python, str(PLUGIN / "benchmark.py"), str(folder / "model"), *packs),
            *("--turns", turns, "--tokens", tokens, "--batches", *batches, "--options", json.dumps(options)),
        ],
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"torch": torch.__version__, "device": given.device, "preset": given.preset}
    if given.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if given.device == "cpu":
        env |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, command in commands(folder, given.preset, given.device).items():
        if name not in given.only:
            continue
        began = time.monotonic()
        asked = folder / f"{name}.in"
        with (
            (asked if asked.exists() else Path(os.devnull)).open() as job,
            (folder / f"{name}.out").open("w") as out,
            (folder / f"{name}.err").open("w") as err,
        ):
            process = subprocess.Popen(command, stdin=job, stdout=out, stderr=err, env=env, start_new_session=True)
            try:
                ended = f"exit status {process.wait(LIMITS[name])}"
            except subprocess.TimeoutExpired:
                ended = "it ran out of time"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # vLLM's own processes too
        found[name] = {"ended": ended, "seconds": round(time.monotonic() - began)}
        print(f"=== {name}: {ended} after {found[name]['seconds']} s")
        print((folder / f"{name}.out").read_text()[-6000:], flush=True)
        (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
