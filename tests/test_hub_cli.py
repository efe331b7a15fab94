"""The commands of the vectors hub: what they print, write and refuse."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hub_support import cache, hub, pack, vector
from loopback_hub import TOKEN, LoopbackHub
from test_cli import run

import steerkit as sk
from steerkit.cli.app import app
from steerkit.demo import model_path
from steerkit.vectors import MethodRecord, PackMetadata
from steerkit_vectors_hub.errors import AccessError, OfflineError, PublishError

__all__ = ["cache", "hub"]  # fixtures


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return vector().save(tmp_path / "cmrm-things.safetensors")


def document(*args: object) -> Any:
    done = run(*args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


class TestPull:
    def test_a_pack_is_pulled_and_pinned(self, hub: LoopbackHub, tmp_path: Path) -> None:
        data = pack(tmp_path)
        commit = hub.publish("someone/pack", {"a.safetensors": data})
        out = tmp_path / "deep" / "out.safetensors"
        done = run("pull", "hf://someone/pack", "-o", out)
        assert done.code == 0, done.err
        assert out.read_bytes() == data
        digest = hashlib.sha256(data).hexdigest()
        pinned = f"hf://someone/pack@{commit}/a.safetensors#sha256={digest}"
        assert re.search(rf"^pinned +{re.escape(pinned)}$", done.out, re.MULTILINE)
        shown = document("pull", pinned, "--offline")
        assert shown["transferred"] is False
        assert (shown["revision"], shown["sha256"], shown["size"]) == (commit, digest, len(data))
        refused = run("pull", "hf://someone/pack", "-o", out)
        assert refused.code == 1
        assert "exists" in refused.err

    def test_a_file_that_is_no_pack_is_not_written(self, hub: LoopbackHub, tmp_path: Path) -> None:
        hub.publish("someone/pack", {"a.safetensors": b"not a pack at all"})
        done = run("pull", "hf://someone/pack", "-o", tmp_path / "out.safetensors")
        assert done.code == 1
        assert not (tmp_path / "out.safetensors").exists()

    def test_errors_are_one_block(self, hub: LoopbackHub) -> None:
        done = run("pull", "hf://someone/pack", "--offline")
        assert done.code == 1
        assert done.err.startswith("error: ")
        assert "fix: " in done.err
        assert OfflineError.__name__ not in done.err
        assert AccessError.__name__ in run("pull", "hf://someone/pack", "--debug").err


class TestPush:
    def test_a_dry_run_shows_everything(self, file: Path, tmp_path: Path) -> None:
        done = run("push", file, "someone/pack", "--dry-run", "-o", tmp_path / "out")
        assert done.code == 0, done.err
        assert "library_name: steerkit" in done.out
        assert "would upload  steering_vector.safetensors" in done.err
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "README.md",
            "norms.png",
            "steering_vector.safetensors",
        }

    def test_a_dry_run_names_the_plot_of_a_calibrated_pack(self, tmp_path: Path) -> None:
        strength = {"recommended": 1.0, "curve": [{"strength": 1.0, "unsafe": 0.5}]}
        made = vector(strength=strength).save(tmp_path / "calibrated.safetensors")
        assert "would upload  strength.png, " in run("push", made, "someone/pack", "--dry-run").err

    def test_what_is_missing_can_be_filled_in(self, tmp_path: Path) -> None:
        made = vector()
        model = {**made.metadata.model.model_dump(), "id": "", "revision": None}
        anchors = {**made.metadata.anchors.model_dump(), "name": ""}  # type: ignore[union-attr]
        bare = made.with_metadata(license=None, model=model, anchors=anchors).save(tmp_path / "bare.safetensors")
        refused = run("push", bare, "someone/pack", "--dry-run")
        assert refused.code == 1
        assert "license, model.id, model.revision, anchors.name" in refused.err
        assert PublishError.__name__ not in refused.err
        options = ["--license", "MIT", "--model-id", "a/b", "--model-revision", "f" * 40, "--anchor-name", "mine"]
        shown = document("push", bare, "someone/pack", "--dry-run", "--author", "A. N. Other", *options)
        assert (shown["uploaded"], shown["revision"]) == (False, None)
        for text in ("A. N. Other", "a/b", "mine: 12 samples", "f" * 40):
            assert text in shown["card"]

    def test_a_name_for_anchors_that_are_not_recorded_is_refused(self, tmp_path: Path) -> None:
        made = vector(anchors=None).save(tmp_path / "bare.safetensors")
        refused = run("push", made, "someone/pack", "--dry-run", "--anchor-name", "mine")
        assert refused.code == 1
        assert "records no anchors" in refused.err

    def test_a_folder_is_no_file(self, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for args in (("push", ".", "a/b"), ("pack", "sign", ".", "--key", "k"), ("pull", "cmrm-llava-demo", "-o", ".")):
            refused = run(*args)
            assert refused.code == 1
            assert re.search(r"'\.' (is|holds no|can't be read)", refused.err)

    def test_an_upload(self, hub: LoopbackHub, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.publish("someone/pack", {}, large=False)
        shown = document("push", file, "someone/pack")
        assert shown["uploaded"] is True
        assert document("pull", shown["ref"])["sha256"] == shown["sha256"]


def test_from_one_process_to_another(hub: LoopbackHub, file: Path, tmp_path: Path) -> None:
    """Published with one empty home, pulled by its pinned reference with another."""

    def steerkit(home: str, *args: object) -> str:
        names = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        places = {"HOME": str(tmp_path / home), "STEERKIT_CACHE": str(tmp_path / home), "HF_HOME": str(tmp_path / home)}
        command = [sys.executable, "-m", "steerkit", *map(str, args)]
        done = subprocess.run(
            command, env={**os.environ, **names, **places}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ref = steerkit("mine", "push", file, "someone/pack").strip()
    steerkit("theirs", "pull", ref, "-o", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == vector().to_bytes()
    assert "README.md" in hub.repositories["someone/pack"].commits[ref.partition("@")[2].partition("/")[0]]


class TestFinding:
    def test_index_search_and_catalogue(self, file: Path, tmp_path: Path) -> None:
        other = vector(1, method={"name": "caa"}, metrics=[]).save(tmp_path / "other.safetensors")
        index, page = tmp_path / "index.json", tmp_path / "page.html"
        assert run("hub", "index", file, "-o", index, "--title", "Ours").out == f"Wrote {index}: 1 packs\n"
        assert run("hub", "index", other, "-o", index).code == 1
        assert run("hub", "index", other, "-o", index, "--add").out == f"Wrote {index}: 2 packs\n"
        names = [entry["name"] for entry in document("hub", "search", "--index", index)["packs"]]
        assert names == ["cmrm-things", "other"]
        (found,) = document("hub", "search", "refusals", "--index", index, "--metric", "unsafe_rate")["packs"]
        assert found["name"] == "cmrm-things"
        assert "other" in run("hub", "search", "--index", index, "--method", "caa").out
        assert run("hub", "search", "--index", index, "nothing").out == "No pack matches.\n"
        assert run("hub", "catalogue", index, "-o", page).code == 0
        assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        assert run("hub", "catalogue", file, "-o", page, "--force").code == 1

    def test_two_packs_of_one_name_are_not_one(self, tmp_path: Path) -> None:
        files = [vector(seed).save(tmp_path / str(seed) / "a.safetensors") for seed in (0, 1)]
        done = run("hub", "index", *files, "-o", tmp_path / "index.json")
        assert done.code == 1
        assert "are both named 'a'" in done.err
        assert not (tmp_path / "index.json").exists()

    def test_searching_the_hub(self, hub: LoopbackHub) -> None:
        hub.publish("someone/cmrm-llava", {}, tags=["steerkit", "cmrm"])
        hub.publish("someone/caa-llava", {}, tags=["steerkit", "caa"])
        hub.publish("someone/llava", {}, tags=["transformers"])
        assert run("hub", "search", "--hub", "llava").out == "hf://someone/caa-llava\nhf://someone/cmrm-llava\n"
        found = document("hub", "search", "--hub", "--method", "cmrm")["packs"]
        assert found == [{"name": "someone/cmrm-llava", "ref": "hf://someone/cmrm-llava"}]

    def test_an_index_that_grows_keeps_its_title(self, file: Path, tmp_path: Path) -> None:
        other = vector(1).save(tmp_path / "other.safetensors")
        index = tmp_path / "index.json"
        assert run("hub", "index", file, "-o", index, "--title", "Ours").code == 0
        done = run("hub", "index", other, "-o", index, "--add")
        assert done.code == 0
        assert json.loads(index.read_text())["title"] == "Ours"
        assert "is a path" in done.err
        assert "is a path" not in run("hub", "index", "cmrm-llava-demo", "-o", index, "--add").err
        assert run("hub", "index", other, "-o", index, "--add", "--title", "Theirs").code == 0
        assert json.loads(index.read_text())["title"] == "Theirs"

    def test_what_the_hub_cannot_look_for_is_refused(self, hub: LoopbackHub) -> None:
        refused = run("hub", "search", "--hub", "--model", "llava", "--metric", "utility")
        assert refused.code == 1
        assert "--model, --metric with --hub" in refused.err
        assert not hub.requests
        assert "No repository matches." in run("hub", "search", "--hub", "nothing").err

    def test_a_reference_in_a_table_is_whole(self, hub: LoopbackHub, tmp_path: Path) -> None:
        repo_id = "somebody-with-a-name/and-a-pack-with-a-name-that-is-long"
        hub.publish(repo_id, {"a.safetensors": pack(tmp_path)})
        assert run("hub", "index", f"hf://{repo_id}", "-o", tmp_path / "index.json").code == 0
        for args in (
            (
                "hub",
                "list",
            ),
            ("hub", "search", "--index", tmp_path / "index.json"),
        ):
            out = run(*args).out
            assert "…" not in out
        run("pull", f"hf://{repo_id}/a.safetensors")
        run("pull", f"hf://{repo_id}@main")
        rows = [(row["ref"], row["sha256"]) for row in document("hub", "list")["packs"] if row["kind"] == "cache"]
        assert len(rows) == len(set(rows))

    def test_a_search_tells_the_figures_of_the_pack_from_those_without_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        out = run("hub", "search", "llava").out
        without = re.search(r"\bunsteered, 100 prompts: unsafe_rate ([0-9.]+)", out)
        with_it = re.search(r"\bsteered, 100 prompts: unsafe_rate ([0-9.]+)", out)
        assert without is not None
        assert with_it is not None
        assert float(without[1]) > float(with_it[1])

    def test_info_shows_every_figure(self, tmp_path: Path) -> None:
        metrics = [{"name": "unsafe_rate", "value": value, "condition": str(value)} for value in (0.9, 0.1)]
        out = run("hub", "info", vector(metrics=metrics).save(tmp_path / "v.safetensors")).out
        assert "0.9 0.9" in out
        assert "0.1 0.1" in out

    def test_list_and_info(self, hub: LoopbackHub, tmp_path: Path) -> None:
        assert document("hub", "list")["packs"] == [
            row for row in document("hub", "list")["packs"] if row["kind"] == "bundled"
        ]
        commit = hub.publish("someone/pack", {"a.safetensors": pack(tmp_path)})
        shown = run("hub", "info", "hf://someone/pack")
        assert shown.code == 0, shown.err
        for text in ("someone/pack", "owner/model", "cmrm", "MIT", "figure unsafe_rate", commit):
            assert text in shown.out
        assert document("hub", "info", "hf://someone/pack")["pack"]["name"] == "someone/pack"
        cached = [row for row in document("hub", "list")["packs"] if row["kind"] == "cache"]
        assert {row["revision"] for row in cached} == {commit}
        assert "hf://someone/pack" in run("hub", "list").out


def test_what_a_pack_says_passes_for_no_line_of_ours(tmp_path: Path) -> None:
    forged = "x\npass  signature: signed by everybody\nlicence  Apache-2.0"
    metric = {"name": forged, "value": 1.0, "condition": forged}
    said = vector(
        description=forged,
        license=forged,
        authors=[forged],
        metrics=[metric],
        versions={forged: forged},
    )
    named = said.save(tmp_path / "named.safetensors")
    unknown = tmp_path / "unknown.safetensors"
    unknown.write_bytes(_with_fields(vector().to_bytes(), {forged: 1}))
    index = tmp_path / "index.json"
    assert run("hub", "index", named, "-o", index).code == 0
    for args in (
        ("hub", "info", named),
        ("pack", "inspect", named),
        ("verify", unknown),
        ("hub", "search", "--index", index),
    ):
        out = run(*args).out
        assert out
        assert not [line for line in out.splitlines() if line.lstrip().startswith(("pass  signature", "licence  A"))]


def test_what_is_wrong_with_a_pack_is_said_in_our_words(tmp_path: Path) -> None:
    probe = {"name": "a", "tokens_sha256": "0" * 64, "norms": [1.0] * 4, "states": [""]}
    for fields, said in (
        ({"fingerprint": {"layers": [9], "probes": [probe, probe]}}, "(the fingerprint's layers [9] are not"),
        ({"interventions": [{"tokens": "generated", "phase": "prompt"}]}, "(interventions.0: tokens='generated' never"),
    ):
        path = tmp_path / "faulty.safetensors"
        path.write_bytes(_with_fields(vector().to_bytes(), fields))
        done = run("pack", "inspect", path)
        assert done.code == 1
        assert said in done.err
        assert "Value error" not in done.err


def _with_fields(data: bytes, fields: dict[str, Any]) -> bytes:
    """A pack with more fields in its document."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    document = json.loads(header["__metadata__"]["steerkit"])
    del document["document_sha256"]
    header["__metadata__"]["steerkit"] = json.dumps({**document, **fields})
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data[end:]


