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

from pathlib import Path
from typing import Annotated, ClassVar, Literal, final

from pydantic import BaseModel, BeforeValidator, Field

from steerkit._internal.faults import refused_as
from steerkit.errors import LayerRangeError, OptionError, PackFormatError
from steerkit.interventions import FiniteFloat, Site
from steerkit.vectors import MethodRecord, StrengthRecord
from steerkit_vectors_hub.interop.base import FIX, Choice, Foreign, ForeignReader, malformed
from steerkit_vectors_hub.interop.containers import header_of, load_safetensors

_SITES: dict[str, tuple[Site, int]] = {
    "resid_post": ("resid_post", 0),
    "resid_pre": ("resid_post", -1),
    "mlp_out": ("mlp_out", 0),
    "attn_out": ("attn_out", 0),
}
_PREFIX = "direction."


class _Metadata(BaseModel):
    """What is read of the metadata, all of which are texts."""

    schema_version: Literal["3"]
    layer: int
    n_total_layers: Annotated[int, Field(lt=100_000)]
    hook_site: Literal["resid_post", "resid_pre", "mlp_out", "attn_out"]
    hook_name: str = ""
    default_method: str = ""
    auto_alpha: Annotated[FiniteFloat, BeforeValidator(lambda text: float(text or 1.0))] = 1.0
    model_id: str = ""


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
        with refused_as(PackFormatError, "the metadata", expected="those of a probe of schema version 3", fix=FIX):
            said = _Metadata.model_validate(metadata)
        layer, layer_count = said.layer, said.n_total_layers
        if not -1 <= layer <= layer_count:
            raise LayerRangeError(f"layer {layer} is not a block", expected=f"0 to {layer_count - 1}")
        named = f"blocks.{layer}.hook_{said.hook_site}"
        if said.hook_name not in ("", named):
            raise malformed(f"hook name {said.hook_name!r:.60}", f"{named}, as hook site and layer say")
        site, shift = _SITES[said.hook_site]
        which = choice.direction or said.default_method
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
            strength=StrengthRecord(recommended=said.auto_alpha),
            model_id=said.model_id[:200],
            layer_count=layer_count,
        )
