"""What it costs to wrap a model, and to try one of an untested type, against loading it and against forward passes.

The check reads one prompt in a whole pass, and three in the first blocks of another; `pass` is a forward pass of one
prompt, as transformers' own processor makes it. The models of a type are narrow, with 24 blocks; a model in a folder is
taken as it is.

Run `PYTHONPATH=tests python benchmarks/wrapping.py [TYPE | FOLDER ...]`.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from breadth import configs, pairs, prompts

import steerkit as sk
from steerkit.models import meaningless_image
from steerkit.vlm._self_check import _SHORT, _SIDE, check_itself

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
    picture = meaningless_image((_SIDE, _SIDE), None)
    shorten = configs._fewer_layers

    def deep(part: configs.Document, wanted: int) -> None:
        shorten(part, 24 if wanted == 3 else wanted)

    for name in types:
        if Path(name).is_dir():
            loaded = sk.load(name)
            model, processor, inputs = loaded.model, loaded.processor, loaded.inputs([sk.Sample(_SHORT, (picture,))])
        else:
            with patch.object(configs, "_fewer_layers", deep):
                model, processor = pairs.pair(name)
            inputs = prompts.encoded(name, processor, [_SHORT], [[picture]])
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model.save_pretrained(folder)
            load = least(lambda: type(model).from_pretrained(folder), 2)  # noqa: B023
            wrap = least(lambda: sk.wrap(model, processor))  # noqa: B023
            once = least(lambda: model(**inputs, use_cache=False))  # noqa: B023
            vlm = sk.wrap(model, processor)
            check_itself(vlm)
            check = least(lambda: check_itself(vlm))  # noqa: B023
        figures = " ".join(f"{each * 1e3:7.1f}ms" for each in (load, wrap, check, once))
        print(f"{Path(name).name:16} {figures} {check / once:13.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TYPES))