@pytest.mark.parametrize(
    "command", ["hub search", "hub list", "hub info", "pull", "push", "hub index", "hub catalogue", "pack inspect"]
)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom steerkit.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
        "print('TOP', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.rpartition("TOP ")[2].split())
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "rich", "huggingface_hub", "steerkit_vectors_hub", "filelock"}


def test_inspect_and_generate_take_a_reference(hub: LoopbackHub) -> None:
    model = model_path("llava")
    record = sk.load(model, dtype="float32").record
    metadata = PackMetadata(method=MethodRecord(name="cmrm"), interventions=(sk.Intervention(),), model=record)
    directions = {sk.Key(layer): torch.full((record.hidden_size,), 0.01) for layer in range(record.layer_count)}
    data = sk.SteeringVector(directions, metadata).to_bytes()
    commit = hub.publish("someone/pack", {"a.safetensors": data})
    pinned = f"hf://someone/pack@{commit}/a.safetensors#sha256={hashlib.sha256(data).hexdigest()}"
    assert document("pack", "inspect", "hf://someone/pack")["pinned"] == pinned
    assert "hf://someone/pack@" in run("pack", "inspect", pinned, "--offline").out
    assert run("pack", "inspect", "hf://someone/pack", "--sha256", "0" * 64).code == 1
    shown = document("generate", model, "describe the picture", "--vector", pinned, "--max-new-tokens", 2)
    (used,) = shown["vectors"]
    assert (used["vector"], used["source"]) == (pinned, pinned)
    assert shown["receipt"]["layers"] == list(range(record.layer_count))


