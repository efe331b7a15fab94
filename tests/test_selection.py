"""What interventions reach, as sets, against prompts written out token by token."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from steerkit.errors import OptionError
from steerkit.interventions import (
    KINDS,
    Intervention,
    Kind,
    Selector,
    Token,
    TokenRole,
    representatives,
    select,
)

P, S, T, I = TokenRole.PAD, TokenRole.SYSTEM, TokenRole.TEXT, TokenRole.IMAGE  # noqa: E741

# prompts of every make: padded on either side, with no, one and two images, ending with an image or a system turn
PROMPTS = torch.tensor(
    [
        [P, P, S, S, T, I, I, T, T],
        [S, T, I, T, I, I, T, P, P],
        [S, S, T, T, T, T, T, T, T],
        [P, P, P, P, P, S, I, S, S],
        [P, P, P, S, S, T, T, I, I],
        [P, P, P, P, P, P, P, S, S],
        [P, P, P, P, P, P, P, P, T],
    ]
)
ANSWER = 6


def kinds_of(row: int, position: int) -> Kind | None:
    """The kind of a token, read off the table above; None of padding."""
    prompt = PROMPTS[row].tolist()
    images = [at for at, role in enumerate(prompt) if role == I]
    if position >= len(prompt):
        return Kind("answer", False, False, bool(images))
    if prompt[position] == P:
        return None
    last = max(at for at, role in enumerate(prompt) if role != P)
    behind = bool(images) and position > images[-1]
    role = {S: "system", T: "text", I: "image"}[prompt[position]]
    return Kind(role, behind, position == last, bool(images))  # type: ignore[arg-type]


def meant(intervention: Intervention) -> set[tuple[int, int]]:
    """`(row, position)` of every token of these prompts and their answers that is changed."""
    pictured = (PROMPTS == I).any(1)
    wanted = {"all": pictured | True, "with_image": pictured, "without_image": ~pictured}[intervention.prompts]
    mask = select(intervention.selector, PROMPTS, 0, PROMPTS.shape[1] + ANSWER) & wanted[:, None]
    return {(row, position) for row, position in mask.nonzero().tolist()}


def some() -> list[Intervention]:
    """Interventions of every token, phase and kind of prompt, and some that count."""
    made = []
    for tokens, phase, prompts in itertools.product(
        ("last", "all", "image", "text", "system", "after_image", "generated"),
        ("prompt", "generation", "both"),
        ("all", "with_image", "without_image"),
    ):
        for more in ({}, {"positions": [0]}, {"positions": [(2, None)]}, {"positions": [-1, -2]}, {"steps": [0, 1, 0]}):
            try:
                made.append(Intervention(tokens=tokens, phase=phase, prompts=prompts, **more))  # type: ignore[arg-type]
            except OptionError:
                continue
    return made


SOME = some()


@pytest.mark.parametrize("intervention", SOME, ids=lambda each: str(each.selector)[9:-1])
def test_a_token_that_is_changed_is_of_a_kind_that_is_reached(intervention: Intervention) -> None:
    changed = meant(intervention)
    found = {kinds_of(*token) for token in changed}
    assert None not in found
    assert found <= intervention.reach.kinds
    if not intervention.selector.counts:
        assert found == intervention.reach.kinds & {
            kinds_of(row, at) for row in range(len(PROMPTS)) for at in range(PROMPTS.shape[1] + ANSWER)
        }


def test_two_meet_wherever_a_token_of_some_prompt_is_changed_by_both() -> None:
    """And what never meets in any of these prompts is told apart wherever no counting is involved."""
    changed = [meant(each) for each in SOME]
    for (one, mine), (other, theirs) in itertools.combinations(zip(SOME, changed, strict=True), 2):
        assert one.reach.shares_tokens(other.reach) == other.reach.shares_tokens(one.reach)
        if mine & theirs:
            assert one.reach.shares_tokens(other.reach), (one.selector, other.selector)
        elif not (one.selector.counts or other.selector.counts):
            assert not one.reach.shares_tokens(other.reach), (one.selector, other.selector)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ({"tokens": "image"}, {"tokens": "after_image"}, False),
        ({"tokens": "image"}, {"tokens": "all", "prompts": "without_image"}, False),
        ({"tokens": "image"}, {"tokens": "last"}, True),  # a prompt may end with its image
        ({"tokens": "system"}, {"tokens": "text"}, False),
        ({"tokens": "all", "positions": [0, 1]}, {"tokens": "all", "positions": [(2, 5)]}, False),
        ({"tokens": "all", "positions": [0, 1]}, {"tokens": "all", "positions": [(1, 5)]}, True),
        ({"tokens": "all", "positions": [0]}, {"tokens": "all", "positions": [-1]}, True),  # a prompt of one token
        ({"tokens": "all", "positions": [-2]}, {"tokens": "all", "positions": [-1]}, False),
        ({"tokens": "all", "positions": [(2, -1)]}, {"tokens": "all", "positions": [(2, -1)]}, True),
        ({"tokens": "all", "positions": [0]}, {"tokens": "image"}, True),
        ({"tokens": "generated", "positions": [(0, 4)]}, {"tokens": "generated", "positions": [(4, None)]}, False),
        ({"tokens": "generated", "positions": [(0, 4)]}, {"tokens": "generated", "steps": [0, 0, 0, 1]}, True),
        ({"tokens": "generated", "positions": [(0, 3)]}, {"tokens": "generated", "steps": [0, 0, 0, 1]}, False),
        ({"tokens": "generated", "positions": [(0, 4)]}, {"tokens": "last", "positions": [0]}, False),
        ({"tokens": "last", "positions": [3]}, {"tokens": "generated", "positions": [2]}, True),
        ({"tokens": "last", "positions": [3]}, {"tokens": "generated", "positions": [3]}, False),
        ({"rows": [1, 0]}, {"rows": [0, 2]}, False),
        ({"rows": [1, 0]}, {"rows": [1, 2]}, True),
        ({"rows": [1, 0]}, {"rows": [1, 0, 0]}, False),  # no call has two prompts and three
        ({"rows": [1, 0]}, {}, True),
        ({"layers": (1, 2)}, {"layers": (3,)}, False),
        ({"layers": (1, 2)}, {"layers": "all"}, True),
        ({"site": "mlp_out"}, {}, False),
        ({"tower": "vision", "tokens": "all"}, {"tokens": "all"}, False),
        ({"tower": "vision", "tokens": "all"}, {"tower": "vision", "tokens": "image"}, True),
    ],
)
def test_meeting_at_a_place(one: dict[str, Any], other: dict[str, Any], meet: bool) -> None:
    first, second = Intervention(**one).reach, Intervention(**other).reach
    assert first.meets(second) == second.meets(first) == meet


def test_image_tokens_are_of_prompts_with_an_image() -> None:
    assert Intervention(tokens="image").reach.pictured == {True}
    assert Intervention(tokens="after_image").reach.pictured == {True}
    assert Intervention(tokens="all").reach.pictured == {False, True}
    assert Intervention(tower="vision", tokens="all").reach.pictured == {True}


def test_every_kind_occurs() -> None:
    seen = {kinds_of(row, at) for row in range(len(PROMPTS)) for at in range(PROMPTS.shape[1] + ANSWER)}
    assert seen - {None} == {kind for kind in KINDS if kind.role not in ("video", "audio")}  # not in the table above


def test_representatives_tell_apart_what_differs() -> None:
    """Of what comes first and what comes later in an answer, each has a token of its own."""
    early = Intervention(tokens="generated", positions=[(0, 8)]).reach
    late = Intervention(tokens="generated", steps=[0] * 8 + [1]).reach
    both = [
        frozenset(each for each in (early, late) if each.includes(token)) for token in representatives([early, late])
    ]
    assert set(both) == {frozenset({early}), frozenset({late})}
    assert not early.includes(Token(Kind("text", False, True, False)))
    assert Selector("last").answers_at(5) is True
