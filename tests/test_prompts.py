"""Steering only those prompts of a batch that hold an image, or that hold none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast, get_args

import pytest
import torch
import transformers
from reference import (
    CACHE,
    PICTURED,
    TEXT_ONLY,
    WITH_IMAGE,
    Edit,
    adds,
    cache_of,
    directions,
    distance,
    edited,
    generate,
    mixed,
    only,
    prompt_length,
    since,
    vector,
)
from torch import Tensor

import steerkit as sk
from steerkit.errors import EngineError, NothingSteeredError, OptionError
from steerkit.interventions import Add, Clamp, Gate, Intervention, Measure, Prompts

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl")
"""Families whose processors take images for some prompts of a batch."""

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "sequences": {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2},
    "no_cache": {"use_cache": False},
}


def rows_of(prompts: Prompts, copies: int) -> Tensor:
    held = torch.tensor(PICTURED).repeat_interleave(copies)
    return held if prompts == "with_image" else ~held


def expected_of(vlm: sk.VLM, family: str, inputs: Mapping[str, Tensor], prompts: Prompts, way: str, phase: str) -> Any:
    """By plain hooks, with the rows written down by hand."""
    options = WAYS[way]
    copies = options.get("num_beams", options.get("num_return_sequences", 1))
    place = (only if phase == "prompt" else since)(prompt_length(family, inputs) - 1)
    rows = rows_of(prompts, copies)[:, None]
    edits = [
        Edit(edit.layer, lambda positions, edit=edit: edit.where(positions) & rows, edit.change)
        for edit in adds(directions(vlm), place)
    ]
    with edited(vlm.model, family, edits, cached=way != "no_cache"):
        return generate(vlm.model, inputs, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", ["prompt", "both"])
@pytest.mark.parametrize("prompts", ["with_image", "without_image"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_batch_is_steered_where_a_plain_hook_steers_it(
    vlm_of: Any, name: str, prompts: Any, phase: Any, way: str
) -> None:
    vlm = vlm_of(name)
    inputs = mixed(vlm)
    expected = expected_of(vlm, name, inputs, prompts, way, phase)
    made = vector(vlm, directions(vlm), Intervention(tokens="last", phase=phase, prompts=prompts))
    with sk.steer(vlm, made, policy="off") as receipt:
        found = generate(vlm.model, inputs, **WAYS[way])
    assert distance(found, expected) == 0.0
    assert receipt.left_alone == (1 if prompts == "with_image" else 2)
    plain = generate(vlm.model, inputs, **WAYS[way])
    copies = len(plain.sequences) // len(PICTURED)
    if "num_beams" not in WAYS[way]:
        steered = rows_of(prompts, copies)
        difference = (plain.logits[0] - found.logits[0]).abs().amax(dim=1)
        assert bool((difference[steered] > 1e-2).all())
        assert float(difference[~steered].max()) == 0.0


def only_with_image(vlm: sk.VLM, **where: Any) -> sk.SteeringVector:
    return vector(vlm, directions(vlm), Intervention(prompts="with_image", **where))


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_prompts_without_an_image_are_left_alone_and_that_is_no_error(family: str, vlm: sk.VLM, engine: Any) -> None:
    plain = vlm.generate(TEXT_ONLY, max_new_tokens=4)
    with sk.steer(vlm, only_with_image(vlm), engine=engine, policy="off") as receipt:
        assert vlm.generate(TEXT_ONLY, max_new_tokens=4) == plain
    assert receipt.empty
    assert receipt.left_alone == len(TEXT_ONLY)
    assert str(receipt) == "nothing was steered; 3 prompts left alone"


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_prompts_with_an_image_are_steered_as_by_a_vector_without_the_condition(
    family: str, vlm: sk.VLM, engine: Any
) -> None:
    def answers(made: sk.SteeringVector) -> tuple[list[str], dict[Any, Any]]:
        with sk.steer(vlm, made, engine=engine, policy="off") as receipt:
            texts = vlm.generate(WITH_IMAGE, max_new_tokens=4)
        assert receipt.left_alone == 0
        return texts, {
            place: (count.prompt_tokens, count.generated_tokens, count.relative_change)
            for place, count in receipt.sites.items()
        }

    steered = answers(only_with_image(vlm))
    assert steered == answers(vector(vlm, directions(vlm)))
    assert steered[0] != vlm.generate(WITH_IMAGE, max_new_tokens=4)


def test_a_block_in_which_no_prompt_is_seen_is_still_an_error(llava: sk.VLM) -> None:
    with pytest.raises(NothingSteeredError), sk.steer(llava, only_with_image(llava), policy="off"):
        pass


def step_by_step(vlm: sk.VLM, inputs: Mapping[str, Tensor], steps: int = 4) -> list[Tensor]:
    """Logits of a loop over forward passes that the caller writes."""
    model: Any = vlm.model
    output = model(**inputs, use_cache=True)
    found, mask = [output.logits[:, -1]], inputs["attention_mask"]
    for _ in range(steps - 1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        ids = found[-1].argmax(-1, keepdim=True)
        output = model(input_ids=ids, attention_mask=mask, use_cache=True, **{CACHE: cache_of(output)})
        found.append(output.logits[:, -1])
    return found


@torch.no_grad()
def test_a_loop_over_forward_passes_is_steered_as_generate_is(llava: sk.VLM) -> None:
    inputs = mixed(llava)
    plain = step_by_step(llava, inputs)
    made = only_with_image(llava, tokens="generated")
    everything = vector(llava, directions(llava), Intervention(tokens="generated"))
    with sk.steer(llava, everything, policy="off"):
        expected = step_by_step(llava, inputs)
    with sk.steer(llava, made, policy="off") as receipt:
        found = step_by_step(llava, inputs)
    held = torch.tensor(PICTURED)
    for step, (one, all_rows, none) in enumerate(zip(found, expected, plain, strict=True)):
        # rows of a batch are computed alike, whatever is added to their neighbours
        assert torch.equal(one[held], all_rows[held])
        assert torch.equal(one[~held], none[~held])
        assert bool((one[held] != none[held]).any()) is (step > 0)
    assert receipt.generated_tokens == 3 * sum(PICTURED)


@torch.no_grad()
def test_a_cache_that_was_filled_elsewhere_says_nothing_of_images(llava: sk.VLM) -> None:
    inputs = mixed(llava)
    output = llava.model(**inputs, use_cache=True)
    more = {
        "input_ids": inputs["input_ids"][:, :1],
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1),
        CACHE: cache_of(output),
    }
    with (
        pytest.raises(EngineError, match="a KV cache of which that is not known"),
        sk.steer(llava, only_with_image(llava), policy="off"),
    ):
        llava.model(**more)


CHANGES: dict[str, Any] = {
    "reordered": lambda cache: cache.reorder_cache(torch.tensor([1, 0, 2])),
    "rows picked": lambda cache: cache.batch_select_indices(torch.tensor([0, 2])),
    "rows repeated": lambda cache: cache.batch_repeat_interleave(2),
    "cut": lambda cache: cache.crop(-1),
    "copied": copy.deepcopy,
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_that_was_changed_says_nothing_of_images(llava: sk.VLM, change: str) -> None:
    inputs, model = mixed(llava), cast("Any", llava.model)
    with sk.steer(llava, only_with_image(llava), policy="off"):
        cache = cache_of(model(**inputs, use_cache=True))
        cache = CHANGES[change](cache) or cache
        rows = cache.layers[0].keys.shape[0]
        with pytest.raises(EngineError, match="a KV cache of which that is not known"):
            model(input_ids=torch.full((rows, 1), 70), **{CACHE: cache})


@torch.no_grad()
@pytest.mark.parametrize("given", ["an empty cache", "the cache of generate"])
def test_a_cache_that_a_call_fills_is_known(llava: sk.VLM, given: str) -> None:
    inputs, model = mixed(llava), cast("Any", llava.model)
    held = torch.tensor(PICTURED)
    found = {}
    for prompts in ("all", "with_image"):
        made = vector(llava, directions(llava), Intervention(prompts=prompts, tokens="generated"))
        with sk.steer(llava, made, policy="off"):
            if given == "an empty cache":
                cache = transformers.DynamicCache(config=model.config.get_text_config())
                model(**inputs, use_cache=True, **{CACHE: cache})
            else:
                # one new token: the cache holds the prompt alone
                cache = cache_of(model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True))
            mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
            more = {"input_ids": torch.full((3, 1), 70), "attention_mask": mask}
            found[prompts] = model(**more, **{CACHE: cache}).logits[:, -1]
    assert torch.equal(found["with_image"][held], found["all"][held])
    assert bool((found["with_image"][~held] != found["all"][~held]).any())


@torch.no_grad()
@pytest.mark.parametrize("where", [{"phase": "prompt"}, {"phase": "both"}, {"tokens": "all"}, {"tokens": "generated"}])
@pytest.mark.parametrize("prompts", ["all", "with_image"])
def test_a_second_turn_is_steered_alike_with_all_ids_and_with_its_own(
    llava: sk.VLM, prompts: Any, where: dict[str, Any]
) -> None:
    """`generate` takes the ids of a conversation, or those behind its KV cache alone, with the mask of all."""
    inputs, model = llava.inputs(WITH_IMAGE[:2]), cast("Any", llava.model)
    made = vector(llava, directions(llava), Intervention(prompts=prompts, **where))
    turn = torch.tensor([[70, 71, 72, 73]] * 2)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}

    def second(whole: bool) -> tuple[Any, Any]:
        ids = torch.cat([inputs["input_ids"], turn], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(turn)], dim=1)
        asked = {"input_ids": ids if whole else turn, "attention_mask": mask}
        with sk.steer(llava, made, policy="off") as receipt:
            cache = cache_of(model(**inputs, use_cache=True))
            output = model.generate(**asked, **{CACHE: cache}, **options)
        return torch.stack(output.logits), (receipt.prompt_tokens, receipt.generated_tokens)

    logits, counts = second(whole=False)
    expected, expected_counts = second(whole=True)
    assert torch.equal(logits, expected)
    assert counts == expected_counts
    assert sum(counts) > 0


def test_what_is_left_alone_is_counted_by_prompt_and_by_vector(llava: sk.VLM) -> None:
    inputs = mixed(llava)
    tensors = directions(llava)
    pictures, texts = (vector(llava, tensors, Intervention(prompts=p)) for p in ("with_image", "without_image"))
    with sk.steer(llava, [pictures, texts], policy="off") as receipt:
        generate(llava.model, inputs)
    assert receipt.left_alone == 0
    assert [each.left_alone for each in receipt.vectors] == [1, 2]
    assert "left alone" not in str(receipt)
    with sk.steer(llava, [pictures, vector(llava, tensors)], policy="off") as receipt:
        generate(llava.model, inputs)
    assert (receipt.left_alone, [each.left_alone for each in receipt.vectors]) == (0, [1, 0])


@pytest.mark.parametrize("prompts", ["all", "with_image"])
def test_the_vision_tower_has_nothing_to_do_with_prompts_without_an_image(llava: sk.VLM, prompts: Any) -> None:
    record = llava.record
    assert record.vision_hidden_size is not None
    tensors = {sk.Key(0, "resid_post", "", "vision"): torch.ones(record.vision_hidden_size)}
    made = vector(llava, tensors, Intervention(tower="vision", tokens="all", prompts=prompts))
    with sk.steer(llava, made, policy="off") as receipt:
        llava.generate(TEXT_ONLY, max_new_tokens=2)
    assert receipt.left_alone == len(TEXT_ONLY)
    with sk.steer(llava, made, policy="off") as receipt:
        llava.generate(WITH_IMAGE, max_new_tokens=2)
    assert (receipt.left_alone, receipt.vision_layers) == (0, [0])


@torch.no_grad()
def test_a_call_without_ids_says_nothing_of_images(llava: sk.VLM) -> None:
    model: Any = llava.model
    embeds = model.get_input_embeddings()(llava.inputs(TEXT_ONLY)["input_ids"])
    with (
        pytest.raises(EngineError, match="the call has no input_ids"),
        sk.steer(llava, only_with_image(llava), policy="off"),
    ):
        llava.model(inputs_embeds=embeds)


def test_a_model_that_takes_no_images_has_no_prompt_with_one(vlm_of: Any) -> None:
    qwen3 = vlm_of("qwen3")
    with pytest.raises(EngineError, match="this model takes no images"):
        sk.steer(qwen3, only_with_image(qwen3), policy="off")
    made = vector(qwen3, directions(qwen3), Intervention(prompts="without_image"))
    samples = [sk.Sample("What is this?")]
    with sk.steer(qwen3, vector(qwen3, directions(qwen3)), policy="off"):
        expected = qwen3.generate(samples, max_new_tokens=4)
    with sk.steer(qwen3, made, policy="off") as receipt:
        assert qwen3.generate(samples, max_new_tokens=4) == expected
    assert receipt.prompt_tokens == 1


def test_what_is_measured_on_each_prompt_is_not_measured_on_one_that_is_left_alone(llava: sk.VLM) -> None:
    made = sk.CMRM(level="sample", counterpart="blank").fit(llava)
    passes: list[int] = []
    model: Any = llava.model
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[0]))
    decoder = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(0), with_kwargs=True
    )
    try:
        with sk.steer(llava, made, policy="off") as receipt:
            llava.generate(TEXT_ONLY, max_new_tokens=1)
        assert passes == [0, len(TEXT_ONLY)]
        passes.clear()
        with sk.steer(llava, made, policy="off"):
            llava.generate(WITH_IMAGE, max_new_tokens=1)
        assert passes.count(0) == 3
    finally:
        handle.remove()
        decoder.remove()
    assert receipt.left_alone == len(TEXT_ONLY)


def test_cmrm_leaves_prompts_without_an_image_as_they_are_unless_told_otherwise(
    llava: sk.VLM, anchors: list[sk.Sample]
) -> None:
    plain = llava.generate(TEXT_ONLY, max_new_tokens=4)
    choices: tuple[tuple[Prompts, bool], ...] = (("with_image", True), ("all", False))
    for prompts, same in choices:
        made = 20 * sk.CMRM(prompts=prompts).fit(llava, anchors)
        with sk.steer(llava, made, policy="off"):
            assert (llava.generate(TEXT_ONLY, max_new_tokens=4) == plain) is same
            assert llava.generate(WITH_IMAGE, max_new_tokens=4) != plain


def test_a_gate_and_a_norm_keep_their_rows_in_a_mixed_batch(llava: sk.VLM) -> None:
    """Measured quantities belong to rows: a wrong row would be gated by its neighbour's."""
    inputs = mixed(llava)
    gate = Gate(measure=Measure(kind="projection", layer=0), threshold=0.0)
    change: dict[str, Any] = {"layers": (1, 2, 3), "tokens": "all", "gate": gate, "norm_preserving": True}
    found = {}
    several: tuple[Prompts, ...] = get_args(Prompts)
    for prompts in several:
        made = vector(llava, directions(llava), Intervention(operation=Add(), prompts=prompts, **change))
        with torch.no_grad(), sk.steer(llava, made, policy="off"):
            found[prompts] = generate(llava.model, inputs).logits[0]
    plain = generate(llava.model, inputs).logits[0]
    held = torch.tensor(PICTURED)
    assert bool((found["all"] != plain).any(dim=1).any())
    assert torch.equal(found["with_image"], torch.where(held[:, None], found["all"], plain))
    assert torch.equal(found["without_image"], torch.where(held[:, None], plain, found["all"]))


def test_vectors_for_different_prompts_neither_mix_nor_conflict(llava: sk.VLM) -> None:
    inputs = mixed(llava)
    one, other = directions(llava), {key: -tensor for key, tensor in directions(llava).items()}
    first = vector(llava, one, Intervention(prompts="with_image"))
    second = vector(llava, other, Intervention(prompts="without_image"))
    assert sk.analysis.conflicts([first, second]) == []
    assert sk.analysis.conflicts([first, vector(llava, other)])
    with torch.no_grad(), sk.steer(llava, [first, second], policy="off") as receipt:
        found = generate(llava.model, inputs)
    with torch.no_grad(), sk.steer(llava, first, policy="off"), sk.steer(llava, second, policy="off"):
        assert distance(generate(llava.model, inputs), found) == 0.0
    assert [each.prompt_tokens for each in receipt.vectors] == [2, 1]
    assert receipt.prompt_tokens == 3


@pytest.mark.parametrize(
    "where", [{"tokens": "image"}, {"tokens": "after_image"}, {"tower": "vision", "tokens": "all"}]
)
def test_no_place_of_an_image_belongs_to_prompts_without_one(where: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="prompts='without_image' never reach"):
        Intervention(operation=Clamp(maximum=0.0), prompts="without_image", **where)
