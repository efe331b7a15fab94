"""Receipts name the recorded layers, sites and counts exactly, and the recorded sizes nearly."""

from __future__ import annotations

import pytest
from cases_receipts import CASES, found
from golden_support import as_json, assert_alike, recorded

RECORDS = recorded("receipts")


def test_every_case_is_recorded() -> None:
    assert sorted(RECORDS) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_receipt(name: str) -> None:
    assert_alike(as_json(found(*CASES[name])), RECORDS[name], 1e-2)
