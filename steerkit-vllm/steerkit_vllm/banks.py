"""What the workers hold beside the model: the rows of every change, and which token undergoes which.

Everything has a fixed shape and is a buffer of the module that it acts on, so that compiled graphs and CUDA graphs read
what was written before a step. Row 0 changes nothing. The hooks of eager engines run as Python in every step: they are
told what a step holds (`Now`), and compute that alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from steerkit_vllm.arithmetic import NUMBERS, Rows, advance, every, measures, names
from steerkit_vllm.settings import SITES, Room

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "steerkit_"


class Turn(NamedTuple):
    """One change of each steered token of a step, at one module of an eager engine.

    Attributes:
        facts: What its rows have; see `arithmetic.facts`.
        numbers: What of their numbers is needed; where there is room for additions alone, the coefficient as `dose`.
        measures: What is measured.
        vector: The row of each direction, or of all of them.
        row: The row of each measure, likewise.
    """

    facts: frozenset[str]
    numbers: dict[str, Tensor]
    measures: tuple[str, ...]
    vector: Tensor | int
    row: Tensor | int


@dataclass(eq=False)
class Now:
    """What a step holds, as eager models are told it.

    Attributes:
        reads: Whether states are read.
        turns: By site and layer, what tokens undergo; no token twice.
    """

    reads: bool = False
    turns: dict[tuple[int, int], list[tuple[Tensor, list[Turn]]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Place:
    """What the hook of a module has to know.

    Attributes:
        site: Index of its site.
        layer: Index of its layer.
        room: What is allocated.
        eager: Whether the hook runs as Python in every step, so that it can look what a step holds.
        now: What the step holds.
        steers: Whether states are changed here; they can be read everywhere.
        names: The numbers of a row.
        measures: What rows can measure.
        facts: What they can have.
    """

    site: int
    layer: int
    room: Room
    eager: bool
    now: Now
    steers: bool
    names: tuple[str, ...] = field(init=False)
    measures: tuple[str, ...] = field(init=False)
    facts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Spell out the room once, so that no compiler has to follow how."""
        for name, found in (
            ("names", names(self.room.gates)),
            ("measures", measures(self.room)),
            ("facts", every(self.room)),
        ):
            object.__setattr__(self, name, found)


def allocate(module: nn.Module, place: Place, shared: dict[str, Tensor], hidden: int, own: int, read: int) -> None:
    """Make the buffers of a module and hook it.

    Args:
        module: The decoder block, its MLP or its attention.
        place: What it is.
        shared: What all modules read together: which tokens are read and, in graphs, which undergo which row.
        hidden: Size of a state.
        own: Rows for vectors that are measured on prompts.
        read: Prompts that can be read in one step.
    """
    room, device = place.room, shared["read_row"].device
    buffers = dict(shared)
    if place.steers:
        buffers["u"] = torch.zeros(1 + room.rows + own, hidden, device=device)
        if room.general:
            if not place.eager:
                buffers["numbers"] = torch.zeros(1 + room.rows, len(names(room.gates)), device=device)
            for name in measures(room):
                for key in (name, f"{name}_from"):
                    buffers[key] = torch.zeros(1 + room.rows, hidden, device=device)
    buffers["state"] = torch.zeros(read, hidden, device=device)
    if place.steers:
        buffers["after"] = torch.zeros(read, hidden, device=device)
    for name, tensor in buffers.items():
        module.register_buffer(PREFIX + name, tensor, persistent=False)
    module.steerkit_place = place  # type: ignore[assignment]
    module.register_forward_hook(_hook)


def write(module: nn.Module, start: int, tensors: dict[str, Tensor]) -> None:
    """Put the rows of a change into a module's bank."""
    place: Place = module.steerkit_place  # type: ignore[assignment]
    for name, given in tensors.items():
        if name == "numbers" and (place.eager or not place.room.general):
            continue  # the host knows them, and additions have them in their direction
        bank: Tensor = getattr(module, PREFIX + name)
        rows = given[place.layer]
        if not place.room.general:
            rows = rows * tensors["numbers"][place.layer, :, NUMBERS.index("dose"), None]
        bank[start : start + len(rows)].copy_(rows.to(bank))


