"""Training rows that share their beginnings: one sequence holds a tree, and a token attends to its own branch only.

The system turn is read once for all pictures, and a picture once for all of its questions; positions count along the
branch. What a branch computes is what it would compute alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tree:
    """Token ids with the branch of each, the node that each node continues, and which tokens are learned."""

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    _nodes: list[int] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def add(self, ids: list[int], parent: int | None = None, learned: int = 0) -> int:
        """Continue a node (or begin a root) with tokens of which the last `learned` are learned; return the node."""
        node = len(self._parents)
        start = 0 if parent is None else self._ends[parent]
        self._parents.append(-1 if parent is None else parent)
        self._ends.append(start + len(ids))
        self.ids += ids
        self.learned += [False] * (len(ids) - learned) + [True] * learned
        self._nodes += [node] * len(ids)
        self._positions += range(start, start + len(ids))
        return node

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and positions `[1, tokens]`, and what may be attended to, `[1, 1, tokens, tokens]`."""
        count = len(self._parents)
        ancestor = torch.eye(count, dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                ancestor[node] |= ancestor[parent]
        nodes = torch.tensor(self._nodes)
        seen = ancestor[nodes][:, nodes] & torch.ones(len(nodes), len(nodes), dtype=torch.bool).tril()
        return torch.tensor([self.ids]), torch.tensor([self._positions]), seen[None, None]

    def sources(self) -> tuple[Tensor, Tensor]:
        """The places from which learned tokens are foretold, and those tokens."""
        targets = [i for i, learned in enumerate(self.learned) if learned]
        return torch.tensor(targets) - 1, torch.tensor([self.ids[i] for i in targets])
