"""`torch.set_default_device("cuda")`: every tensor is made there that does not say its own device."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from reference import adds, directions, edited, only, since, vector
from torch.utils._device import _device_constructors

import steerkit as sk

ROOT = Path(__file__).parents[2]
PACKAGES = ("steerkit", "adapters", "vectors_hub", "steerkit_vlm")
MAKERS = {function.__name__ for function in _device_constructors()}


def test_every_tensor_that_is_made_says_where() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    silent = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and node.func.attr in MAKERS and not {"device", None} & {word.arg for word in node.keywords}:
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


@pytest.mark.parametrize("which", ["last", "all", "numbered", "rows", "gated", "told"])
def test_a_block_is_opened_and_used_whatever_the_default_is(which: str) -> None:
    """On the device `meta` a tensor has no values: one that is made there by mistake can't be used unnoticed."""
    model, tokenizer = tiny.build("qwen3")
    vlm = sk.wrap(model, tokenizer)
    tensors = directions(vlm)
    inputs = tokenizer(["What is this?"] * 2, return_tensors="pt")
    end = inputs["input_ids"].shape[1]
    always = sk.interventions.Gate(measure=sk.interventions.Measure(kind="projection"), threshold=-1e9)
    where, more = {
        "last": (only(end - 1), {}),
        "all": (since(0), {"tokens": "all", "phase": "both"}),
        "numbered": (only(1), {"tokens": "all", "positions": (1,), "phase": "prompt"}),
        "rows": (lambda p: (p == end - 1) & torch.tensor([[True], [False]]), {"rows": (1.0, 0.0)}),
        "gated": (only(end - 1), {"gate": always}),
        "told": (since(2), {"tokens": "last", "phase": "generation"}),
    }[which]
    with torch.no_grad(), edited(model, "decoder", adds(tensors, where)):  # type: ignore[arg-type]
        right = model(**inputs).logits
    made = vector(vlm, tensors, sk.Intervention(**more))  # type: ignore[arg-type]
    with torch.no_grad(), torch.device("meta"):
        held: Any = sk.prompt_lengths(2) if which == "told" else torch.no_grad()
        with sk.steer(vlm, made, strength=1, policy="off") as receipt, held:
            found = model(**inputs).logits
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    assert receipt.layers
