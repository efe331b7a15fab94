"""Steered answers equal those of transformers with steerkit, token for token, in every configuration."""

from __future__ import annotations

import pytest

FEW = ["cmrm", "last", "all", "image", "relative", "ablate_kept", "gate_prompt", "sample"]


def check_equal(found, recipes):
    assert all(check["status"] == "pass" for check in found["self_test"]), found["self_test"]
    wrong = {recipe: at for recipe, at in found["table"].items() if at}
    assert not wrong
    assert len(found["table"]) >= recipes
    assert found["mixed"] == []


def test_eager(compare, lab):
    found = compare("table", "mixed", "contaminated", "together", "receipts", "refused")
    check_equal(found, 50)
    assert found["contaminated"]["salted"] == 0
    assert found["contaminated"]["unsalted"] > 0, "this test would not see a contaminated cache"
    assert found["together"]
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


@pytest.mark.long
def test_compiled_and_chunked(compare):
    found = compare("table", "mixed", options={"enforce_eager": False, "max_num_batched_tokens": 64})
    check_equal(found, 50)


@pytest.mark.long
def test_second_model_runner(compare):
    found = compare(
        "table", "mixed", only=["cmrm", "last", "sample"], options={"max_num_seqs": 16}, STEERKIT_TEST_V2="1"
    )
    assert "V2" in found["runner"]
    check_equal(found, 6)


def test_plain_additions_alone(compare):
    """A server whose packs only add has a shorter way."""
    found = compare("table", "mixed", only=["cmrm", "last", "image", "mlp", "steps"])
    check_equal(found, 11)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2, "enforce_eager": False},
        {"max_num_batched_tokens": 32},
        {"enforce_eager": False, "tensor_parallel_size": 2},
    ],
    ids=str,
)
def test_other_configurations(compare, options):
    check_equal(compare("table", "mixed", options=options), 50)


@pytest.mark.long
def test_speculation(compare):
    config = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    check_equal(compare("table", "mixed", only=FEW, options={"speculative_config": config}), 12)
