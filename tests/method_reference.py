"""What the tests of single methods share: states by plain hooks in float64, and steered logits in both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import steerkit as sk

BLOCKS = "model.language_model.layers"
TOWER = "model.vision_tower.encoder.layers"

Edit = tuple[str, Callable[[Tensor], Tensor]]
"""A module's path, and what becomes of its output `[rows, tokens, hidden]`."""


def states(vlm: sk.VLM, sample: sk.Sample, paths: Sequence[str], *, image: bool = True, heads: bool = False) -> Any:
    """`[paths, tokens, hidden]`, float64: outputs of modules (inputs, for heads) in a pass of one prompt alone."""
    found: dict[str, np.ndarray] = {}

    def keep(path: str) -> Callable[..., None]:
        def run(module: nn.Module, args: Any, output: Any = None) -> None:
            value = args[0] if heads else output[0] if isinstance(output, tuple) else output
            found[path] = value[0].double().numpy()

        return run

    handles = []
    for path in paths:
        module = vlm.model.get_submodule(path)
        handles.append((module.register_forward_pre_hook if heads else module.register_forward_hook)(keep(path)))
    try:
        with torch.no_grad():
            vlm.model(**vlm.inputs([sample], images=image))
    finally:
        for handle in handles:
            handle.remove()
    return np.stack([found[path] for path in paths])


@contextmanager
def edited(vlm: sk.VLM, edits: Sequence[Edit], *, inputs: bool = False) -> Iterator[None]:
    """Plain hooks, on outputs or, for heads, on inputs."""

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        if inputs:
            return lambda m, args: (change(args[0].double()).float(),)

        def run(module: nn.Module, args: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            changed = change(h.double()).float()
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return run

    handles = []
    for path, change in edits:
        module = vlm.model.get_submodule(path)
        register = module.register_forward_pre_hook if inputs else module.register_forward_hook
        handles.append(register(hook(change)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(vlm: sk.VLM, sample: sk.Sample) -> Tensor:
    """`[tokens, vocabulary]` of one prompt."""
    with torch.no_grad():
        return vlm.model(**vlm.inputs([sample])).logits[0].double()


def steered_logits(vlm: sk.VLM, vector: sk.SteeringVector, sample: sk.Sample) -> Tensor:
    """The same, steered: by hooks; the nnsight engine must give equal ones."""
    with sk.steer(vlm, vector, policy="off"):
        found = logits(vlm, sample)
    with (
        sk.steer(vlm, vector, engine="nnsight", policy="off") as receipt,
        torch.no_grad(),
        receipt.nnsight.trace(**vlm.inputs([sample])),
    ):
        traced = receipt.nnsight.output.logits.save()
    assert torch.equal(traced[0].double(), found)
    return found


def same_answers(vlm: sk.VLM, vector: sk.SteeringVector, samples: Sequence[sk.Sample]) -> list[str]:
    """Steered answers, equal in both engines."""
    answers = []
    for engine in ("hooks", "nnsight"):
        with sk.steer(vlm, vector, engine=engine, policy="off"):
            answers.append(vlm.generate(samples, max_new_tokens=4, min_new_tokens=4))
    assert answers[0] == answers[1]
    return answers[0]


def components(rows: np.ndarray) -> np.ndarray:
    """Eigenvectors of the uncentred second moment, the leading one first."""
    return np.linalg.eigh(rows.T @ rows)[1][:, ::-1].T
