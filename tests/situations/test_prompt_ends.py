"""Where a prompt ends: passes that also read the answer, padding without a mask, soft prompts.

Positions come from the test, as numbers; the changes are made by plain hooks.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import peft
import pytest
import tiny
import torch
from reference import CACHE, TEXT_ONLY, WITH_IMAGE, adds, cache_of, directions, edited, only, since, vector
from torch import Tensor

import steerkit as sk
from steerkit.errors import EngineError, OptionError

STEPS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def phased(end: Tensor, phase: str) -> Any:
    """The last token of each prompt, the tokens behind it, or both; `end` is one number for each row."""

    def where(positions: Tensor) -> Tensor:
        last, answer = positions == end[:, None] - 1, positions >= end[:, None]
        return {"prompt": last, "generation": answer, "both": last | answer}[phase]

    return where


@pytest.fixture(scope="module")
def qwen3(vlm_of: Any) -> sk.VLM:
    return vlm_of("qwen3")


@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
def test_the_likelihood_of_an_answer_is_that_of_generating_it(llava: sk.VLM, phase: Any) -> None:
    """Greedy answers are taken, and their likelihood is compared with what `generate` gives each of its tokens."""
    model: Any = llava.model
    tokenizer = llava.processor.tokenizer
    tensors = directions(llava)
    steering = vector(llava, tensors, sk.Intervention(phase=phase))
    answers, right = [], []
    for sample in WITH_IMAGE:
        inputs = llava.inputs([sample])
        end = torch.tensor([inputs["input_ids"].shape[1]])
        with edited(model, "llava", adds(tensors, phased(end, phase))):
            output = model.generate(
                **inputs, **STEPS, return_dict_in_generate=True, output_logits=True, suppress_tokens=[0, 1, 2, 3, 4]
            )
        ids = output.sequences[0, end:]
        logits = torch.stack(output.logits, dim=1)[0].float().log_softmax(-1)
        answers.append(tokenizer.decode(ids))
        right.append((ids, logits[torch.arange(len(ids)), ids]))
    # an answer is measured by its text: take those whose text has the same ids
    kept = [
        index
        for index, (ids, _) in enumerate(right)
        if tokenizer(answers[index], add_special_tokens=False)["input_ids"] == ids.tolist()
    ]
    assert kept
    with sk.steer(llava, steering, policy="off"):
        found = llava.log_likelihood([WITH_IMAGE[index] for index in kept], [answers[index] for index in kept])
    for index, likelihood in zip(kept, found, strict=True):
        if len(likelihood) == len(right[index][1]):
            torch.testing.assert_close(likelihood, right[index][1], atol=1e-3, rtol=1e-3)


def teacher_forced(side: str, answers: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """Three prompts with their answers in one batch, and where each prompt ends."""
    prompts = [list(range(40, 45)), list(range(50, 59)), [60, 61]]
    said = [[70, 71, 72], [73], [74, 75]]
    rows = [prompt + (answer if answers else []) for prompt, answer in zip(prompts, said, strict=True)]
    width = max(map(len, rows))
    ids, mask, ends = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long), []
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
        ends.append(start + len(prompts[index]))
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor(ends)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
def test_passes_of_ones_own_are_told_where_each_prompt_ends(qwen3: sk.VLM, side: str, phase: Any) -> None:
    inputs, ends = teacher_forced(side)
    tensors = directions(qwen3)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad(), edited(qwen3.model, "decoder", adds(tensors, phased(ends, phase))):
        right = qwen3.model(**inputs).logits
    steering = vector(qwen3, tensors, sk.Intervention(phase=phase))
    with torch.no_grad(), sk.steer(qwen3, steering, policy="off") as receipt, sk.prompt_lengths(ends):
        found = qwen3.model(**inputs).logits
    torch.testing.assert_close(found[mask], right[mask], atol=1e-4, rtol=1e-4)
    tokens = {"prompt": (3, 0), "generation": (0, 6), "both": (3, 6)}[phase]  # padding is not counted
    assert (receipt.prompt_tokens, receipt.generated_tokens) == tokens


@pytest.mark.parametrize("way", ["thread", "executor", "to_thread"])
def test_ends_are_told_to_threads_that_are_started_inside(qwen3: sk.VLM, way: str) -> None:
    inputs, ends = teacher_forced("left")
    tensors = directions(qwen3)
    mask = inputs["attention_mask"].bool()
    found: list[Tensor] = []

    def ask() -> None:
        with torch.no_grad(), sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase="both")), policy="off"):
            found.append(qwen3.model(**inputs).logits)

    async def elsewhere() -> None:
        await asyncio.to_thread(ask)

    with torch.no_grad(), edited(qwen3.model, "decoder", adds(tensors, phased(ends, "both"))):
        right = qwen3.model(**inputs).logits
    with ThreadPoolExecutor(1) as pool:
        with sk.prompt_lengths(ends):
            if way == "thread":
                thread = threading.Thread(target=ask)
                thread.start()
                thread.join()
            elif way == "executor":
                pool.submit(ask).result()
            else:
                asyncio.run(elsewhere())
        pool.submit(ask).result()  # by the same worker, to which nothing is told any more
    torch.testing.assert_close(found[0][mask], right[mask], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[1][mask], right[mask], atol=1e-2)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("intervention", "steered"),
    [
        (sk.Intervention(phase="prompt"), [3, 6]),
        (sk.Intervention(phase="prompt", tokens="all", positions=(0, -2)), [0, 2, 4, 5]),
        (sk.Intervention(phase="prompt", tokens="all"), list(range(7))),
    ],
)
def test_each_of_the_prompts_that_are_packed_into_a_row_has_an_end(
    qwen3: sk.VLM, intervention: sk.Intervention, steered: list[int], cached: bool
) -> None:
    """Where no bounds are given, position_ids tell them, as to the attention of transformers."""
    tensors = directions(qwen3)
    inputs = {
        "input_ids": torch.tensor([[40, 41, 42, 43, 50, 51, 52]]),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
        "use_cache": cached,
    }
    where = adds(tensors, lambda positions: torch.isin(positions, torch.tensor(steered)))
    with torch.no_grad(), edited(qwen3.model, "decoder", where):
        right = qwen3.model(**inputs).logits
    with torch.no_grad(), sk.steer(qwen3, vector(qwen3, tensors, intervention), policy="off") as receipt:
        torch.testing.assert_close(qwen3.model(**inputs).logits, right, atol=1e-4, rtol=1e-4)
    assert receipt.prompt_tokens == len(steered)


def test_several_rows_of_packed_prompts_are_refused_and_padding_is_none(qwen3: sk.VLM) -> None:
    tensors = directions(qwen3)
    ids, positions = torch.arange(40, 47)[None], torch.tensor([[1, 1, 0, 1, 2, 3, 4]])
    steering = vector(qwen3, tensors, sk.Intervention(phase="prompt"))
    padded = {"input_ids": ids, "position_ids": positions, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])}
    with torch.no_grad(), edited(qwen3.model, "decoder", adds(tensors, only(6))):
        right = qwen3.model(**padded).logits
    with torch.no_grad(), sk.steer(qwen3, steering, policy="off"):
        found = qwen3.model(**padded).logits
        with pytest.raises(EngineError, match="position_ids begin anew within 2 rows"):
            qwen3.model(input_ids=ids.repeat(2, 1), position_ids=positions.repeat(2, 1))
    torch.testing.assert_close(found[:, 2:], right[:, 2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"prefill_chunk_size": 1}, {"prompt_lookup_num_tokens": 2}])
def test_a_generate_that_was_taken_before_is_steered_or_refused(qwen3: sk.VLM, options: dict[str, Any]) -> None:
    """Its passes are known by themselves where it reads the prompt at once and then token by token."""
    tensors = directions(qwen3)
    inputs = qwen3.inputs(TEXT_ONLY[2:])
    steps: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    end = inputs["input_ids"].shape[1]
    generate: Any = qwen3.model.generate
    with edited(qwen3.model, "decoder", adds(tensors, since(end))):
        right = generate(**inputs, **steps)
    with sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase="generation")), policy="off"):
        assert torch.equal(generate(**inputs, **steps), right)
        with pytest.raises(EngineError, match="taken from the model before"):
            generate(**inputs, **steps, **options)


def test_numbered_tokens_of_answers_are_counted_from_each_end(qwen3: sk.VLM) -> None:
    inputs, ends = teacher_forced("right")
    tensors = directions(qwen3)
    second = sk.Intervention(tokens="generated", phase="generation", positions=(1,))
    with torch.no_grad(), edited(qwen3.model, "decoder", adds(tensors, lambda p: p == ends[:, None] + 1)):
        right = qwen3.model(**inputs).logits
    with torch.no_grad(), sk.steer(qwen3, vector(qwen3, tensors, second), policy="off"):
        with sk.prompt_lengths(ends.tolist()):
            found = qwen3.model(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], right[real], atol=1e-4, rtol=1e-4)


def test_an_answer_that_is_read_in_pieces_behind_a_cache(qwen3: sk.VLM) -> None:
    """A piece of several tokens behind a KV cache looks as the next turn of a conversation does."""
    model = qwen3.model
    ids = torch.tensor([list(range(40, 52))])
    tensors = directions(qwen3)

    def run() -> Tensor:
        with torch.no_grad():
            first = model(input_ids=ids[:, :7], use_cache=True)
            more = model(input_ids=ids[:, 7:], use_cache=True, **{CACHE: cache_of(first)})
        return torch.cat([first.logits, more.logits], 1)

    with edited(model, "decoder", adds(tensors, since(4))):
        right = run()
    with sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase="both")), policy="off"), sk.prompt_lengths(5):
        torch.testing.assert_close(run(), right, atol=1e-4, rtol=1e-4)


def test_generate_knows_its_own_prompt(qwen3: sk.VLM) -> None:
    ids = torch.tensor([list(range(40, 52))])
    steering = vector(qwen3, directions(qwen3), sk.Intervention(phase="both"))
    with sk.steer(qwen3, steering, policy="off"):
        right = qwen3.model.generate(ids, **STEPS)  # type: ignore[operator]
        with sk.prompt_lengths(3):
            assert torch.equal(qwen3.model.generate(ids, **STEPS), right)  # type: ignore[operator]


@pytest.mark.parametrize(
    "lengths", [0, [3, 4], [], 2.5, [[1, 2, 3]], [3, 3, 99], "3", None, [[1], [2, 3]], 10**99, {"a": 1}]
)
def test_impossible_ends_are_refused(qwen3: sk.VLM, lengths: Any) -> None:
    inputs, _ = teacher_forced("right")
    with (
        pytest.raises(OptionError, match="prompt_lengths"),
        sk.steer(qwen3, vector(qwen3, directions(qwen3)), policy="off"),
        sk.prompt_lengths(lengths),
    ):
        qwen3.model(**inputs)


def test_the_decoder_of_an_encoder_begins_with_its_start_token(vlm_of: Any) -> None:
    vlm = vlm_of("instructblip-t5")
    tensors = directions(vlm)
    inputs = vlm.inputs(TEXT_ONLY[:1])
    answer = torch.tensor([[0, 70, 71, 72]])
    call = vlm.model.get_submodule(vlm.architecture.text_module)
    for phase, where in (("prompt", only(0)), ("generation", since(1)), ("both", since(0))):
        with torch.no_grad(), edited(vlm.model, "instructblip-t5", adds(tensors, where)):
            right = call(**inputs, decoder_input_ids=answer).logits
        steering = vector(vlm, tensors, sk.Intervention(phase=phase))  # type: ignore[arg-type]
        with torch.no_grad(), sk.steer(vlm, steering, policy="off"):
            found = call(**inputs, decoder_input_ids=answer).logits
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


# -- padding without a mask --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", ["none", "four dimensions"])
def test_padding_at_the_ends_of_rows_is_known_without_a_mask(qwen3: sk.VLM, side: str, mask: str) -> None:
    inputs, ends = teacher_forced(side, answers=False)
    tensors = directions(qwen3)
    rows, real = torch.arange(3), inputs["attention_mask"].bool()
    given = {"input_ids": inputs["input_ids"]}
    if mask == "four dimensions":  # each token attends to itself, and to the real ones before it
        causal = torch.ones(real.shape[1], real.shape[1]).tril().bool() & real[:, None, :]
        given["attention_mask"] = (causal | torch.eye(real.shape[1]).bool())[:, None]
    with torch.no_grad(), edited(qwen3.model, "decoder", adds(tensors, lambda p: p == ends[:, None] - 1)):
        right = qwen3.model(**given).logits[rows, ends - 1]
    with torch.no_grad(), sk.steer(qwen3, vector(qwen3, tensors), policy="off") as receipt:
        found = qwen3.model(**given).logits[rows, ends - 1]
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    assert receipt.prompt_tokens == 3
    everything = vector(qwen3, tensors, sk.Intervention(tokens="all"))
    with torch.no_grad(), sk.steer(qwen3, everything, policy="off") as receipt:
        qwen3.model(**given)
    assert receipt.prompt_tokens == int(real.sum())


# -- soft prompts ------------------------------------------------------------------------------------------------------


def tuned(qwen3: sk.VLM, config: Any) -> Any:
    """The model with a soft prompt, of random values."""
    torch.manual_seed(3)
    model = peft.get_peft_model(qwen3.model, config)
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


CONFIGS = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "encoder": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
@pytest.mark.parametrize("cached", [True, False])
def test_soft_prompts_of_peft_count(kind: str, phase: Any, cached: bool) -> None:
    """With a KV cache, too: this release of PEFT looks for it under its former name, and repeats the soft prompt."""
    vlm = sk.wrap(*tiny.build("qwen3"))
    tensors = directions(vlm)
    model = tuned(vlm, CONFIGS[kind]())
    inputs, _ = teacher_forced("left", answers=False)
    # a prefix has no positions of its own: it is in the KV cache, which PEFT fills before each pass
    end = torch.tensor([inputs["input_ids"].shape[1] + (0 if kind == "prefix" else 5)])
    said: dict[str, Any] = {"use_cache": cached, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        with edited(vlm.model, "decoder", adds(tensors, phased(end, phase)), cached=cached):
            right = model.generate(**inputs, **STEPS, **said)
        with edited(vlm.model, "decoder", adds(tensors, phased(end, phase)), cached=cached):
            logits = model(**inputs).logits[:, -1]
    steering = vector(vlm, tensors, sk.Intervention(phase=phase))
    with sk.steer(vlm, steering, policy="off") as receipt, torch.no_grad():
        found = model.generate(**inputs, **STEPS, **said), model(**inputs).logits[:, -1]
    assert torch.equal(found[0].sequences, right.sequences)
    torch.testing.assert_close(torch.stack(found[0].logits), torch.stack(right.logits), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], logits, atol=1e-4, rtol=1e-4)
    assert (receipt.prompt_tokens > 0, receipt.generated_tokens > 0) == (phase != "generation", phase != "prompt")


def test_what_stands_where_in_a_soft_prompt_is_not_guessed(llava: sk.VLM) -> None:
    """Embeddings in front of the prompt's own: its ids do not say which token stands at which position."""
    model: Any = llava.model
    ids = llava.inputs(TEXT_ONLY[2:])["input_ids"]
    soft = torch.randn(1, 5, llava.record.hidden_size, generator=torch.Generator().manual_seed(1))
    embeds = torch.cat([soft, model.get_input_embeddings()(ids)], 1).detach()
    tensors = directions(llava)
    given = {"input_ids": ids, "inputs_embeds": embeds, "attention_mask": torch.ones(1, embeds.shape[1]).long()}
    end = embeds.shape[1]
    with edited(model, "llava", adds(tensors, since(end - 1))):
        right = model.generate(**given, **STEPS)
    with sk.steer(llava, vector(llava, tensors, sk.Intervention(phase="both")), policy="off"):
        assert torch.equal(model.generate(**given, **STEPS), right)
    with (
        pytest.raises(EngineError, match="soft prompt"),
        sk.steer(llava, vector(llava, tensors, sk.Intervention(tokens="system", phase="prompt")), policy="off"),
    ):
        model.generate(**given, **STEPS)
