"""Blocks that return their state in something else than a tensor: read and steered as the decoder itself reads it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

import steerkit as sk
from steerkit.errors import UnsupportedModelError
from steerkit.interventions import Intervention
from steerkit.models import meaningless_image
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector


@dataclass
class Record:
    """A block's output with a name."""

    aux: Tensor
    hidden_states: Tensor


@dataclass
class Own(ModelOutput):
    """One of transformers' kind."""

    state: Tensor | None = None
    weights: Tensor | None = None


class Named(NamedTuple):
    """A tuple whose entries have names."""

    state: Tensor
    weights: Tensor


ONE = torch.ones(1)
FORMS: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda h: (h, ONE), lambda o: o[0]),
    "list": (lambda h: [h, ONE], lambda o: o[0]),
    "named tuple": (lambda h: Named(h, ONE), lambda o: o.state),
    "dictionary": (lambda h: {"aux": ONE, "hidden_states": h}, lambda o: o["hidden_states"]),
    "ordered": (lambda h: OrderedDict(hidden_states=h, loss=ONE), lambda o: o["hidden_states"]),
    "of one entry": (lambda h: {"x": h}, lambda o: o["x"]),
    "dataclass": (lambda h: Record(ONE, h), lambda o: o.hidden_states),
    "transformers' output": (lambda h: BaseModelOutput(last_hidden_state=h, hidden_states=(h,)), lambda o: o[0]),
    "an output of one's own": (lambda h: Own(state=h), lambda o: o.state),
}


def built(wrap: Any, unwrap: Any) -> tuple[Any, Any, Any]:
    """A model whose blocks return their state in a form, and whose blocks and head take it out again."""
    model, processor = tiny.build("llava")
    inside = model.model.language_model

    def change(block: Any) -> None:
        forward = block.forward
        block.forward = lambda *given, **options: wrap(forward(*given, **options))

    for block in inside.layers:
        change(block)
    run = inside.forward

    class Reading(torch.nn.ModuleList):
        """What the decoder loops over: its blocks, each called and then read."""

        def __iter__(self) -> Any:
            return iter(
                [lambda *given, block=block, **options: unwrap(block(*given, **options)) for block in inside.kept]
            )

        def __getitem__(self, index: Any) -> Any:
            return self if isinstance(index, slice) else super().__getitem__(index)

    def forward(*given: Any, **options: Any) -> Any:
        inside.kept = list(torch.nn.ModuleList.__iter__(blocks))
        inside._modules["layers"] = reading
        try:
            return run(*given, **options)
        finally:
            inside._modules["layers"] = blocks

    blocks = inside.layers
    reading = Reading(list(blocks))
    inside.forward = forward
    return model, processor, inside


@pytest.mark.parametrize("form", FORMS)
def test_they_are_read_and_steered(form: str) -> None:
    model, processor, _ = built(*FORMS[form])
    plain, _ = tiny.build("llava")
    vlm = sk.wrap(model, processor, check=True)
    sample = sk.Sample("What is this?", (meaningless_image((56, 56), 0),))
    inputs = vlm.inputs([sample])
    direction = torch.randn(vlm.architecture.hidden_size, generator=torch.Generator().manual_seed(1))
    given: list[Tensor] = []

    def add(module: Any, args: Any, options: Any) -> Any:
        given.append(args[0][:, -1].clone())
        args[0][:, -1] += direction
        return args, options

    with torch.no_grad():
        before = plain(**inputs).logits[:, -1]
        handle = plain.model.language_model.layers[1].register_forward_pre_hook(add, with_kwargs=True)
        expected = plain(**inputs).logits[:, -1]
        handle.remove()
    captured = vlm.capture([sample], layers=[0], engine="hooks")[0]
    torch.testing.assert_close(captured, given[0])
    record = PackMetadata(method=MethodRecord(name="x"), interventions=(Intervention(layers=(0,)),), model=vlm.record)
    vector = SteeringVector({Key(0): direction}, record)
    with torch.no_grad(), sk.steer(model, vector, policy="off"):
        found = model(**inputs).logits[:, -1]
    torch.testing.assert_close(found, expected)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.parametrize("form", [lambda h: {"a": ONE, "b": h}, lambda h: "state"])
def test_what_does_not_say_which_is_the_state_is_refused(form: Any) -> None:
    model, processor, _ = built(form, lambda o: o["b"] if isinstance(o, dict) else o)
    with pytest.raises(UnsupportedModelError, match=r"check at loading fails.*let the module return its hidden state"):
        sk.wrap(model, processor, check=True)
