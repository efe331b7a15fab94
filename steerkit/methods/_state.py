"""What has been measured of an anchor set: saved, read back, and merged in any order to the same bits.

Sums of floats depend on their order, so the order is fixed: an anchor set is cut into blocks of one size, and their
sums are added in a binary tree over the numbers of the blocks. A state holds the complete subtrees of its blocks, and
merging joins subtrees: whoever measured which block, and when, the sums at the end are the same. Contiguous blocks take
the memory of a few sums, as many as the logarithm of their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from steerkit._internal.files import FileRefused, open_regular, replacing, same_file, user_path
from steerkit._internal.json import json_object
from steerkit.errors import CheckpointError
from steerkit.interventions import Frozen
from steerkit.methods._moments import Groups, Moments, merge_groups

MAX_STATE = 2**39
MAX_VALUES = 2**26
"""Of the record of a state, which holds a digest for each anchor."""

Node = tuple[int, int]
"""Level and place of a subtree: it covers the blocks from `place * 2**level` on, `2**level` of them."""


class Extraction(Frozen):
    """What a state is a part of.

    Attributes:
        method: Name of the method.
        config: Its options.
        model: The record of the model.
        weights: Digest of its weights.
        layers: The layers that are measured.
        anchors: The number of anchors of the whole set.
        block_size: So many anchors make a block, and are measured in one batch.
        chat_template_kwargs: The options of the chat template for anchors that set none, as JSON.
    """

    method: str
    config: dict[str, Any]
    model: dict[str, Any]
    weights: str
    layers: tuple[int, ...]
    anchors: int
    block_size: int
    chat_template_kwargs: str = ""

    @property
    def blocks(self) -> range:
        """The numbers of all blocks."""
        return range(-(-self.anchors // self.block_size))

    def span(self, block: int) -> range:
        """The anchors of a block."""
        return range(block * self.block_size, min((block + 1) * self.block_size, self.anchors))

    def require(self, other: Extraction, who: str) -> None:
        """Refuse what is of another extraction.

        Raises:
            CheckpointError: It is; the message names the first difference.
        """
        for name in type(self).model_fields:
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                raise CheckpointError(
                    f"{who} belongs to another extraction: its {name} is {str(others)!r:.200}, not {str(mine)!r:.200}",
                    expected="the same method, options, model, anchors and batch size",
                    fix="leave it out, or start again without it",
                )


class Measured(NamedTuple):
    """An anchor that was measured.

    Attributes:
        digest: Its digest.
        label: Its label, or an empty text.
        options: What it told the chat template, as JSON, or an empty text.
    """

    digest: str
    label: str
    options: str


@dataclass(eq=False)
class State:
    """The statistics of some blocks of an anchor set. `SteeringMethod.measure` makes one, `finish` solves them.

    Attributes:
        extraction: What it is a part of.
        samples: The anchors, by their numbers.
        nodes: The statistics of complete subtrees of blocks.
    """

    extraction: Extraction
    samples: dict[int, Measured] = field(default_factory=dict)
    nodes: dict[Node, Groups] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"State({self.extraction.method}: {len(self)} of {self.extraction.anchors} anchors)"

    def __len__(self) -> int:
        return len(self._anchors)

    @property
    def _anchors(self) -> list[int]:
        """The numbers of the anchors of its blocks."""
        return [number for block in sorted(self.blocks) for number in self.extraction.span(block)]

    @property
    def blocks(self) -> set[int]:
        """The numbers of the blocks that were measured."""
        return {block for level, place in self.nodes for block in range(place << level, (place + 1) << level)}

    @property
    def missing(self) -> list[int]:
        """The numbers of the blocks that were not."""
        return sorted(set(self.extraction.blocks) - self.blocks)

    def added(self, node: Node, groups: Groups) -> dict[Node, Groups]:
        """The nodes with one more, joined with its neighbours as far as they are complete."""
        nodes = dict(self.nodes)
        level, place = node
        while (level, place ^ 1) in nodes:
            other = nodes.pop((level, place ^ 1))
            groups = merge_groups(groups, other) if place % 2 == 0 else merge_groups(other, groups)
            level, place = level + 1, place >> 1
        nodes[level, place] = groups
        return nodes

    def merge(self, *others: State) -> State:
        """All of them together; the order makes no difference, to the last bit.

        Raises:
            CheckpointError: One is of another extraction, or a block is in two of them.
        """
        merged = State(self.extraction, dict(self.samples), dict(self.nodes))
        blocks = self.blocks
        for number, other in enumerate(others, start=1):
            self.extraction.require(other.extraction, f"state {number}")
            if twice := sorted(blocks & (theirs := other.blocks)):
                raise CheckpointError(
                    f"{_spans(self.extraction, twice)} were measured in two of the states",
                    expected="every block in one state",
                    fix="leave one of the two out",
                )
            blocks |= theirs
            merged.samples |= {number: other.samples[number] for number in other._anchors}
            for node in sorted(other.nodes):
                merged.nodes = merged.added(node, other.nodes[node])
        return merged

    def check_complete(self) -> None:
        """Refuse a state of a part of the anchor set.

        Raises:
            CheckpointError: Some of it was not measured; the message says what.
        """
        if missing := self.missing:
            raise CheckpointError(
                f"{_spans(self.extraction, missing)} of {self.extraction.anchors} were not measured",
                expected="states of all blocks",
                fix=f"measure these blocks of {self.extraction.block_size} anchors: {_ranges(missing)}",
            )

    def groups(self) -> Groups:
        """The statistics of the whole anchor set.

        Raises:
            CheckpointError: Some of it was not measured.
        """
        self.check_complete()
        whole: Groups = {}
        for node in sorted(self.nodes, key=lambda node: node[1] << node[0]):
            whole = merge_groups(whole, self.nodes[node])
        return whole

    def save(self, path: str | Path) -> Path:
        """Write the state, complete or not at all.

        Raises:
            CheckpointError: It can't be written.
        """
        tensors: dict[str, Tensor] = {}
        nodes: list[dict[str, Any]] = []
        for (level, place), groups in sorted(self.nodes.items()):
            held: dict[str, dict[str, int]] = {}
            for name, layers in groups.items():
                for layer, moments in layers.items():
                    held.setdefault(name, {})[str(layer)] = moments.count
                    key = f"{len(nodes)}/{layer}/{name}"
                    parts = {"total": moments.total, "rows": moments.rows, "outer": moments.outer}
                    parts |= {f"kept {number}": rows for number, rows in enumerate(moments.kept)}
                    tensors |= {f"{part}/{key}": each.contiguous() for part, each in parts.items() if each is not None}
            nodes.append({"level": level, "place": place, "groups": held})
        head = {
            "extraction": self.extraction.model_dump(mode="json"),
            "samples": [[number, *self.samples[number]] for number in self._anchors],
            "nodes": nodes,
        }
        with _writing(user_path(path)) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata={"state": json.dumps(head)})
        return user_path(path)

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read a state; its tensors stay on the disk until they are used.

        Raises:
            CheckpointError: There is no such file, it can't be read, or is damaged.
        """
        try:
            with (
                open_regular(user_path(path), MAX_STATE) as judged,
                safetensors.safe_open(same_file(judged), "pt") as file,
            ):
                head = json_object(file.metadata()["state"], "its record", most=MAX_VALUES)
                return cls._read(head, {key: file.get_tensor(key) for key in file.keys()})
        except (FileRefused, OSError, MemoryError) as error:
            raise CheckpointError(
                f"the state {str(path)!r:.300} can't be read ({error})",
                expected="a file that `State.save` or a fit with a checkpoint wrote",
                fix="choose another file",
            ) from error
        except (safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the state {str(path)!r:.300} is damaged ({type(error).__name__}: {error!s:.200})",
                expected="a file that `State.save` or a fit with a checkpoint wrote",
                fix="delete it, and measure again",
            ) from error

    @classmethod
    def _read(cls, head: Mapping[str, Any], tensors: dict[str, Tensor]) -> State:
        extraction = Extraction.model_validate(head["extraction"])
        state = cls(extraction, {int(number): Measured(*map(str, rest)) for number, *rest in head["samples"]})
        for number, node in enumerate(head["nodes"]):
            groups: Groups = {}
            for name, layers in node["groups"].items():
                for layer, count in layers.items():
                    key = f"{number}/{layer}/{name}"
                    kept = []
                    while (part := tensors.get(f"kept {len(kept)}/{key}")) is not None:
                        kept.append(part)
                    rest = (tensors[f"total/{key}"], tensors.get(f"rows/{key}"), tensors.get(f"outer/{key}"))
                    groups.setdefault(name, {})[int(layer)] = Moments(int(count), *rest, tuple(kept))
            level, place = int(node["level"]), int(node["place"])
            if not 0 <= place < (place + 1) << level <= len(extraction.blocks):
                raise ValueError(f"there is no node {level}, {place} of {len(extraction.blocks)} blocks")
            state.nodes[level, place] = groups
        covered = sum(1 << level for level, _ in state.nodes)  # before they are counted one by one
        if covered > len(state.samples) or covered != len(state.blocks) or set(state._anchors) != set(state.samples):
            raise ValueError("its blocks are not those of its anchors")
        return state


