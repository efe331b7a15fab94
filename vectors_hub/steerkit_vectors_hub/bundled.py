"""The packs that come with steerkit, by name."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "packs"
"""Holds the packs and `index.json`; `python -m demo_training.write_packs` writes it."""

INDEX = "index.json"


def bundled_names() -> list[str]:
    """The names of the bundled packs."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def bundled_path(name: str) -> Path | None:
    """The file of a bundled pack; None if there is none of this name."""
    return FOLDER / f"{name}.safetensors" if name in bundled_names() else None
