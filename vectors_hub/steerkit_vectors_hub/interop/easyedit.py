"""EasyEdit (its `steer` package, "EasySteer"): `layer_{N}.pt`, or a folder of them.

Layer convention: the number stands in the file's name; the tensor is added to the output of the decoder block with
index N, blocks counting from 0: the same as steerkit (`BlockOutputWrapper.forward`, and `get_last_activations(N)`
measures the same place). Every token is steered; the `multipliers` are in the user's configuration, not in the file.

Read are the single vectors that CAA, vector prompts, SAE features, STA (`layer_{N}_{mode}_trim{t}.pt`) and merged
vectors are saved as: one tensor `[hidden]`. RePS, SFT and SPILT save several concepts or low-rank weights, which do
something else than adding one vector: refused. LM-Steer saves a pickled object: refused.

Verified against the repository zjunlp/EasyEdit at 14cea82: its `BlockOutputWrapper` was run and gave the same logits.
The library is not on the package index (`easyeditor` there is a placeholder).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, final

from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, by_layer

_NAME = re.compile(r"layer_(0|[1-9][0-9]{0,3})(_[A-Za-z0-9_.-]{1,80})?\.pt")


@final
class EasyEdit(ForeignReader):
    """`layer_{N}.pt` files."""

    title: ClassVar[str] = "an EasyEdit vector"
    convention: ClassVar[str] = "layer_N.pt is the output of block N, blocks from 0"

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        return Foreign(
            by_layer(((each.name, each) for each in files), _NAME, "file", "layer_{N}.pt, the name that it had")
        )
