"""The table of tested types, `tested.json`, which the bench in tests/breadth writes; and which models are like them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def tested() -> dict[str, dict[str, Any]]:
    """`{model type: row}`: its level, what it can't do, what it needs; empty where there is no table."""
    table = files("steerkit.models") / "tested.json"
    if not table.is_file():
        return {}
    document = json.loads(table.read_text(encoding="utf-8"))
    return document["types"] | document.get("text", {})


def as_tested(config: Any) -> bool:
    """Whether a model's type was tested, and its config is as it was then, but for numbers.

    What was tested is the config that transformers makes of a type by default, made small. Compared with it are the
    types of the parts, what is on or off, and which kinds of layers there are.
    """
    levels = ("images and text", "images", "text")
    return tested().get(config.model_type, {}).get("level") in levels and _kinds(config) == _default_kinds(type(config))


@cache
def _default_kinds(kind: type[Any]) -> frozenset[tuple[str, Any]] | None:
    try:
        return _kinds(kind())
    except Exception:  # of which there is no default: its parts have to be given
        return None


def _kinds(config: Any) -> frozenset[tuple[str, Any]]:
    """What a config and its parts say that is no number, apart from what every config of transformers says."""
    from transformers import PreTrainedConfig

    everywhere = {*PreTrainedConfig().to_dict(), "tie_word_embeddings", "use_cache"}
    found: set[tuple[str, Any]] = set()

    def visit(part: Mapping[str, Any], path: str) -> None:
        for key, value in part.items():
            name = f"{path}.{key}"
            if isinstance(value, Mapping) and "model_type" in value:
                visit(value, name)
            elif key == "model_type":
                found.add((name, value))
            elif key in everywhere:
                continue
            elif isinstance(value, bool):
                found.add((name, value))
            elif value and isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
                found.add((name, frozenset(value)))

    visit(config.to_dict(), "")
    return frozenset(found)
