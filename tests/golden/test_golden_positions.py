"""Each selection changes exactly the positions that were recorded, whatever receipts may say."""

from __future__ import annotations

import pytest
from cases_positions import CASES, found
from golden_support import recorded


def test_every_case_is_recorded() -> None:
    assert sorted(recorded("positions")) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_changed_positions(name: str) -> None:
    assert found(*CASES[name]) == recorded("positions")[name]
