"""What the hooks of an eager engine are told before each step: of every layer, what is at work on which tokens.

A graph computes the whole form for every token. In an eager engine the host knows which rows a step holds and what each
of them has (`arithmetic.facts`), so that hooks leave out the rest: tokens that are not steered, depths that no token
uses, layers at which none is changed, and terms that no row has. Tokens with the same terms are computed together.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steerkit_vllm.arithmetic import NUMBERS, facts, measures, names, needed, refers
from steerkit_vllm.banks import Now, Turn
from steerkit_vllm.settings import SITES, Room

_KEPT = 256
"""How many combinations of rows are remembered: they come again while requests come and go."""

_GROUPS = 8
"""Up to how many sorts of tokens are computed apart; of more, all of the form for all of them takes fewer operators."""


class _Depth(NamedTuple):
    """What the rows have that tokens undergo at one depth.

    Attributes:
        layers: The layers at which some of them change a state.
        facts: By these, what they have together.
        names: Their numbers that are needed.
        table: The numbers: `[layers, names, rows]`.
    """

    layers: list[int]
    facts: list[frozenset[str]]
    names: list[str]
    table: np.ndarray


class Host:
    """The numbers of all rows, and the steps that they make.

    Args:
        room: What is allocated.
        device: The model's.
        now: Where steps are told.
    """

    def __init__(self, room: Room, device: torch.device, now: Now) -> None:
        self._room, self._device, self._now = room, device, now
        self._names = names(room.gates) if room.general else ("dose",)
        self._numbers: dict[tuple[int, int], np.ndarray] = {}
        self._facts: dict[tuple[int, int], list[frozenset[str]]] = {}
        self._sorts: dict[object, int] = {}
        self._sort = np.zeros((len(SITES), 1 + room.rows), np.int64)
        self._told: tuple[bytes, ...] | None = None
        self._combined = functools.lru_cache(_KEPT)(self._rows_together)
        self._turns = functools.lru_cache(_KEPT)(self._made)

    def add(self, site: int, start: int, tensors: dict[str, Tensor]) -> None:
        """Take note of the rows of a change."""
        self._combined.cache_clear()
        self._turns.cache_clear()
        self._told = None
        numbers = tensors["numbers"]
        if not self._room.general:  # the directions of additions are times the dose
            numbers = (numbers[..., [NUMBERS.index("dose")]] != 0).float()
        referring = [name for name in measures(self._room) if f"{name}_from" in tensors]
        for at in range(numbers.shape[1]):
            self._numbers[site, start + at] = numbers[:, at].numpy().copy()
            self._facts[site, start + at] = [
                self._of(each[at].tolist(), {name: tensors[f"{name}_from"][layer, at] for name in referring})
                for layer, each in enumerate(numbers)
            ]
            sort = (*self._facts[site, start + at], *(bool(each[at].any()) for each in numbers))
            self._sort[site, start + at] = self._sorts.setdefault(sort, 1 + len(self._sorts))

    def _of(self, numbers: list[float], references: dict[str, Tensor]) -> frozenset[str]:
        if not self._room.general:
            return frozenset()
        referred = [name for name, reference in references.items() if bool(reference.any())]
        return facts(dict(zip(self._names, numbers, strict=True)), self._room.gates, referred)

    def tell(self, step: dict[str, np.ndarray]) -> None:
        """Say what a step holds.

        Args:
            step: `[sites, depth, tokens]`: the `row` that a token undergoes, 0 being nothing, its `coefficient`, and
                the row of its direction as `vector`.
        """
        told = tuple(values.tobytes() for values in step.values())
        if told == self._told:
            return  # decoding repeats a step
        self._told = told
        self._now.turns = {}
        for site in np.flatnonzero(step["row"].any(axis=(1, 2))).tolist():
            given = [step[name][site] for name in ("row", "coefficient", "vector")]
            tokens = np.flatnonzero(given[0].any(axis=0))
            sorts, apart = self._sort[site][given[0][:, tokens]], [tokens]
            if self._room.general and (sorts != sorts[:, :1]).any():
                found, sort = np.unique(sorts, axis=1, return_inverse=True)
                if found.shape[1] <= _GROUPS:
                    apart = [tokens[sort.reshape(-1) == at] for at in range(found.shape[1])]
            for each in apart:
                columns = [values[given[0][:, each].any(axis=1)][:, each] for values in given]
                if all((values == values[:, :1]).all() for values in columns):
                    columns = [values[:, :1] for values in columns]  # all alike, however many there are
                # what differs from token to token is large, and seldom comes again
                make = self._turns if columns[0].shape[1] == 1 else self._made
                made = make(site, columns[0].shape, *(values.tobytes() for values in columns))
                which = self._on(each)
                for layer, turns in made.items():
                    self._now.turns.setdefault((site, layer), []).append((which, turns))

    def _made(self, site: int, shape: tuple[int, int], *given: bytes) -> dict[int, list[Turn]]:
        """By layer, what tokens undergo: rows, coefficients and vectors, `[depths, tokens]`."""
        rows, coefficients, vectors = (
            np.frombuffer(data, kind).reshape(shape)
            for data, kind in zip(given, (np.int64, np.float32, np.int64), strict=True)
        )
        turns: dict[int, list[Turn]] = defaultdict(list)
        found = [np.unique(each, return_inverse=True) for each in rows]
        depths = self._combined(site, tuple(tuple(each.tolist()) for each, _ in found))
        for depth, (_, which), row, coefficient, vector in zip(depths, found, rows, coefficients, vectors, strict=True):
            if not depth.layers:
                continue
            numbers = depth.table.take(which, axis=2)
            numbers[:, 0] *= coefficient
            columns = iter(self._on(numbers).view(-1, shape[1], 1).unbind(0))
            at_row, at_vector = self._index(row), self._index(vector)
            for layer, has in zip(depth.layers, depth.facts, strict=True):
                numbers_here = dict(zip(depth.names, columns, strict=False))
                measured = tuple(name for name in measures(self._room) if name in has)
                turns[layer].append(Turn(has, numbers_here, measured, at_vector, at_row))
        return dict(turns)

    def _rows_together(self, site: int, rows: tuple[tuple[int, ...], ...]) -> list[_Depth]:
        """What the rows of each depth have together."""
        shape = next(self._numbers[site, row] for each in rows for row in each if row).shape
        nothing = np.zeros(shape, np.float32), [self._of([0.0] * shape[1], {})] * shape[0]
        depths = []
        for each in rows:
            known = [(self._numbers[site, row], self._facts[site, row]) if row else nothing for row in each]
            numbers = np.stack([values for values, _ in known], axis=-1)
            layers = np.flatnonzero(numbers.any(axis=(1, 2))).tolist()
            depths.append((layers, [frozenset().union(*(has[at] for _, has in known)) for at in layers], numbers))
        referring = {at for layers, found, _ in depths for at, has in zip(layers, found, strict=True) if refers(has)}
        combined = []
        for layers, found, numbers in depths:
            found = [has if at in referring else has - {"not opens"} for at, has in zip(layers, found, strict=True)]
            wanted = needed(frozenset().union(*found))
            table = numbers[layers][:, [self._names.index(name) for name in wanted]]
            combined.append(_Depth(layers, found, wanted, table))
        return combined

    def _index(self, rows: np.ndarray) -> Tensor | int:
        return int(rows[0]) if (rows == rows[0]).all() else self._on(rows.copy())

    def _on(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)
