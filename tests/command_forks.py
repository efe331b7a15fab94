"""Runs the `steerkit` command many times in real processes, with the libraries imported once.

A server imports what is slow and forks for every request. Each child has streams, limits and an end of its own, as a
process started by a shell has: what its exit code is, and what a terminal would have shown.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a command ended; negative codes are signals, as in `subprocess`."""

    code: int
    out: str
    err: str


class Forks:
    """The server, from the side of the tests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *args: object, cwd: Path, **how: Any) -> Ended:
        """Run a command.

        Args:
            *args: Its arguments.
            cwd: Where.
            **how: `stdout`: a path, or "closed" for a pipe that nobody reads; `encoding`: of both streams;
                `file_limit`: the most bytes that a file may get.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"args": [str(each) for each in args], "cwd": str(cwd), **how}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@contextmanager
def forks() -> Iterator[Forks]:
    """A server for the time of a test session."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        try:
            yield Forks(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _serve() -> None:
    import torch
    import transformers

    import steerkit_vectors_hub.verify  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out:  # stderr is a pipe, which no limit of file sizes cuts
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                _be_the_command(json.loads(line), out.fileno(), writing)
            os.close(writing)
            with open(reading, "rb") as err:  # noqa: PTH123
                told = err.read()
            _, status = os.waitpid(child, 0)
            out.seek(0)
            texts = {"out": out.read().decode(errors="replace"), "err": told.decode(errors="replace")}
            print(json.dumps({"code": os.waitstatus_to_exitcode(status), **texts}), flush=True)


def _be_the_command(request: dict[str, Any], out: int, err: int) -> None:
    import signal

    code: Any = 70
    try:
        os.chdir(request["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        target = request.get("stdout")
        if target == "closed":
            reading, out = os.pipe()
            os.close(reading)
        elif target is not None:
            out = os.open(target, os.O_WRONLY)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        encoding = request.get("encoding", "utf-8")
        for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
            raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, errors=errors, line_buffering=number == 2))
        if "file_limit" in request:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        sys.argv = ["steerkit", *request["args"]]
        from steerkit.cli import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        try:
            sys.stdout.flush()
        except OSError:
            code = 120  # as the interpreter has it
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    os._exit(code)


if __name__ == "__main__":
    _serve()
