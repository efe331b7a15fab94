"""steering-lite: safetensors with the configuration in the metadata.

Layer convention: `layer{N}.v` belongs to the output of the decoder block with index N, blocks counting from 0: the
same as steerkit (`attach` hooks `model.layers[N]` and replaces what it returns). Every token is steered. The dose
`coeff` is in the configuration and becomes the strength.

Read are the methods that steerkit's interventions express exactly: `mean_diff` and `pca` (`h + coeff * v`; of several
components, their sum) and `directional_ablation` (the projection on v is removed, then `coeff * v` is added; v is a
unit vector). The others (angular, spherical, gated, S-space, CHaRS, ...) and hooks on single linear layers are
refused by name. The library rounds v to the configuration's `dtype` (bfloat16 by default) when it attaches; here it
keeps its precision.

Verified against the repository wassname/steering-lite at 75d0cff: its code was run and gave the same logits. It is
not on the package index.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, final

from torch import Tensor

from steerkit._internal.json import json_object
from steerkit.interventions import Ablate, Intervention, is_finite
from steerkit.vectors import MethodRecord
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, by_layer, malformed
from steerkit_vectors_hub.interop.containers import header_of, load_safetensors

MAX_CONFIG = 2**16
_NAME = re.compile(r"layer(0|[1-9][0-9]{0,3})\.[vV]")
_ADDING = ("mean_diff", "pca")
_ABLATING = "directional_ablation"


@final
class SteeringLite(ForeignReader):
    """`Vector.save` files."""

    title: ClassVar[str] = "a steering-lite vector"
    convention: ClassVar[str] = "layerN is the output of block N, blocks from 0"

    def recognises(self, path: Path, head: bytes) -> bool:
        """Its configuration is in the metadata."""
        return '"method"' in header_of(head)[1].get("cfg", "")

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        tensors, metadata = load_safetensors(path)
        text = metadata.get("cfg", "")
        if len(text) > MAX_CONFIG:
            raise malformed(f"a configuration of {len(text)} characters", f"at most {MAX_CONFIG}")
        config = json_object(text, "the configuration")
        method, coefficient = _checked(config)
        summed = ((label, _summed(tensor) if label.endswith(".V") else tensor) for label, tensor in tensors.items())
        found = by_layer(summed, _NAME, "tensor", "one layer{N}.v for each layer")
        attached = config.get("layers") or sorted(found)
        if missing := [layer for layer in attached if layer not in found]:
            raise malformed(f"the configuration names layers {missing[:10]}", f"of {sorted(found)}")
        add, ablate = Intervention(tokens="all", strength=coefficient), Intervention(operation=Ablate(), tokens="all")
        changes = (ablate, add) if method == _ABLATING else (add,)
        return Foreign(
            {layer: found[layer] for layer in attached},
            method=MethodRecord(name=f"steering-lite {method}", config=config),
            interventions=changes if coefficient else (ablate,),
        )


def _summed(components: Tensor) -> Tensor:
    if components.dim() != 2 or not components.is_floating_point():
        raise malformed(f"components of shape {tuple(components.shape)}, {components.dtype}", "[components, hidden]")
    return components.float().sum(dim=0)


def _checked(config: dict[str, Any]) -> tuple[str, float]:
    method, coefficient, layers = config.get("method"), config.get("coeff"), config.get("layers")
    if method not in (*_ADDING, _ABLATING):
        known = "one of " + ", ".join((*_ADDING, _ABLATING))
        raise malformed(f"method {method!r:.60}", known, "steerkit has no intervention that does exactly the same")
    if config.get("target", "residual") != "residual" or config.get("target_submodule") is not None:
        raise malformed("it steers something else than the outputs of blocks", "the residual stream")
    if not is_finite(coefficient) or (coefficient == 0 and method != _ABLATING):  # pyright: ignore[reportArgumentType]
        raise malformed(f"coeff {coefficient!r:.40}", "a finite dose that does something")
    if layers is not None and not (isinstance(layers, list) and layers and all(type(x) is int for x in layers)):
        raise malformed(f"layers {layers!r:.80}", "a list of layers, or null")
    return method, float(coefficient)  # pyright: ignore[reportArgumentType]
