"""What the tests of the vectors hub share: packs, a cache, a hub, and a process of their own that loads one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub, running_hub

from steerkit.vectors import Key, PackMetadata, SteeringVector

COMPLETE = {
    "license": "MIT",
    "model": {
        "id": "owner/model",
        "revision": "0" * 39 + "1",
        "architecture": "LlavaForConditionalGeneration",
        "model_type": "llava",
        "hidden_size": 8,
        "layer_count": 4,
    },
    "anchors": {"name": "things & <others>", "sha256": "a" * 64, "size": 12, "license": "CC0-1.0", "labels": {}},
    "description": "Restores refusals | with an image.",
    "metrics": [
        {"name": "unsafe_rate", "value": 0.05, "condition": "steered", "judge": "exact match", "dataset": "toy world"},
        {"name": "over_refusal", "value": 0.01},
    ],
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no token or offline mode of the machine's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("STEERKIT_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "STEERKIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A hub without repositories, that the environment points to."""
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def vector(seed: int = 0, width: int = 8, **fields: object) -> SteeringVector:
    """A vector of four layers with the metadata that publishing needs."""
    generator = torch.Generator().manual_seed(seed)
    model = {**COMPLETE["model"], "hidden_size": width}  # type: ignore[dict-item]
    document = {"method": {"name": "cmrm"}, "interventions": [{}], **COMPLETE, "model": model, **fields}
    tensors = {Key(layer): torch.randn(width, generator=generator) for layer in range(4)}
    return SteeringVector(tensors, PackMetadata.model_validate(document))


def pack(folder: Path, seed: int = 0, width: int = 8) -> bytes:
    """The bytes of a pack."""
    path = vector(seed, width).save(folder / f"made-{seed}-{width}.safetensors")
    data = path.read_bytes()
    path.unlink()
    return data


def loading(ref: str, **environment: str) -> subprocess.Popen[str]:
    """A process that resolves a reference and prints where it is, its digest, and whether it was transferred."""
    code = (
        "import sys\nimport huggingface_hub.file_download, huggingface_hub.hf_api\n"
        "from steerkit_vectors_hub.resolve import resolve\n"
        "print('ready', flush=True)\nfound = resolve(sys.argv[1])\nfound.read()\n"
        "print(found.path, found.sha256, found.transferred)"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "error", "-c", code, ref]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})
