"""What the hook of a block costs, in instructions, where no clock resolves one percent: `python instructions.py`.

Under valgrind runs a decoding step of a block with the matrices of LLaVA-1.5-7B's, eager and in float32; and apart
from it what a worker adds to the step: the hook, idle, with every request steered by one addition, with each steered
by another pack, and by the general form; and the block's share, of 32, in what the worker does before each step. Ratios
are to the block alone: the least and the most of all counts. Attention and norms are left out, so that they are upper
bounds.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from steerkit_vllm.banks import Now, Place, allocate
from steerkit_vllm.settings import SITES, Room
from steerkit_vllm.worker import Scheduled, Steering

ROWS, LAYERS = 16, 32
MOST, LANES = 8, 8
"""Up to how many requests the block is counted. For more it takes long, and is put at the least that its products can
take: an instruction for every 8 numbers that AVX2, which valgrind knows, multiplies and adds at once."""
VARIANTS: dict[str, dict[str, bool]] = {
    "idle": {"general": False, "steers": False},
    "addition": {"general": False, "steers": True},
    "distinct": {"general": False, "steers": True, "distinct": True},
    "general": {"general": True, "steers": True},
}


class Block(nn.Module):
    """The matrix products of a block, which returns its change and the residual as vLLM's do."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(*shape), requires_grad=False) for shape in shapes)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the residual, and the residual: `[tokens, hidden]` each."""
        qkv, o, up, down = self.weights
        x = (x @ qkv)[:, : x.shape[1]] @ o
        residual = residual + x
        gate, value = (residual @ up).chunk(2, dim=1)
        return (torch.nn.functional.silu(gate) * value) @ down, residual


class Nothing(nn.Module):
    """A block that takes no time, to count its hook alone: beside a block's products, counting would not resolve it."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both."""
        return x, residual


def hooked(
    block: nn.Module, hidden: int, tokens: int, *, general: bool, steers: bool, distinct: bool = False
) -> Steering:
    """Hook the block as a worker does, with the token of every request steered or none."""
    room = Room(rows=ROWS, depth=1, sites=("resid_post",), general=general)
    shape = (len(SITES), room.depth, tokens)
    shared = {"row": torch.zeros(shape, dtype=torch.int64), "coefficient": torch.zeros(shape)}
    shared["read_row"] = torch.zeros(1, dtype=torch.int64)
    if general:
        shared["vector"] = torch.zeros(shape, dtype=torch.int64)
    now = Now()
    allocate(block, Place(SITES.index("resid_post"), room, True, now, True), shared, hidden, 0, 1)
    # the rest of a worker is vLLM's: what it does before a step needs these alone
    steering = Steering.__new__(Steering)
    steering.__dict__.update(room=room, _shared=shared, _now=now, _dirty=0, _reading=[], _readable=1, counts={})
    steering._host = {name: t.numpy().copy() for name, t in shared.items() if name != "read_row"}
    return steering


def scheduled(tokens: int, *, steers: bool, distinct: bool = False, **_: bool) -> list[Scheduled]:
    """A step in which each request decodes a token."""

    def plan(at: int) -> dict[str, Any] | None:
        row = 1 + at % 8 if distinct else 1
        changes = [[SITES.index("resid_post"), 0, row, -1, [[32, 2**31, 1.0]]]]
        return {"prompt": 33, "changes": changes, "vectors": []} if steers else None

    return [(str(at), plan(at), 40, at, 1) for at in range(tokens)]


def counted() -> int:
    """Instructions of this process so far."""
    said = subprocess.run(
        ["callgrind_control", "-e", str(os.getpid())], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"Th \d+\s+([\d,]+)", said)
    return sum(int(each.replace(",", "")) for each in found)


def counts(run: Callable[[], Any], passes: int, times: int = 3) -> list[float]:
    """Instructions of a pass, warm, without what counting takes: several counts of so many passes each."""
    run()
    found = []
    for _ in range(times):
        start = counted()
        middle = counted()
        for _ in range(passes):
            run()
        found.append((counted() - middle - (middle - start)) / passes)
    return found


def measure(hidden: int, inner: int, passes: int, batches: list[int], variants: list[str]) -> None:
    """Under valgrind: print the instructions of the block, and of what each variant adds to it."""
    torch.set_num_threads(1)
    subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], capture_output=True, check=True)
    with torch.inference_mode():
        block = Block(hidden, inner)
        for tokens in batches:
            x = torch.ones(tokens, hidden)
            if tokens <= MOST:
                alone = counts(partial(block, x, x), 1, 1)[0]
            else:
                alone = tokens * sum(each.numel() for each in block.weights) / LANES
            least = "" if tokens <= MOST else " at least"
            print(f"{tokens:>3} requests, alone   {least} {alone / 1e6:>10.3f} M", flush=True)
            for name in variants:
                bare, empty = Nothing(), counts(partial(Nothing(), x, x), passes)
                steering, batch = hooked(bare, hidden, tokens, **VARIANTS[name]), scheduled(tokens, **VARIANTS[name])
                before = counts(partial(steering.begin, batch), passes)
                hook = counts(partial(bare, x, x), passes)
                least, most = (
                    choose(hook) - other(empty) + choose(before) / LAYERS for choose, other in ((min, max), (max, min))
                )
                ratios = [1 + each / alone for each in (least, most)]
                print(
                    f"{tokens:>3} requests, {name:<8} {least / 1e6:>10.3f} to {most / 1e6:.3f} M more: "
                    f"{ratios[0]:.5f} to {ratios[1]:.5f}",
                    flush=True,
                )


def main() -> None:
    """Start this file again under valgrind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--passes", type=int, default=50, help="of what is added, in each count")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    if os.environ.get("STEERKIT_COUNTED"):
        measure(given.hidden, given.inner, given.passes, given.batches, given.variants)
        return
    # imports are not counted, which takes a tenth of the time
    options = ("--tool=callgrind", "--callgrind-out-file=/dev/null", "--instr-atstart=no")
    command = ["valgrind", *options, sys.executable, *sys.argv]
    sys.exit(subprocess.call(command, env={**os.environ, "STEERKIT_COUNTED": "1", "OMP_NUM_THREADS": "1"}))


if __name__ == "__main__":
    main()
