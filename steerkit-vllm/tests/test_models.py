"""Other models than the demo's, tiny and with random weights, beside transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tested import CI, CONFIGURATIONS, TYPES, V2, table

ROUNDED = "qwen3_5"
"""Hybrid attention, which vLLM's CPU build computes in bfloat16 alone."""

CELLS = [
    pytest.param(name, configuration, id=f"{name}, {configuration}", marks=() if by == CI else pytest.mark.long)
    for name, found in TYPES.items()
    for configuration, by in found.items()
]


@pytest.mark.parametrize(("name", "configuration"), CELLS)
def test_answers_equal_those_of_transformers(ask, tmp_path, name, configuration):
    options, env = CONFIGURATIONS[configuration]
    if name == ROUNDED:
        found = ask(job(name, tmp_path, dtype="bfloat16", **options), **env)
        assert all(off < 0.1 for off in found["off"].values()), found
        assert all(moved > 0.15 for pack, moved in found["moved"].items() if pack), found
        return
    # a random subspace holds too little of Gemma's large states for its removal to change an answer
    check(ask(job(name, tmp_path, **options), **env), unmoved=("ablate",) if name.startswith("gemma") else ())


def test_the_page_shows_what_is_tested():
    page = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")
    assert "\n".join(["", "", *table(), "", ""]) in page


@pytest.mark.long
@pytest.mark.parametrize("runner", [pytest.param({}, id="V1"), pytest.param(V2, id="V2")])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_images_that_are_read_in_chunks(ask, tmp_path, name, runner):
    check(ask(job(name, tmp_path, max_num_batched_tokens=16, max_num_seqs=8), **runner))


@pytest.mark.parametrize("runner", [pytest.param({}, id="V1"), pytest.param(V2, id="V2", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["llama", pytest.param("llava_next", marks=pytest.mark.long)])
def test_requests_with_different_adapters_and_with_none_in_one_batch(ask, tmp_path, name, runner):
    check(ask(job(name, tmp_path, lora=True), **runner))


def job(name, folder, lora=False, **options):
    return {"model": name, "folder": str(folder), "options": options, "lora": lora}


def check(found, unmoved=()):
    assert found["wrong"] == [], found
    assert found["compared"] >= 16
    assert all(count for name, count in found["moved"].items() if name not in unmoved), found["moved"]
