"""What an import costs, and what the package offers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import steerkit

ROOMS = (
    "steerkit",
    *(
        f"steerkit.{room}"
        for room in ("methods", "interventions", "vectors", "models", "evaluation", "analysis", "scale")
    ),
)
HEAVY = ("torch", "transformers", "nnsight", "numpy", "PIL", "pydantic", "safetensors", "huggingface_hub")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = modules_after("import steerkit\ndir(steerkit)")
    assert "steerkit" in loaded
    assert not loaded & {*HEAVY}


def test_names_and_errors_are_known_without_loading_torch() -> None:
    code = (
        "import steerkit as sk\nsk.methods.method_names(), sk.models.adapter_names()\n"
        "sk.SteerKitError, sk.Sample('Hi').digest(), sk.interventions.Add"
    )
    loaded = modules_after(code)
    assert not loaded & {"torch", "transformers", "nnsight"}


def test_packs_can_be_read_without_torch() -> None:
    code = (
        "import steerkit.vectors.formats, steerkit.vectors._metadata, steerkit.interventions._schema\n"
        "import steerkit.models._samples, steerkit.engines.receipt"
    )
    loaded = modules_after(code)
    assert {"numpy", "pydantic"} <= loaded
    assert not loaded & {"torch", "transformers", "nnsight", "safetensors"}


@pytest.mark.parametrize("name", steerkit.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(steerkit, name)
    assert value is getattr(steerkit, name)
    assert value.__name__ in (name, f"steerkit.{name}")
    assert value.__doc__
    assert name in dir(steerkit)


def test_the_public_names_are_few() -> None:
    assert len(set(steerkit.__all__)) == len(steerkit.__all__) <= 28


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_offers_what_its_stub_says(room: str) -> None:
    module = importlib.import_module(room)
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    listed = {
        str(name.asname) for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert len(listed) > 1
    assert listed <= set(dir(module))
    assert all(getattr(module, name) is not None for name in listed)
    assert set(module.__all__) <= listed


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'steeer'"):
        steerkit.steeer  # noqa: B018


def test_a_public_name_is_not_hidden_by_a_module_of_its_own_name() -> None:
    """`import steerkit.steer` would put a module where `sk.steer` has to be the class."""
    modules = {path.stem for path in Path(steerkit.__file__).parent.iterdir()}
    assert modules & set(steerkit.__all__) == {room.partition(".")[2] for room in ROOMS} - {""}
