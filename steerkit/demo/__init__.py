"""Demo models whose safety alignment holds for text alone, and the toy world they live in."""

from __future__ import annotations

from pathlib import Path

from steerkit.errors import UnknownNameError

MODELS = ("llava", "qwen2_5_vl", "instructblip")
"""The bundled models, one per family."""


def model_path(name: str = "llava") -> str:
    """The folder of a bundled demo model, for `steerkit.load`.

    Raises:
        UnknownNameError: There is no such model.
    """
    if name not in MODELS:
        raise UnknownNameError(f"no demo model {name!r}", expected="one of " + ", ".join(MODELS))
    return str(Path(__file__).parent / "models" / name)
