"""KV caches, as calls of a model bring them and give them back, and which prompts in them hold an image."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerkit.errors import EngineError


def kv_cache(given: Mapping[str, Any]) -> Any:
    """The KV cache among a module's arguments: `cache` since transformers 5.24, `past_key_values` before."""
    cache = given.get("cache")
    return given.get("past_key_values") if cache is None else cache


def past_length(given: Mapping[str, Any]) -> int:
    """How many positions the KV cache among a module's arguments holds."""
    cache = kv_cache(given)
    return 0 if cache is None else held_by(cache)


def held_by(cache: Any) -> int:
    """How many positions a cache holds; of one that holds recurrent states alone, and knows no positions, as noted.

    Raises:
        EngineError: It holds some, and nobody has noted how many.
    """
    try:
        length, layers = int(cache.get_seq_length()), getattr(cache, "layers", ())
        if not length and len(layers) > 1:  # MiniMax keeps recurrent states elsewhere: those layers stay empty
            length = max(int(layer.get_seq_length()) for layer in layers if hasattr(layer, "get_seq_length"))
        unknown = not length and layers == [] and len(cache) > 0
    except ValueError:
        length, unknown = 0, cache.has_previous_state()
    if unknown and cache not in _lengths:
        raise EngineError(
            "a call goes on from recurrent states, which don't say how many positions they are of",
            expected="states that a call inside the block has made, of a cache that it was given",
            fix="generate(**inputs) from the whole prompt; use_cache=False where the model makes the cache by itself",
        )
    return _lengths[cache] if unknown else length


def note_length(cache: Any, length: int) -> None:
    """Note how many positions a cache is going to hold."""
    if hasattr(cache, "has_previous_state"):
        _lengths[cache] = length


def remember(cache: Any, held: Tensor | bool) -> None:
    """Keep, as long as the cache lives, which prompts of it hold an image.

    Args:
        cache: A KV cache that a call gives back.
        held: `[batch]` boolean, or one word for all of them.
    """
    marks = None
    if isinstance(held, Tensor):
        marks = _marks(cache)
        if marks is None:
            return
        held = held.repeat_interleave(len(marks) // len(held))  # beams and several answers repeat each row
    _known[cache] = _Pictured(held, held_by(cache), marks)


def recall(cache: Any) -> Tensor | bool | None:
    """Which prompts of a cache hold an image; None where that is not known, or it was changed or copied since."""
    known = _known.get(cache)
    if known is None or known.length != held_by(cache):
        return None
    if known.marks is not None:
        now = _marks(cache)
        if now is None or not torch.equal(now, known.marks):
            return None
    return known.held


@dataclass(frozen=True, slots=True, eq=False)
class _Pictured:
    """What was noted of a cache: `marks` tell its rows apart, where they differ in holding an image."""

    held: Tensor | bool
    length: int
    marks: Tensor | None


_lengths: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_known: weakref.WeakKeyDictionary[Any, _Pictured] = weakref.WeakKeyDictionary()


def _marks(cache: Any) -> Tensor | None:
    """`[rows, heads, size]`: the last keys of the highest layer, in which rows differ; None if there are none."""
    layers = reversed(getattr(cache, "layers", ()))
    keys = next((keys for layer in layers if isinstance(keys := getattr(layer, "keys", None), Tensor)), None)
    if keys is None or keys.dim() != 4 or not keys.shape[2]:
        return None
    return keys[:, :, min(held_by(cache), keys.shape[2]) - 1].detach().cpu()
