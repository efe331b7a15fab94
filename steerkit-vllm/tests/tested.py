"""Which types of models are compared in which configurations: the tests run this, and the page on vLLM shows it."""

from __future__ import annotations

from typing import Any

V2 = {"STEERKIT_TEST_V2": "1"}
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "V1, eager": ({}, {}),
    "V1, compiled": ({"enforce_eager": False}, {}),
    "V2, eager": ({"max_num_seqs": 16}, V2),
    "V2, compiled": ({"enforce_eager": False, "max_num_seqs": 16}, V2),
}
"""Arguments of `vllm.LLM` and environment variables, by name."""

CI, LONG = "`.ci/run`", "`-m long`"
EVERY = dict.fromkeys(CONFIGURATIONS, LONG)
FIRST = {name: LONG for name in CONFIGURATIONS if name.startswith("V1")}
TYPES: dict[str, dict[str, str]] = {
    "qwen2_5_vl": EVERY | {"V1, eager": CI},
    "qwen3_vl": EVERY,
    "qwen2_vl": EVERY,
    "llava_next": EVERY,
    "llava_onevision": EVERY,
    "qwen3_5": FIRST,
    "llama": EVERY,
    "qwen2": EVERY,
    "qwen3": EVERY,
    "gemma2": EVERY,
    "gemma3_text": EVERY,
}
"""By type and configuration, what runs the comparison; nothing where none was made."""

DEMO = dict.fromkeys(CONFIGURATIONS, CI)
"""The demo's LLaVA, in `test_engine.py` and `test_compiled.py`."""


def table() -> list[str]:
    """The lines of the page."""
    rows = {"llava (the demo)": DEMO, **{f"`{name}`": found for name, found in TYPES.items()}}
    head = f"| type | {' | '.join(CONFIGURATIONS)} |"
    lines = (
        f"| {name} | {' | '.join(found.get(each, '-') for each in CONFIGURATIONS)} |" for name, found in rows.items()
    )
    return [head, "| --- " * (1 + len(CONFIGURATIONS)) + "|", *lines]
