"""steering-vectors (PyPI): its `SteeringVector`, saved with `torch.save`.

Layer convention: `layer_activations[N]` is added to the output of the N-th module that matches the layer type,
counting from 0: for `decoder_block` the output of block N, the same as steerkit; `self_attn` and `mlp` are the
outputs of those parts. Layer norms have no site in steerkit and are refused. `apply()` steers every token; its
`multiplier` is not in the file, and neither are a `min_token_index` or an `operator` that were given to it.

The library has no save of its own. Read are, all through torch's restricted unpickler: `torch.save(steering_vector,
path)`, whose class is replaced by an inert record of ours, so that the library need not be installed; a dictionary
with `layer_activations` and `layer_type`; and a bare `{layer: tensor}`, for which the caller must name the site.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, cast, final

import torch

from steerkit.errors import OptionError
from steerkit.interventions import Site
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, malformed
from steerkit_vectors_hub.interop.containers import layer_number, load_torch

_SITES: dict[str, Site] = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
_CLASS = "steering_vectors.steering_vector.SteeringVector"


class _Record:
    """Stands in for the library's class: unpickling fills its attributes, and nothing else happens."""


@final
class SteeringVectors(ForeignReader):
    """`.pt` files."""

    title: ClassVar[str] = "a steering-vectors SteeringVector"
    convention: ClassVar[str] = "layer N is the output of block N (or of its attention or MLP), blocks from 0"
    takes: ClassVar[frozenset[str]] = frozenset({"site"})

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        loaded = load_torch(path, _inert)
        fields = vars(loaded) if isinstance(loaded, _Record) else loaded
        if not isinstance(fields, dict):
            raise malformed(f"it holds a {type(fields).__name__}", "a SteeringVector, or a dictionary")
        if "layer_activations" not in fields:
            fields = {"layer_activations": fields}
        if unknown := sorted(map(str, set(fields) - {"layer_activations", "layer_type"})):
            raise malformed(f"unknown fields {unknown[:5]}", "layer_activations and layer_type")
        activations, site = fields["layer_activations"], _site(fields.get("layer_type"), choice)
        if not isinstance(activations, dict):
            raise malformed(f"layer_activations is a {type(activations).__name__}", "{layer: tensor}")
        return Foreign({layer_number(layer): value for layer, value in activations.items()}, site=site)


def _inert() -> AbstractContextManager[Any]:
    """Lets the library's class through as our record."""
    return torch.serialization.safe_globals([cast("Any", (_Record, _CLASS))])


def _site(layer_type: object, choice: Choice) -> Site:
    if layer_type is None and choice.site is None:
        raise OptionError(
            "it does not say where its directions are added",
            expected="a layer_type",
            fix="name the site, on the command line --site: resid_post for decoder_block",
        )
    site = _SITES.get(layer_type) if isinstance(layer_type, str) else choice.site if layer_type is None else None
    if site is None:
        known = "one of " + ", ".join(_SITES)
        raise malformed(f"layer type {layer_type!r:.60}", known, "steerkit has no site for another")
    if choice.site not in (None, site):
        raise OptionError(f"it says layer type {layer_type!r}, which is {site}", expected=f"not {choice.site}")
    return site
