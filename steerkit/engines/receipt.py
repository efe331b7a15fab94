"""What an application really did: which layers, how many tokens, and how large the change was."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

from steerkit._text import one_line
from steerkit.policy import Check

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
    def tokens(self) -> int:
        """Steered tokens of prompts and answers."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def relative_change(self) -> float:
        """See the class."""
        return float(self._change) / self._measured if self._measured else float("nan")

    def _add(self, prompt: int, generated: int, change: Tensor | None) -> None:
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        if change is not None:
            self._change = self._change + change.sum()
            self._measured += int(change.numel())


@dataclass(eq=False)
class Counts:
    """Counts by layer and site.

    Attributes:
        sites: `{(layer, site): SiteCount}`; a site of the vision tower is called `vision.mlp_out` and the like, and its
            image tokens count as prompt tokens.
    """

    sites: dict[tuple[int, str], SiteCount] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The decoder blocks that were steered."""
        return sorted({layer for (layer, site), count in self.sites.items() if count.tokens and not _seen(site)})

    @property
    def vision_layers(self) -> list[int]:
        """The blocks of the vision tower that were steered."""
        return sorted({layer for (layer, site), count in self.sites.items() if count.tokens and _seen(site)})

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


@final
@dataclass(eq=False)
class VectorCount(Counts):
    """What one of the vectors did.

    Its change is what it did on its own: where two vectors pull in opposite directions, the change of the receipt is
    smaller than either's.

    Attributes:
        name: The vector's method.
        left_alone: Prompts that it is not for, because of whether they hold an image.
        share: Its part, 0 to 1, of the sum of all vectors' relative changes where they are measured: at the steered
            prompt tokens, or at the first generated one where no prompt token is steered. NaN if none was measured.
    """

    name: str = ""
    left_alone: int = 0
    share: float = math.nan


@final
@dataclass(eq=False)
class Receipt(Counts):
    """Filled in while a steering context is open; read it inside or afterwards.

    A token that several vectors steer at a place is counted there once. One that a gate shuts out is not counted.

    Attributes:
        sites: See `Counts`.
        nnsight: With `engine="nnsight"`, the steered nnsight model: open traces on it. Otherwise None.
        checks: What was checked about the vectors and the model before anything was steered.
        left_alone: Prompts that no vector is for, because of whether they hold an image.
        spared: Whether a call was seen of which a vector is not for all prompts.
        unsteered_calls: Calls of the model from contexts that the block is not for, nor any other block.
        shipped: Whether a remote trace has taken the interventions along; what it steers is not counted here.
    """

    nnsight: Any = None
    left_alone: int = 0
    unsteered_calls: int = 0
    shipped: bool = False
    spared: bool = field(default=False, repr=False)
    checks: tuple[Check, ...] = ()
    _vectors: list[VectorCount] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: the counts so far, as numbers, and nothing of the model."""
        with self._lock:
            vectors = [replace(each, sites=_as_numbers(each.sites)) for each in self._vectors]
            state = {**vars(self), "sites": _as_numbers(self.sites), "_vectors": vectors, "nnsight": None}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be the receipt that was copied, as it was then."""
        vars(self).update(state, _lock=threading.Lock())

    @property
    def vectors(self) -> tuple[VectorCount, ...]:
        """What each vector did, in the order in which they were given."""
        # each as a number: the sums of layers on two devices can't be added as tensors
        changes = [sum(float(site._change) for site in each.sites.values()) for each in self._vectors]
        whole = sum(changes)
        for each, change in zip(self._vectors, changes, strict=True):
            each.share = change / whole if whole else math.nan
        return tuple(self._vectors)

    @property
    def empty(self) -> bool:
        """Whether no token was reached that an intervention selects, be its gate open or shut."""
        return not self.sites

    @property
    def unchanged(self) -> frozenset[tuple[int, str]]:
        """Every place where tokens were steered, if no measured change was other than zero; else none."""
        steered = {place: count for place, count in self.sites.items() if count.tokens}
        measured = [count for count in steered.values() if count._measured]
        return frozenset(steered) if measured and not any(float(each._change) for each in measured) else frozenset()

    def name(self, names: Iterable[str]) -> None:
        """Say which vectors `shares` will speak of, by their index."""
        self._vectors = [VectorCount(name=name) for name in names]

    def add(
        self,
        layer: int,
        site: str,
        *,
        prompt: int,
        generated: int,
        change: Tensor | None,
        shares: Sequence[tuple[int, int, int, Tensor | None]] = (),
    ) -> None:
        """Count what was done at a place in one pass.

        Args:
            layer: The layer.
            site: The site.
            prompt: Steered tokens of prompts.
            generated: Steered tokens of answers.
            change: The relative change of each token, where it was measured.
            shares: `(vector, prompt, generated, change)` of each intervention.
        """
        with self._lock:
            _at(self.sites, layer, site)._add(prompt, generated, change)
            # several interventions of one vector: its tokens are those of the one that steers most of them
            seen: dict[int, tuple[int, int]] = {}
            for index, prompt_tokens, generated_tokens, size in shares:
                before = seen.get(index, (0, 0))
                now = (prompt_tokens, generated_tokens)
                seen[index] = (max(before[0], now[0]), max(before[1], now[1])) if index in seen else now
                count = _at(self._vectors[index].sites, layer, site)
                count._add(seen[index][0] - before[0], seen[index][1] - before[1], size)

    def overlook(self) -> None:
        """Count a call from a context that no block is for."""
        with self._lock:
            self.unsteered_calls += 1

    def leave_alone(self, prompts: int, of_vectors: Sequence[int]) -> None:
        """Count prompts that no vector is for, and those that each of them is not for."""
        with self._lock:
            self.left_alone += prompts
            self.spared = True
            for each, count in zip(self._vectors, of_vectors, strict=True):
                each.left_alone += count

    def counts_of(self, layer: int, site: str, vectors: Iterable[int]) -> tuple[SiteCount, ...]:
        """The counts that `add` would change for these vectors, by their index."""
        with self._lock:
            return tuple(
                _at(counts.sites, layer, site) for counts in (self, *(self._vectors[index] for index in vectors))
            )

    def add_generated(self, counts: Iterable[SiteCount], tokens: int) -> None:
        """Count tokens of answers: what `add` does, where the counts are at hand."""
        with self._lock:
            for count in counts:
                count.generated_tokens += tokens

    def __str__(self) -> str:
        """One line for people."""
        alone = f"; {_count(self.left_alone, 'prompt')} left alone" if self.left_alone else ""
        if self.unsteered_calls:
            alone += f"; {_count(self.unsteered_calls, 'call')} from outside the block not steered"
        if self.empty:
            return f"nothing was steered{alone}"
        if not any(count.tokens for count in self.sites.values()):
            return f"nothing was steered: no gate was open{alone}"
        seen = f"{_count(len(self.vision_layers), 'layer')} of the vision tower, {self.vision_tokens} image tokens each"
        if not self.layers:
            return f"steered {seen}{alone}"
        more = f"; and {seen}" if self.vision_layers else ""
        changes = [change for change in self.relative_change.values() if not math.isnan(change)]
        size = f", by up to {100 * max(changes):.1f} % of the hidden state" if changes else ""
        vectors = self.vectors if len(self._vectors) > 1 else ()
        shares = ", ".join(f"{each.name} {100 * each.share:.0f} %" for each in vectors if not math.isnan(each.share))
        which = "-".join(map(str, dict.fromkeys((self.layers[0], self.layers[-1]))))
        return one_line(
            f"steered {_count(len(self.layers), 'layer')} ({which}), {self.prompt_tokens} prompt and "
            f"{self.generated_tokens} generated tokens each{size}{f' ({shares})' if shares else ''}{more}{alone}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _at(sites: dict[tuple[int, str], SiteCount], layer: int, site: str) -> SiteCount:
    count = sites.get((layer, site))
    if count is None:
        count = sites[layer, site] = SiteCount()
    return count


def _as_numbers(sites: Mapping[tuple[int, str], SiteCount]) -> dict[tuple[int, str], SiteCount]:
    return {key: replace(count, _change=float(count._change)) for key, count in sites.items()}


def _seen(site: str) -> bool:
    """Whether a site is in the vision tower."""
    return site.startswith("vision.")
