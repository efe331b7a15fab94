"""Each method finds the recorded directions, nearly, and the recorded interventions, exactly but for fractions."""

from __future__ import annotations

import pytest
from cases_fits import CASES, fitted, found
from golden_support import as_json, assert_alike, recorded

import steerkit as sk

RECORDS = recorded("fits")


def test_every_method_and_case_is_recorded() -> None:
    assert sorted(RECORDS) == sorted(CASES)
    assert {CASES[name][1] for name in CASES} == set(sk.methods.method_names())


@pytest.mark.parametrize("name", CASES)
def test_fit(name: str) -> None:
    places = {key: each["at"] for key, each in RECORDS[name]["directions"].items()}
    assert_alike(as_json(found(fitted(*CASES[name]), places)), RECORDS[name], 1e-4)
