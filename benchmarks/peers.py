"""Other libraries for steering, as variants of `overhead.py`: those that are installed, and whether they run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Any]


def peers(
    model: nn.Module, directions: Mapping[int, Tensor], run: Callable[..., Any]
) -> tuple[dict[str, Call], dict[str, str]]:
    """The peers that steer this model here, by name and version, and what ended the others.

    Each is tried once before anything is timed: a library may be installed and still not work with the versions of
    numpy, torch or transformers beside it, and one that leaves the logits alone is no peer to be measured against.

    Args:
        model: A text-only decoder.
        directions: `{layer: [hidden]}`.
        run: Generates with the model, or with what is passed instead of it.
    """
    working: dict[str, Call] = {}
    failing: dict[str, str] = {}
    for distribution, make in (("steering-vectors", _steering_vectors), ("repeng", _repeng)):
        try:
            name = f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
        try:
            call, logits = make(model, directions, run)
            if torch.equal(logits(), model(PROBE).logits):
                failing[name] = "it does not change the logits"
                continue
            call()
        except Exception as error:  # whatever a library of somebody else raises is what the row reports
            failing[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            continue
        working[name] = call
    return working, failing


PROBE = torch.arange(3, 11)[None]


def _steering_vectors(model: Any, directions: Mapping[int, Tensor], run: Callable[..., Any]) -> tuple[Call, Call]:
    import steering_vectors

    def apply(call: Call) -> Any:
        with steering_vectors.SteeringVector(dict(directions), "decoder_block").apply(model):
            return call()

    return lambda: apply(run), lambda: apply(lambda: model(PROBE).logits)


def _repeng(model: Any, directions: Mapping[int, Tensor], run: Callable[..., Any]) -> tuple[Call, Call]:
    import repeng

    vector = repeng.ControlVector("llama", {layer: direction.numpy() for layer, direction in directions.items()})

    def apply(call: Callable[[Any], Any]) -> Any:
        control = repeng.ControlModel(model, list(directions))
        try:
            control.set_control(vector)
            return call(control)
        finally:
            control.unwrap()

    return lambda: apply(run), lambda: apply(lambda control: control(PROBE).logits)
