"""Sets that must share nothing: how they are split, and what is found where they do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from steerkit.errors import EmptyAnchorSetError, OptionError, SampleError
from steerkit.evaluation import Case, PhraseJudge, Suite, check_disjoint, load_suite, split
from steerkit.models import Sample

RED = np.full((2, 2, 3), (255, 0, 0), dtype=np.uint8)
BLUE = np.full((2, 2, 3), (0, 0, 255), dtype=np.uint8)


def suite(*cases: Case, revision: str = "") -> Suite:
    return Suite("mine", cases, (), (), PhraseJudge(), revision=revision)


def test_a_split_keeps_pairs_together_and_loses_nothing() -> None:
    whole = load_suite("xstest")
    parts = split(whole, {"anchors": 0.3, "dev": 0.2, "test": 0.5})
    ids = {name: {(kind, each) for kind, each in part.named} for name, part in parts.items()}
    assert sum(map(len, ids.values())) == whole.size == len(set.union(*ids.values()))
    clusters = [{case.cluster for case in part.named.values()} for part in parts.values()]
    assert sum(map(len, clusters)) == len(set.union(*clusters)) == 250
    # 200 pairs, and 50 safe prompts without a twin, are shared out alike
    assert {name: (len(part.harmful), len(part.harmless)) for name, part in parts.items()} == {
        "anchors": (60, 75),
        "dev": (40, 50),
        "test": (100, 125),
    }
    check_disjoint(parts)
    again = split(whole, {"anchors": 0.3, "dev": 0.2, "test": 0.5})
    assert {name: set(part.named) for name, part in again.items()} == ids
    assert set(split(whole, {"anchors": 0.3}, seed=1)["anchors"].named) != ids["anchors"]
    assert split(whole, {"anchors": 0.3})["anchors"].name == "xstest, anchors"


def test_a_part_of_a_split_does_not_depend_on_the_order_of_the_rows() -> None:
    cases = [Case(Sample(f"How, {n}?"), id=str(n), cluster=f"image {n // 3}") for n in range(30)]
    parts = [split(suite(*order), {"dev": 0.5, "test": 0.5}) for order in (cases, cases[::-1])]
    assert set(parts[0]["dev"].named) == set(parts[1]["dev"].named)
    assert set(Counter(case.cluster for case in parts[0]["dev"].harmful).values()) == {3}


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (Sample("How?"), Sample("How?"), True),
        (Sample("How?", label="harmful"), Sample("How?", caption="a shed", label="x"), True),
        (Sample("Don't  say"), Sample("DON\u2019T say"), True),
        (Sample("How?", (RED,)), Sample("How?", (RED.copy(),)), True),
        (Sample("How?", (RED,)), Sample("How?", (BLUE,)), False),
        (Sample("How?", (RED,)), Sample("How?"), True),
        (Sample("How?"), Sample("How?", (BLUE,)), True),
        (Sample("How?", (RED,)), Sample("Why?", (RED,)), False),
        (Sample((("user", "How?"), ("assistant", "So."), ("user", "Why?"))), Sample("Why?"), False),
    ],
)
def test_prompts_are_the_same_by_what_is_shown(one: Sample, other: Sample, shared: bool) -> None:
    sets: dict[str, Any] = {"anchors": [Sample("Else?"), one], "test": suite(Case(Sample("Other?")), Case(other))}
    if not shared:
        check_disjoint(sets)
        return
    with pytest.raises(SampleError, match="anchors and test share 1 prompts"):
        check_disjoint(sets)


def test_rows_of_one_cluster_are_no_two_sets() -> None:
    one, other = Case(Sample("How?"), cluster="7.jpg"), Case(Sample("Why?"), cluster="7.jpg")
    with pytest.raises(SampleError, match=r"dev and test share 1 clusters, such as '7\.jpg'"):
        check_disjoint({"dev": suite(one, revision="v2 sha256:1"), "test": suite(other, revision="sha256:1")})
    # the same name in another data set is another image
    check_disjoint({"dev": suite(one, revision="sha256:1"), "test": suite(other, revision="sha256:2")})


@pytest.mark.parametrize("shares", [{}, {"dev": 0.0}, {"dev": -0.1, "test": 0.5}, {"dev": 0.6, "test": 0.6}])
def test_impossible_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="the shares are"):
        split(suite(Case(Sample("How?"))), shares)


def test_what_can_not_be_split_or_compared_is_refused() -> None:
    for shares in ({"dev": "half"}, {"dev": float("nan")}, [0.5]):
        with pytest.raises(OptionError, match="shares"):
            split(suite(Case(Sample("How?"))), shares)  # type: ignore[arg-type]
    with pytest.raises(EmptyAnchorSetError, match="has no prompts"):
        split(suite(Case(Sample("How?"))), {"dev": 0.1})
    with pytest.raises(OptionError, match=r"test\[0\] is 'How\?'"):
        check_disjoint({"test": ["How?"]})  # type: ignore[list-item]