def check_place(path: Path) -> None:
    """Find out before the work that a state can't be written at all; nothing is left there.

    Raises:
        CheckpointError: It can't.
    """
    with suppress(_NotNow), _writing(path):
        with suppress(FileNotFoundError):
            path.lstat()  # a name that no file can have
        raise _NotNow


class _NotNow(Exception):
    """Keeps a file that could be written from taking its place."""


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    try:
        with replacing(path) as temporary:
            yield temporary
    except (safetensors.SafetensorError, OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise CheckpointError(
            f"the state {str(path)!r:.300} can't be written ({error})",
            expected="a file in a folder that can be written, on a disk with space left",
            fix="free some space, or choose another place for it",
        ) from error


def merged(states: State | Iterable[State]) -> State:
    """Some states as one.

    Raises:
        CheckpointError: There is none, or they don't go together.
    """
    first, *others = [states] if isinstance(states, State) else list(states) or [None]
    if not all(isinstance(state, State) for state in (first, *others)):
        raise CheckpointError(
            f"{'nothing' if first is None else 'something else'} is given for the states",
            expected="one State of `measure`, or several",
        )
    return first.merge(*others)  # type: ignore[union-attr]


def _ranges(numbers: Sequence[int]) -> str:
    """`[1, 2, 3, 7]` as `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in runs)


def _spans(extraction: Extraction, blocks: Sequence[int]) -> str:
    """The anchors of some blocks, in words."""
    return f"anchors {_ranges([number for block in blocks for number in extraction.span(block)]):.200}"
