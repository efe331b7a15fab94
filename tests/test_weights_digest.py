"""The digest that tells one model's answers from another's: whatever holds weights counts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import steerkit as sk
from steerkit.testing import tiny


def digest(model: nn.Module, processor: object) -> str:
    return sk.wrap(model, processor).weights_digest()


@pytest.fixture(scope="module")
def built() -> tuple[nn.Module, object]:
    return tiny.build("llava")


def projection(model: nn.Module) -> nn.Linear:
    return next(each for name, each in model.named_modules() if name.endswith("up_proj"))  # type: ignore[return-value]


def test_a_copy_is_the_same_and_training_on_is_not(built: tuple[nn.Module, object]) -> None:
    model, processor = built
    other = copy.deepcopy(model)
    assert digest(other, processor) == digest(model, processor)
    with torch.no_grad():
        projection(other).weight.mul_(1.01)
    assert digest(other, processor) != digest(model, processor)
    assert digest(copy.deepcopy(model).half(), processor) != digest(model, processor)


@pytest.mark.parametrize("part", ["a", "b"])
def test_weights_made_of_several_tensors_count_each(built: tuple[nn.Module, object], part: str) -> None:
    """As quantisers keep integers and scales in one parameter: by the subclass that PyTorch tests its own with."""
    model, processor = copy.deepcopy(built[0]), built[1]
    weight = projection(model).weight.detach()
    projection(model).weight = nn.Parameter(TwoTensor(weight.clone(), weight.clone()))
    other = copy.deepcopy(model)
    assert digest(other, processor) == digest(model, processor)
    held = projection(other).weight
    changed = {name: getattr(held, name) for name in "ab"} | {part: getattr(held, part) * 2}
    projection(other).weight = nn.Parameter(TwoTensor(changed["a"], changed["b"]))
    assert digest(other, processor) != digest(model, processor)


def test_quantised_weights_in_buffers_count_and_running_figures_do_not(built: tuple[nn.Module, object]) -> None:
    model, processor = copy.deepcopy(built[0]), built[1]
    projection(model).register_buffer("qweight", torch.arange(64, dtype=torch.int32))
    projection(model).register_buffer("seen", torch.zeros(3))
    before = digest(model, processor)
    projection(model).get_buffer("seen").add_(1)  # as some position embeddings grow with the longest prompt
    assert digest(model, processor) == before
    projection(model).get_buffer("qweight").mul_(3)
    assert digest(model, processor) != before
