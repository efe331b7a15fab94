"""The same in compiled engines, vLLM's default; a file of its own, because half of the time goes into compiling."""

from __future__ import annotations

from test_engine import FEW, PLAIN, check_equal

CHUNKS = {"enforce_eager": False, "max_num_batched_tokens": 32, "max_num_seqs": 16}
"""Most prompts are read in chunks, and some are not: they are 11 to 37 tokens long."""


def test_compiled_with_prompts_in_chunks(compare):
    check_equal(compare("mixed", only=FEW, options=CHUNKS), 15)


def test_plain_additions_compiled(compare):
    check_equal(compare("mixed", only=PLAIN, options={"enforce_eager": False}), 10)


def test_second_model_runner_compiled(compare):
    """With the options of the first, so that the C++ compiler, a fourth of the work, need not run again."""
    found = compare("mixed", only=FEW, options=CHUNKS, STEERKIT_TEST_V2="1")
    assert found["runner"] == "model runner V2"
    check_equal(found, 15)
