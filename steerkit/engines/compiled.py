"""Steering inside graphs that torch.compile makes: a hook is traced as one opaque operator.

What a hook does depends on the prompt and on the position, in Python. Traced as it is, it would break the graph at
every block, or be compiled again for every token. So a graph only holds `steerkit::steer(h, slot)`. Whenever the graph
runs, the operator looks up what is open in its slot, and does what the hook would have done. A slot belongs to a place
of a model and outlives the block that opened it: a graph made in one block serves the next one that steers there.
"""

from __future__ import annotations

import itertools
import sys
import threading
import types
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steerkit.errors import EngineError

Steer = Callable[[Tensor], Tensor]


class Slot:
    """A place of a model in compiled graphs, and what is done there while a block is open."""

    def __init__(self, number: int, place: Hashable) -> None:
        self.number = number
        self.place = place
        self.steer: Steer | None = None


_lock = threading.Lock()
_numbers = itertools.count()
_slots: weakref.WeakValueDictionary[int, Slot] = weakref.WeakValueDictionary()
_of_model: weakref.WeakKeyDictionary[nn.Module, list[Slot]] = weakref.WeakKeyDictionary()
_hooks: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, int]] = weakref.WeakKeyDictionary()
_graphs: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Callable[..., Any]]] = weakref.WeakKeyDictionary()

_TAG = getattr(torch.Tag, "cudagraph_unsafe", None)


@torch.library.custom_op(
    "steerkit::steer",
    mutates_args=(),
    schema="(Tensor h, int slot) -> Tensor",
    # a recorded CUDA graph would replay the kernels without asking what is open
    tags=() if _TAG is None else (_TAG,),
)
def _steer(h: Tensor, slot: int) -> Tensor:
    found = _slots.get(slot)
    changed = h if found is None or found.steer is None else found.steer(h)
    return changed.clone() if changed is h else changed


@_steer.register_fake
def _(h: Tensor, slot: int) -> Tensor:
    if getattr(torch.compiler, "is_exporting", bool)():  # a graph that outlives the block, and finds nothing open
        raise EngineError(
            "the model is exported with torch.export while it is steered",
            expected="a model that nothing is attached to: what is exported would hold no steering",
            fix="export it outside of the steering block",
        )
    if _TAG is None and h.device.type == "cuda":
        raise EngineError(
            f"torch {torch.__version__} can't keep an operator out of CUDA graphs",
            expected="a release of torch that has the tag cudagraph_unsafe",
            fix="upgrade torch, or generate with disable_compile=True",
        )
    return torch.empty_like(h)


def steered(h: Tensor, number: int) -> Tensor:
    """What a hook returns while it is traced."""
    return torch.ops.steerkit.steer(h, number)


def acquire(model: nn.Module, place: Hashable) -> Slot:
    """A slot of the model at a place that nobody holds."""
    with _lock:
        known = _of_model.setdefault(model, [])
        for slot in known:
            if slot.place == place and slot.steer is None:
                break
        else:
            slot = Slot(next(_numbers), place)
            _slots[slot.number] = slot
            known.append(slot)
        slot.steer = _unchanged
        return slot


def release(slot: Slot) -> None:
    """Do nothing in the slot from here on, wherever graphs that hold it have gone."""
    slot.steer = None


def numbered(model: nn.Module, name: Hashable, handle: RemovableHandle) -> RemovableHandle:
    """A hook under the number that the hook of this name had before on the model.

    Graphs are guarded by the numbers of the hooks that take keyword arguments or are always called: with a new one in
    every block, each block would compile again.
    """
    with _lock:
        number = _hooks.setdefault(model, {}).setdefault(name, handle.id)
        if number != handle.id:
            for reference in (handle.hooks_dict_ref, *handle.extra_dict_ref):
                entries = reference()
                if entries is not None and handle.id in entries:
                    entries[number] = entries.pop(handle.id)
            handle.id = number
    return handle


def call(model: nn.Module, entry: nn.Module, options: Mapping[str, Any]) -> Callable[..., Any]:
    """`entry(...)` compiled together with what is open on the model now; compiled once for the same places and options.

    Kept apart from a graph that was made without steering, which stays valid for calls outside the block.

    Raises:
        EngineError: The open block steers by nnsight, which can't be compiled.
    """
    with _lock:
        held = tuple(slot.number for slot in _of_model.get(model, ()) if slot.steer is not None)
        if not held:
            raise EngineError(
                f"{type(entry).__name__} is about to compile its decoding step, and nothing is steered by hooks",
                expected="engine='hooks'",
                fix="generate with disable_compile=True, or leave engine='nnsight'",
            )
        key = (id(entry), held, repr(sorted(options.items())))
        graphs = _graphs.setdefault(model, {})
        if key not in graphs:
            # torch keeps graphs by the code that they were made of: a copy of the code has its own
            code = _entered.__code__.replace(co_name=f"steered_{len(graphs)}")
            graphs[key] = torch.compile(types.FunctionType(code, _entered.__globals__), **options)
        return graphs[key]


def outdate(module: nn.Module) -> Callable[[], None]:
    """Let graphs that torch.compile has made of a module be made again; returns what lets them serve again.

    A graph does not notice hooks that are added later. It does notice when one of these methods becomes an attribute of
    the module itself.
    """
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    if dynamo is None or not dynamo.FRAME_COUNTER:  # nothing has been compiled in this process
        return lambda: None
    name = "_call_impl" if "forward" in vars(module) else "forward"
    method = types.MethodType(getattr(type(module), name), module)
    vars(module)[name] = method

    def unmark() -> None:
        if vars(module).get(name) is method:
            del vars(module)[name]

    return unmark


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or its forward pass alone, has been given to torch.compile."""
    forward = vars(module).get("forward")
    return module._compiled_call_impl is not None or getattr(forward, "_torchdynamo_orig_callable", None) is not None


def check_eager(model: nn.Module) -> None:
    """Refuse a model that was compiled outside: its graph does not see hooks that are added later.

    Raises:
        EngineError: The model or one of its modules has been compiled.
    """
    for module in model.modules():
        if is_compiled(module) or "_orig_mod" in module._modules:
            name = next(name for name, each in model.named_modules() if each is module)
            raise EngineError(
                f"{name or type(model).__name__} has been compiled with torch.compile before the block",
                expected="a model that runs eagerly, or is compiled inside the block",
                fix="steer the model as it was before it was compiled; inside the block, generate(..., "
                "cache_implementation='static') compiles by itself, or model.forward = torch.compile(model.forward)",
            )


def _entered(entry: Any, args: Any, kwargs: Any) -> Any:
    return entry(*args, **kwargs)


def _unchanged(h: Tensor) -> Tensor:
    return h
