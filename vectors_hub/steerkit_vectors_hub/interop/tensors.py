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
| keys such as `N`, `layer_N`, `blocks.N.hook_resid_post`; a direction whose layer the caller chooses | `block` |

A folder stands for the one file in it, or for several of one direction each, whose names say the layers. A place of
size 1 in front of the hidden size means nothing: `[1, hidden]` is a direction, `[blocks, 1, hidden]` a stack. A stack
`[hidden, blocks]` is turned round where the width of the model is known, and the shape can be nothing else. A name that
says another place (`vision_tower.encoder.layers.N`, `layer_N_mlp`, `resid_pre.N`) is refused: of an MLP or attention
until the caller gives a site, of an input until he gives a numbering, of all else always.

The conventions of CAA, persona vectors and the refusal direction are those of their repositories
(nrimsky/CAA, safety-research/persona_vectors, andyrdt/refusal_direction), which were not run. Doses, tokens and the
model are not in the files; the directions are added at every token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from steerkit._internal.faults import about
from steerkit._internal.files import read_bounded
from steerkit._internal.json import json_object
from steerkit.errors import OptionError
from steerkit_vectors_hub.interop.base import FIX, Choice, Foreign, ForeignReader, Numbering, by_layer, malformed
from steerkit_vectors_hub.interop.containers import SUFFIXES, dense, direction, header_of, load, without_ones

_MEANS: dict[Numbering, str] = {
    "block": "the output of block {}",
    "block_input": "the input of block {}",
    "hidden_states": "index {} of output_hidden_states",
}
_KEY = re.compile(
    r"(?:(?:.*[._/])?(?:layers?|blocks?|h|directions?|vec(?:tor)?s?)[._/ -]?)?(0|[1-9][0-9]{0,3})"
    r"(?:\.(?:hook_)?resid_post)?(?:\.npy)?"
)
_FILE = re.compile(r"(?:.*_)?layer_?(0|[1-9][0-9]{0,3})(?:[_.-].*)?")
_CAA = re.compile(r"vec_layer_(0|[1-9][0-9]{0,3})(?:_.*)?\.pt")
_PERSONA = re.compile(r".+_(?:prompt|response)_(?:avg|last)_diff\.pt")
_NOT_HERE = frozenset(
    "vision visual vit audio encoder qformer projector embed embedding norm layernorm ln head heads mid".split()
)
_INPUT = frozenset({"pre", "input"})
_PART = frozenset({"mlp", "ffn", "attn", "attention"})
"""Words in names that say of a direction that it is not of the output of a decoder block."""
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
        if path.is_dir():
            members = _members(path)
            return bool(members) and all(_CAA.fullmatch(each.name) for each in members)
        if path.suffix in (".npy", ".npz") or _CAA.fullmatch(path.name) or _PERSONA.fullmatch(path.name):
            return True
        if path.name == "direction.pt":
            return (path.parent / _BESIDE).is_file()
        names, metadata = header_of(head) if path.suffix == ".safetensors" else ([], {})
        own = metadata.keys() - {"format"}  # which says for what library it was written
        return bool(names) and all(_KEY.fullmatch(name) for name in names) and not own

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        members = _members(path) if path.is_dir() else [path]
        path = members[0] if len(members) == 1 else path
        files: tuple[Path, ...] = (path,) if len(members) == 1 else ()
        found: Mapping[int, Tensor | Path]
        numbering: Numbering = "block"
        if len(members) != 1:
            found = _by_name(members, choice)
        elif isinstance(value := load(path), Mapping):
            found = _by_key(value, choice)
        elif value.dim() == 2:
            found, numbering = _rows(value, choice)
        else:
            value = direction(value)
            layer, numbering, beside = _layer_of(path, choice)
            found, files = {_the_only(layer, choice): value}, files + beside
        numbering = choice.numbering or numbering
        site = choice.site or "resid_post"
        if site != "resid_post" and numbering != "block":
            raise OptionError(
                f"site {site!r} with numbering {numbering!r}",
                expected="'block': a block's parts have no input of their own",
            )
        edges = {"block": (), "block_input": (0,), "hidden_states": (0, choice.layer_count or 0)}[numbering]
        return Foreign(
            found,
            0 if numbering == "block" else -1,
            site,
            outside={layer: _MEANS[numbering].format(layer) for layer in edges},
            files=files,
            notes=(f"number N was taken as {_MEANS[numbering].format('N')}",),
        )


def _members(folder: Path) -> list[Path]:
    """The files of tensors in a folder."""
    return sorted(each for each in folder.iterdir() if each.suffix in SUFFIXES)


