"""The table of tested types: `tested.json`, written by the bench of all types in tests/breadth."""

from __future__ import annotations

import json
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
