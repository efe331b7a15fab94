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
from typing import Any, ClassVar, final

import torch
from pydantic import BaseModel

from steerkit._internal.faults import refused_as
from steerkit._internal.json import json_object
from steerkit.errors import PackFormatError
from steerkit.interventions import FiniteFloat
from steerkit.vectors import MethodRecord
from steerkit.vectors.formats.container import read_file
from steerkit_vectors_hub.interop.base import FIX, Choice, Foreign, ForeignReader, by_layer

MAX_NUMBERS = 2**24
_LAYER = re.compile(r"(0|[1-9][0-9]{0,3})")


class _File(BaseModel, extra="forbid", strict=True):
    model_type: str
    directions: dict[str, list[FiniteFloat]]
    explained_variances: Any = None


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
        with refused_as(PackFormatError, "the file", expected="a .svec file", fix=FIX):
            held = _File.model_validate(document)
        found = by_layer(held.directions.items(), _LAYER, "key", "a number from 0")
        return Foreign(
            {layer: torch.tensor(row, dtype=torch.float64, device="cpu") for layer, row in found.items()},
            shift=-1,
            outside={0: "the input of block 0"},
            method=MethodRecord(name="activation-steering"),
            model_type=held.model_type[:200],
        )
