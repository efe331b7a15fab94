"""`steerkit pack convert` and `steerkit pack diff`: what they write, print and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import foreign
import pytest
import tiny
import torch
from test_cli import run

import steerkit as sk
from steerkit_vectors_hub import interop
from steerkit_vectors_hub.bundled import bundled_path

MODEL = ("--architecture", "Any", "--model-type", "any", "--layer-count", 6)


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return foreign.control_vector(tmp_path / "v.gguf", foreign.directions(0, 1, 3, width=8))


@pytest.fixture
def pack(control: Path, tmp_path: Path) -> Path:
    path = tmp_path / "v.safetensors"
    assert run("pack", "convert", control, path, *MODEL).code == 0
    return path


@pytest.mark.parametrize("command", ["convert", "diff"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom steerkit.cli.app import app\n"
        f"app(['pack', '{command}', '--help'], standalone_mode=False)\nprint(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert f" pack {command} [OPTIONS]" in shown.stdout
    heavy = {"torch", "transformers", "nnsight", "numpy", "pydantic", "gguf", "safetensors", "steerkit_vectors_hub"}
    assert not heavy & set(shown.stdout.split())


def test_there_and_back(control: Path, pack: Path, tmp_path: Path) -> None:
    vector = sk.SteeringVector.load(pack)
    assert set(vector.directions) == {1, 3}
    assert vector.metadata.history[0].startswith("converted from a llama.cpp control vector")
    done = run("pack", "convert", pack, tmp_path / "w.gguf")
    assert done.code == 0, done.err
    assert done.out.startswith(f"Wrote {tmp_path / 'w.gguf'}")
    facts = interop.ModelFacts("Any", "any", 6)
    assert interop.read(tmp_path / "w.gguf", model=facts).digest() == vector.digest()
    assert interop.read(control, model=facts).digest() == vector.digest()


def test_layers_are_in_the_numbering_of_the_input(control: Path, pack: Path, tmp_path: Path) -> None:
    assert run("pack", "convert", pack, tmp_path / "w.gguf", "--layers", "3").code == 0
    assert run("pack", "convert", control, tmp_path / "one.safetensors", *MODEL, "--layers", "1").code == 0
    assert set(sk.SteeringVector.load(tmp_path / "one.safetensors").directions) == {1}
    svec = foreign.svec(tmp_path / "v.svec", foreign.directions(0, 0, 3, width=8))
    assert (
        run("pack", "convert", svec, tmp_path / "svec.safetensors", *MODEL, "--layers", "3", "--license", "MIT").code
        == 0
    )
    vector = sk.SteeringVector.load(tmp_path / "svec.safetensors")
    assert set(vector.directions) == {2}
    assert vector.metadata.license == "MIT"


def test_the_model_comes_from_its_folder(tmp_path: Path) -> None:
    folder = tiny.save("llava", tmp_path / "model")
    control = foreign.control_vector(tmp_path / "v.gguf", foreign.directions(0, 0))
    done = run("pack", "convert", control, tmp_path / "v.safetensors", "--from", "repeng", "--model-config", folder)
    assert done.code == 0, done.err
    assert sk.SteeringVector.load(tmp_path / "v.safetensors").metadata.model.model_type == "llava"


def test_astra_needs_its_reference(tmp_path: Path) -> None:
    path = foreign.astra(tmp_path / "a.pt", foreign.directions(0, 2, 4, width=8))
    args = ("pack", "convert", path, tmp_path / "a.safetensors", *MODEL, "--from", "astra")
    assert "--reference" in run(*args).err
    assert "--layers" in run(*args, "--reference", path).err
    assert run(*args, "--reference", path, "--layers", 2).code == 0
    assert {key.layer for key in sk.SteeringVector.load(tmp_path / "a.safetensors").tensors} == {1}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "does not say which model"),
        (("--architecture", "Any"), "does not say which model"),
        ((*MODEL, "--model-config", "."), "given twice"),
        ((*MODEL, "--layers", "a"), "'a' is not a comma-separated list of numbers"),
        ((*MODEL, "--site", "resid_pre"), "'resid_pre' is not one of"),
        ((*MODEL, "--site", "mlp_out"), "means nothing"),
        ((*MODEL, "--from", "lamacpp"), "Did you mean 'llamacpp'"),
        ((*MODEL, "--to", "astra"), "can only be read"),
        ((*MODEL, "--to", "repeng", "--license", "MIT"), "--license"),
        ((*MODEL, "--lossy"), "--lossy"),
    ],
)
def test_refusals(control: Path, tmp_path: Path, args: Any, said: str) -> None:
    done = run("pack", "convert", control, tmp_path / "out.safetensors", *args)
    assert done.code == (2 if "'a'" in said or "resid_pre" in said else 1)
    assert said in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_refusals_for_packs(pack: Path, control: Path, tmp_path: Path) -> None:
    assert "both packs" in run("pack", "convert", pack, tmp_path / "w.safetensors").err
    assert "--model-type with a pack" in run("pack", "convert", pack, tmp_path / "w.gguf", "--model-type", "x").err
    assert "exists" in run("pack", "convert", pack, control).err
    assert run("pack", "convert", pack, control, "--force").code == 0
    assert "does not exist" in run("pack", "convert", tmp_path / "missing", tmp_path / "w", *MODEL).err
    zero = foreign.control_vector(tmp_path / "zero.gguf", foreign.directions(0, 0, width=8))
    assert run("pack", "convert", zero, tmp_path / "zero.safetensors", *MODEL, "--from", "repeng").code == 0
    assert "layer 0" in run("pack", "convert", tmp_path / "zero.safetensors", tmp_path / "w.gguf").err


def test_a_pack_is_converted_by_reference(tmp_path: Path) -> None:
    bundled = sk.load_vector("cmrm-llava-demo")
    pin = str(bundled.source).partition("#")[2]
    for ref in ("cmrm-llava-demo", f"cmrm-llava-demo#{pin}", Path(bundled_path("cmrm-llava-demo") or "").as_uri()):
        done = run("pack", "convert", ref, tmp_path / "w.gguf", "--to", "repeng", "--layers", "3", "--lossy", "--force")
        assert done.code == 0, done.err
        facts = interop.ModelFacts("Any", "any", 8)
        found = interop.read(tmp_path / "w.gguf", "repeng", model=facts).directions[3]
        assert torch.equal(found, bundled.directions[3])
    done = run("pack", "convert", f"cmrm-llava-demo#sha256={'0' * 64}", tmp_path / "x.gguf")
    assert done.code == 1
    assert "sha256" in done.err


@pytest.mark.parametrize("args", [(), MODEL, ("--from", "repeng"), ("--from", "pack"), ("--to", "pack")])
def test_what_does_not_exist_is_said_not_to_exist(tmp_path: Path, args: Any) -> None:
    done = run("pack", "convert", tmp_path / "nothing.gguf", tmp_path / "out.safetensors", *args)
    assert done.code == 1
    assert "nothing.gguf' does not exist" in done.err


def test_what_is_lost_is_said(pack: Path, tmp_path: Path) -> None:
    vector = sk.SteeringVector.load(pack)
    last = vector.with_metadata(interventions=[{"tokens": "last"}])
    last.save(tmp_path / "last.safetensors")
    assert "--lossy" in run("pack", "convert", tmp_path / "last.safetensors", tmp_path / "w.gguf").err
    done = run("pack", "convert", tmp_path / "last.safetensors", tmp_path / "w.gguf", "--lossy")
    assert done.code == 0
    assert "left out: intervention 0 steers the tokens 'last'" in done.err


def test_formats_are_listed() -> None:
    listed = json.loads(run("formats", "--json").out)["formats"]
    assert {each["name"]: each["written"] for each in listed} == {
        name: name in ("llamacpp", "repeng") for name in interop.format_names()
    }


# -- diff ------------------------------------------------------------------------------------------------------------


def test_a_pack_does_not_differ_from_itself(pack: Path) -> None:
    assert "the same" in run("pack", "diff", pack, pack).out
    document = json.loads(run("pack", "diff", pack, pack, "--json").out)
    assert document["same"]
    assert [each["cosine"] for each in document["directions"]] == pytest.approx([1, 1])
    assert [each["relative_change"] for each in document["directions"]] == [0, 0]


def test_differences_are_shown(pack: Path, tmp_path: Path) -> None:
    vector = sk.SteeringVector.load(pack)
    tensors = dict(vector.tensors)
    tensors[sk.Key(1)] = -2 * tensors[sk.Key(1)]
    tensors[sk.Key(5)] = tensors.pop(sk.Key(3))
    metadata = vector.metadata.model_copy(
        update={"license": "MIT", "interventions": (sk.Intervention(tokens="last"), sk.Intervention(strength=0.5))}
    )
    other = sk.SteeringVector(tensors, metadata).save(tmp_path / "other.safetensors")
    document = json.loads(run("pack", "diff", pack, other, "--json").out)
    norm = {layer: float(each.norm()) for layer, each in vector.directions.items()}
    rows = {each["layer"]: each for each in document["directions"]}
    assert not document["same"]
    assert rows[1]["cosine"] == pytest.approx(-1)
    assert rows[1]["norms"] == pytest.approx([norm[1], 2 * norm[1]])
    assert rows[1]["relative_change"] == pytest.approx(3)
    assert rows[3]["norms"] == [pytest.approx(norm[3]), None]
    assert rows[5]["norms"] == [None, pytest.approx(norm[3])]
    assert rows[5]["cosine"] is None
    assert {"field": "license", "values": [None, "MIT"]} in document["fields"]
    assert {"field": "interventions[0].tokens", "values": ["all", "last"]} in document["interventions"]
    assert any(each["field"].startswith("interventions[1]") for each in document["interventions"])
    shown = run("pack", "diff", pack, other).out
    for part in ("they differ", "cosine", "-1", "interventions[0].tokens", '"MIT"'):
        assert part in shown


def test_rows_of_a_direction_are_compared_together(pack: Path, tmp_path: Path) -> None:
    vector = sk.SteeringVector.load(pack)
    stacked = {key: torch.stack([each, each]) for key, each in vector.tensors.items()}
    other = sk.SteeringVector(stacked, vector.metadata).save(tmp_path / "rows.safetensors")
    row = json.loads(run("pack", "diff", other, other, "--json").out)["directions"][0]
    assert row["cosine"] == pytest.approx(1)
    assert json.loads(run("pack", "diff", pack, other, "--json").out)["directions"][0]["cosine"] is None


def test_packs_are_compared_by_reference(pack: Path) -> None:
    document = json.loads(run("pack", "diff", "cmrm-llava-demo", bundled_path("cmrm-llava-demo"), "--json").out)
    assert document["same"]
    assert document["a"] == "cmrm-llava-demo"
    assert not json.loads(run("pack", "diff", "cmrm-llava-demo", pack.as_uri(), "--json").out)["same"]
    assert "no bundled pack" in run("pack", "diff", pack, "cmrm-lava-demo").err
    assert "not in the cache" in run("pack", "diff", pack, "hf://owner/name", "--offline").err


def test_diff_takes_packs_only(control: Path, pack: Path) -> None:
    assert run("pack", "diff", pack, control).code == 1
    assert run("pack", "diff", pack, pack.with_name("missing")).code == 1
