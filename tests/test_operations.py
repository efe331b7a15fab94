"""The table of operations: complete, and the only place that tells one from another."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Literal, get_args

import pytest
from pydantic import ValidationError

from steerkit.interventions import OPERATIONS, Ablate, Intervention, Measure, Operation, operations
from steerkit.interventions import _arithmetic as ops


def test_every_operation_is_in_the_table_under_the_name_of_its_file() -> None:
    found = {}
    for module in pkgutil.iter_modules(operations.__path__):
        for each in vars(importlib.import_module(f"{operations.__name__}.{module.name}")).values():
            final = inspect.isclass(each) and issubclass(each, Operation) and not inspect.isabstract(each)
            if final and each.__module__.endswith(f".{module.name}"):
                found[module.name] = each
    assert found == OPERATIONS
    assert {kind: each.model_fields["kind"].default for kind, each in OPERATIONS.items()} == {
        kind: kind for kind in OPERATIONS
    }


def test_the_table_is_what_a_pack_may_hold() -> None:
    with pytest.raises(ValidationError) as failure:
        Intervention.model_validate({"operation": {"kind": "surprise"}})
    assert all(f"'{kind}'" in str(failure.value) for kind in OPERATIONS)


class Silent(Operation):
    """An operation that answers for nothing."""


class Unlisted(Ablate):  # type: ignore[misc]  # what is final for readers and type checkers can be subclassed here
    """An operation that answers every question, and is in no table."""

    kind: Literal["unlisted"] = "unlisted"  # type: ignore[assignment]


def test_an_operation_outside_the_table_is_an_error() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Silent()  # type: ignore[abstract]
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        Intervention(operation=Unlisted())


def test_every_measure_has_its_arithmetic() -> None:
    assert set(ops.MEASURES) == set(get_args(Measure.model_fields["kind"].annotation))
