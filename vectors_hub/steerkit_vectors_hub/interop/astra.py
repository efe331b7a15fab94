"""ASTRA ("Steering Away from Harm", arXiv:2411.16721): `*_diff_attr_activations_*.pt` and `reference_activations.pt`.

Layer convention: the number is an index of `output_hidden_states`, where 0 is the embedding: N is the output of the
decoder block with index N - 1, and the evaluation scripts hook `layers[steer_layer - 1]`. So N becomes N - 1 here.
Index 0 is not a block's output and is refused; so is the index of the last block, because `hidden_states[-1]` is taken
behind the final norm.

A file maps a number per prompt to `{N: [activation, ...]}`; the direction v is their mean. The scripts subtract, at
the last token while prompt and answer are processed, `alpha * clip(cos(h - r, v), 0, 1) * |h|` times the unit vector
of v, where r is the mean of the reference activations at the same index. That is expressed exactly, with alpha = 1:
give alpha as the strength (the README's are 7 for Qwen2-VL, 5 for MiniGPT-4, 10 for LLaVA). One layer is steered, the
file may hold several: choose.

Verified against the scripts of the repository ASTRAL-Group/ASTRA at 54df103, and with its published files for
LLaVA-1.5-13B; the scripts need GPUs and were not run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from steerkit._internal.faults import about
from steerkit.errors import LayerRangeError, OptionError
from steerkit.interventions import Add, Intervention, LinearStrength, Measure, StoredDirection
from steerkit.vectors import MethodRecord
from steerkit_vectors_hub.interop.base import REFERENCE, Choice, Foreign, ForeignReader, malformed
from steerkit_vectors_hub.interop.containers import direction, layer_number, load_torch

_AWAY = LinearStrength(
    measure=Measure(kind="cosine", reference=StoredDirection(name=REFERENCE)), slope=-1.0, minimum=-1.0, maximum=0.0
)


@final
class Astra(ForeignReader):
    """Steering activations with their reference activations."""

    title: ClassVar[str] = "ASTRA activations"
    convention: ClassVar[str] = "index N of output_hidden_states is the output of block N - 1, blocks from 0"
    takes: ClassVar[frozenset[str]] = frozenset({"reference"})

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        if choice.reference is None:
            raise OptionError(
                "ASTRA measures each token against reference activations",
                expected="their file, reference_activations.pt",
                fix="name it, on the command line --reference",
            )
        found, reference = _activations(path), _activations(choice.reference)
        if len(wanted := choice.layers or sorted(found)) > 1:
            raise LayerRangeError(
                f"it holds {list(wanted)}, and ASTRA steers one of them", expected="one", fix="choose it, --layers"
            )
        if missing := [index for index in wanted if index in found and index not in reference]:
            raise malformed(f"{choice.reference} holds nothing for index {missing[0]}", f"of {sorted(reference)}")
        last = choice.layer_count or 0
        return Foreign(
            {index: _mean(activations) for index, activations in found.items()},
            shift=-1,
            outside={last: f"index {last}, the state behind the final norm", 0: "index 0, the embedding"},
            references={index: _mean(activations) for index, activations in reference.items()},
            method=MethodRecord(name="astra", paper="https://arxiv.org/abs/2411.16721"),
            interventions=(Intervention(operation=Add(relative=True), strength=_AWAY),),
            notes=tuple(
                f"mean of {len(found[index])} activations, reference of {len(reference[index])}"
                for index in wanted
                if index in found
            ),
            files=(path, choice.reference),
        )


def _activations(path: Path) -> dict[int, list[Tensor]]:
    """All activations of each index, over all prompts."""
    found: dict[int, list[Tensor]] = {}
    with about(path):
        for prompt in _table(load_torch(path)).values():
            for index, activations in _table(prompt).items():
                if not isinstance(activations, list):
                    raise malformed(f"index {index!r:.40} holds a {type(activations).__name__}", "a list of tensors")
                found.setdefault(layer_number(index), []).extend(map(direction, activations))
        for index, activations in found.items():
            if len({activation.shape for activation in activations}) > 1:
                raise malformed(f"activations of several widths at index {index}", "one width")
    return {index: activations for index, activations in found.items() if activations}


def _table(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise malformed(f"a {type(value).__name__}", "{prompt: {index: [activation, ...]}}")
    return value


def _mean(activations: list[Tensor]) -> Tensor:
    return torch.stack([activation.float() for activation in activations]).mean(dim=0)
