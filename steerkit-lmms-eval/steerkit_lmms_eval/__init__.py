"""lmms-eval on steered vision-language models: the model `steerkit`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval asks its plug-ins for when it starts; the model itself is imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("steerkit", chat_class_path="steerkit_lmms_eval.model.Steerkit")
