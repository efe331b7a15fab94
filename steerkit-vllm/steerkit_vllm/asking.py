"""What a request asks for: keys of `vllm_xargs`, or of `SamplingParams.extra_args`, that begin with `steerkit_`.

`steerkit_pack`: the name of a pack, or a list of names. `steerkit_strength`: a number for all of them, or a list of one
for each; without it, what each pack recommends. `steerkit_receipt`: 1, to get a receipt with the answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from steerkit.errors import OptionError, UnknownNameError
from steerkit.interventions import is_finite
from steerkit_vllm.changes import Served

PACK, STRENGTH, RECEIPT = "steerkit_pack", "steerkit_strength", "steerkit_receipt"
KEYS = (PACK, STRENGTH, RECEIPT)
MOST = 32
"""Packs that one request may name."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What a request asks for.

    Attributes:
        packs: The packs in the order in which they act, each with its strength.
        receipt: Whether the answer is to carry a receipt.
    """

    packs: tuple[tuple[Served, float], ...]
    receipt: bool


def meant(keys: Iterable[object]) -> list[str]:
    """The keys that were meant for steering, be they known or not: a wrong one must not go unnoticed."""
    return [key for key in keys if isinstance(key, str) and _meant(key.strip().lower())]


def _meant(key: str) -> bool:
    return key.startswith("steer") or bool(difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8))


def asked(given: Mapping[str, Any] | None, packs: Mapping[str, Served]) -> Asked | None:
    """What a request asks for; None where it says nothing of steering.

    Raises:
        OptionError: A key is unknown, or a value is malformed.
        UnknownNameError: There is no pack of a name.
    """
    keys = meant(given or ())
    if given is None or not keys:
        return None
    if unknown := [key for key in keys if key not in KEYS]:
        raise OptionError(f"the request has {unknown[0]!r:.80}", expected=f"one of {', '.join(KEYS)}")
    names = given.get(PACK)
    if names is None:
        raise OptionError(f"the request names no pack in {PACK}", expected=f"{PACK}: the name of a pack")
    names = list(names) if isinstance(names, list | tuple) else [names]
    if not names or len(names) > MOST or len(set(map(str, names))) != len(names):
        raise OptionError(f"{PACK} names {len(names)} packs", expected=f"1 to {MOST} different names")
    found = []
    for name in names:
        if not isinstance(name, str) or name not in packs:
            close = difflib.get_close_matches(str(name)[:200], packs, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise UnknownNameError(f"there is no pack {name!r:.80}", expected=f"{hint}one of {sorted(packs)}")
        found.append(packs[name])
    strengths = given.get(STRENGTH)
    if strengths is None:
        strengths = [each.vector.metadata.strength.recommended for each in found]
    elif not isinstance(strengths, list | tuple):
        strengths = [strengths] * len(found)
    if len(strengths) != len(found):
        raise OptionError(f"{STRENGTH} holds {len(strengths)} numbers for {len(found)} packs", expected="one for each")
    for strength in strengths:
        if not is_finite(strength) or abs(strength) > 1e6:
            raise OptionError(f"{STRENGTH} is {strength!r:.80}", expected="a finite number, of at most a million")
    receipt = given.get(RECEIPT, 0)
    if receipt not in (0, 1):
        raise OptionError(f"{RECEIPT} is {receipt!r:.80}", expected="0 or 1")
    return Asked(tuple(zip(found, map(float, strengths), strict=True)), bool(receipt))
