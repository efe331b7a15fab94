"""What the hook of a block costs, in instructions, where no clock resolves one percent: `python instructions.py`.

Under valgrind runs a decoding step of a block with the matrices of LLaVA-1.5-7B's, eager and in float32, and apart from
it what a worker adds to the step: the hook of one block, and the block's share, of 32, in what the worker does before
the step. Ratios, the least and the most of all counts, are to the block's matrix products alone, which makes them upper
bounds, and to the whole block with its norms, its rotary embedding and its attention to a context.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from steerkit_vllm.arithmetic import ALL, GATE, NUMBERS
from steerkit_vllm.settings import KEY, SITES, Room
from steerkit_vllm.worker import Scheduled, Steering

ROWS, LAYERS, HEADS = 16, 32, 32
SITE = SITES.index("resid_post")
MOST, LANES = 8, 8
"""Up to how many requests the block is counted. For more it takes long, and is put at the least that its products can
take: an instruction for every 8 numbers that AVX2, which valgrind knows, multiplies and adds at once."""

ADDITION = [{"k0": 1.0}]
KINDS: dict[str, list[dict[str, float]]] = {
    "relative": [{"k1": 1.0}],
    "ablate two": [{"k2": -1.0}, {"k2": -1.0}],
    "clamp": [{"k3": 1.0, "low": -0.5, "high": 0.5}],
    "norm kept": [{"k0": 1.0, "norm": 1.0}],
    "gate": [{"k0": 1.0, "combine": ALL, "kind": 1.0, "threshold": -1.0, "above": 1.0}],
    "rule": [
        {"k0": 1.0, "rule": 1.0, "rule_kind": 1.0, "slope": 1.0, "intercept": 0.1, "minimum": -1.0, "maximum": 1.0}
    ],
}
"""Packs of the general form, by the numbers of their rows."""


class Variant(NamedTuple):
    """What a worker holds, of which each request of a step has one, in turn; no pack: nothing is steered."""

    general: bool
    packs: list[list[dict[str, float]]]


VARIANTS = {
    "idle": Variant(False, []),
    "addition": Variant(False, [ADDITION]),
    "distinct": Variant(False, [ADDITION] * 8),
    "general, idle": Variant(True, []),
    "general, addition": Variant(True, [ADDITION]),
    **{f"general, {name}": Variant(True, [rows]) for name, rows in KINDS.items()},
    "general, all kinds": Variant(True, [ADDITION, *KINDS.values()]),
}


class Block(nn.Module):
    """The matrix products of a block, which returns its change and the residual as vLLM's do."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(*shape), requires_grad=False) for shape in shapes)

    def attended(self, qkv: torch.Tensor) -> torch.Tensor:
        """What attention makes of `[tokens, 3 hidden]`; here nothing."""
        return qkv[:, : qkv.shape[1] // 3]

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """States as a block's parts read them; here as they are."""
        return x

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the residual, and the residual: `[tokens, hidden]` each."""
        qkv, o, up, down = self.weights
        residual = residual + x
        residual = residual + self.attended(self.normed(residual) @ qkv) @ o
        gate, value = (self.normed(residual) @ up).chunk(2, dim=1)
        return (functional.silu(gate) * value) @ down, residual


class Whole(Block):
    """With what else a block computes for a token of each of so many requests, `context` tokens before it."""

    def __init__(self, block: Block, hidden: int, tokens: int, context: int) -> None:
        nn.Module.__init__(self)
        self.weights = block.weights
        self.scale = torch.ones(hidden)
        self.turn = torch.polar(torch.ones(hidden // HEADS // 2), torch.rand(hidden // HEADS // 2))
        self.cache = torch.zeros(2, tokens, HEADS, context, hidden // HEADS)

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm."""
        return functional.rms_norm(x, self.scale.shape, self.scale, 1e-5)

    def attended(self, qkv: torch.Tensor) -> torch.Tensor:
        """The last of the context, turned, attends to all of it."""
        q, k, v = (each.reshape(len(qkv), HEADS, -1) for each in qkv.chunk(3, dim=1))
        q, k = (
            torch.view_as_real(torch.view_as_complex(each.view(*each.shape[:2], -1, 2)) * self.turn).flatten(2)
            for each in (q, k)
        )
        self.cache[0, :, :, -1], self.cache[1, :, :, -1] = k, v
        return functional.scaled_dot_product_attention(q[:, :, None], self.cache[0], self.cache[1]).flatten(1)


class Nothing(nn.Module):
    """A block that takes no time, to count its hook alone: beside a block's products, counting would not resolve it."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both."""
        return x, residual


def worker(hidden: int, tokens: int, variant: Variant) -> tuple[Steering, nn.Module]:
    """A worker's steering with the packs of a variant, and a block that it has hooked."""
    # the least that a server has room for is two changes of a token, of which its self-test needs one
    room = Room(rows=ROWS, depth=2, sites=("resid_post",), general=variant.general)
    if variant.general:
        room = room.joined(Room(gates=1, rule=True))
    blocks = nn.ModuleList(Nothing() for _ in range(LAYERS))
    model = SimpleNamespace(model=SimpleNamespace(layers=blocks))
    config = SimpleNamespace(
        additional_config={KEY: {"allocated": room.model_dump()}},
        model_config=SimpleNamespace(get_hidden_size=lambda: hidden, enforce_eager=True),
        scheduler_config=SimpleNamespace(max_num_seqs=tokens, max_num_batched_tokens=tokens),
    )
    steering = Steering(SimpleNamespace(get_model=lambda: model, device=torch.device("cpu")), config)
    for number, rows in enumerate(variant.packs):
        steering.add(SITE, 1 + 2 * number, save(tensors(rows, hidden, number)))
    return steering, blocks[LAYERS // 2]


def tensors(rows: list[dict[str, float]], hidden: int, seed: int) -> dict[str, torch.Tensor]:
    """A pack as workers are given it, with random directions of norm 1, the same at each layer."""
    noise = torch.Generator().manual_seed(seed)

    def directions() -> torch.Tensor:
        drawn = torch.randn(len(rows), hidden, generator=noise)
        return (drawn / drawn.norm(dim=1, keepdim=True)).expand(LAYERS, -1, -1).contiguous()

    width = len(NUMBERS) + (len(GATE) if "kind" in rows[0] else 0)
    found = {"u": directions(), "numbers": torch.zeros(LAYERS, len(rows), width)}
    for at, row in enumerate(rows):
        for name, value in {"dose": 1.0, "opens": float(at == 0), **row}.items():
            where = NUMBERS.index(name) if name in NUMBERS else len(NUMBERS) + GATE.index(name)
            found["numbers"][:, at, where] = value
    for name in (["gate0"] if "kind" in rows[0] else []) + (["rule"] if "rule" in rows[0] else []):
        found |= {name: directions(), f"{name}_from": torch.zeros(LAYERS, len(rows), hidden)}
    return found


def scheduled(tokens: int, variant: Variant) -> list[Scheduled]:
    """A step in which each request decodes a token."""

    def plan(at: int) -> dict[str, Any] | None:
        if not variant.packs:
            return None
        number = at % len(variant.packs)
        rows = range(len(variant.packs[number]))
        changes = [[SITE, depth, 1 + 2 * number + depth, -1, [[32, 2**31, 1.0]]] for depth in rows]
        return {"prompt": 33, "changes": changes, "vectors": []}

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


def measure(hidden: int, inner: int, context: int, passes: int, batches: list[int], variants: list[str]) -> None:
    """Under valgrind: print the instructions of the block, and of what each variant adds to it."""
    torch.set_num_threads(1)
    subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], capture_output=True, check=True)
    with torch.inference_mode():
        block = Block(hidden, inner)
        for tokens in batches:
            x = torch.ones(tokens, hidden)
            if tokens <= MOST:
                products = counts(partial(block, x, x), 1, 1)[0]
                whole = counts(partial(Whole(block, hidden, tokens, context), x, x), 1, 1)[0]
            else:
                products = tokens * sum(each.numel() for each in block.weights) / LANES
                whole = products + tokens * 2 * context * hidden / LANES
            least = "" if tokens <= MOST else " at least"
            print(f"{tokens:>3} requests, products {least} {products / 1e6:.1f} M", flush=True)
            print(f"{tokens:>3} requests, block    {least} {whole / 1e6:.1f} M", flush=True)
            for name in variants:
                empty = counts(partial(Nothing(), x, x), passes)
                steering, bare = worker(hidden, tokens, VARIANTS[name])
                before = counts(partial(steering.begin, scheduled(tokens, VARIANTS[name])), passes)
                hook = counts(partial(bare, x, x), passes)
                least, most = (
                    choose(hook) - other(empty) + choose(before) / LAYERS for choose, other in ((min, max), (max, min))
                )
                ratios = (f"{1 + least / each:.5f} to {1 + most / each:.5f}" for each in (products, whole))
                print(
                    f"{tokens:>3} requests, {name:<18} {least / 1e6:>8.3f} to {most / 1e6:.3f} M more: "
                    f"{' of the products, '.join(ratios)} of the block",
                    flush=True,
                )


def main() -> None:
    """Start this file again under valgrind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--context", type=int, default=512, help="tokens that each request attends to")
    parser.add_argument("--passes", type=int, default=50, help="of what is added, in each count")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    if os.environ.get("STEERKIT_COUNTED"):
        measure(given.hidden, given.inner, given.context, given.passes, given.batches, given.variants)
        return
    # imports are not counted, which takes a tenth of the time
    options = ("--tool=callgrind", "--callgrind-out-file=/dev/null", "--instr-atstart=no")
    command = ["valgrind", *options, sys.executable, *sys.argv]
    sys.exit(subprocess.call(command, env={**os.environ, "STEERKIT_COUNTED": "1", "OMP_NUM_THREADS": "1"}))


if __name__ == "__main__":
    main()
