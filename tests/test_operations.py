"""The table of operations: complete, and the only place that tells one from another."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

import pytest
from pydantic import ValidationError

import steerkit
from steerkit.interventions import OPERATIONS, Ablate, Intervention, Measure, Operation, _arithmetic as ops, operations


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
    with pytest.raises(steerkit.errors.OptionError, match="does not match any of the expected tags"):
        Intervention(operation=Unlisted())


def test_every_measure_has_its_arithmetic() -> None:
    assert set(ops.MEASURES) == set(get_args(Measure.model_fields["kind"].annotation))


REFLECT = '''
"""Mirror the state at the plane across a direction."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

from steerkit.interventions._arithmetic import unit
from steerkit.interventions._directions import StoredDirection
from steerkit.interventions.operations._base import Rescaling, Size


@final
class Reflect(Rescaling):
    """`h - 2 s (h . u) u`."""

    kind: Literal["reflect"] = "reflect"
    direction: StoredDirection = StoredDirection()

    spans: ClassVar[bool] = False

    def prepare(self, direction: Any) -> Any:
        return unit(direction.double()).float()

    def bind(self, direction: Any, contrast: Any) -> Any:
        return reflect, (direction,)

    def size(self, strengths: Any, norm: Any, length: Any) -> Size:
        return Size(2.0 * max(map(abs, strengths)))

    def removal(self, strength: float) -> float:
        return 2.0 * strength

    def undoes(self, along: float) -> bool:
        return True

    def alignment(self, direction: Any, target: Any) -> float:
        return -abs(float(unit(direction.double()) @ target.double()))

    def describe(self) -> str:
        return "mirrors the state"


def reflect(h: Any, line: Any, strength: Any) -> Any:
    wide = h.float()
    return (wide - 2.0 * strength * (wide @ line)[:, None] * line).to(h.dtype)
'''

USE = """
import torch
import steerkit as sk
from steerkit.analysis import conflicts
from steerkit.testing import tiny
from steerkit.vectors import MethodRecord, PackMetadata

vlm = tiny.vlm("qwen3")
inputs = vlm.inputs([sk.Sample("Hi there?"), sk.Sample("What is this, and why?")])
d = torch.randn(vlm.record.hidden_size, generator=torch.Generator().manual_seed(0))
u = d.double() / d.double().norm()
change = sk.Intervention(operation={"kind": "reflect"}, layers=(1,))
record = PackMetadata(model=vlm.record, method=MethodRecord(name="test"), interventions=(change,))
vector = sk.SteeringVector.from_bytes(sk.SteeringVector({sk.Key(1): d}, record).to_bytes())
added = sk.SteeringVector({sk.Key(1): d}, record.model_copy(update={"interventions": (sk.Intervention(layers=(1,)),)}))
seen = []


def note(module, args, output):
    seen.append((output[0] if isinstance(output, tuple) else output)[:, -1].double())


block = vlm.model.get_submodule(vlm.architecture.site(1, "resid_post"))
with torch.no_grad():
    for engine in (None, "hooks"):
        handle = block.register_forward_hook(note)
        if engine is None:
            vlm.model(**inputs)
        else:
            with sk.steer(vlm, vector, policy="off") as receipt:
                vlm.model(**inputs)
        handle.remove()
plain, found = seen
assert (found - (plain - 2 * (plain @ u)[:, None] * u)).abs().max() < 1e-4
assert (found - plain).abs().max() > 1e-2
assert receipt.checks[-1].details["by_layer"] == {"1": 2.0}, receipt.checks
(conflict,) = conflicts([added, vector])
assert conflict.kind == "removed"
print("reflected")
"""


def test_a_new_operation_is_a_file_and_its_line_in_the_table(tmp_path: Path) -> None:
    """Tried on a copy of the package: it runs, its dose is judged and its conflicts are found."""
    package = Path(steerkit.__file__).parent
    copied = tmp_path / "steerkit"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__"))
    room = copied / "interventions" / "operations"
    (room / "reflect.py").write_text(REFLECT, encoding="utf-8")
    table = (room / "__init__.py").read_text(encoding="utf-8")
    assert "AddProjection, Clamp, Scale)" in table
    line = "from steerkit.interventions.operations.reflect import Reflect\n_TABLE"
    table = table.replace("AddProjection, Clamp, Scale)", "AddProjection, Clamp, Scale, Reflect)").replace(
        "_TABLE", line, 1
    )
    (room / "__init__.py").write_text(table, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", "-c", USE]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith("reflected"), run.stderr[-2000:]
