"""The example project pins what continuous integration tests with; its own tests run there, on the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import steerkit

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "examples" / "downstream"
NOT_FROZEN = {"setuptools"}


def pins(path: Path) -> dict[str, str]:
    """`{name: version}` of a file of requirements, each of which must be exact."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[name.lower().replace("_", "-")] = version
    return found


def test_the_lock_agrees_with_the_constraints() -> None:
    lock, constraints = pins(PROJECT / "requirements.lock"), pins(ROOT / "constraints.txt")
    assert lock.pop("steerkit-vlm") == steerkit.__version__
    assert {name: version for name, version in lock.items() if name not in NOT_FROZEN} == {
        name: constraints[name] for name in lock if name not in NOT_FROZEN
    }
    assert {"torch", "transformers", "pytest", "nnsight", "safetensors"} <= lock.keys()


def test_the_lock_satisfies_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = pins(PROJECT / "requirements.lock")
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(lock[requirement.name]), line
