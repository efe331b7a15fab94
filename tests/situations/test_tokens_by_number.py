"""Tokens by number, the first k of them, and strengths by row and by step, against plain hooks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import (
    CACHE,
    WITH_IMAGE,
    Edit,
    cache_of,
    captured,
    directions,
    distance,
    edited,
    generate,
    picture,
    vector,
)
from torch import Tensor

import steerkit as sk
from steerkit.errors import EngineError, OptionError, PackFormatError
from steerkit.interventions import Ablate, Add

CLOSE, CLEARLY = 2e-5, 1e-2

Chosen = Callable[[int, list[int], int], float]
"""From a row, the positions of its real prompt tokens, and a position: the factor with which it is steered."""


def truth(family: str, made: sk.SteeringVector, inputs: Any, chosen: Chosen, repeats: int = 1) -> list[Edit]:
    """Edits that add the directions at the tokens that `chosen` names, each prompt being `repeats` rows."""
    real = inputs["attention_mask"] != 0
    if family == "instructblip-t5":
        real = torch.ones(real.shape[0], 1, dtype=torch.bool)
    prompts = [row.nonzero().flatten().tolist() for row in real]

    def factors(positions: Tensor) -> Tensor:
        return torch.tensor(
            [
                [chosen(row, prompts[row], int(at)) for at in positions]
                for row in range(len(prompts))
                for _ in range(repeats)
            ]
        )

    edits = []
    for key, direction in made.tensors.items():
        latest: list[Tensor] = []

        def where(positions: Tensor, latest: list[Tensor] = latest) -> Tensor:
            latest[:] = [factors(positions)]
            return latest[0] != 0

        def change(h: Tensor, rows: Tensor, latest: list[Tensor] = latest, d: Tensor = direction) -> Tensor:
            given = latest[0][latest[0] != 0]  # in the order of rows and columns, as the tokens are
            return h + given[:, None] * d

        edits.append(Edit(key.layer, where, change))
    return edits


def steered(vlm: sk.VLM, **intervention: Any) -> sk.SteeringVector:
    return vector(vlm, directions(vlm), sk.Intervention(**intervention))


SELECTIONS: dict[str, tuple[dict[str, Any], Chosen]] = {
    "numbers": (
        {"tokens": "all", "phase": "prompt", "positions": [0, 3, -1]},
        lambda row, real, at: at in (real[0], real[3], real[-1]),
    ),
    "ranges": (
        {"tokens": "all", "phase": "prompt", "positions": [[2, 5], [-4, -2]]},
        lambda row, real, at: at in (*real[2:5], *real[-4:-2]),
    ),
    "from the end on": (
        {"tokens": "all", "positions": [[-3, None]]},
        lambda row, real, at: at in real[-3:] or at > real[-1],
    ),
    "first of all": ({"tokens": "all", "positions": slice(4)}, lambda row, real, at: at in real[:4]),
    "beyond the prompt": (
        {"tokens": "all", "positions": [[30, 41]]},
        lambda row, real, at: 30 <= (real.index(at) if at in real else len(real) + at - real[-1] - 1) < 41,
    ),
    "first generated": (
        {"tokens": "generated", "positions": slice(2)},
        lambda row, real, at: 0 < at - real[-1] <= 2,
    ),
    "later generated": (
        {"tokens": "last", "phase": "generation", "positions": [0, [2, None]]},
        lambda row, real, at: at - real[-1] in (1, 3, 4, 5, 6),
    ),
    "the last and the next": ({"tokens": "last", "positions": slice(2)}, lambda row, real, at: 0 <= at - real[-1] < 2),
    "steps": (
        {"tokens": "last", "steps": [0.5, 0.0, -1.0, 0.25]},
        lambda row, real, at: (
            [1.0, 0.5, 0.0, -1.0][at - real[-1]] if 0 <= at - real[-1] < 4 else 0.25 * (at > real[-1])
        ),
    ),
    "rows": (
        {"tokens": "all", "rows": [1.0, 0.0, -0.5]},
        lambda row, real, at: (1.0, 0.0, -0.5)[row] * (at >= real[0]),
    ),
    "rows, steps and positions": (
        {"tokens": "all", "rows": [0.0, -1.0, 0.5], "steps": [1.0, 0.5], "positions": [1, [-2, None]]},
        lambda row, real, at: (
            (0.0, -1.0, 0.5)[row]
            * (
                1.0
                if at == real[1] or at in real[-2:]
                else 0.0
                if at <= real[-1]
                else 1.0
                if at == real[-1] + 1
                else 0.5
            )
        ),
    ),
}
selections = pytest.mark.parametrize("name", SELECTIONS)


@selections
def test_a_padded_batch_is_steered_where_the_numbers_say(llava: sk.VLM, name: str) -> None:
    intervention, chosen = SELECTIONS[name]
    made, inputs = steered(llava, **intervention), llava.inputs(WITH_IMAGE)
    assert (inputs["attention_mask"] == 0).any(), "padded on the left"
    with sk.steer(llava, made) as receipt:
        found = generate(llava.model, inputs)
    edits = truth("llava", made, inputs, chosen)
    with edited(llava.model, "llava", edits):
        expected = generate(llava.model, inputs)
    assert distance(found, expected) < CLOSE
    plain = generate(llava.model, inputs)
    changes = max(float((a - b).abs().max()) for a, b in zip(found.logits, plain.logits, strict=True))
    assert changes > CLEARLY
    counted = sum(
        bool(chosen(row, mask.nonzero().flatten().tolist(), at))
        for row, mask in enumerate(inputs["attention_mask"])
        for at in range(inputs["input_ids"].shape[1] + 4)
    )
    assert receipt.sites[0, "resid_post"].tokens == counted


@selections
@pytest.mark.parametrize(
    ("options", "repeats", "cached"),
    [
        ({"num_beams": 2}, 2, True),
        ({"num_return_sequences": 2, "do_sample": True}, 2, True),
        ({"use_cache": False}, 1, False),
        ({"prefill_chunk_size": 7}, 1, True),
    ],
    ids=["beams", "samples", "no cache", "chunks"],
)
def test_however_the_answer_is_generated(
    qwen: sk.VLM, name: str, options: dict[str, Any], repeats: int, cached: bool
) -> None:
    intervention, chosen = SELECTIONS[name]
    made = steered(qwen, **intervention)
    inputs = qwen.inputs(WITH_IMAGE)
    with sk.steer(qwen, made):
        found = generate(qwen.model, inputs, **options)
    with edited(qwen.model, "qwen2_vl", truth("qwen2_vl", made, inputs, chosen, repeats), cached=cached):
        assert distance(found, generate(qwen.model, inputs, **options)) < CLOSE


@pytest.mark.parametrize("name", [name for name in SELECTIONS if "generated" not in name])
def test_a_right_padded_pass(llava: sk.VLM, name: str) -> None:
    intervention, chosen = SELECTIONS[name]
    made, left = steered(llava, **intervention), llava.inputs(WITH_IMAGE)
    inputs = dict(left)
    for key in ("input_ids", "attention_mask"):
        rows = [
            torch.cat([row[mask != 0], row[mask == 0]])
            for row, mask in zip(left[key], left["attention_mask"], strict=True)
        ]
        inputs[key] = torch.stack(rows)
    real = inputs["attention_mask"] != 0
    with sk.steer(llava, made), torch.no_grad():
        found = llava.model(**inputs).logits
    with edited(llava.model, "llava", truth("llava", made, inputs, chosen)), torch.no_grad():
        expected = llava.model(**inputs).logits
    assert float((found - expected)[real].abs().max()) < CLOSE


def test_the_tokens_of_a_meaning_are_counted_among_themselves(qwen: sk.VLM) -> None:
    """Two images of different sizes: their tokens are numbered through."""
    sample = sk.Sample("Why?", images=(picture(1, 16, 24), picture(2, 32, 16)))
    inputs = qwen.inputs([sample])
    token = qwen.model.config.image_token_id
    image = (inputs["input_ids"][0] == token).nonzero().flatten().tolist()
    made = steered(qwen, tokens="image", positions=[0, [4, 8], -1])
    wanted = {image[0], *image[4:8], image[-1]}
    with sk.steer(qwen, made) as receipt:
        found = generate(qwen.model, inputs)
    with edited(qwen.model, "qwen2_vl", truth("qwen2_vl", made, inputs, lambda row, real, at: at in wanted)):
        assert distance(found, generate(qwen.model, inputs)) < CLOSE
    assert receipt.prompt_tokens == 6


@pytest.mark.parametrize("family", ["instructblip-t5", "instructblip-llama", "qwen3_5"])
@pytest.mark.parametrize("name", ["first generated", "the last and the next", "steps", "rows"])
def test_other_families(vlm_of: Callable[[str], sk.VLM], family: str, name: str) -> None:
    vlm = vlm_of(family)
    intervention, chosen = SELECTIONS[name]
    made, inputs = steered(vlm, **intervention), vlm.inputs(WITH_IMAGE)
    with sk.steer(vlm, made):
        found = generate(vlm.model, inputs)
    with edited(vlm.model, family, truth(family, made, inputs, chosen)):
        assert distance(found, generate(vlm.model, inputs)) < CLOSE


@pytest.mark.parametrize("name", ["numbers", "first generated", "steps", "rows", "rows, steps and positions"])
def test_both_engines_give_the_same(llava: sk.VLM, name: str) -> None:
    made = steered(llava, **SELECTIONS[name][0])
    answers, counts = [], []
    for engine in ("hooks", "nnsight"):
        with sk.steer(llava, made, engine=engine, strength=3.0, policy="off") as receipt:
            answers.append(llava.generate(WITH_IMAGE, max_new_tokens=5, min_new_tokens=5))
        counts.append({place: (count.prompt_tokens, count.generated_tokens) for place, count in receipt.sites.items()})
    assert answers[0] == answers[1]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("operation", [Add(relative=True), Ablate()], ids=["relative", "ablate"])
def test_operations_that_depend_on_the_token_take_the_factors_too(llava: sk.VLM, operation: Any) -> None:
    made = steered(llava, operation=operation, layers=(0,), tokens="all", phase="prompt", rows=[0.5, -2.0, 0.0])
    inputs = llava.inputs(WITH_IMAGE)
    with sk.steer(llava, made, policy="off"), torch.no_grad():
        found = captured(llava.model, "llava", inputs)[0]
    unit = made.tensors[sk.Key(0)].double() / made.tensors[sk.Key(0)].double().norm()
    plain = captured(llava.model, "llava", inputs)[0].double()
    factor = torch.tensor([0.5, -2.0, 0.0]).double()[:, None]
    if isinstance(operation, Ablate):
        expected = plain - factor * (plain @ unit)[:, None] * unit
    else:
        expected = plain + factor * plain.norm(dim=1, keepdim=True) * unit
    assert float((found.double() - expected).abs().max()) < CLOSE
    assert float((expected - plain).abs().max()) > CLEARLY


@pytest.mark.parametrize("more", [{"tokens": "generated", "positions": slice(2)}, {"steps": [1.0, 0.5]}], ids=str)
def test_a_loop_of_the_callers_own_does_not_say_which_token_of_the_answer_one_is(
    llava: sk.VLM, more: dict[str, Any]
) -> None:
    inputs = llava.inputs(WITH_IMAGE[:1])

    def answer() -> None:
        output = llava.model(**inputs, use_cache=True)
        llava.model(input_ids=output.logits[:, -1:].argmax(-1), **{CACHE: cache_of(output)})

    counted, made = pytest.raises(EngineError, match="counts generated tokens"), steered(llava, **more)
    with torch.no_grad(), counted, sk.steer(llava, made):
        answer()


def test_rows_are_the_prompts_of_the_batch(llava: sk.VLM) -> None:
    made = steered(llava, rows=[1.0, 0.0])
    with pytest.raises(EngineError, match="factors for 2 rows, and the call has 3 prompts"), sk.steer(llava, made):
        generate(llava.model, llava.inputs(WITH_IMAGE))
    # four rows are not two prompts of two answers each
    with pytest.raises(EngineError, match="factors for 2 rows, and the call has 4 prompts"), sk.steer(llava, made):
        generate(llava.model, llava.inputs([*WITH_IMAGE, WITH_IMAGE[0]]))


def test_a_remote_trace_refuses_what_it_can_not_count(llava: sk.VLM) -> None:
    from steerkit.engines.application import Application
    from steerkit.engines.steps import Place

    for more, named in (({"positions": [0]}, "positions"), ({"rows": [1.0]}, "rows"), ({"steps": [0.5]}, "steps")):
        application = Application([steered(llava, **more)], [1.0], llava.architecture, sk.Receipt(), lambda *_: {})
        with pytest.raises(EngineError, match=named):
            application.portable(Place(0, "resid_post"))


HOSTILE: dict[str, dict[str, Any]] = {
    "nothing": {"positions": []},
    "a bool": {"positions": [True]},
    "a fraction": {"positions": [1.0]},
    "text": {"positions": ["1"]},
    "a huge number": {"positions": [2**24 + 1]},
    "a huge range": {"positions": [[0, 2**63]]},
    "an empty range": {"positions": [[3, 3]]},
    "a turned range": {"positions": [[5, 3]]},
    "a range that ends before the prompt does": {"positions": [[-2, 0]]},
    "a range of three": {"positions": [[1, 2, 3]]},
    "twice the same": {"positions": [4, 4]},
    "overlapping": {"positions": [[0, 5], [4, 6]]},
    "a number in a range": {"positions": [[2, None], 7]},
    "overlapping from the end": {"positions": [[-5, -2], -3]},
    "too many": {"positions": list(range(0, 4000, 2))},
    "back from an end that is not known": {"positions": [-1], "tokens": "generated"},
    "no rows": {"rows": []},
    "rows of a bool": {"rows": [True, 1.0]},
    "rows of NaN": {"rows": [float("nan"), 1.0]},
    "rows of infinity": {"rows": [math.inf, 1.0]},
    "rows of nothing": {"rows": [0.0, 0.0]},
    "rows of text": {"rows": ["1", 1.0]},
    "too many rows": {"rows": [1.0] * 5000},
    "steps of NaN": {"steps": [float("nan")]},
    "steps of a list": {"steps": [[1.0]]},
    "steps of a prompt": {"steps": [1.0], "phase": "prompt"},
    "positions in the vision tower": {"positions": [0], "tower": "vision", "tokens": "all"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_numbers_are_refused_by_constructor_and_file(llava: sk.VLM, name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        sk.Intervention(**HOSTILE[name])
    made = steered(llava, tokens="all", positions=[0])
    data = made.to_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["steerkit"])
    document.pop("document_sha256", None)
    document["interventions"][0].pop("positions")
    document["interventions"][0].update(HOSTILE[name])
    header["__metadata__"]["steerkit"] = json.dumps(document)
    written = json.dumps(header).encode()
    with pytest.raises(PackFormatError):
        sk.SteeringVector.from_bytes(len(written).to_bytes(8, "little") + written + data[8 + length :])


def test_numbers_survive_a_pack(llava: sk.VLM, tmp_path: Path) -> None:
    made = steered(llava, tokens="all", positions=[0, [2, 5], [-3, None]], rows=[1, 0.5], steps=[1, 0])
    read = sk.SteeringVector.load(made.save(tmp_path / "numbers.safetensors"))
    assert read.interventions == made.interventions
    assert read.interventions[0].positions == (0, (2, 5), (-3, None))
    written = json.loads(json.dumps(made.metadata.model_dump(mode="json")))["interventions"][0]
    assert written["positions"] == [0, [2, 5], [-3, None]]


def test_a_selection_by_meaning_alone_is_written_as_before(llava: sk.VLM) -> None:
    written = steered(llava).metadata.model_dump(mode="json")["interventions"][0]
    assert not {"positions", "rows", "steps"} & set(written)


@pytest.mark.parametrize("tokens", [[2, 5], slice(3, None), range(4), 3])
def test_numbers_given_as_tokens_are_told_where_they_belong(tokens: Any) -> None:
    with pytest.raises(OptionError, match="positions="):
        sk.Intervention(tokens=tokens)


def test_a_vector_is_applied_otherwise_without_being_made_anew(llava: sk.VLM) -> None:
    """What a user does with a loaded vector; one vector for each row is two of them."""
    inputs, made = llava.inputs(WITH_IMAGE), steered(llava, layers=(0,))
    other = made * -1.0
    with sk.steer(llava, [made.applied(rows=[1, 0, 0]), other.applied(rows=[0, 1, 0])]) as receipt, torch.no_grad():
        found = captured(llava.model, "llava", inputs)[0]
    direction = made.tensors[sk.Key(0)]
    expected = captured(llava.model, "llava", inputs)[0] + torch.tensor([[1.0], [-1.0], [0.0]]) * direction
    assert float((found - expected).abs().max()) < CLOSE
    assert [each.prompt_tokens for each in receipt.vectors] == [1, 1]
    assert made.applied(steps=(1, 0)).metadata.history == ("apply with steps",)
    with pytest.raises(OptionError, match="positions"):
        made.applied(positions=[True])
    with pytest.raises(OptionError, match="surprise"):
        made.applied(surprise=1)


@pytest.mark.parametrize("strength", [[1.0, 0.0], torch.tensor([1.0, 0.0]), lambda step: 1 / (1 + step)])
def test_who_gives_strengths_by_row_or_step_to_steer_is_told_how(llava: sk.VLM, strength: Any) -> None:
    with pytest.raises(OptionError, match=r"applied\(rows="):
        sk.steer(llava, steered(llava), strength=strength)


def test_what_adds_everywhere_can_not_be_written_with_factors(llava: sk.VLM) -> None:
    from steerkit_vectors_hub.interop.convert import directions_to_add

    with pytest.raises(OptionError, match="by row or by step"):
        directions_to_add(steered(llava, tokens="all", rows=[1.0, 2.0]), lossy=True)
    with pytest.raises(OptionError, match="positions"):
        directions_to_add(steered(llava, tokens="all", positions=[0]), lossy=False)
