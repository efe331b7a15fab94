"""The run that is prepared for a GPU, on a tiny model and without one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import HERE, environment


@pytest.mark.long
def test_every_step_comes_to_its_end(tmp_path):
    command = [sys.executable, str(HERE.parents[1] / "benchmarks" / "gpu.py"), str(tmp_path)]
    subprocess.run([*command, "--preset", "tiny", "--device", "cpu"], env=environment(), check=True, timeout=900)
    ended = json.loads((tmp_path / "gpu.json").read_text())
    said = {name: (tmp_path / f"{name}.out").read_text() for name in ("equality", "hooks", "serving")}
    for name in said:
        assert ended[name]["ended"] == "exit status 0", (tmp_path / f"{name}.err").read_text()[-3000:]
    (found,) = [json.loads(line) for line in said["equality"].splitlines() if line.startswith("{")]
    assert found["mixed"] == {"plain": [], "last@1": [], "last@4": []}
    assert "3 norm preserving, not summed" in said["hooks"]
    rows = [line.split("|")[1:3] for line in said["serving"].splitlines() if line.startswith("| ")][2:]
    kinds = ("idle", "steered", "distinct")
    assert [[cell.strip() for cell in row] for row in rows] == [[n, kind] for n in ("1", "2") for kind in kinds]
