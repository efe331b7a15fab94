"""Check what a wheel holds: all packages and their data, nothing of the tests or of training, and not too much."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LIMIT = 12 * 2**20
ROOTS = ("steerkit/", "steerkit_adapters/", "steerkit_vectors_hub/", "steerkit_vlm/", "steerkit_vlm-")
NEEDED = (
    "steerkit/py.typed",
    *(str(path) for path in Path("steerkit").rglob("*.pyi")),
    "steerkit_adapters/py.typed",
    "steerkit_vectors_hub/py.typed",
    "steerkit_vectors_hub/schema/index-v1.json",
    "steerkit_vectors_hub/page/catalogue.css",
    "steerkit_vectors_hub/page/catalogue.js",
    *(str(path) for path in Path("steerkit/cli/templates").rglob("*") if path.is_file()),
    "steerkit/demo/models/llava/model.safetensors",
    "steerkit/testing/tiny/families.json",
    *(str(path) for name in ("models", "data") for path in Path("steerkit/demo", name).rglob("*") if path.is_file()),
)


def main(path: Path) -> None:
    """Exit with a message at the first thing that is wrong."""
    names = zipfile.ZipFile(path).namelist()
    for name in names:
        parts = Path(name).parts
        if not name.startswith(ROOTS):
            sys.exit(f"{name} is outside the packages")
        if parts[-1].startswith(("test_", "conftest")) or {"tests", "demo_training"} & set(parts):
            sys.exit(f"{name} belongs to the tests or to the training of the demo models")
        if name not in NEEDED and parts[-1].endswith((".log", ".jsonl", ".pyc")):
            sys.exit(f"{name} is a leftover")
    for name in NEEDED:
        if name not in names:
            sys.exit(f"{name} is missing")
    if path.stat().st_size > LIMIT:
        sys.exit(f"the wheel has {path.stat().st_size} bytes, more than {LIMIT}")
    print(f"{len(names)} files, {path.stat().st_size / 2**20:.1f} MiB")


main(Path(sys.argv[1]))
