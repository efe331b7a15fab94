"""Steered answers equal those of transformers with steerkit, token for token, in every configuration."""

from __future__ import annotations

import pytest

FEW = ["cmrm", "last", "all", "image", "relative", "ablate_kept", "gate_prompt", "sample", "mlp"]
PLAIN = ["cmrm", "last", "image", "mlp", "steps"]
"""Packs that only add: a server with no others has a shorter way."""


def check_equal(found, recipes, part="mixed"):
    assert all(check["status"] == "pass" for check in found["self_test"]), found["self_test"]
    assert found["caches"][1] == 0, "an engine that is closed keeps its KV cache"
    assert {recipe: at for recipe, at in found[part].items() if at} == {}
    assert len(found[part]) >= recipes


def check_extras(found, scores):
    assert found["contaminated"]["salted"] == 0
    assert found["contaminated"]["unsalted"] > 0, "this test would not see a contaminated cache"
    assert found["together"]
    assert scores.pop("wrong") < 1e-3 < 0.5 < scores.pop("moved")
    assert scores.pop("receipts") == [True] * 3
    assert all(scores.values()), scores


def test_eager(compare, lab):
    found = compare("table", "contaminated", "together", "scores", "receipts", "refused", "ways", "half_written")
    check_equal(found, 50, "table")
    assert found["caches"][0] == 8
    check_ways(found["ways"])
    check_extras(found, found["scores"])
    check_half_written(found["half_written"])
    last, image, other = (found["receipts"][key] for key in ("last 0", "image 1", "image 0"))
    assert last["steered"]
    (site,) = last["sites"]
    changes = site.pop("relative_change")
    assert site == {"site": "resid_post", "layers": list(range(8)), "prompt_tokens": 1, "generated_tokens": 23}
    assert changes == pytest.approx(found["receipts"]["hooks"], rel=1e-3)
    assert last["measured_at"] == last["length"] - 1
    assert not image["steered"]
    assert image["sites"] == []
    assert other["sites"][0]["prompt_tokens"] == lab.ids[0].count(3)
    typo, word, key, forged, reads, _ = found["refused"]
    assert "Did you mean 'last'" in typo
    assert "steerkit_strength is 'abc'" in word
    assert "steerkit_stength" in key
    assert "the request has 'steerkit'" in forged
    assert "reads the prompt at layer 3" in reads
    assert all(each.startswith("VLLMValidationError") for each in found["refused"])


def check_half_written(found):
    assert found["failed"] == 2
    assert not found["served"]
    assert found["after"] == found["before"], "the rows of a pack that failed are not given back"
    assert found["right"]
    assert found["before"]["resid_post"] - found["later"]["resid_post"] == 2


def check_ways(ways):
    assert "asked to steer" in ways.pop("beam search")
    for name in ("encode", "embed", "score"):
        assert "only supported for pooling models" in ways.pop(name)
    assert "the input of a request is streamed" in ways.pop("streamed")
    assert "a ready-made request asks for 'steerkit_pack'" in ways.pop("ready-made")
    assert "enable-prompt-embeds" in ways.pop("embeddings")
    assert "the request has 'steerkit'" in ways.pop("own plan")
    assert all(ways.values()), ways


SCARCE = {"num_gpu_blocks_override": 24, "scheduling_policy": "priority", "max_num_seqs": 16}
"""A cache that holds so little that requests lose their states half-way, and are computed again."""


def check_preempted(found, recipes):
    found |= found.pop("preempted")
    check_equal(found, recipes)
    assert len(found["taken"]) >= 8, "too few requests were computed again"
    assert max(found["taken"]) > 4


def test_prompts_in_chunks_and_requests_that_are_preempted(compare):
    check_preempted(compare("preempted", options={"max_num_batched_tokens": 32, **SCARCE}), 50)


NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


def test_second_model_runner_with_speculation_and_requests_that_are_preempted(compare):
    options = {"speculative_config": NGRAM, **SCARCE}
    found = compare("preempted", only=FEW, options=options, STEERKIT_TEST_V2="1")
    assert found["runner"] == "model runner V2"
    check_preempted(found, 15)


PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def test_tensor_parallel(compare):
    check_equal(compare("mixed", only=FEW, options={"tensor_parallel_size": 2}, **PROCESSES), 15)


def test_pipeline_parallel(compare):
    """Compiled: eager, vLLM's CPU build dies of it, with and without steerkit. Additions compile in seconds."""
    options = {"enforce_eager": False, "pipeline_parallel_size": 2}
    check_equal(compare("mixed", only=PLAIN, options=options, **PROCESSES), 10)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": False},
        {"tensor_parallel_size": 2},
        {"enforce_eager": False, "tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2, "enforce_eager": False},
    ],
    ids=str,
)
def test_other_configurations(compare, options):
    check_equal(compare("mixed", options=options, **PROCESSES), 50)


@pytest.mark.long
def test_every_pack_compiled_with_prompts_in_chunks(compare):
    """The graph grows with what packs may do, not with their number: nearly 2 MB of C++, five minutes of a core."""
    check_equal(compare("mixed", options={"enforce_eager": False, "max_num_batched_tokens": 32}), 50)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"enforce_eager": False}], ids=str)
def test_second_model_runner_with_every_pack(compare, options):
    found = compare("mixed", options={"max_num_seqs": 16, **options}, STEERKIT_TEST_V2="1")
    assert found["runner"] == "model runner V2"
    check_equal(found, 50)


@pytest.mark.long
@pytest.mark.parametrize("runner", [{}, {"STEERKIT_TEST_V2": "1"}], ids=["V1", "V2"])
def test_speculation(compare, runner):
    check_equal(compare("mixed", only=FEW, options={"speculative_config": NGRAM, "max_num_seqs": 16}, **runner), 15)


@pytest.mark.long
def test_what_else_a_request_may_ask_of_the_second_model_runner(compare):
    found = compare(
        *("contaminated", "together", "scores", "receipts", "refused", "ways"),
        options={"max_num_seqs": 16},
        STEERKIT_TEST_V2="1",
    )
    check_extras(found, found["scores"])
