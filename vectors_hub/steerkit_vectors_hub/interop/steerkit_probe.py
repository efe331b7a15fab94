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
from steerkit.interventions import Intervention, Site
from steerkit.vectors import Key, MethodRecord, StrengthRecord
from steerkit_vectors_hub.interop.base import Choice, Foreign, ForeignReader, chosen, flat, malformed
from steerkit_vectors_hub.interop.safetensors_file import load, metadata_of

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
        return {"schema_version", "hook_site", "n_total_layers", "default_method"} <= set(metadata_of(head))

    def read(self, path: Path, choice: Choice) -> Foreign:
        """See the module."""
        name = str(path)
        tensors, metadata = load(path)
        if metadata.get("kind") == "multinomial" or "weights" in tensors:
            raise malformed(name, "it is a multinomial probe, which steers nothing", "a probe with directions")
        if metadata.get("schema_version") != _VERSION:
            raise malformed(name, f"schema version {metadata.get('schema_version')!r:.40}", _VERSION)
        layer, layer_count = _whole(metadata, "layer", name), _whole(metadata, "n_total_layers", name)
        if not 0 <= layer < layer_count:
            where = "the embedding" if layer == -1 else "the final norm" if layer == layer_count else "no block"
            raise LayerRangeError(f"{name}: layer {layer} is {where}", expected=f"a block, 0 to {layer_count - 1}")
        chosen([layer], choice, name)
        hook = metadata.get("hook_site", "")
        if (
            hook not in _SITES
            or metadata.get("hook_name", f"blocks.{layer}.hook_{hook}") != f"blocks.{layer}.hook_{hook}"
        ):
            raise malformed(
                name,
                f"hook site {hook!r:.60}, hook name {metadata.get('hook_name')!r:.60}",
                f"one of {', '.join(_SITES)}, and the same in both",
            )
        site, shift = _SITES[hook]
        if layer + shift < 0:
            raise LayerRangeError(f"{name}: the input of block 0 is not a block's output", expected="a later block")
        which = choice.direction or metadata.get("default_method", "")
        if _PREFIX + which not in tensors:
            held = [label.removeprefix(_PREFIX) for label in tensors if label.startswith(_PREFIX)]
            raise OptionError(f"{name} holds no direction {which[:80]!r}", expected=f"one of {held}")
        return Foreign(
            tensors={Key(layer + shift, site): flat(tensors[_PREFIX + which], name)},
            method=MethodRecord(name=f"steerkit (PyPI) {which}"[:200]),
            interventions=(Intervention(site=site, tokens="all"),),
            strength=_strength(metadata.get("auto_alpha", ""), name),
            model_id=metadata.get("model_id", "")[:200],
            layer_count=layer_count,
        )


def _whole(metadata: dict[str, str], key: str, name: str) -> int:
    text = metadata.get(key, "")
    if not text.removeprefix("-").isdecimal() or len(text) > 5:
        raise malformed(name, f"{key} is {text[:40]!r}", "a number")
    return int(text)


def _strength(text: str, name: str) -> StrengthRecord:
    if not text:
        return StrengthRecord()
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise malformed(name, f"auto_alpha is {text[:40]!r}", "a finite number, or nothing")
    return StrengthRecord(recommended=alpha)
