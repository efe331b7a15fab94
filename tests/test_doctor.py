"""`steerkit doctor`: what it finds wrong, in installations made for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import steerkit
from steerkit._internal import plugins
from steerkit.cli import doctor
from steerkit.cli.app import app
from steerkit_vectors_hub import installation
from steerkit_vectors_hub.installation import problems

SOURCE = Path(steerkit.__file__ or "").parent
OPTIONAL = {"gguf>=0.17": "gguf", "pyarrow>=15": "parquet", "gradio<7,>=6": "play"}


def _record(site: Path, name: str, version: str, files: list[Path], **metadata: str) -> None:
    """The .dist-info that pip writes for files it installed."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    head = {"Metadata-Version": "2.1", "Name": name, "Version": version}
    (info / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in head.items()))
    for each, text in metadata.items():
        (info / each).write_text(text)
    lines = []
    for file in files:
        data = (site / file).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{file},sha256={digest},{len(data)}\n")
    (info / "RECORD").write_text("".join(lines))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with our packages as a wheel of ours would have left them, the command line among them."""
    made = tmp_path / "site"
    heavy = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.jsonl")
    shutil.copytree(SOURCE, made / "steerkit", ignore=heavy)
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    _record(made, "steerkit-vlm", "0.1.0", files)
    return made


def _other(site: Path, version: str = "0.3.1") -> None:
    """What pip does for an unrelated distribution of our import name: it writes over the files that are there."""
    (site / "steerkit/__init__.py").write_text("'''Another steerkit.'''\n")
    (site / "steerkit/probes.py").write_text("x = 1\n")
    _record(site, "steerkit", version, [Path("steerkit/__init__.py"), Path("steerkit/probes.py")])


def _found(site: Path) -> list[str]:
    """The problems of an installation, found in a process that has no other on its path."""
    code = f"""
        import json, sys
        from importlib.util import module_from_spec, spec_from_file_location
        from pathlib import Path

        sys.path = [{str(site)!r}, *(each for each in sys.path if "site-packages" not in each)]
        spec = spec_from_file_location("installation", {installation.__file__!r})
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        print(json.dumps(list(module.problems(Path({str(site / "steerkit")!r})))))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [problem for problem, _ in json.loads(done.stdout)]


def test_a_sound_installation_has_no_problem(site: Path) -> None:
    assert _found(site) == []


def test_another_distribution_of_our_import_name_is_found_with_what_it_overwrote(site: Path) -> None:
    _other(site)
    other, changed = _found(site)
    assert other == "steerkit 0.3.1 installs files of steerkit as well"
    assert changed == "1 files of steerkit-vlm are not those that were installed: steerkit/__init__.py"


def test_what_its_removal_took_away_is_found(site: Path) -> None:
    _other(site)
    for each in ("steerkit/__init__.py", "steerkit/probes.py"):
        (site / each).unlink()
    shutil.rmtree(site / "steerkit-0.3.1.dist-info")
    assert _found(site) == ["1 files of steerkit-vlm are missing: steerkit/__init__.py"]


def test_ours_installed_over_the_other_is_found_too(site: Path) -> None:
    _record(site, "SteerKit", "0.3.1", [Path("steerkit/__init__.py")])
    assert _found(site) == ["SteerKit 0.3.1 installs files of steerkit as well"]


def test_a_file_that_was_edited_is_found(site: Path) -> None:
    with (site / "steerkit/errors.py").open("a") as file:
        file.write("# edited\n")
    assert _found(site) == ["1 files of steerkit-vlm are not those that were installed: steerkit/errors.py"]


def test_a_command_that_another_distribution_replaced_is_found(site: Path) -> None:
    (site / "bin").mkdir()
    (site / "bin/steerkit").write_text("ours")
    shutil.rmtree(site / "steerkit_vlm-0.1.0.dist-info")
    _record(site, "steerkit-vlm", "0.1.0", [Path("bin/steerkit"), Path("steerkit/errors.py")])
    (site / "bin/steerkit").write_text("another's")
    assert _found(site) == ["1 files of steerkit-vlm are not those that were installed: bin/steerkit"]


def test_no_distribution_at_all_is_found(site: Path) -> None:
    shutil.rmtree(site / "steerkit_vlm-0.1.0.dist-info")
    (problem,) = _found(site)
    assert problem.startswith("no distribution 'steerkit-vlm' is installed")


