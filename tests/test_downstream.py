"""The example project: its pins, and what its README says to type. Its own tests run on the wheel (`.ci/run`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from doc_code import python_blocks
from loopback_hub import running_hub
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load, save

import steerkit
from demo_training import world
from steerkit.demo import model_path

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


# -- what README says to type -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as README leaves it, with the pack made and a photo in place."""
    folder = tmp_path_factory.mktemp("example") / "downstream"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("packs", "__pycache__"))
    typed(folder, folder / "make_pack.py")
    world.prompts("harmful", "test", 1)[0].image.save(folder / "photo.png")
    return folder


def typed(folder: Path, script: Path, **environment: str) -> str:
    """What a script prints, run in the project's folder."""
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def snippet() -> str:
    """README's Python code."""
    ((_, code),) = python_blocks(PROJECT / "README.md")
    return code


def answered(code: str, project: Path, **environment: str) -> str:
    """What it prints."""
    script = project / "snippet.py"
    script.write_text(code, encoding="utf-8")
    return typed(project, script, **environment)


def expected(project: Path, *, steered: bool) -> str:
    """The answer of the demo model itself, not through the application."""
    vlm = steerkit.load(model_path("llava"))
    sample = steerkit.Sample("What is in this photo?", (Image.open(project / "photo.png").convert("RGB"),))
    options = {"max_new_tokens": 24, "do_sample": False}
    if not steered:
        return vlm.generate([sample], **options)[0].strip()
    with steerkit.steer(vlm, steerkit.SteeringVector.load(project / "packs" / "cmrm.safetensors")):
        return vlm.generate([sample], **options)[0].strip()


def test_the_readme_runs_as_written(project: Path) -> None:
    found = answered(snippet(), project)
    assert found == expected(project, steered=True)
    assert found != expected(project, steered=False), "the photo is one whose answer shows the steering"


def test_the_readme_pins_a_model_of_the_hub_by_its_commit(project: Path, tmp_path: Path) -> None:
    """The code as written but for the model, which is a repository's, and `revision`, as the text below it says.

    The hub is one of the tests' own. Its branch has moved on to other weights, so that the commit must be what counts.
    """
    folder = 'str(model_path("llava"))'
    assert f"PhotoDesk({folder}, " in snippet()
    assert "`PhotoDesk(model, pack, revision=COMMIT)`" in (PROJECT / "README.md").read_text(encoding="utf-8")
    files = {path.name: path.read_bytes() for path in Path(model_path("llava")).iterdir()}
    other = {name: torch.zeros_like(tensor) for name, tensor in load(files["model.safetensors"]).items()}
    with running_hub() as hub:
        commit = hub.publish("people/llava", files)
        later = hub.publish("people/llava", {**files, "model.safetensors": save(other, {"format": "pt"})})
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"), "")
        code = snippet().replace(folder, '"people/llava"').replace(".strip())\n", f'.strip(), revision="{commit}")\n')
        assert code.count(commit) == 1
        assert answered(code, project, **environment) == expected(project, steered=True)
        asked = [request.path for request in hub.requests if "/people/llava/" in request.path]
    assert any(commit in path for path in asked)
    assert [path for path in asked if commit not in path] == [], f"nothing of the branch, which is at {later}"
