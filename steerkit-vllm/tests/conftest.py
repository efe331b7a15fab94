"""One folder with the model, the packs and the answers of transformers, for every engine that the tests start."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
STARTUP = HERE / "startup"
runpy.run_path(str(STARTUP / "sitecustomize.py"))  # here as in the processes that are started below


def environment(**extra: str) -> dict[str, str]:
    """What vLLM needs to run on the CPU of a small machine."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(STARTUP), os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        **extra,
    }


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lab import build

    kept = os.environ.get("STEERKIT_VLLM_LAB")
    return build(Path(kept) if kept else tmp_path_factory.mktemp("lab"))


def ask(script: str, folder: Path, job: dict[str, Any], **env: str) -> dict[str, Any]:
    """Run a script of this folder in a process of its own, and return the JSON that it prints."""
    reader, writer = os.pipe()
    command = [sys.executable, str(HERE / script), str(folder), json.dumps({**job, "output": writer})]
    done = subprocess.run(
        command, env=environment(**env), pass_fds=(writer,), capture_output=True, text=True, check=False, timeout=1200
    )
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    assert done.returncode == 0 and said, done.stdout[-4000:] + done.stderr[-8000:]  # noqa: PT018
    return json.loads(said)


@pytest.fixture(scope="session")
def compare(lab: Any) -> Callable[..., dict[str, Any]]:
    """Run `compare.py` in a configuration, and return what it found."""

    def run(*parts: str, options: dict[str, Any] | None = None, only: list[str] | None = None, **env: str) -> Any:
        return ask("compare.py", lab.folder, {"parts": parts, "options": options or {}, "only": only}, **env)

    return run
