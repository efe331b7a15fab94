"""What the workers hold beside the model: the rows of every change, and which token undergoes which.

Everything has a fixed shape and is a buffer of the module that it acts on, so that compiled graphs and CUDA graphs read
what was written before a step. Row 0 changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from steerkit_vllm.arithmetic import ALL, GATE, NUMBERS, UNBOUNDED, Rows, advance
from steerkit_vllm.settings import SITES, Room

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "steerkit_"


@dataclass(eq=False)
class Now:
    """What a step holds, as eager models are told it."""

    steers: bool = False
    reads: bool = False


@dataclass(frozen=True, eq=False)
class Place:
    """What the hook of a module has to know.

    Attributes:
        site: Index of its site.
        room: What is allocated.
        eager: Whether the hook runs as Python in every step, so that it can look what a step holds.
        now: What the step holds.
        steers: Whether states are changed here; they can be read everywhere.
    """

    site: int
    room: Room
    eager: bool
    now: Now
    steers: bool


def allocate(module: nn.Module, place: Place, shared: dict[str, Tensor], hidden: int, own: int, read: int) -> None:
    """Make the buffers of a module and hook it.

    Args:
        module: The decoder block, its MLP or its attention.
        place: What it is.
        shared: Which token undergoes which row, of all modules together.
        hidden: Size of a state.
        own: Rows for vectors that are measured on prompts.
        read: Prompts that can be read in one step.
    """
    room, device = place.room, shared["row"].device
    buffers = dict(shared)
    if place.steers:
        buffers["u"] = torch.zeros(1 + room.rows + own, hidden, device=device)
        if room.general:
            buffers["numbers"] = torch.zeros(1 + room.rows, len(NUMBERS) + room.gates * len(GATE), device=device)
            for name in [*(["rule"] if room.rule else []), *(f"gate{k}" for k in range(room.gates))]:
                for key in (name, f"{name}_from"):
                    buffers[key] = torch.zeros(1 + room.rows, hidden, device=device)
    buffers["state"] = torch.zeros(read, hidden, device=device)
    if place.steers:
        buffers["after"] = torch.zeros(read, hidden, device=device)
    for name, tensor in buffers.items():
        module.register_buffer(PREFIX + name, tensor, persistent=False)
    module.steerkit_place = place  # type: ignore[assignment]
    module.register_forward_hook(_hook)


def write(module: nn.Module, start: int, layer: int, tensors: dict[str, Tensor]) -> None:
    """Put the rows of a change into a module's bank."""
    place: Place = module.steerkit_place  # type: ignore[assignment]
    if not place.room.general:
        dose = tensors["numbers"][layer, :, NUMBERS.index("dose")]
        tensors = {"u": tensors["u"] * dose[None, :, None]}
    for name, given in tensors.items():
        bank: Tensor = getattr(module, PREFIX + name)
        rows = given[layer].to(bank)
        if name == "numbers":
            rows = _with_gates(rows, bank.shape[1])
        bank[start : start + len(rows)].copy_(rows)


def _with_gates(numbers: Tensor, width: int) -> Tensor:
    """The numbers with those of gates that an intervention does not have, which never decide."""
    missing = (width - numbers.shape[1]) // len(GATE)
    always = numbers[:, NUMBERS.index("combine")] == ALL
    never_open, always_open = numbers.new_tensor([0.0, UNBOUNDED, 1.0]), numbers.new_tensor([0.0, -UNBOUNDED, 1.0])
    return torch.cat([numbers, *([torch.where(always[:, None], always_open, never_open)] * missing)], dim=1)


def _hook(module: nn.Module, inputs: Any, output: Any) -> Any:
    place: Place = module.steerkit_place  # type: ignore[assignment]
    if place.eager and not (place.now.steers or place.now.reads):
        return None
    pair = isinstance(output, tuple)
    if pair and (SITES[place.site] != "resid_post" or len(output) != 2):
        raise RuntimeError(
            f"steerkit-vllm: {type(module).__name__} returns {type(output).__name__}, expected: hidden states, of a "
            "block with its residual; this architecture can't be steered"
        )
    get = lambda name: getattr(module, PREFIX + name)  # noqa: E731 - traced by the compiler
    reads = not place.eager or place.now.reads
    if reads:
        _record(get("state"), output, get("read_row"))
    if not place.steers or (place.eager and not place.now.steers):
        return None
    changed = _changed(output, place, get)
    if reads:
        _record(get("after"), changed, get("read_row"))
    return changed


def _record(kept: Tensor, output: Any, rows: Tensor) -> None:
    """Keep the states of some tokens."""
    parts = [each.index_select(0, rows) for each in (output if isinstance(output, tuple) else (output,))]
    kept.copy_(parts[0] + parts[1] if len(parts) == 2 else parts[0])


def _changed(output: Any, place: Place, get: Any) -> Any:
    """A module's output with every change that its tokens undergo."""
    pair = isinstance(output, tuple)
    if not place.room.general:
        target = output[1] if pair else output
        n, added = target.shape[0], None
        for depth in range(place.room.depth):
            u = get("u").index_select(0, get("row")[place.site, depth, :n])
            term = get("coefficient")[place.site, depth, :n][:, None] * u
            added = term if added is None else added + term
        changed = target if added is None else target + added.to(target.dtype)
        return (output[0], changed) if pair else changed
    state = output[0] + output[1] if pair else output
    changed, any_row = _general(state, place, get)
    if not pair:
        return torch.where(any_row, changed, output)
    # what is not steered stays as it is, to the last bit
    kept = torch.where(any_row, changed, output[0])
    return kept, torch.where(any_row, torch.zeros_like(output[1]), output[1])


def _general(state: Tensor, place: Place, get: Any) -> tuple[Tensor, Tensor]:
    """The changed states, and which tokens have any change, `[n, 1]`."""
    n = state.shape[0]
    x = start = state.float()
    touched = torch.zeros_like(x[:, 0], dtype=torch.bool)
    for depth in range(place.room.depth):
        row = get("row")[place.site, depth, :n]
        take = lambda name, row=row: get(name).index_select(0, row)  # noqa: E731
        rows = Rows(
            take("numbers"),
            get("coefficient")[place.site, depth, :n],
            get("u").index_select(0, get("vector")[place.site, depth, :n]),
            (take("rule"), take("rule_from")) if place.room.rule else None,
            tuple((take(f"gate{k}"), take(f"gate{k}_from")) for k in range(place.room.gates)),
        )
        x, start = advance(x, start, rows, squashed=place.room.squashed)
        touched = touched | (row > 0)
    return x.to(state.dtype), touched[:, None]