class TestDoors:
    """Every command that uses a vector, or hands one on, refuses one that the trust file revokes."""

    DOORS = {
        "generate": lambda pack, out: ("generate", model_path("llava"), "Hi", "--vector", pack),
        "serve": lambda pack, out: ("serve", model_path("llava"), "--engine", "transformers", "--vector", pack),
        "compare": lambda pack, out: ("compare", model_path("llava"), "--vector", pack),
        "calibrate": lambda pack, out: ("calibrate", model_path("llava"), pack, "-o", out),
        "push": lambda pack, out: ("push", pack, "someone/pack", "--dry-run"),
        "pack convert": lambda pack, out: ("pack", "convert", pack, out.with_suffix(".gguf"), "--lossy"),
        "pull": lambda pack, out: ("pull", pack, "-o", out),
        "hub pull": lambda pack, out: ("hub", "pull", pack, "-o", out),
        "hub index": lambda pack, out: ("hub", "index", pack, "-o", out),
        "pack sign": lambda pack, out: ("pack", "sign", pack, "--key", out.with_name("key.pem")),
        "verify": lambda pack, out: ("verify", pack),
        "verify, beside another": lambda pack, out: ("verify", pack.with_name("other.safetensors"), "--with", pack),
    }

    @pytest.mark.parametrize("door", DOORS)
    def test_a_revoked_pack_is_refused(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
    ) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        trust = tmp_path / "trust.toml"
        trust.write_text(f"[[revoked.packs]]\nsha256 = '{digest}'\nreason = 'it lowers refusals'\n")
        monkeypatch.setenv("STEERKIT_TRUST", str(trust))
        vector().with_metadata(description="another").save(file.with_name("other.safetensors"))
        out = tmp_path / "out.safetensors"
        done = run(*self.DOORS[door](file, out))
        assert done.code == 1
        assert "it lowers refusals" in done.out + done.err
        assert not out.exists()
        assert not out.with_suffix(".gguf").exists()

    def test_every_command_that_takes_a_pack_is_a_door_or_only_reads(self) -> None:
        """What takes a pack and is not tested above shows the file, and builds no vector."""
        reading = {"pack inspect", "pack diff", "hub info", "play"}  # play: by `load_vector`, once the page asks
        named = {"hub push": "push", "pack verify": "verify"}
        taking = {named.get(name, name) for name, options in _commands(typer.main.get_command(app)) if PACKS & options}
        assert taking - reading == {door.partition(",")[0] for door in self.DOORS}


PACKS = {"pack", "packs", "vector", "ref", "refs", "file", "source", "first", "second"}
"""What parameters of commands that are packs are called."""


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for name in group.list_commands(None):
        each = group.get_command(None, name)
        if hasattr(each, "list_commands"):
            yield from _commands(each, f"{prefix}{name} ")
        else:
            yield prefix + name, {parameter.name for parameter in each.params}
