"""What it costs to wrap a model, and to try one of an untested type, against loading it and against one forward pass.

Run `PYTHONPATH=tests python benchmarks/wrapping.py [TYPE ...]`.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
import transformers
from breadth import pairs, prompts
from breadth.reference import Plain

import steerkit as sk
from steerkit.vlm._self_check import check_itself

TYPES = ("llava", "qwen2_vl", "gemma3", "idefics3")


def least(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the quickest of several runs."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return min(spent)


def main(types: list[str]) -> None:
    """Print a line for each type."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(f"{'type':16} {'load':>9} {'wrap':>9} {'check':>9} {'pass':>9} {'check / pass':>13}")
    for name in types:
        model, processor = pairs.pair(name)
        plain = Plain(name, model, processor)
        inputs = plain.shown("What is this?", [prompts.picture(0, 224, 224)])
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model.save_pretrained(folder)
            load = least(lambda: type(model).from_pretrained(folder), 2)  # noqa: B023
            wrap = least(lambda: sk.wrap(model, processor))  # noqa: B023
            once = least(lambda: plain.logits(inputs))  # noqa: B023
            vlm = sk.wrap(model, processor)
            check = least(lambda: check_itself(vlm))  # noqa: B023
        figures = " ".join(f"{each * 1e3:7.1f}ms" for each in (load, wrap, check, once))
        print(f"{name:16} {figures} {check / once:13.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TYPES))
