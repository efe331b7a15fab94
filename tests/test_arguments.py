"""What may be written for the vectors and the strengths of `steer`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from reference import directions, vector

import steerkit as sk
from steerkit.errors import OptionError
from steerkit.vectors import as_strengths, as_vectors


@pytest.mark.parametrize(
    "number", [2, 2.0, np.float32(2), np.float16(2), np.int64(2), Fraction(2), torch.tensor(2.0), np.array(2.0)]
)
def test_any_real_number_is_a_strength(number: Any) -> None:
    for given in (number, [number, number], (number, 2)):
        strengths = as_strengths(given, 2)
        assert strengths == [2.0, 2.0]
        assert all(type(each) is float for each in strengths)


def test_an_array_is_a_strength_for_each_vector() -> None:
    assert as_strengths(np.array([1.0, 2.0]), 2) == as_strengths(torch.tensor([1.0, 2.0]), 2) == [1.0, 2.0]


@pytest.mark.parametrize(
    "given",
    [
        None,
        "1",
        b"1",
        True,
        np.bool_(True),
        torch.tensor(True),
        [True],
        torch.tensor([True]),
        torch.tensor(1.0, device="meta"),
        [None],
        ["1"],
        [[1.0]],
        1j,
        torch.tensor(1j),
        object(),
        10**400,
        pytest.param(10**9999, id="huge"),
        {1: 0.5},
        {0.5},
        {"add": 1.0},
    ],
)
def test_what_is_no_number_is_no_strength(given: Any) -> None:
    with pytest.raises(OptionError, match="the strength is") as caught:
        as_strengths(given, 1)
    assert caught.value.expected
    assert caught.value.fix


def test_vectors_and_strengths_are_as_many() -> None:
    with pytest.raises(OptionError, match="3 strengths for 2 vectors"):
        as_strengths([1, 2, 3], 2)


def test_one_vector_or_several(llava: sk.VLM) -> None:
    one = vector(llava, directions(llava))
    assert as_vectors(one) == [one]
    assert as_vectors((one, one)) == as_vectors(each for each in (one, one)) == [one, one]
    with pytest.raises(OptionError, match="no vector"):
        as_vectors([])


@pytest.mark.parametrize("given", ["cmrm.safetensors", None, 1.0, ["cmrm.safetensors"], {0: torch.zeros(4)}, {1}])
def test_what_is_no_vector_is_refused_with_the_way_to_load_one(llava: sk.VLM, given: Any) -> None:
    with pytest.raises(OptionError, match="the vector is") as caught:
        sk.steer(llava, given)
    assert "sk.load_vector(" in str(caught.value.fix)


def test_a_strength_of_another_type_steers_alike(llava: sk.VLM) -> None:
    plain = vector(llava, directions(llava))
    inputs = llava.inputs([sk.Sample("What?")])

    def steered(strength: Any) -> torch.Tensor:
        with sk.steer(llava, plain, strength=strength), torch.no_grad():
            return llava.model(**inputs).logits

    expected = steered(0.5)
    assert torch.equal(steered(np.float32(0.5)), expected)
    assert torch.equal(steered(torch.tensor(0.5)), expected)
    with pytest.raises(OptionError, match="finite"):
        sk.steer(llava, plain, strength=np.float32("nan"))
