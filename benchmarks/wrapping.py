"""What it costs to wrap a model, and to try one of an untested type, against loading it and against forward passes.

The check reads one prompt in a whole pass, one and three in the first blocks of two others, and two short ones without
their images; `pass` is a forward pass of one prompt, as transformers' own processor makes it. The models of a type are
narrow, with 24 blocks; a model in a folder is taken as it is.

Run `PYTHONPATH=tests python benchmarks/wrapping.py [--real] [TYPE | FOLDER ...]`; `--real` takes the shapes of
published models of about a billion weights, in bfloat16, with random weights.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from breadth import configs, pairs, processor_options, processors, prompts

import steerkit as sk
from steerkit.models import as_tested, meaningless_image
from steerkit.vlm._self_check import _SHORT, _SIDE, check_itself

TYPES = ("llava", "qwen2_vl", "gemma3", "idefics3")
_QWEN2 = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "layer_types": ["full_attention"] * 24,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_SIGLIP = {"hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 16, "intermediate_size": 4304}
_INTERNVIT = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def _both(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    parts = {"text_config": text, "vision_config": vision}
    return {f"{part}.{key}": value for part, entries in parts.items() for key, value in entries.items()}


REAL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        _both(_QWEN2, {"embed_dim": 1280, "depth": 32, "num_heads": 16, "hidden_size": 896})
        | {"text_config.rope_parameters.mrope_section": [8, 12, 12]},
        {},
        {},
    ),
    "internvl": (
        _both(_QWEN2, {**_INTERNVIT, "image_size": [448, 448]}) | {"image_seq_length": 256},
        {"size": {"height": 448, "width": 448}},
        {"image_seq_length": 256},
    ),
    "llava": (
        _both(_QWEN2, {**_SIGLIP, "image_size": 384, "patch_size": 14, "model_type": "siglip_vision_model"})
        | {"vision_feature_select_strategy": "full", "image_seq_length": 729},
        {"size": {"shortest_edge": 384}, "crop_size": {"height": 384, "width": 384}},
        {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0},
    ),
}
"""What the configuration, the image processor and the processor of a type say of a published size: Qwen2-VL's tower,
InternVL's and the SigLIP of LLaVA-OneVision before Qwen2 of half a billion weights."""


def least(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of processor time of the quickest of several runs."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def of_real_size(name: str) -> tuple[Any, Any]:
    """A model with random weights, in bfloat16, and its processor."""
    changes, images, options = REAL[name]
    with (
        patch.dict(processor_options.IMAGES, {name: {**processor_options.IMAGES.get(name, {}), **images}}),
        patch.dict(processor_options.OPTIONS, {name: {**processor_options.OPTIONS.get(name, {}), **options}}),
    ):
        processor = processors.processor(name)
    prompts.prepare(name, processor)

    def change(document: configs.Document) -> None:
        pairs._agree(name, document, processor)
        configs.override(document, changes)

    torch.set_default_dtype(torch.bfloat16)
    try:
        model = getattr(transformers, pairs.CLASSES[name])(configs.tiny(name, change)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    return model, processor


def main(types: list[str], real: bool) -> None:
    """Print a line for each type."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(f"{'type':16} {'load':>9} {'wrap':>9} {'check':>9} {'pass':>9} {'check / pass':>13}")
    picture = meaningless_image((_SIDE, _SIDE), None)
    shorten = configs._fewer_layers

    def deep(part: configs.Document, wanted: int) -> None:
        shorten(part, 24 if wanted == 3 else wanted)

    model: Any
    for name in types:
        if Path(name).is_dir():
            loaded = sk.load(name)
            model, processor, inputs = loaded.model, loaded.processor, loaded.inputs([sk.Sample(_SHORT, (picture,))])
        else:
            with patch.object(configs, "_fewer_layers", deep):
                model, processor = of_real_size(name) if real else pairs.pair(name)
            inputs = prompts.encoded(name, processor, [_SHORT], [[picture]])
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model.save_pretrained(folder)
            load = least(lambda: type(model).from_pretrained(folder), 2)  # noqa: B023
            wrap = least(lambda: (as_tested(model.config), sk.wrap(model, processor, check=False)))  # noqa: B023
            inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            once = least(lambda: model(**inputs, use_cache=False))  # noqa: B023
            vlm = sk.wrap(model, processor, check=False)
            check_itself(vlm)
            check = least(lambda: check_itself(vlm))  # noqa: B023
        figures = " ".join(f"{each * 1e3:7.1f}ms" for each in (load, wrap, check, once))
        print(f"{Path(name).name:16} {figures} {check / once:13.2f}", flush=True)


if __name__ == "__main__":
    asked = [each for each in sys.argv[1:] if each != "--real"]
    of_size = len(asked) < len(sys.argv) - 1
    main(asked or list(REAL if of_size else TYPES), of_size)
