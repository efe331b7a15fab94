"""What an application really did: which layers, how many tokens, and how large the change was."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steerkit.checks import Check

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class SiteCount:
    """Counts of one layer and site.

    Attributes:
        prompt_tokens: Steered tokens of prompts.
        generated_tokens: Steered tokens of answers.
        relative_change: Mean of `|change| / |hidden state|` over the steered prompt tokens (over the first generated
            token of each call where no prompt token is steered); NaN if none was measured.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    _change: Any = 0.0
    _measured: int = 0

    @property
    def relative_change(self) -> float:
        """See the class."""
        return float(self._change) / self._measured if self._measured else float("nan")


@dataclass(eq=False)
class Receipt:
    """Filled in while a steering context is open; read it inside or afterwards.

    Attributes:
        sites: `{(layer, site): SiteCount}`; a site of the vision tower is called `vision.mlp_out` and the like, and its
            image tokens count as prompt tokens.
        nnsight: With `engine="nnsight"`, the steered nnsight model: open traces on it. Otherwise None.
        checks: What was checked about the vectors and the model before anything was steered.
        shipped: Whether a remote trace has taken the interventions along; what it steers is not counted here.
    """

    sites: dict[tuple[int, str], SiteCount] = field(default_factory=dict)
    nnsight: Any = None
    shipped: bool = False
    checks: tuple[Check, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def layers(self) -> list[int]:
        """The decoder blocks that were steered."""
        return sorted({layer for layer, site in self.sites if not _seen(site)})

    @property
    def vision_layers(self) -> list[int]:
        """The blocks of the vision tower that were steered."""
        return sorted({layer for layer, site in self.sites if _seen(site)})

    @property
    def vision_tokens(self) -> int:
        """Image tokens steered in the vision tower, at the layer that saw most of them."""
        return max((count.prompt_tokens for (_, site), count in self.sites.items() if _seen(site)), default=0)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens steered, at the layer that saw most of them."""
        return max((count.prompt_tokens for (_, site), count in self.sites.items() if not _seen(site)), default=0)

    @property
    def generated_tokens(self) -> int:
        """Generated tokens steered, at the layer that saw most of them."""
        return max((count.generated_tokens for count in self.sites.values()), default=0)

    @property
    def relative_change(self) -> Mapping[int, float]:
        """`{layer: mean |change| / |hidden state|}` of decoder blocks, the largest of a layer's sites.

        NaN if none was measured.
        """
        found: dict[int, float] = {}
        for (layer, site), count in sorted(self.sites.items()):
            if _seen(site):
                continue
            known, change = found.get(layer, math.nan), count.relative_change
            found[layer] = change if math.isnan(known) else max(known, change)
        return found

    @property
    def empty(self) -> bool:
        """Whether nothing was steered."""
        return not self.sites

    def add(self, layer: int, site: str, *, prompt: int, generated: int, change: Tensor | None) -> None:
        """Count one application; `change` holds the relative change of each token."""
        with self._lock:
            count = self.sites.setdefault((layer, site), SiteCount())
            count.prompt_tokens += prompt
            count.generated_tokens += generated
            if change is not None:
                count._change = count._change + change.sum()
                count._measured += int(change.numel())

    def __str__(self) -> str:
        """One line for people."""
        if self.empty:
            return "nothing was steered"
        seen = f"{len(self.vision_layers)} layers of the vision tower, {self.vision_tokens} image tokens each"
        if not self.layers:
            return f"steered {seen}"
        more = f"; and {seen}" if self.vision_layers else ""
        changes = [change for change in self.relative_change.values() if not math.isnan(change)]
        size = f", by up to {100 * max(changes):.1f} % of the hidden state" if changes else ""
        return (
            f"steered {len(self.layers)} layers ({self.layers[0]}-{self.layers[-1]}), {self.prompt_tokens} prompt and "
            f"{self.generated_tokens} generated tokens each{size}{more}"
        )


def _seen(site: str) -> bool:
    """Whether a site is in the vision tower."""
    return site.startswith("vision.")
