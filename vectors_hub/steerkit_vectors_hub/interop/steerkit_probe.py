"""The unrelated text-only package `steerkit` of the package index: `.probe.safetensors`, a probe at one layer.

Layer convention: 0 to n - 1 is the site `hook_site` of the block with that index, blocks counting from 0: for
`resid_post` the output of the block, the same as steerkit. -1 is the embedding and n the final norm: no block's
output, refused. `resid_pre` of block N is the output of block N - 1.

A file holds up to three unit directions (logistic, diff_of_means, mass_mean) and the default among them; `direction`
chooses another. `Probe.steer` adds `alpha * v` at every token, with the calibrated `auto_alpha` where there is one:
it becomes the recommended strength. (Where there is none that package uses 2.0; the file does not say so, and neither
does the result.) Its models are TransformerLens', which rewrites weights without changing the direction of a residual
stream that is read through a norm. Multinomial probes are classifiers and are refused.

Verified against the source of release 0.3.0, schema version 3. It can't be installed beside this project: both are
imported as `steerkit`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, final

from steerkit.errors import LayerRangeError, OptionError
from steerkit.interventions import Site
from steerkit.vectors import MethodRecord, StrengthRecord
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, malformed
from steerkit_vectors_hub.interop.containers import header_of, load_safetensors

_SITES: dict[str, tuple[Site, int]] = {
    "resid_post": ("resid_post", 0),
    "resid_pre": ("resid_post", -1),
    "mlp_out": ("mlp_out", 0),
    "attn_out": ("attn_out", 0),
}
_VERSION = "3"
_PREFIX = "direction."


@final
class SteerkitProbe(ForeignReader):
    """`Probe.save` files."""

    title: ClassVar[str] = "a probe of the PyPI package steerkit"
    convention: ClassVar[str] = "layer N is the hook site of block N, blocks from 0; -1 and n are refused"
    takes: ClassVar[frozenset[str]] = frozenset({"direction"})

    def recognises(self, path: Path, head: bytes) -> bool:
        """Its metadata are its own."""
        return {"schema_version", "hook_site", "n_total_layers", "default_method"} <= set(header_of(head)[1])

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        tensors, metadata = load_safetensors(path)
        if metadata.get("kind") == "multinomial" or "weights" in tensors:
            raise malformed("it is a multinomial probe, which steers nothing", "a probe with directions")
        if metadata.get("schema_version") != _VERSION:
            raise malformed(f"schema version {metadata.get('schema_version')!r:.40}", _VERSION)
        layer, layer_count = _whole(metadata, "layer"), _whole(metadata, "n_total_layers")
        if not -1 <= layer <= layer_count:
            raise LayerRangeError(f"layer {layer} is no block", expected=f"0 to {layer_count - 1}")
        hook = metadata.get("hook_site", "")
        said = metadata.get("hook_name", f"blocks.{layer}.hook_{hook}")
        if hook not in _SITES or said != f"blocks.{layer}.hook_{hook}":
            expected = f"one of {', '.join(_SITES)}, and the same in both"
            raise malformed(f"hook site {hook!r:.60}, hook name {said!r:.60}", expected)
        site, shift = _SITES[hook]
        which = choice.direction or metadata.get("default_method", "")
        if _PREFIX + which not in tensors:
            held = [label.removeprefix(_PREFIX) for label in tensors if label.startswith(_PREFIX)]
            raise OptionError(f"it holds no direction {which[:80]!r}", expected=f"one of {held}")
        return Foreign(
            {layer: tensors[_PREFIX + which]},
            shift,
            site,
            outside={-1: "the embedding", layer_count: "the final norm"}
            | ({0: "the input of block 0"} if shift else {}),
            method=MethodRecord(name=f"steerkit (PyPI) {which}"[:200]),
            strength=_strength(metadata.get("auto_alpha", "")),
            model_id=metadata.get("model_id", "")[:200],
            layer_count=layer_count,
        )


def _whole(metadata: dict[str, str], key: str) -> int:
    text = metadata.get(key, "")
    if not text.removeprefix("-").isdecimal() or len(text) > 5:
        raise malformed(f"{key} is {text[:40]!r}", "a number")
    return int(text)


def _strength(text: str) -> StrengthRecord:
    try:
        alpha = float(text or 1.0)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise malformed(f"auto_alpha is {text[:40]!r}", "a finite number, or nothing")
    return StrengthRecord(recommended=alpha)
