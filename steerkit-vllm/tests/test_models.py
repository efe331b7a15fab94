"""Other models than the demo's, tiny and with random weights, beside transformers."""

from __future__ import annotations

import pytest

VISUAL = ("qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision", "qwen2_vl")
TEXT = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
IN_CI = ("qwen2_5_vl",)


@pytest.mark.parametrize(
    "name", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.long) for name in (*VISUAL, *TEXT)]
)
def test_answers_equal_those_of_transformers(ask, tmp_path, name):
    # a random subspace holds too little of Gemma's large states for its removal to change an answer
    check(ask(job(name, tmp_path)), unmoved=("ablate",) if name.startswith("gemma") else ())


@pytest.mark.parametrize(
    "runner", [pytest.param({}, id="V1"), pytest.param({"STEERKIT_TEST_V2": "1"}, id="V2", marks=pytest.mark.long)]
)
def test_beside_a_lora_adapter(ask, tmp_path, runner):
    check(ask(job("llama", tmp_path, lora=True), **runner))


@pytest.mark.long
def test_hybrid_attention_which_vllm_computes_in_bfloat16_alone(ask, tmp_path):
    found = ask(job("qwen3_5", tmp_path, dtype="bfloat16"))
    assert all(off < 0.1 for off in found["off"].values()), found
    assert all(moved > 0.15 for pack, moved in found["moved"].items() if pack), found


def job(name, folder, lora=False, **options):
    return {"model": name, "folder": str(folder), "options": options, "lora": lora}


def check(found, unmoved=()):
    assert found["wrong"] == [], found
    assert found["compared"] >= 16
    assert all(count for name, count in found["moved"].items() if name not in unmoved), found["moved"]
