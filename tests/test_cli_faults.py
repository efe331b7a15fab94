"""What a terminal, a disk or a path does to a command: the documented error or plain output, for every command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_forks import Ended, Forks, forks
from hub_support import COMPLETE, vector
from PIL import Image

import steerkit as sk
from steerkit.cli.app import Group, Root

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full and limits of files as Linux has them")

EVIL = "a\x1b[2Jb\x1b]8;;http://x\x1b\\c\u202ed\u200be[red]f[/red][link=http://y]g[/link]\x9bh\x85i\u2028j\rk"


@pytest.fixture(scope="module")
def server() -> Iterator[Forks]:
    with forks() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples with an image, packs of it whose texts are hostile, and an index of them."""
    made = tmp_path_factory.mktemp("faults")
    tiny.save("llava", made / "model")
    Image.new("RGB", (32, 32), "red").save(made / "a.png")
    rows = [
        {"text": f"How {index}?", "image": "a.png", "label": label}
        for index, label in enumerate(("harmful", "harmless") * 2)
    ]
    (made / "anchors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{**row, "text": f"Why {index}?"} for index, row in enumerate(rows)]
    rows += [{"text": "What is shown?", "image": "a.png", "label": "utility", "answer": "red"}]
    (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = (("I cannot help with that.", "true"), ("Sure, take a bowl and mix it.", "false")) * 10
    labels = [f"How?,{answer!r},{refused}" for answer, refused in answers]
    (made / "labels.csv").write_text("\n".join(["request,answer,refused", *labels]).replace("'", '"'))
    vlm = sk.load(str(made / "model"))
    fitted = sk.CMRM().fit(vlm, sk.read_samples(made / "anchors.jsonl"))
    metric = {"name": EVIL, "value": 0.5, "condition": EVIL, "judge": EVIL, "dataset": EVIL}
    texts = {"description": EVIL, "authors": (EVIL,), "license": EVIL[:20], "metrics": (metric,)}
    hostile = {"method": {"name": EVIL, "config": {EVIL: EVIL}}, "history": (EVIL,)}
    fitted.with_metadata(**texts, **hostile).save(made / "v.safetensors")
    vector(model={**COMPLETE["model"], "id": EVIL, "architecture": EVIL, "hidden_size": 8}).save(made / "w.safetensors")
    return made


COMMANDS: dict[str, list[str]] = {
    "extract": ["model", "anchors.jsonl", "-o", "OUT"],
    "generate": ["model", "Hi", "--image", "a.png", "--vector", "v.safetensors", "--max-new-tokens", "2"],
    "compare": ["model", "anchors.jsonl", "--prompts", "prompts.jsonl", "--method", "cmrm", "--max-new-tokens", "2"],
    "calibrate": [
        *("model", "v.safetensors", "--prompts", "prompts.jsonl", "-o", "OUT"),
        *("--maximum", "1", "--tolerance", "0.5", "--max-new-tokens", "2"),
    ],
    "demo": ["--prompts", "1", "--no-plot", "-o", "OUT"],
    "merge": ["model", "all.state", "-o", "OUT"],
    "judge-check": ["labels.csv"],
    "push": [
        "v.safetensors",
        "a/b",
        "--dry-run",
        "--model-id",
        "a/b",
        "--model-revision",
        "f" * 40,
        "--anchor-name",
        "x",
    ],
    "pull": ["v.safetensors", "-o", "OUT"],
    "verify": ["v.safetensors"],
    "hub search": ["--index", "index.json"],
    "hub info": ["v.safetensors"],
    "hub list": [],
    "hub index": ["v.safetensors", "-o", "OUT"],
    "hub catalogue": ["index.json", "-o", "OUT"],
    "pack inspect": ["v.safetensors"],
    "pack diff": ["v.safetensors", "w.safetensors"],
    "pack convert": ["v.safetensors", "OUT", "--to", "repeng", "--lossy"],
    "pack sign": ["v.safetensors", "--key", "lab.key", "--force"],
    "doctor": [],
    "models": [],
    "methods": [],
    "formats": [],
    "new": ["method", "mean_centring_of_a_test", "--path", "OUT"],
}
"""Each command, and arguments with which it works."""

QUICK = ("hub search", "hub info", "hub list", "pack inspect", "pack diff", "formats", "methods")
"""Those that draw and need no model."""

WRITING = [name for name, args in COMMANDS.items() if "OUT" in args and name != "demo"]


def _names(group: type[Group] = Root, before: str = "") -> Iterator[str]:
    for section in group.table.values():
        for name, home in section.items():
            if isinstance(home, str):
                yield f"{before}{name}"
            else:
                yield from _names(home, f"{before}{name} ")


def test_every_command_is_here() -> None:
    again = {"hub push", "hub pull", "pack verify"}
    # these become servers of somebody else; a study is interrupted and spoilt in tests of its own
    assert {*_names()} == {*COMMANDS, "serve", "play", "study"} | again


@pytest.fixture(scope="module")
def prepared(server: Forks, folder: Path) -> Path:
    assert server.run("hub", "index", "v.safetensors", "-o", "index.json", cwd=folder).code == 0
    shard = ("--shard", "0/1", "-o", "all.state")
    assert server.run("extract", "model", "anchors.jsonl", *shard, cwd=folder).code == 0
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    form = serialization.PrivateFormat.PKCS8
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "lab.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return folder


def _run(server: Forks, name: str, folder: Path, out: object = "", *more: str, **how: Any) -> Ended:
    out = out or folder / f"out-{time.monotonic_ns()}"
    (folder / "v.safetensors.sig").unlink(missing_ok=True)  # what `pack sign` leaves there `push` would take along
    args = [str(out) if each == "OUT" else each for each in COMMANDS[name]]
    return server.run(*name.split(), *args, *more, cwd=folder, **how)


def _is_plain(ended: Ended) -> bool:
    """Whether nothing that was shown does anything but show itself."""
    text = ended.out + ended.err
    return all(char in "\n\t" or char.isprintable() for char in text) and "Traceback" not in text


def _is_one_error(ended: Ended) -> None:
    """One block of the documented form, after lines of progress."""
    assert ended.code == 1, ended
    heads = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(heads) == 1, ended
    assert "was not expected" not in ended.err, ended
    assert _is_plain(ended), ended


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_that_a_pack_says_steers_a_terminal(server: Forks, prepared: Path, name: str) -> None:
    ended = _run(server, name, prepared)
    assert _is_plain(ended), ended
    assert ended.code == (1 if name in ("verify", "doctor") and ended.code else 0), ended
    if name in ("hub info", "pack inspect", "pack diff", "push"):
        assert "[red]" in ended.out  # rich's markup is none here


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_behind_stdout_is_the_documented_error(server: Forks, prepared: Path, name: str) -> None:
    ended = _run(server, name, prepared, stdout="/dev/full")
    _is_one_error(ended)
    assert "error: the output can't be written: No space left on device" in ended.err


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("hub", "--help"), ("extract", "--help")])
def test_help_on_a_full_disk_is_the_documented_error(server: Forks, prepared: Path, args: tuple[str, ...]) -> None:
    _is_one_error(server.run(*args, cwd=prepared, stdout="/dev/full"))
    assert server.run(*args, cwd=prepared, stdout="closed") == Ended(1, "", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_left_is_no_news(server: Forks, prepared: Path, name: str) -> None:
    ended = _run(server, name, prepared, stdout="closed")
    assert ended.code == 1
    assert "error: " not in ended.err, ended
    assert _is_plain(ended)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [*((each, "ascii") for each in COMMANDS), *((each, "cp1252") for each in ("generate", *QUICK))],
)
def test_a_terminal_without_unicode_shows_what_it_can(server: Forks, prepared: Path, name: str, encoding: str) -> None:
    ended = _run(server, name, prepared, encoding=encoding)
    assert ended.code == (1 if name in ("verify", "doctor") and ended.code else 0), ended
    assert "Traceback" not in ended.err
    assert encoding != "ascii" or ended.out.isascii()
    assert r"\u25" not in ended.out  # lines and bars have their ASCII form


