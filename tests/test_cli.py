"""The command line: what it prints, its exit codes, what it imports, and that a killed extraction goes on."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner

from steerkit._internal import plugins
from steerkit.cli import loading
from steerkit.cli.app import app
from steerkit.cli.console import clean, one_line
from steerkit.cli.plugins import describe, type_text
from steerkit.methods import Extraction, State
from steerkit.methods.cmrm import CMRM
from steerkit.vectors.formats import read_pack

torch.set_num_threads(1)
HEAVY = {"torch", "transformers", "nnsight", "numpy", "pydantic", "PIL", "safetensors"}
SAMPLES = 12


class Files(NamedTuple):
    llava: str
    qwen: str
    anchors: str
    image: str
    pack: str


class Output(NamedTuple):
    code: int
    out: str
    err: str


def run(*args: object) -> Output:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Output(result.exit_code, result.stdout, result.stderr)


def python(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, **options)


def digest(pack: str | Path) -> str:
    return read_pack(pack).document["tensors_sha256"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)
    rows = []
    for number in range(SAMPLES):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        label = ("harmful", "harmless")[number % 2]
        rows.append({"text": f"How do I make thing {number}?", "image": f"{number}.png", "label": label})
    anchors = folder / "anchors.jsonl"
    anchors.write_text("".join(json.dumps(row) + "\n" for row in rows))
    llava, qwen = tiny.save("llava", folder / "llava"), tiny.save("qwen2_vl", folder / "qwen")
    pack = folder / "uninterrupted.safetensors"
    done = run("extract", llava, anchors, "-o", pack, "--batch-size", 2, "--license", "MIT", "--anchor-name", "things")
    assert done.code == 0, done.err
    assert done.out.startswith(f"Wrote {pack}: SteeringVector(cmrm, LlavaForConditionalGeneration")
    assert "Extracting with cmrm: 0 of 12 ..." in done.err
    assert "Extracting with cmrm: done in" in done.err
    return Files(str(llava), str(qwen), str(anchors), str(folder / "0.png"), str(pack))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights must not be read in this test."""

    def load(*args: object) -> None:
        raise AssertionError("the model was loaded before the cheap checks")

    monkeypatch.setattr(loading, "load_model", load)