def _hook(module: nn.Module, inputs: Any, output: Any) -> Any:
    place: Place = module.steerkit_place  # type: ignore[assignment]
    steers, reads = place.steers, True
    if place.eager:
        steers, reads = (place.site, place.layer) in place.now.turns, place.now.reads
        if not steers and not reads:
            return None
    pair = isinstance(output, tuple)
    if pair and (SITES[place.site] != "resid_post" or len(output) != 2):
        raise RuntimeError(
            f"steerkit-vllm: {type(module).__name__} returns {type(output).__name__}, expected: hidden states, of a "
            "block with its residual; this architecture can't be steered"
        )
    get = lambda name: getattr(module, PREFIX + name)  # noqa: E731 - traced by the compiler
    parts = output if pair else (output,)
    if reads:
        _record(get("state"), parts, get("read_row"))
    changed = None
    if steers:
        changed = _told(parts, place, get) if place.eager else _traced(parts, place, get)
    if reads and place.steers:
        _record(get("after"), parts if changed is None else changed, get("read_row"))
    return changed if changed is None or pair else changed[0]


def _record(kept: Tensor, parts: tuple[Tensor, ...], rows: Tensor) -> None:
    """Keep the states of some tokens."""
    found = [each.index_select(0, rows) for each in parts]
    kept.copy_(found[0] + found[1] if len(found) == 2 else found[0])


def _traced(parts: tuple[Tensor, ...], place: Place, get: Any) -> tuple[Tensor, ...]:
    """A module's output with every change that its tokens undergo, in the one form that a graph has."""
    room, n = place.room, parts[0].shape[0]
    turns, touched = [], None
    for depth in range(room.depth):
        row = get("row")[place.site, depth, :n]
        dose = get("coefficient")[place.site, depth, :n][:, None]
        if not room.general:
            turns.append((Rows({"dose": dose}, get("u").index_select(0, row), {}), place.facts))
            continue
        take = lambda name, row=row: get(name).index_select(0, row)  # noqa: E731
        given = take("numbers")
        numbers = {name: given[:, at : at + 1] for at, name in enumerate(place.names)}
        numbers["dose"] = dose * numbers["dose"]
        u = get("u").index_select(0, get("vector")[place.site, depth, :n])
        pairs = {name: (take(name), take(f"{name}_from")) for name in place.measures}
        turns.append((Rows(numbers, u, pairs), place.facts))
        touched = row > 0 if touched is None else touched | (row > 0)
    if not turns:
        return parts
    if not room.general:
        return (*parts[:-1], _added(parts[-1], turns))
    assert touched is not None
    # what is not steered stays as it is, to the last bit
    pairs = zip(_advanced(parts, turns), parts, strict=True)
    return tuple(torch.where(touched[:, None], new, old) for new, old in pairs)


def _told(parts: tuple[Tensor, ...], place: Place, get: Any) -> tuple[Tensor, ...]:
    """The same where the step is known: of the tokens that are steered, what is at work on them."""
    concerned = parts if place.room.general else parts[-1:]
    kept = parts[: len(parts) - len(concerned)]
    changed: tuple[Tensor, ...] = ()
    for tokens, turns in place.now.turns[place.site, place.layer]:
        whole = len(tokens) == parts[0].shape[0]
        here = concerned if whole else tuple(each.index_select(0, tokens) for each in concerned)
        rows = [(_given(turn, get), turn.facts) for turn in turns]
        found = _advanced(here, rows) if place.room.general else (_added(here[0], rows),)
        if whole:
            return (*kept, *found)
        changed = changed or tuple(each.clone() for each in concerned)
        for each, new in zip(changed, found, strict=True):
            each.index_copy_(0, tokens, new)
    return (*kept, *changed)


def _given(turn: Turn, get: Any) -> Rows:
    """A change with its vectors."""
    pairs = {}
    for name in turn.measures:
        reference = _rows(get(f"{name}_from"), turn.row) if f"{name} from" in turn.facts else None
        pairs[name] = (_rows(get(name), turn.row), reference)
    return Rows(turn.numbers, _rows(get("u"), turn.vector), pairs)


def _rows(bank: Tensor, index: Tensor | int) -> Tensor:
    return bank.narrow(0, index, 1) if isinstance(index, int) else bank.index_select(0, index)


def _added(state: Tensor, turns: list[tuple[Rows, frozenset[str]]]) -> Tensor:
    """States, or the residuals beside them, with additions."""
    added = None
    for rows, _ in turns:
        term = rows.numbers["dose"] * rows.u
        added = term if added is None else added + term
    return state if added is None else state + added.to(state.dtype)


def _advanced(parts: tuple[Tensor, ...], turns: list[tuple[Rows, frozenset[str]]]) -> tuple[Tensor, ...]:
    """States with every change, as the states of a block and no residual where there was one."""
    state = parts[0] + parts[1] if len(parts) == 2 else parts[0]
    x, start = state.float(), None
    for rows, found in turns:
        x, start = advance(x, start, rows, found)
    x = x.to(state.dtype)
    return (x, torch.zeros_like(x)) if len(parts) == 2 else (x,)