@pytest.mark.parametrize("name", WRITING)
def test_a_file_that_may_not_grow_is_the_documented_error(server: Forks, prepared: Path, name: str) -> None:
    ended = _run(server, name, prepared, prepared / f"limited-{name}", file_limit=16)
    _is_one_error(ended)
    assert f"limited-{name}" in ended.err
    assert not (prepared / f"limited-{name}").is_file()


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("kind", ["long", "folder", "file as a folder", "loop", "device"])
def test_an_output_that_can_not_be_is_the_documented_error(
    server: Forks, prepared: Path, tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    paths = {
        "long": "n" * 300,
        "folder": "folder",
        "file as a folder": "file/x",
        "loop": "loop/x",
        "device": "/dev/full",
    }
    if name == "new" and kind == "folder":
        pytest.skip("a folder is what it takes")
    force = () if name in ("new",) else ("--force",)
    ended = _run(server, name, prepared, tmp_path / paths[kind], *force)
    _is_one_error(ended)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("leads", ["nowhere", "itself"])
def test_a_link_that_leads_nowhere_is_not_replaced_unasked(
    server: Forks, prepared: Path, tmp_path: Path, name: str, leads: str
) -> None:
    link = tmp_path / ("steerkit-mean-centring-of-a-test" if name == "new" else "link")
    link.symlink_to(tmp_path / "none" if leads == "nowhere" else link)
    ended = _run(server, name, prepared, tmp_path if name == "new" else link)
    _is_one_error(ended)
    assert f"{str(link)!r} exists" in ended.err
    assert [*tmp_path.iterdir()] == [link]
    assert link.is_symlink()


def test_a_package_that_the_disk_has_no_room_for_leaves_nothing(server: Forks, prepared: Path, tmp_path: Path) -> None:
    assert _run(server, "new", prepared, tmp_path / "whole").code == 0
    sizes = {path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert len(sizes) > 2
    for size in sizes:  # whichever file is the first that does not fit
        _is_one_error(_run(server, "new", prepared, tmp_path / "half", file_limit=size - 1))
        assert [*(tmp_path / "half").iterdir()] == []


@pytest.mark.parametrize("name", ["hub info", "pull", "pack inspect", "verify"])
def test_a_revision_of_bytes_that_are_no_text_is_the_documented_error(server: Forks, prepared: Path, name: str) -> None:
    for revision in ("\udcff", "v1\x1b[2J"):
        ended = server.run(*name.split(), "hf://a/b", "--revision", revision, cwd=prepared)
        _is_one_error(ended)
        assert "is not a revision" in ended.err
        _is_one_error(_run(server, "push", prepared, "", "--license", "MIT", "--branch", revision))


def test_an_error_is_short_enough_to_be_read(server: Forks, prepared: Path) -> None:
    ended = _run(server, "pull", prepared, "n" * 50_000)
    _is_one_error(ended)
    assert max(map(len, ended.err.splitlines())) < 2100
    assert "File name too long" in ended.err


@pytest.mark.parametrize(
    ("name", "input_"),
    [
        *(("extract", each) for each in ("anchors.jsonl",)),
        *(("calibrate", each) for each in ("v.safetensors", "prompts.jsonl")),
        *((each, "v.safetensors") for each in ("pull", "hub index", "pack convert")),
        ("hub catalogue", "index.json"),
    ],
)
@pytest.mark.parametrize("way", ["itself", "another name", "link"])
def test_an_output_onto_an_input_is_refused_and_the_input_stays(
    server: Forks, prepared: Path, tmp_path: Path, name: str, input_: str, way: str
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(prepared, mine, ignore=shutil.ignore_patterns("out-*", "limited-*"))
    out = {"itself": mine / input_, "another name": mine / "model" / ".." / input_, "link": mine / "hard"}[way]
    os.link(mine / input_, mine / "hard")
    before = (mine / input_).read_bytes()
    _is_one_error(_run(server, name, mine, out, "--force"))
    assert (mine / input_).read_bytes() == before


BROKEN_CONFIGS = {
    "number": "3",
    "list": "[1]",
    "null": "null",
    "text": '"llava"',
    "empty": "",
    "type is a number": '{"model_type": 3}',
    "type is a list": '{"model_type": ["llava"]}',
    "parts are numbers": '{"model_type": "llava", "text_config": 3, "vision_config": []}',
    "sizes are texts": '{"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": "x"}}',
    "deep": "[" * 100_000,
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("config", BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS)
def test_a_model_whose_config_is_anything_else_is_the_documented_error(
    server: Forks, prepared: Path, tmp_path: Path, config: str
) -> None:
    (tmp_path / "config.json").write_bytes(config.encode(errors="surrogateescape"))
    _is_one_error(server.run("generate", tmp_path, "Hi", cwd=prepared))
    _is_one_error(server.run("pack", "convert", "a.bin", "o.safetensors", "--model-config", tmp_path, cwd=prepared))


@pytest.mark.parametrize("name", ["3", "[1]", "null", "", "a/b/c/d", "n" * 5000, "\x1b[2J", "http://x/y"])
def test_a_model_that_is_no_name_is_the_documented_error(server: Forks, prepared: Path, name: str) -> None:
    _is_one_error(server.run("generate", name, "Hi", cwd=prepared))


def _started(args: list[str], handler: str, folder: Path) -> subprocess.Popen[str]:
    """A process that runs the command as the installed script does, up to where Ctrl-C is in hand."""
    code = f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.{handler})
        sys.argv = ["steerkit", *{args!r}]
        from steerkit.cli import main
        print("on", flush=True)
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    return process


@pytest.mark.parametrize("delay", [0.02, 0.06, 0.12, 0.25, 0.5, 1, 2.5])
@pytest.mark.parametrize("args", [["models"], ["hub", "list"], ["--help"]], ids=" ".join)
def test_ctrl_c_at_any_moment_ends_with_130_and_one_line(args: list[str], delay: float, tmp_path: Path) -> None:
    with _started(args, "default_int_handler", tmp_path) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    shown = [line for line in err.splitlines() if not line.startswith("Importing torch")]
    assert (process.returncode, shown) in ((130, ["Stopped."]), (0, []))


def test_a_command_in_the_background_ignores_ctrl_c_as_the_shell_wants(tmp_path: Path) -> None:
    with _started(["hub", "list"], "SIG_IGN", tmp_path) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, "cmrm-llava-demo" in out) == (0, True)
