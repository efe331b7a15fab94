"""Suites with what belongs to them in a study: anchors, dev and test, which share no prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from steerkit.errors import EmptyAnchorSetError, OptionError
from steerkit.evaluation._disjoint import check_disjoint, split
from steerkit.evaluation._records import Kind
from steerkit.evaluation._suites import Suite
from steerkit.models import Sample, as_samples

SPLIT = {"anchors": 0.2, "dev": 0.2}
"""What is split off a suite that comes without anchors, or without dev prompts."""


@dataclass(frozen=True)
class Subject:
    """A suite with what belongs to it: `anchors` to fit on, `dev` to choose on, `test` to report.

    Attributes:
        name: What to call it.
        set: What its anchors are called: its own name, or one for the anchors that are everybody's.
        anchors: The anchors.
        dev: The prompts to choose on.
        test: The prompts to report.
    """

    name: str
    set: str
    anchors: tuple[Sample, ...]
    dev: Suite
    test: Suite


def subjects_of(
    suites: Sequence[Suite], anchors: Sequence[Sequence[Sample]], dev: Sequence[Suite], seed: int
) -> list[Subject]:
    """Each suite with its anchors and dev prompts, given or split off.

    Raises:
        OptionError: There are not as many as suites, or two suites have one name.
        EmptyAnchorSetError: No suite, or nothing to choose on, has harmful prompts.
    """
    if not suites or len({suite.name for suite in suites}) < len(suites):
        raise OptionError(
            f"suites are {[suite.name for suite in suites]}", expected="at least one, with a name for each"
        )
    for what, given in (("anchors", anchors), ("dev", dev)):
        if len(given) not in (0, 1, len(suites)):
            raise OptionError(
                f"{len(given)} {what} for {len(suites)} suites", expected="none, one for all, or one each"
            )
    found: list[Subject] = []
    for number, suite in enumerate(suites):
        parts: dict[str, Any] = {"test": suite}
        lacking = [name for name, given in (("anchors", anchors or not suite.harmful), ("dev", dev)) if not given]
        if shares := {name: SPLIT[name] for name in lacking}:
            parts = split(suite, {**shares, "test": 1 - sum(shares.values())}, seed)
        trial = dev[number if len(dev) > 1 else 0] if dev else parts["dev"]
        name, mine = suite.name, ()
        if anchors:
            mine = as_samples(anchors[number if len(anchors) > 1 else 0])
            name = "common anchors" if len(anchors) == 1 else name
        elif suite.harmful:
            kinds: tuple[Kind, ...] = ("harmful", "harmless")
            mine = [case.sample for kind in kinds for case in parts["anchors"].cases(kind)]
        found.append(Subject(suite.name, name, tuple(mine), trial, parts["test"]))
    for what, some in (("suites are", suites), ("prompts to choose on are", [each.dev for each in found])):
        if not any(each.harmful for each in some):
            names = ", ".join(repr(each.name) for each in some)
            raise EmptyAnchorSetError(f"the {what} {names}: no harmful prompts", expected="at least one")
    first = next(each for each in found if each.anchors)
    found = [each if each.anchors else replace(each, set=first.set, anchors=first.anchors) for each in found]
    held = {id(part): part for each in found for part in (each.dev, each.test)}.values()
    names = [part.name for part in held]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise OptionError(
            f"two sets of prompts are called {repeated[0]!r}",
            expected="a name for each",
            fix='rename a file, or begin it with {"suite": {"name": ...}}',
        )
    return found


def check_roles(subjects: Sequence[Subject]) -> None:
    """Refuse anchors, dev and test of which two share a prompt, across all suites.

    Raises:
        SampleError: They do.
    """
    roles: list[tuple[str, str, Any]] = []
    for each in subjects:
        roles += [("anchors", f"the anchors of {each.set}", each.anchors), ("test", f"test of {each.name}", each.test)]
        roles += [("dev", f"dev of {each.name}", each.dev)]
    for (role, one, left), (other_role, other, right) in combinations(roles, 2):
        if role != other_role:
            check_disjoint({one: left, other: right})
