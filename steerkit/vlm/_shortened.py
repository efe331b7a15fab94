"""A vision tower of which only the first block runs: what it makes of an image is less, and costs a fraction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from steerkit.models import Architecture


class Tower:
    """The blocks of a vision tower, and what was seen of them in a pass: whether each can be passed over.

    One can be that returns a state of the shape that it was given, and nothing beside it. The first is kept: in it, a
    token that stands for the whole image attends to the image.
    """

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        vision = architecture.vision
        self._blocks: list[nn.Module] = [] if vision is None else [*cast("Any", model.get_submodule(vision.layers))]
        self._passing: dict[nn.Module, Callable[..., Any] | None] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While a pass runs whose blocks are looked at."""

        def note(block: nn.Module, args: Any, options: Any, output: Any) -> None:
            self._passing[block] = _passing(args, options, output)

        handles = [block.register_forward_hook(note, with_kwargs=True) for block in self._blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def shortens(self) -> bool:
        """Whether all blocks but the first can be passed over."""
        return len(self._blocks) > 1 and all(self._passing.get(block) for block in self._blocks)

    @contextmanager
    def shortened(self) -> Iterator[None]:
        """While this thread's passes run the first block alone."""
        owner, kept = threading.get_ident(), []
        try:
            for block in self._blocks[1:] if self.shortens else ():
                kept.append((block, vars(block).get("forward")))
                block.forward = _in_thread(owner, cast("Any", self._passing[block]), block.forward)
            yield
        finally:
            for block, own in kept:
                del block.forward
                if own is not None:
                    block.forward = own


def _in_thread(owner: int, passing: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        return (passing if threading.get_ident() == owner else forward)(*args, **options)

    return run


def _passing(args: Any, options: dict[str, Any], output: Any) -> Callable[..., Any] | None:
    """What returns the state that a block is given, in the form in which the block returned its own, if it can be."""
    name = None if args else next(iter(options), None)
    given = args[0] if args else options.get(str(name))
    first, *others = output if isinstance(output, tuple) and output else (output,)
    if not (isinstance(given, Tensor) and isinstance(first, Tensor)) or any(other is not None for other in others):
        return None
    if (given.shape, given.dtype) != (first.shape, first.dtype):
        return None

    def passing(*args: Any, **options: Any) -> Any:
        state = args[0] if name is None else options[name]
        return (state, *others) if isinstance(output, tuple) else state

    return passing