def _check_place(name: str, choice: Choice) -> None:
    """Refuse a name of a direction that says another place than the output of a decoder block.

    Raises:
        OptionError: It does, and the caller has not said how to take it.
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    places, inputs, parts = _NOT_HERE & words, _INPUT & words, _PART & words
    if not (places or (inputs and choice.numbering is None) or (parts and choice.site is None)):
        return
    raise OptionError(
        f"the name {name!r:.200} says {min(places or inputs or parts)!r}, which is not the output of a decoder block",
        expected="names such as layer_12, model.layers.12 or blocks.12.hook_resid_post",
        fix="rename it if the direction is of that output; no other can be converted"
        if places
        else "say what its number means, on the command line --numbering block_input or block"
        if inputs
        else "say of what it is the output, on the command line --site mlp_out, attn_out or resid_post",
    )


def _by_name(members: Sequence[Path], choice: Choice) -> dict[int, Path]:
    """Files of one direction each, by the layers that their names say."""
    found: dict[int, Path] = {}
    alike: set[str] = set()
    for path in members:
        if match := _FILE.fullmatch(path.stem):
            if not _CAA.fullmatch(path.name):  # which ends in the name of a model
                _check_place(path.stem, choice)
            found[int(match[1])] = path
            alike.add(path.name[: match.start(1)] + path.name[match.end(1) :])
    if len(found) < len(members) or len(alike) > 1:
        names = ", ".join(each.name for each in members)
        raise malformed(
            f"{len(members)} files of tensors whose names differ by more than the layer ({names:.300})",
            "one file, or one of each layer, such as vec_layer_12.pt and vec_layer_13.pt",
            "name the file that is meant",
        )
    return found


def _by_key(value: Mapping[Any, Any], choice: Choice) -> dict[int, Tensor]:
    for key in value:
        if isinstance(key, str) and _KEY.fullmatch(key):
            _check_place(key, choice)
    found = by_layer(value.items(), _KEY, "key", "keys such as 12, layer_12 or model.layers.12")
    for layer, each in found.items():
        with about(f"layer {layer}"):
            found[layer] = without_ones(dense(each))
    return found


def _rows(stack: Tensor, choice: Choice) -> tuple[dict[int, Tensor], Numbering]:
    blocks = choice.layer_count
    known = (blocks, (blocks or 0) + 1)
    if stack.shape[0] == choice.hidden_size != stack.shape[1] and stack.shape[1] in known:
        stack = stack.T  # [hidden, blocks], which nothing else can be
    rows = stack.shape[0]
    if blocks is None or rows not in known:
        raise malformed(
            f"a stack of {rows} rows, and the model has {blocks or 'an unknown number of'} blocks",
            "a row for each block, or for the embedding as well",
            "name the right model, with its number of blocks",
        )
    numbering: Numbering = "hidden_states" if rows == blocks + 1 else "block"
    if choice.numbering == "hidden_states" != numbering or (numbering, choice.numbering) == ("hidden_states", "block"):
        raise OptionError(
            f"it has {rows} rows for {blocks} blocks, and numbering is {choice.numbering!r}",
            expected="'hidden_states' for one row more than blocks, else 'block' or 'block_input'",
        )
    return dict(enumerate(stack)), numbering


def _layer_of(path: Path, choice: Choice) -> tuple[int | None, Numbering, tuple[Path, ...]]:
    """Which layer a file of one direction names, in which numbering, and the file beside it that says so."""
    beside = path.parent / _BESIDE
    if path.name != "direction.pt" or not beside.is_file():
        match = _FILE.fullmatch(path.stem)
        if match and not _CAA.fullmatch(path.name):
            _check_place(path.stem, choice)
        return (int(match[1]) if match else None), "block", ()
    with about(beside):
        try:
            layer = json_object(read_bounded(beside, _MAX_BESIDE), "the file", fix=FIX).get("layer")
        except OSError as error:
            raise malformed(f"it can't be read ({error})", "a small JSON file") from error
        if type(layer) is not int or not 0 <= layer < 10_000:
            raise malformed(f"layer is {layer!r:.40}", "a number from 0")
    return layer, "block_input", (beside,)


def _the_only(layer: int | None, choice: Choice) -> int:
    if layer is not None:
        return layer
    if choice.layers is None or len(choice.layers) != 1:
        raise OptionError(
            "it is one direction, and does not say of which layer",
            expected="its number",
            fix="choose it: layers=(N,), on the command line --layers N",
        )
    return choice.layers[0]
