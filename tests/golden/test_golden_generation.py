"""The demo models answer, token for token, as they did when the answers were recorded."""

from __future__ import annotations

import pytest
from cases_generation import CASES, PACKS, found
from golden_support import assert_alike, recorded

TRACED = [name for name, (_, strength) in CASES.items() if strength in (0.5, 1.0)]


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens(name: str) -> None:
    assert_alike(found(*CASES[name])[0], recorded("generation")[name], 1e-2)


@pytest.mark.parametrize("name", TRACED)
def test_greedy_tokens_of_the_nnsight_engine(name: str) -> None:
    assert_alike(found(*CASES[name], engine="nnsight")[0], recorded("generation")[name], 1e-2)


@pytest.mark.parametrize("model", PACKS)
def test_the_records_tell_steering_from_none(model: str) -> None:
    texts = {strength: recorded("generation")[f"{model} at {strength}"]["texts"] for strength in (None, 0.0, 0.5, 1.0)}
    assert texts[None] == texts[0.0]
    assert texts[None] != texts[0.5]
    assert sum(one != other for one, other in zip(texts[None], texts[1.0], strict=True)) >= 2