def test_the_command_itself_still_runs_where_the_other_overwrote_the_face_of_the_package(site: Path) -> None:
    _other(site)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    code = "import sys; sys.argv = ['steerkit', 'doctor', '--json']; from steerkit.cli import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site, check=False)
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (1, False)
    assert any("steerkit 0.3.1 installs files" in each["message"] for each in document["checks"])


@pytest.mark.parametrize(
    "code",
    [
        "from steerkit_vlm import main; main()",
        "import runpy; runpy.run_module('steerkit_vectors_hub.installation', run_name='__main__')",
    ],
    ids=["the command", "the module"],
)
def test_where_the_other_can_not_be_imported_it_is_said_whose_it_is(site: Path, code: str) -> None:
    _other(site)
    (site / "steerkit/__init__.py").write_text("import something_that_is_not_installed\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-c", f"import sys; sys.argv = ['steerkit', 'models']; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site, check=False)
    assert done.returncode == 1
    assert "error: steerkit 0.3.1 installs files of steerkit as well" in done.stderr
    assert "fix: pip uninstall steerkit, then pip install --force-reinstall" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_import_says_what_happened(site: Path) -> None:
    """As the published one does: a name that its own module has is looked for in a package of ours."""
    _other(site)
    (site / "steerkit/__init__.py").write_text("from .models import ModelHandle, load\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-c", "import steerkit"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {site / 'steerkit/__init__.py'} is another distribution's")
    assert "`steerkit-vlm doctor`" in last


def test_another_folder_on_the_path_is_found(tmp_path: Path) -> None:
    shadow = tmp_path / "steerkit"
    shadow.mkdir()
    assert any(f"steerkit is imported from {shadow}" in problem for problem, _ in problems(shadow))


Only = Callable[[str], dict[str, list[str]]]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """Runs one check of the doctor and returns its findings by status."""

    def run(section: str) -> dict[str, list[str]]:
        monkeypatch.setattr(doctor, "_CHECKS", {section: doctor._CHECKS[section]})
        done = CliRunner().invoke(app, ["doctor", "--json"])
        found: dict[str, list[str]] = {"pass": [], "skip": [], "fail": []}
        for each in json.loads(done.stdout)["checks"]:
            found[each["status"]].append(each["message"])
        assert done.exit_code == (1 if found["fail"] else 0)
        return found

    return run


def test_versions_out_of_bounds_and_extras_that_are_missing(only: Only, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = only("versions")
    assert sound["fail"] == []
    assert any(each.startswith("torch ") for each in sound["pass"])
    installed = plugins.version_of
    changed = {"torch": "1.9.0", "gguf": None, "pyarrow": None, "rich": None}
    monkeypatch.setattr(plugins, "version_of", lambda name: changed.get(name, installed(name)))
    found = only("versions")
    wrong = {each.partition(",")[0] for each in found["fail"]}
    assert wrong == {"rich>=13 is not installed", "torch 1.9.0 is installed"}
    assert set(found["skip"]) == {f"{each} is not installed (extra {extra})" for each, extra in OPTIONAL.items()}


def test_a_plugin_that_does_not_load(only: Only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.py").write_text("raise RuntimeError('cracked in two')\n")
    _record(tmp_path, "torn", "2.5", [], **{"entry_points.txt": "[steerkit.methods]\ntorn = torn:M\n"})
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.forget()
    (problem,) = only("methods")["fail"]
    assert problem.startswith("torn of torn 2.5: ")
    assert "cracked in two" in problem
    monkeypatch.undo()
    plugins.forget()


def test_a_cache_that_can_not_be_written(only: Only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEERKIT_CACHE", str(tmp_path / "file" / "cache"))
    (problem,) = only("caches")["fail"]
    assert "can't be written: Not a directory" in problem


def test_a_trust_file_that_can_not_be_read(only: Only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trust.toml").write_text("requires = 1\n")
    monkeypatch.setenv("STEERKIT_TRUST", str(tmp_path / "trust.toml"))
    (problem,) = only("trust file")["fail"]
    assert "requires" in problem


def test_engines_devices_and_the_rest_are_shown() -> None:
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    for words in ("steerkit 0.1.0 in", "cmrm", "llava", "repeng", "nnsight", "CPU", "packs in", "trust.toml"):
        assert words in shown, words
    assert steerkit.__version__ in shown
