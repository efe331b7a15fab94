"""One folder with the model, the packs and the answers of transformers, and one process for most of the engines."""

from __future__ import annotations

import json
import os
import runpy
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
STARTUP = HERE / "startup"
LIMIT = 1800
"""Seconds after which an engine is taken to hang; to compile for every pack at once takes about five minutes."""
if str(STARTUP) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    runpy.run_path(str(STARTUP / "sitecustomize.py"))  # here as in every process that is started
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STARTUP), os.environ.get("PYTHONPATH"))))


def environment(**extra: str) -> dict[str, str]:
    """What vLLM needs to run on the CPU of a small machine."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
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
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(kept) if kept else shared / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["VLLM_CACHE_ROOT"] = str(folder / "cache")  # what other runs have compiled would be taken untested
    with FileLock(folder / "lock"):
        return build(folder)


class Engines:
    """A process that starts one engine after another: `compare.py`.

    Engines run in the process itself, which saves the start of two others for each; `test_server.py` has vLLM's own
    division of work.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        reader, writer = os.pipe()
        self._said = os.fdopen(reader)
        self._log = folder / f"engines-{os.getpid()}-{writer}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "compare.py"), str(folder), str(writer)],
                env=environment(**{"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **env}),
                pass_fds=(writer,),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        os.close(writer)

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """What came of a job."""
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        if not select.select([self._said], [], [], LIMIT)[0]:
            self._process.kill()
            pytest.fail(f"no answer within {LIMIT} s to {job}: {self._log.read_text()[-8000:]}")
        said = self._said.readline()
        assert said, f"the process is gone: {self._log.read_text()[-8000:]}"
        found = json.loads(said)
        assert "error" not in found, found["error"] + found["trace"] + self._log.read_text()[-4000:]
        return found

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._said.close()


@pytest.fixture(scope="session")
def ask(lab: Any) -> Iterator[Callable[..., dict[str, Any]]]:
    """Have a job done in the process for its environment variables."""
    kept: dict[tuple[tuple[str, str], ...], Engines] = {}

    def run(job: dict[str, Any], **env: str) -> dict[str, Any]:
        key = tuple(sorted(env.items()))
        if key not in kept:
            for each in kept.values():
                each.stop()  # two at once would need the memory of two
            kept.clear()
            kept[key] = Engines(lab.folder, env)
        return kept[key].ask(job)

    yield run
    for each in kept.values():
        each.stop()


@pytest.fixture(scope="session")
def compare(ask: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Have parts of `compare.py` run on an engine with some options, and return what they found."""

    def run(*parts: str, options: dict[str, Any] | None = None, only: list[str] | None = None, **env: str) -> Any:
        return ask({"parts": parts, "options": options or {}, "only": only}, **env)

    return run
