"""Plain tensors, as people save them with torch, numpy or safetensors: one direction, one for each layer, or a stack.

Which layer a number means is a convention that such a file does not hold. It is read off where the place of the number
tells it, and else it is that of the format: N is the output of block N. `numbering` says otherwise:

| numbering | N means | block here |
| --- | --- | --- |
| `block` | the output of decoder block N, blocks from 0 | N |
| `block_input` | the input of block N, `resid_pre` | N - 1 |
| `hidden_states` | index N of transformers' `output_hidden_states` | N - 1 |

Input 0 and index 0 are the embedding; the last index is taken behind the final norm. No block's output is either, so
both are refused, unless other layers are chosen.

| file | numbering |
| --- | --- |
| a stack `[blocks + 1, hidden]`, as persona vectors are saved (`*_diff.pt`) | `hidden_states` |
| a stack `[blocks, hidden]` | `block` |
| a direction `[hidden]` in `vec_layer_N_MODEL.pt` (CAA) or `layer_N...`, keys such as `model.layers.N` | `block` |
| `direction.pt` beside `direction_metadata.json` (the refusal direction) | `block_input` |
| keys such as `N`, `layer_N`, `direction.N`; a direction whose layer the caller chooses | `block` |

The conventions of CAA, persona vectors and the refusal direction are those of their repositories
(nrimsky/CAA, safety-research/persona_vectors, andyrdt/refusal_direction), which were not run. Doses, tokens and the
model are not in the files; the directions are added at every token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from steerkit._internal.files import read_bounded
from steerkit._internal.json import json_object
from steerkit.errors import LayerRangeError, OptionError
from steerkit.interventions import Intervention
from steerkit.vectors import Key, MethodRecord
from steerkit_vectors_hub.interop import numpy_file, safetensors_file, torch_file
from steerkit_vectors_hub.interop.base import FIX, Choice, Foreign, ForeignReader, Numbering, chosen, flat, malformed

_MEANS: dict[Numbering, str] = {
    "block": "the output of block {}",
    "block_input": "the input of block {}",
    "hidden_states": "index {} of output_hidden_states",
}
_KEY = re.compile(r"(?:(?:.*[._/])?(?:layers?|blocks?|h|directions?|vec(?:tor)?s?)[._/ -]?)?(0|[1-9][0-9]{0,3})")
_FILE = re.compile(r"(?:.*_)?layer_?(0|[1-9][0-9]{0,3})(?:[_.-].*)?")
_CAA = re.compile(r"vec_layer_(0|[1-9][0-9]{0,3})(?:_.*)?\.pt")
_PERSONA = re.compile(r".+_(?:prompt|response)_(?:avg|last)_diff\.pt")
_BESIDE = "direction_metadata.json"
_MAX_BESIDE = 2**16


@final
class PlainTensors(ForeignReader):
    """`.pt`, `.npy`, `.npz` and `.safetensors` files that hold nothing but directions."""

    title: ClassVar[str] = "plain tensors"
    convention: ClassVar[str] = (
        "N is the output of block N, blocks from 0, where the file or the caller says nothing else"
    )
    takes: ClassVar[frozenset[str]] = frozenset({"site", "numbering"})

    def recognises(self, path: Path, head: bytes) -> bool:
        """By the suffixes of numpy, the names of CAA, persona vectors and the refusal direction, and plain keys."""
        if path.suffix in (".npy", ".npz") or _CAA.fullmatch(path.name) or _PERSONA.fullmatch(path.name):
            return True
        if path.name == "direction.pt":
            return (path.parent / _BESIDE).is_file()
        names = safetensors_file.names_of(head) if path.suffix == ".safetensors" else ()
        return bool(names) and all(_KEY.fullmatch(name) for name in names) and not safetensors_file.metadata_of(head)

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        name, value = str(path), _load(path)
        files, layer = (path,), None
        numbering: Numbering = "block"
        found: dict[int, Tensor]
        if isinstance(value, Mapping):
            found = _by_key(value, name)
        elif value.dim() == 2:
            found, numbering = _rows(value, choice, name)
        else:
            direction = flat(value, name)
            layer, numbering, beside = _layer_of(path)
            files += beside
            found = {_the_only(layer, choice, name): direction}
        numbering = choice.numbering or numbering
        layers = chosen(found, choice, name)
        shift = 0 if numbering == "block" else -1
        _check_inside(layers, numbering, choice, name)
        site = choice.site or "resid_post"
        if site != "resid_post" and shift:
            raise OptionError(
                f"site {site!r} with numbering {numbering!r}",
                expected="'block': a block's parts have no input of their own",
            )
        return Foreign(
            tensors={Key(layer + shift, site): found[layer] for layer in layers},
            method=MethodRecord(name="unknown"),
            interventions=(Intervention(site=site, tokens="all"),),
            files=files,
            notes=(f"number N was taken as {_MEANS[numbering].format('N')}",),
        )


def _load(path: Path) -> Tensor | Mapping[Any, Any]:
    """A tensor, or tensors by key."""
    if path.suffix in (".npy", ".npz"):
        return numpy_file.load(path)
    if path.suffix == ".safetensors":
        return safetensors_file.load(path)[0]
    value = torch_file.load(path)
    if isinstance(value, Mapping):
        return value
    return torch_file.dense(value, str(path))


def _by_key(value: Mapping[Any, Any], name: str) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for key, each in value.items():
        match = _KEY.fullmatch(str(key)) if isinstance(key, (str, int)) and not isinstance(key, bool) else None
        if match is None:
            raise malformed(name, f"the key {key!r:.60} names no layer", "keys such as 12, layer_12 or model.layers.12")
        layer, what = int(match[1]), f"{name}, {key!r:.60}"
        if layer in found:
            raise malformed(name, f"two keys name layer {layer}", "one direction for each")
        tensor = torch_file.dense(each, what)
        found[layer] = flat(tensor.squeeze(0) if tensor.dim() == 2 and tensor.shape[0] == 1 else tensor, what)
    return found


def _rows(stack: Tensor, choice: Choice, name: str) -> tuple[dict[int, Tensor], Numbering]:
    rows, blocks = stack.shape[0], choice.layer_count
    if blocks is None or rows not in (blocks, blocks + 1):
        raise malformed(
            name,
            f"a stack of {rows} rows, and the model has {blocks or 'an unknown number of'} blocks",
            "a row for each block, or for the embedding as well",
            "name the right model, with its number of blocks",
        )
    numbering: Numbering = "hidden_states" if rows == blocks + 1 else "block"
    if choice.numbering == "hidden_states" != numbering or (numbering, choice.numbering) == ("hidden_states", "block"):
        raise OptionError(
            f"{name} has {rows} rows for {blocks} blocks, and numbering is {choice.numbering!r}",
            expected="'hidden_states' for one row more than blocks, else 'block' or 'block_input'",
        )
    return {row: flat(stack[row], f"{name}, row {row}").clone() for row in range(rows)}, numbering


def _layer_of(path: Path) -> tuple[int | None, Numbering, tuple[Path, ...]]:
    """Which layer a file of one direction names, in which numbering, and the file beside it that says so."""
    beside = path.parent / _BESIDE
    if path.name == "direction.pt" and beside.is_file():
        try:
            document = json_object(read_bounded(beside, _MAX_BESIDE), str(beside), fix=FIX)
        except OSError as error:
            raise malformed(str(beside), f"it can't be read ({error})", "a small JSON file") from error
        layer = document.get("layer")
        if type(layer) is not int or not 0 <= layer < 10_000:
            raise malformed(str(beside), f"layer is {layer!r:.40}", "a number from 0")
        return layer, "block_input", (beside,)
    match = _FILE.fullmatch(path.stem)
    return (int(match[1]) if match else None), "block", ()


def _the_only(layer: int | None, choice: Choice, name: str) -> int:
    if layer is not None:
        return layer
    if choice.layers is None or len(choice.layers) != 1:
        raise OptionError(
            f"{name} is one direction, and does not say of which layer",
            expected="its number",
            fix="choose it: layers=(N,), on the command line --layers N",
        )
    return choice.layers[0]


def _check_inside(layers: list[int], numbering: Numbering, choice: Choice, name: str) -> None:
    """Refuse what is no block's output: the embedding, and what lies behind the final norm."""
    outside = [0] if numbering != "block" else []
    if numbering == "hidden_states" and choice.layer_count is not None:
        outside.append(choice.layer_count)
    if wrong := [layer for layer in layers if layer in outside]:
        inside = [layer for layer in layers if layer not in outside]
        raise LayerRangeError(
            f"{name} holds {' and '.join(_MEANS[numbering].format(layer) for layer in wrong)}: no block's output",
            expected="neither the embedding nor the state behind the final norm",
            fix=f"choose the layers that you steer, on the command line --layers; it holds {inside}",
        )
