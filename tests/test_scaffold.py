"""`steerkit new`: the packages that it writes pass their own tests, installed, and their names are checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from installing import site_folder
from PIL import Image
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli.app import app
from steerkit.cli.new import Kind, check_name, class_name, scaffold
from steerkit.errors import OptionError
from steerkit.testing import tiny
from steerkit.vectors.formats import read_pack

NAMES = {"method": "mean_centring", "adapter": "acme_vl"}


@pytest.mark.parametrize("kind", ["method", "adapter"])
def test_a_new_package_passes_its_own_tests(kind: Kind, tmp_path: Path) -> None:
    project = scaffold(kind, NAMES[kind], tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    with site_folder(site) as installed:
        installed.install_project(project)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_a_new_method_works_from_the_command_line(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["new", "method", "mean_centring", "--path", str(tmp_path)])
    assert made.exit_code == 0
    project = tmp_path / "steerkit-mean-centring"
    assert f"Wrote {project}" in made.stdout
    rows = []
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        label = ("target", "background")[index % 2]
        rows.append(json.dumps({"text": f"How is thing {index} made?", "image": f"{index}.png", "label": label}))
    (tmp_path / "anchors.jsonl").write_text("\n".join(rows))
    model, pack = tiny.save("llava", tmp_path / "llava"), tmp_path / "pack.safetensors"
    (tmp_path / "site").mkdir()
    with site_folder(tmp_path / "site") as installed:
        installed.install_project(project)
        assert "steerkit-mean-centring 1.0" in CliRunner().invoke(app, ["methods"]).stdout
        words = ["extract", str(model), str(tmp_path / "anchors.jsonl"), "--method", "mean_centring", "-o", str(pack)]
        assert CliRunner().invoke(app, words).exit_code == 0
        kind = sk.get_method("mean_centring")
        assert kind.__module__ == "steerkit_mean_centring"
        with pytest.raises(OptionError, match="the method 'mean_centring' exists already"):
            check_name("method", "mean_centring")
        check_name("adapter", "mean")
    assert read_pack(pack).document["method"]["name"] == "mean_centring"
    assert "mean_centring" not in sk.methods.method_names()


@pytest.mark.parametrize("name", ["Foo", "1st", "a-b", "a b", "_a", "a__b", "a_", "class", "", "é", "../up"])
def test_impossible_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the name is") as caught:
        scaffold("method", name, tmp_path)
    assert "lower-case" in str(caught.value.expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("method", "add", "'Add', which is what the package imports"),
        ("method", "intervention", "'Intervention', which is what the package imports"),
        ("method", "class_var", "'ClassVar', which is what the package imports"),
        ("method", "sequence", "'Sequence', which is what the package imports"),
        ("method", "none", "'None', which is a word of Python"),
        ("method", "true", "'True', which is a word of Python"),
        ("method", "false", "'False', which is a word of Python"),
    ],
)
def test_names_whose_class_could_not_be_are_refused(kind: Kind, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=words):
        scaffold(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_only_looks_like_an_import_is_taken() -> None:
    check_name("adapter", "none")
    check_name("method", "additive")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("method", "cmrm", "the method 'cmrm' exists already"),
        ("adapter", "llava", "the adapter 'llava' exists already"),
        ("method", "adapters", "the package 'steerkit_adapters' exists already"),
        ("method", "vlm", "the distribution 'steerkit-vlm' exists already"),
    ],
)
def test_taken_names_are_refused(kind: Kind, name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=words):
        scaffold(kind, name, tmp_path)


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "steerkit-mean-centring").mkdir()
    (tmp_path / "steerkit-mean-centring" / "mine.txt").write_text("kept")
    result = CliRunner().invoke(app, ["new", "method", "mean_centring", "--path", str(tmp_path)])
    assert result.exit_code == 1
    assert "exists" in result.stderr
    assert [path.name for path in (tmp_path / "steerkit-mean-centring").iterdir()] == ["mine.txt"]


def test_classes_are_named_for_what_they_are() -> None:
    assert class_name("method", "mean_centring") == "MeanCentring"
    assert class_name("adapter", "acme_vl") == "FAMILY"
