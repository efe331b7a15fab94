"""Whatever steerkit reads may be a FIFO, a device or a huge file by the time that it is opened.

Each reader meets each of them in a process of its own that may not take much memory: it has to answer at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """if True:
    import resource, sys
    from pathlib import Path
    import torch, transformers
    import steerkit as sk
    from steerkit.errors import SteerKitError
    path = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
"""

READERS = {
    ".safetensors": {
        "pack": "sk.SteeringVector.load(path)",
        "load_vector": "sk.load_vector(path)",
        "state": "from steerkit.methods import State; State.load(path)",
        "foreign safetensors": (
            "from steerkit_vectors_hub.interop.containers import load_safetensors; load_safetensors(path)"
        ),
    },
    ".json": {
        "index": "from steerkit_vectors_hub.index import read_index; read_index(path)",
        "canaries": "from steerkit_vectors_hub.screening.canaries import read_canaries; read_canaries(path)",
        "foreign json": (
            "from steerkit_vectors_hub.interop.activation_steering import ActivationSteering;"
            "from steerkit_vectors_hub.interop.base import Choice;"
            "ActivationSteering().read(path, Choice())"
        ),
    },
    ".jsonl": {"samples": "sk.read_samples(path)"},
    ".csv": {"samples of a table": "sk.read_samples(path)"},
    ".toml": {"trust": "from steerkit_vectors_hub.signing.trust import read_trust; read_trust(path)"},
    ".sig": {"signature": "from steerkit_vectors_hub.signing.bundle import read_signature; read_signature(path)"},
    ".pem": {
        "key": "from steerkit_vectors_hub.signing.signer import _checked_key; _checked_key(path, None)",
        "certificate": "from steerkit_vectors_hub.signing.signer import _check_certificate; _check_certificate(path)",
    },
    ".pt": {"torch file": "from steerkit_vectors_hub.interop.containers import load_torch; load_torch(path)"},
    ".gguf": {
        "gguf": "from steerkit_vectors_hub.interop.llama_cpp import read_control_vector; read_control_vector(path)",
    },
}
CASES = [(suffix, name) for suffix, readers in READERS.items() for name in readers]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], str]:
    """What each reader says of each kind of file."""
    folder = tmp_path_factory.mktemp("files")
    code, keys = [PRELUDE], []
    for suffix, name in CASES:
        for kind in ("fifo", "zero", "large"):
            path = folder / f"{kind}{suffix}"
            if not os.path.lexists(path):
                if kind == "fifo":
                    os.mkfifo(path)
                elif kind == "zero":
                    path.symlink_to("/dev/zero")
                else:
                    with path.open("wb") as file:
                        file.truncate(2**40)  # a hole: it takes no space
            keys.append((suffix, name, kind))
            statements = READERS[suffix][name]
            code.append(
                f"    try:\n        path = Path({str(path)!r})\n        {statements}\n        print('read it')\n"
                "    except SteerKitError as error:\n        print('refused:', str(error).replace(chr(10), ' '))\n"
                "    except BaseException as error:\n        print(repr(error).replace(chr(10), ' '))\n"
            )
    command = [sys.executable, "-c", "".join(code), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(keys), done.stderr[-3000:]
    return dict(zip(keys, lines, strict=True))


@pytest.mark.parametrize("kind", ["fifo", "zero", "large"])
@pytest.mark.parametrize(("suffix", "name"), CASES)
def test_a_reader_refuses_what_is_no_file_of_its_size(
    answers: dict[tuple[str, str, str], str], suffix: str, name: str, kind: str
) -> None:
    said = answers[suffix, name, kind]
    assert said.startswith("refused: "), said
    assert f"{kind}{suffix}" in said
    assert ("at most" if kind == "large" else "is not a regular file") in said


def test_a_pack_that_grows_after_it_was_opened_is_not_read_on(tmp_path: Path) -> None:
    """The size counts that the file had when it was opened, however fast somebody appends to it."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x" * 2**24)
    code = """if True:
        import resource, sys, threading
        import steerkit as sk, torch, transformers
        from steerkit.errors import PackFormatError
        resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
        ended = threading.Event()
        def grow():
            with open(sys.argv[1], "r+b") as file:
                size = 2**24
                while not ended.is_set() and size < 2**41:
                    size *= 2
                    file.truncate(size)
        grower = threading.Thread(target=grow)
        grower.start()
        try:
            sk.SteeringVector.load(sys.argv[1])
        except PackFormatError as error:
            print("refused")
        ended.set()
        grower.join()
    """
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\n", done.stderr[-2000:]
