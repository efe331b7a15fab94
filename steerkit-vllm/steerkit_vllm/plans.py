"""From what a request asks for to what the workers do: which row, at which positions, how strongly.

A plan is plain data, because it travels with the request to every worker. Positions are absolute, so that it holds
whether a prompt is read at once, in chunks, or from the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerkit.engines.prompts import Facts, Prompt
from steerkit.engines.steps import Reading, Together
from steerkit.errors import EngineError, NonFiniteError
from steerkit.interventions import View, _arithmetic as ops, select
from steerkit.models import Architecture
from steerkit_vllm.asking import Asked
from steerkit_vllm.changes import Change, measured_vector, views_of
from steerkit_vllm.settings import SITES, Room

States = Mapping[View, Mapping[int, Tensor]]
"""`{view: {layer: [hidden]}}`: the last prompt token of each view, unsteered."""

_SITE_ORDER = ("attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True, eq=False)
class Part:
    """One change at work in a request.

    Attributes:
        change: The change.
        content: What it is: the digest of its pack, and its number there.
        strength: The request's.
        runs: `(start, stop, factor)` of positions.
    """

    change: Change
    content: tuple[str, int]
    strength: float
    runs: list[tuple[int, int, float]]


class Plan(dict[str, Any]):
    """What the workers do for a request, and in the front end what it is told at the end.

    A front end keeps a request's plan until its answer is complete, and with it the packs that it was planned with.

    Attributes:
        asked: What the request asks for.
        parts: What the plan was made of.
    """

    asked: Asked
    parts: Sequence[Part]

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        """Workers get the data alone."""
        return dict, (dict(self),)


class Planner:
    """Makes plans for one model.

    Args:
        architecture: The model's.
        system_lengths: As in `steerkit.engines.prompts.Facts`.
        room: What is allocated.
        rows: The first row of a change in the bank of its site.
    """

    def __init__(
        self,
        architecture: Architecture,
        system_lengths: Callable[[Tensor, Tensor], Tensor],
        room: Room,
        rows: Mapping[Change, int],
    ) -> None:
        self._facts = Facts(architecture, system_lengths)
        self._room = room
        self._rows = rows

    def parts(self, asked: Asked, ids: Sequence[int], horizon: int) -> list[Part]:
        """Which changes of a request reach which positions.

        Args:
            asked: What the request asks for.
            ids: Its prompt.
            horizon: Tokens that it may generate.

        Raises:
            EngineError: The prompt does not say which tokens are meant.
        """
        prompt = Prompt({"input_ids": torch.tensor([ids])}, len(ids), True, self._facts)
        found = []
        for served, strength in asked.packs:
            for number, change in enumerate(served.changes):
                selector = change.intervention.selector
                if strength == 0.0:
                    continue
                if selector.prompts != "all" and bool(prompt.pictured()) != (selector.prompts == "with_image"):
                    continue
                roles = prompt.roles(len(ids), torch.device("cpu"), selector.tokens)
                mask = select(selector, roles, 0, len(ids) + horizon)[0]
                runs = _runs(change, mask, len(ids))
                if runs:
                    found.append(Part(change, (served.digest, number), strength, runs))
        return found

    def needs(self, parts: Sequence[Part], prompt_length: int) -> dict[View, set[int]]:
        """The views that have to be read before the request is steered, and their layers.

        Raises:
            EngineError: What is read would have been steered already, which a reading beforehand does not see.
        """
        found: dict[View, set[int]] = {}
        for part in parts:
            for reading in part.change.readings:
                if reading.state is None:
                    _check_untouched(reading, parts, prompt_length)
                    found.setdefault("original", set()).add(reading.layer)
            for contrast in part.change.contrasts:
                for view in views_of(contrast.contrast):
                    found.setdefault(view, set()).update(contrast.layers, contrast.among)  # type: ignore[arg-type]
        return found

    def plan(self, parts: Sequence[Part], prompt_length: int, states: States) -> tuple[Plan, str]:
        """What the workers do, and its digest: what it does, by content.

        Args:
            parts: What reaches which positions.
            prompt_length: Length of the prompt.
            states: What `needs` named.

        Raises:
            EngineError: There is no room for so many changes of one token.
            NonFiniteError: What was measured is not finite.
        """
        depth = [0] * len(SITES)
        changes: list[list[Any]] = []
        vectors: list[dict[int, bytes]] = []
        digest = hashlib.sha256()
        for part in parts:
            coefficient = part.strength * _factor(part.change, states)
            if coefficient == 0.0:
                continue
            own = -1
            if part.change.contrast is not None:
                own = len(vectors)
                vectors.append(_vectors(part.change, states))
            site, first = part.change.site, self._rows[part.change]
            runs = [[start, stop, factor * coefficient] for start, stop, factor in part.runs]
            digest.update(json.dumps([part.content, runs]).encode())
            digest.update(b"" if own < 0 else b"".join(vectors[own].values()))
            for at in range(part.change.depth):
                changes.append([site, depth[site] + at, first + at, own, runs])
            depth[site] += part.change.depth
        if max(depth) > self._room.depth or len(vectors) > self._room.vectors:
            raise EngineError(
                f"the request changes a token {max(depth)} times at one site, with {len(vectors)} measured vectors",
                expected=f"at most {self._room.depth} and {self._room.vectors}, for which this server has room",
                fix='start the server with more: {"steerkit": {"room": {"depth": N, "vectors": N}}}',
            )
        return Plan(prompt=prompt_length, changes=changes, vectors=vectors), digest.hexdigest()


def salt(digest: str, theirs: str | None) -> str:
    """The cache salt of a plan, behind the salt that the request brought along."""
    return f"{theirs or ''}steerkit:{digest}"


def _runs(change: Change, mask: Tensor, prompt_length: int) -> list[tuple[int, int, float]]:
    """Neighbouring positions with one factor; the last goes on, because a token may be drafted beyond the limit."""
    factors = mask.float()
    intervention = change.intervention
    if intervention.rows is not None:
        factors = factors * intervention.rows[0]
    if intervention.steps is not None:
        number = (torch.arange(len(mask)) - prompt_length).clamp(-1, len(intervention.steps) - 1)
        factors = factors * torch.tensor((*intervention.steps, 1.0))[number]
    values, counts = torch.unique_consecutive(factors, return_counts=True)
    found, start = [], 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value:
            found.append((start, start + count, value))
        start += count
    if found and found[-1][1] == len(mask) and intervention.selector.answers:
        found[-1] = (found[-1][0], 2**31, found[-1][2])
    return found


def _check_untouched(reading: Reading, parts: Sequence[Part], prompt_length: int) -> None:
    read = (reading.layer, _SITE_ORDER.index("resid_post"))
    for part in parts:
        if not any(start < prompt_length for start, _, _ in part.runs):
            continue
        site = _SITE_ORDER.index(SITES[part.change.site])
        early = [layer for layer in part.change.layers if (layer, site) < read]
        if early:
            raise EngineError(
                f"a measure reads the prompt at layer {reading.layer}, which is steered at layer {early[0]} before",
                expected="measures at or below the first layer that is steered",
                fix="name the packs in requests of their own, or serve them with transformers and steerkit",
            )


def _factor(change: Change, states: States) -> float:
    """What the gates and the measured strength of a change come to on this prompt."""
    passes = []
    for gate, reading in change.gates:
        value = _value(reading, states)
        passes.append((value > gate.threshold) == gate.above)
    if passes and not (all if change.intervention.needs_all_gates else any)(passes):
        return 0.0
    rule = change.intervention.rule
    if rule is None or change.rule is None:
        return 1.0
    line = rule.slope * _value(change.rule, states) + rule.intercept
    return min(max(line, rule.minimum), rule.maximum)


def _value(reading: Reading, states: States) -> float:
    layer = reading.layer
    state = states["original"][layer] if reading.state is None else _contrast(reading.state, states)[layer]
    value = float(reading.of(state.float()[None])[0])
    if value != value:
        raise NonFiniteError("what a measure reads on the prompt is not a number", expected="finite hidden states")
    return value


def _contrast(of: Together, states: States) -> dict[int, Tensor]:
    layers = sorted({*of.layers, *of.among})
    first, *rest = (states[view] for view in views_of(of.contrast))  # type: ignore[index]
    if not rest:
        return {layer: first[layer].float() for layer in layers}
    difference = {layer: first[layer].float() - rest[0][layer].float() for layer in layers}
    return ops.increments(difference) if of.contrast.form == "increments" else difference


def _vectors(change: Change, states: States) -> dict[int, bytes]:
    """By layer the bytes of what is added there, float32."""
    assert change.contrast is not None
    measured = _contrast(change.contrast, states)
    found = {}
    for layer in change.layers:
        vector = measured_vector(change.intervention.operation, change.directions.get(layer), measured[layer])
        if not bool(torch.isfinite(vector).all()):
            raise NonFiniteError(f"the contrast of the prompt at layer {layer} is not finite", expected="finite states")
        found[layer] = vector.contiguous().numpy().tobytes()
    return found


def measured_at(plan: Mapping[str, Any]) -> int | None:
    """The position at which a receipt says by how much: the last one of the prompt that is steered, or the first after.

    None where nothing is steered.
    """
    prompt, runs = plan["prompt"], [run for *_, runs in plan["changes"] for run in runs]
    before = [min(stop, prompt) - 1 for start, stop, _ in runs if start < prompt]
    return max(before) if before else min((start for start, _, _ in runs), default=None)


def receipt(parts: Sequence[Part], plan: Mapping[str, Any], asked: Asked, generated: int) -> dict[str, Any]:
    """What was done to a request, once so many tokens were generated.

    The last of them is never read by the model, so that it can't be steered.
    """
    prompt, read = plan["prompt"], plan["prompt"] + max(generated - 1, 0)
    tag, at = plan.get("measure", (None, None))
    sites = []
    for site in range(len(SITES)):
        mine = [change for change in plan["changes"] if change[0] == site]
        if not mine:
            continue
        reached = set()
        for *_, runs in mine:
            for start, stop, _ in runs:
                reached.update(range(start, min(stop, read)))
        layers = sorted({layer for part in parts if part.change.site == site for layer in part.change.layers})
        before = sum(position < prompt for position in reached)
        counts = {"prompt_tokens": before, "generated_tokens": len(reached) - before}
        sites.append({"site": SITES[site], "layers": layers, **counts, "measured": at in reached})
    return {
        "packs": [
            {"name": served.name, "strength": strength, "digest": served.digest} for served, strength in asked.packs
        ],
        "steered": bool(plan["changes"]),
        "measured_at": at,
        "sites": sites,
        "tag": tag,
    }


def with_changes(receipt: dict[str, Any], found: Sequence[Sequence[Any]]) -> None:
    """Complete a receipt by what the workers measured: by layer `|change| / |state|` at one token.

    None where that token was not computed, because its prefix was in the cache.
    """
    receipt.pop("tag", None)
    by_place = {(SITES[site], layer): value for site, layer, value in found}
    for site in receipt["sites"]:
        values = {str(layer): by_place.get((site["site"], layer)) for layer in site["layers"]}
        site["relative_change"] = values if site.pop("measured") and None not in values.values() else None
