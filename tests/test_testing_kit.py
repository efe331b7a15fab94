"""The kit for plug-ins: our own methods and adapters pass every check, and every check finds what it is there for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import pytest
import tiny
from broken_families import BROKEN as BROKEN_FAMILIES, Sound as SoundFamily
from broken_methods import BROKEN as BROKEN_METHODS, Sound

import steerkit as sk
from steerkit.errors import ContractError, OptionError, UnknownNameError
from steerkit.testing import (
    ContractCheck,
    adapter_checks,
    adapters as adapter_module,
    check_adapter,
    check_method,
    example_anchors,
    method_checks,
    methods as method_module,
    tiny as kit_tiny,
)
from steerkit.testing.contract import run_all

# Options under which a method is checked; one without an entry is checked as it is without options.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "astra": [{"grid": 2, "masks": 4, "answer_tokens": 2}, {"source": "pairs"}],
    "cmrm": [{}, {"aggregate": "pca"}, {"level": "sample", "counterpart": "blank"}],
    "iti": [{"heads": 16}],  # all: which anchors are held out, and so which heads are best, depends on their order
    "refusal_direction": [{}, {"mode": "ablate"}],
    "vlm_guard": [{}, {"pairing": "neighbours"}],
    "vti": [{"masks": 2, "grid": 4, "mask_ratio": 0.5}],
}

# Anchors of the methods that take another number of them than the kit's.
ANCHORS = {"actadd": example_anchors(("positive", "negative"))[:2]}


def _own_methods() -> list[Any]:
    return [
        pytest.param(check, id=f"{name}-{index}-{check}")
        for name in sk.methods.method_names()
        for index, options in enumerate(OPTIONS.get(name, [{}]))
        for check in method_checks(sk.get_method(name), options=options, anchors=ANCHORS.get(name))
    ]


def _own_adapters() -> list[Any]:
    kinds = sorted({name.partition("-")[0] for name in (*kit_tiny.FAMILIES, *kit_tiny.TEXT_FAMILIES)})
    return [
        pytest.param(check, id=f"{kind}-{check}")
        for kind in kinds
        for check in adapter_checks(replace(sk.models.family_for(kind), types=(kind,)))
    ]


@pytest.mark.parametrize("check", _own_methods())
def test_our_methods_pass(check: ContractCheck) -> None:
    check()


@pytest.mark.parametrize("check", _own_adapters())
def test_our_adapters_pass(check: ContractCheck) -> None:
    check()


def _id(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else ""


def _named(checks: list[ContractCheck], name: str) -> ContractCheck:
    (found,) = [check for check in checks if check.name == name]
    return found


@pytest.mark.parametrize(("kind", "name", "words"), BROKEN_METHODS, ids=_id)
def test_a_broken_method_is_found_and_explained(kind: type[sk.SteeringMethod], name: str, words: str) -> None:
    check = _named(method_checks(kind), name)
    with pytest.raises(ContractError) as caught:
        check()
    assert caught.value.problem.startswith(f"{name}: ")
    assert words in caught.value.problem
    assert caught.value.expected == check.meaning
    _named(method_checks(Sound), name)()


@pytest.mark.parametrize(("kind", "name", "words"), BROKEN_FAMILIES, ids=_id)
def test_a_broken_family_is_found_and_explained(
    kind: type[SoundFamily], name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerkit.vlm._prompted.PromptFormat", kind)
    monkeypatch.setattr("steerkit.vlm._prompted.architecture_of", kind.architecture)
    monkeypatch.setattr("steerkit.testing.adapter_prompts.load_processor", kind.load)
    check = _named(adapter_checks(kind.record(), lambda: tiny.build(kind.family)), name)
    with pytest.raises(ContractError) as caught:
        check()
    assert caught.value.problem.startswith(f"{name}: ")
    assert words in caught.value.problem
    assert caught.value.expected == check.meaning


def test_what_is_no_class_of_the_right_kind_is_told_so_once() -> None:
    for kind, what in ((dict, "<class 'dict'>"), (sk.CMRM(), "CMRM.*")):
        with pytest.raises(ContractError, match=f"{what} is not a subclass of SteeringMethod"):
            check_method(kind)  # type: ignore[arg-type]
        with pytest.raises(ContractError, match="is not a Family"):
            check_adapter(kind)  # type: ignore[arg-type]


def test_every_check_has_a_broken_example() -> None:
    assert {name for _, name, _ in BROKEN_METHODS} == {check.__name__ for check in method_module.CHECKS}
    assert {name for _, name, _ in BROKEN_FAMILIES} == {check.__name__ for check in adapter_module.CHECKS}


def test_every_check_says_what_it_demands() -> None:
    for check in [*method_checks(Sound), *adapter_checks(SoundFamily.record(), lambda: tiny.build("llava"))]:
        assert str(check) == check.name
        assert len(check.meaning) > 40
        assert not check.meaning.endswith(".")


def test_check_method_runs_every_check() -> None:
    found = check_method(Sound)
    assert [check.name for check in found] == [check.__name__ for check in method_module.CHECKS]
    assert {check.status for check in found} == {"pass"}


def test_check_adapter_runs_every_check_on_a_model_of_the_callers() -> None:
    found = check_adapter(SoundFamily.record(), lambda: tiny.build("llava"))
    assert [check.name for check in found] == [check.__name__ for check in adapter_module.CHECKS]
    assert {check.status for check in found} == {"pass"}


def test_one_error_names_all_that_is_wrong() -> None:
    class Twice(Sound):
        """Wrong in two ways."""

        strength: float = 0.0

    checks = {check.name: check for check in method_checks(Twice)}
    with pytest.raises(ContractError) as caught:
        run_all([checks[name] for name in ("declares_itself", "options_survive_json", "steering_changes_answers")])
    assert "declares_itself: the docstring says nothing about 'strength'" in caught.value.problem
    assert "steering_changes_answers: no logit" in caught.value.problem
    assert "Attributes:" in str(caught.value.fix)


def test_a_check_that_does_not_apply_says_why() -> None:
    check = _named(method_checks(sk.CMRM, options={"level": "sample"}), "parts_merge")
    with pytest.raises(SkipTest, match="measures no anchors"):
        check()
    assert (check.outcome().status, check.outcome().message) == ("skip", "the method measures no anchors")


def test_anchors_and_model_may_be_the_callers(vlm_of: Any) -> None:
    anchors = example_anchors(("target", "background"))
    checks = method_checks(Sound, anchors=anchors, model=vlm_of("qwen2_vl"))
    _named(checks, "batch_size_does_not_matter")()
    _named(checks, "engines_steer_alike")()
    with pytest.raises(ContractError, match="LabelError"):
        _named(method_checks(Sound, anchors=example_anchors()), "parts_merge")()


def test_a_family_without_a_tiny_model_needs_one() -> None:
    with pytest.raises(OptionError, match="no tiny model of no_such_type"):
        adapter_checks(sk.models.Family(types=("no_such_type",)))


def test_an_unknown_tiny_model_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'lava'"):
        tiny.build("lava")


def test_the_kit_needs_neither_pytest_nor_torchvision() -> None:
    code = "import sys, steerkit.testing; print({'pytest', '_pytest', 'torchvision'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