@pytest.fixture
def broken_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution whose adapter and method can't be imported."""
    info = tmp_path / "torn-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[steerkit.adapters]\ntorn = torn:A\n[steerkit.methods]\ntorn = torn:M\n")
    (tmp_path / "torn.py").write_text("raise RuntimeError('cracked in two')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.forget()
    yield
    monkeypatch.undo()
    plugins.forget()


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Used(Strict):
    vector: str
    source: str
    method: str
    strength: float
    sha256: str


class Answer(Strict):
    prompt: str | list[list[str]]
    images: list[str]
    unsteered: str
    steered: str | None


class SiteReceipt(Strict):
    layer: int
    site: str
    prompt_tokens: int
    generated_tokens: int
    relative_change: float | None


class CheckSchema(Strict):
    name: str
    status: str
    message: str
    fix: str
    details: dict[str, object]


class ReceiptSchema(Strict):
    layers: list[int]
    prompt_tokens: int
    generated_tokens: int
    checks: list[CheckSchema]
    sites: list[SiteReceipt]


class Generated(Strict):
    model: str
    vectors: list[Used]
    answers: list[Answer]
    receipt: ReceiptSchema | None


class Stored(Strict):
    layer: int
    site: str
    name: str
    dtype: str
    shape: list[int]
    norms: list[float]


class Inspected(Strict):
    file: str
    pinned: str
    bytes: int
    metadata: dict[str, Any]
    tensors: list[Stored]


class AdapterRow(Strict):
    name: str
    model_types: list[str]
    distribution: str
    error: str | None


class OptionRow(Strict):
    name: str
    type: str
    required: bool
    default: Any
    doc: str


class MethodRow(Strict):
    name: str
    summary: str
    paper: str
    options: list[OptionRow]
    distribution: str
    error: str | None


class TestStart:
    @pytest.mark.parametrize("args", [("--help",), ("extract", "--help"), ("generate", "--help"), ("--version",)])
    def test_help_and_version_import_nothing_heavy(self, args: tuple[str, ...]) -> None:
        code = (
            "import sys\nfrom steerkit.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
            "print('TOP', *{name.partition('.')[0] for name in sys.modules})"
        )
        out, err = python(code, *args).communicate(timeout=60)
        assert "Usage: steerkit" in out or out.startswith("steerkit ")
        assert not HEAVY & set(out.rpartition("TOP")[2].split()), err

    def test_python_m(self) -> None:
        done = subprocess.run([sys.executable, "-m", "steerkit", "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout.split()[0]) == (0, "steerkit")

    def test_commands_are_listed(self) -> None:
        assert all(f"  {name} " in run("--help").out for name in ("extract", "generate", "hub", "models", "methods"))

    def test_a_mistyped_command_is_suggested(self) -> None:
        found = run("extrct")
        assert found.code == 2
        assert "Did you mean 'extract'?" in found.err

    def test_unforeseen_errors_are_one_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("steerkit_vectors_hub.resolve.resolve", lambda ref, **options: 1 / 0)
        found = run("pack", "inspect", "x")
        assert (found.code, found.out) == (1, "")
        assert found.err.startswith("error: ZeroDivisionError: division by zero\n  fix: ")
        assert "Traceback" in run("pack", "inspect", "x", "--debug").err


class TestExtract:
    def test_metadata(self, files: Files) -> None:
        document = read_pack(files.pack).document
        assert document["license"] == "MIT"
        assert document["anchors"] | {"sha256": ""} == {
            "name": "things",
            "sha256": "",
            "size": SAMPLES,
            "license": None,
            "labels": {"harmful": 6, "harmless": 6},
        }
        assert not Path(files.pack + ".partial").exists()

    def test_options_columns_and_bad_rows(self, files: Files, tmp_path: Path) -> None:
        rows = [json.loads(line) for line in Path(files.anchors).read_text().splitlines()]
        root = Path(files.anchors).parent
        mine = [{"question": row["text"], "image": str(root / row["image"]), "kind": row["label"]} for row in rows]
        broken = [{"question": " "}, {"question": "?", "image": "none.png"}]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*mine, *broken]))
        pack = tmp_path / "new" / "r.safetensors"
        arguments = ["extract", files.llava, tmp_path / "rows.jsonl", "-o", pack, "--method", "refusal_direction"]
        arguments += ["--set", "mode=ablate", "--set", "layer=2", "--set", "images=true", "--dtype", "bfloat16"]
        arguments += ["--columns", "question=text", "--columns", "kind=label"]
        assert run(*arguments).code == 1
        done = run(*arguments, "--skip-bad-rows")
        assert done.code == 0, done.err
        assert "2 of 14 rows" in done.err
        assert "line 13" in done.err
        config = read_pack(pack).document["method"]["config"]
        assert (config["mode"], config["layer"], config["images"]) == ("ablate", 2, True)

    def test_measured_on_each_prompt_needs_no_anchors(self, files: Files, tmp_path: Path) -> None:
        pack = tmp_path / "sample.safetensors"
        assert run("extract", files.llava, "-o", pack, "--set", "level=sample", "--set", "counterpart=blank").code == 0
        assert "measured on each prompt" in run("pack", "inspect", pack).out

    def test_killed_and_stopped_extractions_go_on_bit_equal(self, files: Files, tmp_path: Path) -> None:
        code = (
            "import signal, time, torch, steerkit.methods._base as method\ntorch.set_num_threads(1)\n"
            # a shell ignores interrupts in what it starts in the background, and its children inherit that
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "method.SAVE_EVERY, save, saved = -1.0, method.State.save, []\n"
            "def save_and_wait(state, path):\n    save(state, path)\n    saved.append(path)\n"
            "    if len(saved) == 3:\n        print('in the middle', flush=True)\n        time.sleep(300)\n"
            "method.State.save = save_and_wait\nfrom steerkit.cli import main\nmain()"
        )
        packs = {signal.SIGKILL: tmp_path / "kill.safetensors", signal.SIGINT: tmp_path / "int.safetensors"}
        command = {
            each: ["extract", files.llava, files.anchors, "-o", packs[each], "--batch-size", 2] for each in packs
        }
        running = {each: python(code, *command[each]) for each in packs}
        for each, process in running.items():
            assert process.stdout is not None
            assert process.stdout.readline() == "in the middle\n"
            process.send_signal(each)
        ended = {each: (process.communicate(timeout=60)[1], process.returncode) for each, process in running.items()}
        assert ended[signal.SIGKILL][1] == -signal.SIGKILL
        assert ended[signal.SIGINT][1] == 130
        partial = f"{packs[signal.SIGINT]}.partial"
        assert (
            f"Stopped: 6 of 12 samples are in {partial}. The same command goes on from there."
            in (ended[signal.SIGINT][0])
        )
        for each, pack in packs.items():
            assert not pack.exists()
            resumed = run(*command[each])
            assert f"Resuming from {pack}.partial: 6 of 12 samples are done." in resumed.err
            assert resumed.code == 0
            assert digest(pack) == digest(files.pack)
            assert not Path(f"{pack}.partial").exists()

    def test_shards_merge_to_the_pack_of_one_extraction(self, files: Files, tmp_path: Path) -> None:
        states = [tmp_path / f"state-{number}" for number in range(3)]
        for number, state in enumerate(states):
            part = ["--shard", f"{number}/3", "-o", state]
            assert run("extract", files.llava, files.anchors, "--batch-size", 2, *part).code == 0
        pack = tmp_path / "merged.safetensors"
        lost = run("merge", files.llava, *states[:2], "-o", pack)
        assert (lost.code, pack.exists()) == (1, False)
        assert "anchors 8-11 of 12 were not measured" in lost.err
        doubled = run("merge", files.llava, *states, states[1], "-o", pack)
        assert "anchors 4-7 were measured in two" in doubled.err
        assert run("merge", files.llava, *states[::-1], "-o", pack).code == 0
        assert digest(pack) == digest(files.pack)

    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize(
        "part", [["--shard", "3/3"], ["--shard", "x"], ["--shard", "0/2", "--ray"], ["--workers", 2]]
    )
    def test_an_impossible_share_is_refused_before_the_model_is_loaded(
        self, files: Files, tmp_path: Path, part: list[object]
    ) -> None:
        refused = run("extract", files.llava, files.anchors, "-o", tmp_path / "x", *part)
        assert (refused.code, list(tmp_path.iterdir())) == (1, [])
        assert "expected: " in refused.err

    def test_a_checkpoint_of_another_extraction(self, files: Files, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        another = {"method": "another's", "config": {}, "model": {}, "weights": "", "layers": (0,)}
        State(Extraction(**another, anchors=1, block_size=1)).save(mine)
        command = ["extract", files.llava, files.anchors, "-o", tmp_path / "c.safetensors", "--batch-size", 2]
        refused = run(*command, "--checkpoint", mine)
        assert refused.code == 1
        assert "--fresh" in refused.err
        assert run(*command, "--checkpoint", mine, "--fresh").code == 0
        assert digest(tmp_path / "c.safetensors") == digest(files.pack)

    @pytest.mark.usefixtures("no_model")
    def test_no_other_file_is_written_over_or_deleted(self, files: Files, tmp_path: Path) -> None:
        """Not the anchors, not the pack itself, not what only looks like a checkpoint's name."""
        anchors, pack, mine = tmp_path / "anchors.jsonl", tmp_path / "p.safetensors", tmp_path / "mine"
        anchors.write_bytes(Path(files.anchors).read_bytes())
        mine.write_bytes(b"something else")
        before = {path: path.read_bytes() for path in (anchors, mine)}
        for options in (
            ["-o", pack, "--checkpoint", pack],
            ["-o", pack, "--checkpoint", anchors, "--fresh"],
            ["-o", anchors, "--force"],
            ["-o", pack, "--checkpoint", mine, "--fresh"],
        ):
            assert run("extract", files.llava, anchors, *options).code == 1
            assert not pack.exists()
            assert {path: path.read_bytes() for path in before} == before

    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize(
        ("code", "message", "changes"),
        [
            (1, "unknown method 'cmmr'. Did you mean 'cmrm'?", ["--method", "cmmr"]),
            (1, "has no option 'lairs'. Did you mean 'layers'?", ["--set", "lairs=[1]"]),
            (1, "(got 'dataste')", ["--set", "level=dataste"]),
            (1, "layer 9 is outside the model", ["--set", "layers=[1, 9]"]),
            (1, "no anchor is labelled 'positive'", ["--method", "caa"]),
            (2, "'int8' is not one of", ["--dtype", "int8"]),
            (1, "unknown field 'text'", ["--columns", "text=txt"]),
            (2, "'layers' is not KEY=VALUE", ["--set", "layers"]),
            (2, "'seed' is given twice", ["--set", "seed=1", "--set", "seed=2"]),
            (2, "--batch-size", ["--batch-size", "0"]),
        ],
    )
    def test_wrong_options(self, files: Files, tmp_path: Path, code: int, message: str, changes: list[str]) -> None:
        found = run("extract", files.llava, files.anchors, "-o", tmp_path / "x.safetensors", *changes)
        assert (found.code, found.out) == (code, "")
        assert message in " ".join(found.err.split())
        assert "Traceback" not in found.err

    @pytest.mark.usefixtures("no_model")
    def test_wrong_files(self, files: Files, tmp_path: Path) -> None:
        new = tmp_path / "x.safetensors"
        for message, arguments in (
            ("exists", [files.llava, files.anchors, "-o", files.pack]),
            ("is a folder", [files.llava, files.anchors, "-o", tmp_path]),
            ("no file", [files.llava, "nothing.jsonl", "-o", new]),
            ("has no model config", [tmp_path, files.anchors, "-o", new]),
            ("'./no/such/model' has no model config", ["./no/such/model", files.anchors, "-o", new]),
        ):
            found = run("extract", *arguments)
            assert found.code == 1
            assert message in found.err
        assert not new.exists()

    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize(("kind", "hint"), [("qwen", "use Qwen2-VL or later"), ("unheard_of", "`steerkit new")])
    def test_a_repository_is_not_asked_to_run_its_code(
        self, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, hint: str
    ) -> None:
        def asked(*args: object) -> str:
            raise AssertionError("the user was asked whether to run code")

        monkeypatch.setattr("builtins.input", asked)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": {"AutoConfig": "c.C"}}))
        (tmp_path / "c.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
        for command in (
            ["extract", tmp_path, files.anchors, "-o", tmp_path / "x.safetensors"],
            ["generate", tmp_path, "What is this?"],
        ):
            found = run(*command)
            message = " ".join(found.err.split())
            assert found.code == 1
            assert f"no adapter serves model type '{kind}'" in message
            assert "AutoModelForImageTextToText" in message
            assert hint in message
        assert not (tmp_path / "ran").exists()


class TestGenerate:
    def test_json(self, files: Files) -> None:
        arguments = ["generate", files.llava, "What is this?", "--image", files.image, "--max-new-tokens", 6, "--json"]
        found = Generated.model_validate_json(
            run(*arguments, "--vector", files.pack, "--vector", files.pack, "--strength", 5, "--policy", "off").out
        )
        assert [used.strength for used in found.vectors] == [5.0, 5.0]
        assert found.vectors[0].sha256 == digest(files.pack)
        (answer,) = found.answers
        assert (answer.prompt, answer.images) == ("What is this?", [files.image])
        assert answer.steered not in (None, answer.unsteered)
        assert found.receipt is not None
        assert found.receipt.layers == [entry.layer for entry in found.receipt.sites] == [0, 1, 2, 3]
        assert found.receipt.prompt_tokens >= 1
        plain = Generated.model_validate_json(run(*arguments).out)
        assert (plain.receipt, plain.vectors, plain.answers[0].steered) == (None, [], None)
        assert plain.answers[0].unsteered == answer.unsteered

    def test_images_by_address(self, files: Files, tmp_path: Path) -> None:
        data = "data:image/png;base64," + base64.b64encode(Path(files.image).read_bytes()).decode()
        rows = [
            {"text": "What is this?", "image": files.image},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "url": data}, {"type": "text", "text": "What?"}]}
                ]
            },
        ]
        prompts = tmp_path / "prompts.json"
        prompts.write_text(json.dumps(rows, indent=1))
        options = ["--max-new-tokens", 4, "--json"]
        both = Generated.model_validate_json(run("generate", files.llava, "--samples", prompts, *options).out).answers
        assert [answer.images for answer in both] == [
            [files.image],
            [f"an image of a data: URI with {len(data)} characters"],
        ]
        uri = Path(files.image).as_uri()
        alone = run("generate", files.llava, "What is this?", "--image", uri, *options)
        assert Generated.model_validate_json(alone.out).answers[0].unsteered == both[0].unsteered
        web = ["generate", files.llava, "Hi", "--image", "http://127.0.0.1:9/cat.png"]
        for message, arguments in (
            ("--download on the command line", web),
            ("can't be downloaded", [*web, "--download"]),
        ):
            found = run(*arguments)
            assert (found.code, found.out) == (1, "")
            assert message in " ".join(found.err.split())

    def test_side_by_side(self, files: Files) -> None:
        found = run("generate", files.llava, "--samples", files.anchors, "--vector", files.pack, "--max-new-tokens", 2)
        assert found.code == 0, found.err
        assert found.out.count("unsteered") == SAMPLES
        assert "uninterrupted.safetensors x 1" in " ".join(found.out.split())
        assert "How do I make thing 11?  [11.png]" in found.out
        assert "steered 4 layers (0-3), 12 prompt" in found.out
        assert "Generating, steered: done" in found.err

    def test_progress_counts_tokens(self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[float] = []

        @contextmanager
        def recorded(label: str, **ignored: object) -> Iterator[Any]:
            yield lambda done, total: seen.append(done / total)

        monkeypatch.setattr("steerkit.cli.progress.progress", recorded)
        run("generate", files.llava, "--samples", files.anchors, "--max-new-tokens", 4, "--batch-size", 6)
        assert seen[0] == 0.125
        assert seen == sorted(seen)
        assert (len(seen), seen[-1]) == (10, 1.0)

    @pytest.mark.usefixtures("no_model")
    def test_errors(self, files: Files, tmp_path: Path) -> None:
        torn = tmp_path / "torn.safetensors"
        torn.write_bytes(Path(files.pack).read_bytes()[:-10])
        for code, message, arguments in (
            (1, "the vector (", [files.qwen, "hello", "--vector", files.pack]),
            (1, "none.png", [files.llava, "hello", "--image", "none.png"]),
            (1, "truncated", [files.llava, "hello", "--vector", torn]),
            (1, "'none.safetensors' does not exist", [files.llava, "hello", "--vector", "none.safetensors"]),
            (1, "2 strengths", [files.llava, "hello", "--vector", files.pack, "--strength", 1, "--strength", 2]),
            (1, "without a vector", [files.llava, "hello", "--strength", 1]),
            (1, "--strength is nan", [files.llava, "hello", "--vector", files.pack, "--strength", "nan"]),
            (1, "is empty", [files.llava, " "]),
            (2, "give either a PROMPT or --samples", [files.llava]),
            (2, "give either a PROMPT or --samples", [files.llava, "hello", "--samples", files.anchors]),
            (2, "names its own images", [files.llava, "--samples", files.anchors, "--image", files.image]),
        ):
            found = run("generate", *arguments)
            assert (found.code, found.out) == (code, ""), (arguments, found)
            assert message in " ".join(found.err.split())


class TestInspect:
    def test_needs_no_torch(self, files: Files) -> None:
        code = "import sys\nfrom steerkit.cli import main\ntry: main()\nfinally: print('TOP', *sys.modules)"
        for extra in ((), ("--json",)):
            out, err = python(code, "pack", "inspect", files.pack, *extra).communicate(timeout=60)
            assert not err
            assert not {"torch", "transformers"} & set(out.rpartition("TOP")[2].split())

    def test_json(self, files: Files) -> None:
        found = Inspected.model_validate_json(run("pack", "inspect", files.pack, "--json").out)
        assert found.metadata == read_pack(files.pack).document
        assert [entry.layer for entry in found.tensors] == [0, 1, 2, 3]
        assert found.tensors[2].norms == pytest.approx(
            [float(np.linalg.norm(read_pack(files.pack).array("directions.2.resid_post")))]
        )

    def test_every_field_and_a_bar_for_each_layer(self, files: Files) -> None:
        out = run("pack", "inspect", files.pack).out
        for key in (*read_pack(files.pack).document, "method.config.alpha", "interventions[0].operation.kind"):
            assert f"\n{key}" in out
        assert digest(files.pack) in out
        bars = [line.count("█") for line in out.splitlines() if "resid_post  " in line and "█" in line]
        assert len(bars) == 4
        assert max(bars) == 40

    def test_errors(self, files: Files, tmp_path: Path) -> None:
        torn = tmp_path / "torn.safetensors"
        torn.write_bytes(Path(files.pack).read_bytes()[:-10])
        found = run("pack", "inspect", torn)
        assert (found.code, found.out) == (1, "")
        lines = found.err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["error", "  expected", "  fix"]
        assert "Traceback" in run("pack", "inspect", torn, "--debug").err
        assert "Traceback" in run("--debug", "pack", "inspect", torn).err
        assert run("pack", "inspect").code == 2

    def test_what_a_pack_says_can_not_steer_the_terminal(self) -> None:
        assert clean("a\x1b[2J\x9bb\u202ec\nd") == r"a\x1b[2J\x9bb\u202ec" + "\nd"
        assert one_line("a\r\nb\u2028c\u2029\x85") == r"a\r b\u2028c\u2029\x85"


class TestLists:
    def test_models(self) -> None:
        rows = [AdapterRow.model_validate(row) for row in json.loads(run("models", "--json").out)["adapters"]]
        served = {row.name: row for row in rows}
        assert "qwen2_5_vl" in served["qwen_vl"].model_types
        assert served["llava"].distribution.startswith("steerkit-vlm ")
        assert "instructblip" in run("models").out

    def test_one_model_type(self) -> None:
        found = json.loads(run("models", "llava", "--json").out)
        assert (found["type"], found["level"]) == ("llava", "images and text")
        assert found["declared"]["needs"] == ["patch_size"]
        assert "layers" in found["asked"]
        assert "attention" in found["probed"]
        assert "video" in json.loads(run("models", "qwen2_vl", "--json").out)["also"]
        assert "layers" in run("models", "llava").out
        refused = json.loads(run("models", "diffusion_gemma", "--json").out)
        assert (refused["level"], "canvas" in refused["cannot"][0]) == ("refused", True)
        assert json.loads(run("models", "llama", "--json").out)["level"] == "text"
        assert run("models", "no_such_type").code == 1

    def test_methods(self) -> None:
        rows = [MethodRow.model_validate(row) for row in json.loads(run("methods", "--json").out)["methods"]]
        cmrm = next(row for row in rows if row.name == "cmrm")
        assert cmrm.paper == "arXiv 2410.09047"
        assert all(option.doc for row in rows for option in row.options)
        options = {option.name: option for option in cmrm.options}
        assert (options["level"].type, options["level"].default) == ("dataset | sample", "dataset")
        assert (options["layers"].type, options["layers"].default) == ("[int, ...] | null", None)
        assert options["seed"].doc == "Seed of noise images."
        out = run("methods").out
        assert all(each in out for each in ("refusal_direction", "arXiv 2312.06681", "alpha", "mixing"))

    def test_types_as_json(self) -> None:
        assert type_text(list[float] | None) == "[float] | null"
        assert next(option for option in describe(CMRM) if option["name"] == "counterpart")["type"] == "any"

    @pytest.mark.usefixtures("broken_plugins")
    @pytest.mark.parametrize(
        ("command", "key", "other"), [("models", "adapters", "llava"), ("methods", "methods", "cmrm")]
    )
    def test_a_broken_plugin_does_not_hide_the_others(self, command: str, key: str, other: str) -> None:
        rows = {row["name"]: row for row in json.loads(run(command, "--json").out)[key]}
        assert rows["torn"]["distribution"] == "torn 2.5"
        assert "cracked in two" in rows["torn"]["error"]
        assert rows[other]["error"] is None
        assert rows["torn"].keys() == rows[other].keys()
        found = run(command)
        assert found.code == 0
        assert "BROKEN" in found.out


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_bars_on_a_terminal_tell_the_time_left() -> None:
    import pty

    code = (
        "import time\nfrom steerkit.cli.progress import progress\n"
        "with progress('Extracting', total=40, done=10) as report:\n"
        "    for done in range(11, 41):\n        report(done, 40)\n        time.sleep(0.01)"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "COLUMNS": "100"})
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how Linux tells the end of a pseudo-terminal
        pass
    os.close(ours)
    assert process.wait() == 0
    assert all(word in shown.decode() for word in ("Extracting", "40/40", "left"))
