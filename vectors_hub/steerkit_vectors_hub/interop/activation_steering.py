"""IBM activation-steering (CAST): `.svec`, a JSON file.

Layer convention: `directions[N]` is added at the INPUT of the decoder block with index N, blocks counting from 0
(`LeashLayer.forward` changes `hidden_states` and then calls the block). The input of block N is the output of block N
- 1, so N becomes N - 1 here. Layer 0 would be the embedding, which is not a block's output: an error, unless other
layers are chosen. The library measures its directions one block later than it adds them, at `hidden_states[N + 1]`;
this converter keeps what the library does with a file.

Every token is steered. `behavior_vector_strength`, the layers to steer and a condition are given to `steer()` and are
not in the file; nor does it say whether it is a behaviour or a condition. It is read as a behaviour. The library
steers the first row of a batch only; here, as everywhere in steerkit, all rows are.

Verified against the repository IBM/activation-steering at 52be602: its code was run and gave the same logits. It is
not on the package index.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from steerkit._internal.json import json_object
from steerkit.vectors import MethodRecord
from steerkit.vectors.formats.container import read_file
from steerkit_vectors_hub.interop.base import FIX, Choice, Foreign, ForeignReader, by_layer, malformed

MAX_NUMBERS = 2**24
_LAYER = re.compile(r"(0|[1-9][0-9]{0,3})")


@final
class ActivationSteering(ForeignReader):
    """`.svec` files."""

    title: ClassVar[str] = "an IBM activation-steering vector"
    convention: ClassVar[str] = "layer N is the input of block N, so the output of block N - 1, blocks from 0"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By its suffix."""
        return path.suffix == ".svec"

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        document = json_object(read_file(path), "the file", fix=FIX, most=MAX_NUMBERS)
        if unknown := sorted(set(document) - {"model_type", "directions", "explained_variances"}):
            raise malformed(f"unknown fields {unknown[:5]}", "model_type, directions, explained_variances")
        directions, model_type = document.get("directions"), document.get("model_type")
        if not isinstance(directions, dict) or not isinstance(model_type, str):
            raise malformed("directions or model_type is missing", "a .svec file")
        found = by_layer(directions.items(), _LAYER, "key", "a number from 0")
        return Foreign(
            {layer: _vector(numbers, f"layer {layer}") for layer, numbers in found.items()},
            shift=-1,
            outside={0: "the input of block 0"},
            method=MethodRecord(name="activation-steering"),
            model_type=model_type[:200],
        )


def _vector(numbers: object, what: str) -> Tensor:
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise malformed(f"{what} is something else than a list of numbers", "one vector")
    try:
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")
    except (OverflowError, RuntimeError) as error:
        raise malformed(f"{what} has a number that is too large", "finite numbers") from error
