"""`generate_batch` of transformers: requests packed into rows, a paged KV cache, a thread of its own.

What each request must get is what plain `generate` gives on its prompt alone, steered by plain hooks.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import transformers
from reference import WITH_IMAGE, adds, directions, edited, only, since, state, vector

import steerkit as sk
from steerkit.errors import EngineError

TEXTS = (
    "What is in this picture?",
    "How do I bake a cake for the neighbour, and what would he say about it then, if he had one?",
    "Hm?",
    "Answer briefly.",
)
STEPS = 6


def small(**options: Any) -> Any:
    """A KV cache of a few hundred tokens, not of most of the memory."""
    return transformers.ContinuousBatchingConfig(
        **{"max_batch_tokens": 128, "num_blocks": 64, "page_size": 16, **options}
    )


class Batches:
    """A text model, prompts, and what plain hooks make of each alone."""

    def __init__(self, vlm: sk.VLM) -> None:
        self.vlm, self.model = vlm, vlm.model
        self.prompts = [vlm.processor(text)["input_ids"] for text in TEXTS]
        self.tensors = directions(vlm)
        self.config = transformers.GenerationConfig(
            max_new_tokens=STEPS, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        self.right = {None: self.alone(None)}
        for phase in ("prompt", "both"):
            self.right[phase] = self.alone(phase)

    def alone(self, phase: str | None) -> list[list[int]]:
        found = []
        for prompt in self.prompts:
            ids, end = torch.tensor([prompt]), len(prompt)
            where = only(end - 1) if phase == "prompt" else since(end - 1)
            edits = adds(self.tensors, where) if phase else []
            with edited(self.model, "decoder", edits):
                output: Any = self.model.generate(  # type: ignore[operator]
                    ids, attention_mask=torch.ones_like(ids), generation_config=self.config
                )
            found.append(output[0, end:].tolist())
        return found

    def batch(self, **options: Any) -> list[list[int]]:
        options.setdefault("continuous_batching_config", small())
        output = self.model.generate_batch(  # type: ignore[operator]
            inputs=self.prompts, generation_config=self.config, progress_bar=False, **options
        )
        assert [each.error for each in output.values()] == [None] * len(output)
        return [output[name].generated_tokens for name in sorted(output, key=lambda name: int(name.split("_")[-1]))]

    def vector(self, phase: Any, **options: Any) -> sk.SteeringVector:
        return vector(self.vlm, self.tensors, sk.Intervention(phase=phase, **options))


@pytest.fixture(scope="module")
def batches(vlm_of: Any) -> Batches:
    made = Batches(vlm_of("qwen3"))
    assert len({str(each) for each in made.right.values()}) == 3
    return made


@pytest.mark.parametrize("phase", ["prompt", "both"])
@pytest.mark.parametrize("scope", ["context", "all"])
def test_each_request_is_steered_as_by_itself(batches: Batches, phase: Any, scope: Any) -> None:
    before = state(batches.model)
    with sk.steer(batches.vlm, batches.vector(phase), policy="off", scope=scope) as receipt:
        assert batches.batch() == batches.right[phase]
    count = len(TEXTS)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (count, count * (STEPS - 1) * (phase == "both"))
    assert batches.batch() == batches.right[None]
    assert state(batches.model) == before


def test_prompts_are_read_in_pieces_and_beside_answers(batches: Batches) -> None:
    config = small(max_batch_tokens=7, page_size=4)
    for phase in ("prompt", "both"):
        with sk.steer(batches.vlm, batches.vector(phase), policy="off"):
            assert batches.batch(continuous_batching_config=config) == batches.right[phase]


def test_requests_that_are_put_off_read_their_answers_again(batches: Batches) -> None:
    """A KV cache that is too small for all of them: some begin again, with their answer behind the prompt."""
    longest = max(map(len, batches.prompts)) + STEPS
    config = small(num_blocks=longest // 4 + 2, page_size=4)
    for phase in ("prompt", "both"):
        with sk.steer(batches.vlm, batches.vector(phase), policy="off") as receipt:
            assert batches.batch(continuous_batching_config=config) == batches.right[phase]
        assert receipt.prompt_tokens > len(TEXTS)  # some were read twice


def test_a_bystanders_batch_is_not_touched(batches: Batches) -> None:
    """A block is open in another thread, and none in the one that generates."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with sk.steer(batches.vlm, batches.vector("both"), policy="off"):
            ids = torch.tensor([batches.prompts[0]])
            batches.model(ids)
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(60)
    with pytest.warns(UserWarning, match="not steered"):
        found = batches.batch()
    leave.set()
    holder.join()
    assert found == batches.right[None]


def test_what_was_read_under_steering_is_not_shared_with_later_requests(batches: Batches) -> None:
    """Managers keep blocks of their KV cache for prompts that begin alike."""
    config = small(page_size=4)
    try:
        with sk.steer(batches.vlm, batches.vector("both"), policy="off"):
            found = [batches.batch(persistent_manager=True, continuous_batching_config=config) for _ in range(2)]
        assert found == [batches.right["both"]] * 2
        assert batches.batch(persistent_manager=True, continuous_batching_config=config) == batches.right[None]
    finally:
        batches.model.destroy_cached_continuous_batching_manager()  # type: ignore[operator]


def test_a_manager_from_before_the_block_is_refused(batches: Batches) -> None:
    try:
        batches.batch(persistent_manager=True)
        with (
            pytest.raises(EngineError, match="destroy_cached_continuous_batching_manager"),
            sk.steer(batches.vlm, batches.vector("both"), policy="off"),
        ):
            batches.batch()
    finally:
        batches.model.destroy_cached_continuous_batching_manager()  # type: ignore[operator]


@pytest.mark.parametrize("options", [{"use_cuda_graph": True}, {"default_compile_level": 1}])
def test_recorded_and_compiled_passes_are_refused(batches: Batches, options: dict[str, Any]) -> None:
    config = small(**options)
    with (
        pytest.raises(EngineError, match="CUDA graphs or compilation"),
        sk.steer(batches.vlm, batches.vector("both"), policy="off"),
    ):
        batches.batch(continuous_batching_config=config)


def test_several_answers_to_each_prompt(batches: Batches) -> None:
    config = copy.deepcopy(batches.config)
    config.update(num_return_sequences=2, do_sample=True, top_k=1)  # the likeliest token, as a sample
    with sk.steer(batches.vlm, batches.vector("both"), policy="off") as receipt:
        output = batches.model.generate_batch(  # type: ignore[operator]
            inputs=batches.prompts,
            generation_config=config,
            continuous_batching_config=small(),
            progress_bar=False,
        )
    found = [each.generated_tokens for each in output.values()]
    assert found == [each for each in batches.right["both"] for _ in range(2)]
    assert receipt.generated_tokens == 2 * len(TEXTS) * (STEPS - 1)


def test_sequences_that_the_caller_has_packed_himself(batches: Batches) -> None:
    """Several prompts in one row, as training without padding does: the mask keeps them apart."""
    lengths = [len(prompt) for prompt in batches.prompts]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.tensor([[token for prompt in batches.prompts for token in prompt]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = (sequence[:, None] == sequence) & torch.ones(len(sequence), len(sequence)).tril().bool()
    packed = {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[None, None],
        "cu_seq_lens_q": bounds,
    }
    with torch.no_grad():
        right = []
        for prompt in batches.prompts:
            with edited(batches.model, "decoder", adds(batches.tensors, only(len(prompt) - 1))):
                right.append(batches.model(torch.tensor([prompt])).logits[0, -1])
        with sk.steer(batches.vlm, batches.vector("prompt"), policy="off") as receipt:
            logits = batches.model(**packed).logits[0, bounds[1:] - 1]
    torch.testing.assert_close(logits, torch.stack(right), atol=1e-4, rtol=1e-4)
    assert receipt.prompt_tokens == len(TEXTS)


POSITIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "the first three": ({"tokens": "all", "phase": "prompt", "positions": ((0, 3),)}, lambda n, p: p < 3),
    "the last but one": ({"tokens": "all", "phase": "prompt", "positions": (-2,)}, lambda n, p: p == n - 2),
    "two of the answer": (
        {"tokens": "generated", "phase": "generation", "positions": ((1, 3),)},
        lambda n, p: (p > n) & (p < n + 3),
    ),
    "from one on": ({"tokens": "all", "positions": ((2, None),)}, lambda n, p: p >= 2),
    "one step": ({"steps": (0.0, 1.0, 0.0)}, lambda n, p: (p == n - 1) | (p == n + 1)),
}


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("which", POSITIONS)
def test_tokens_by_number(batches: Batches, which: str, pieces: bool) -> None:
    change, where = POSITIONS[which]
    right = []
    for prompt in batches.prompts:
        ids, end = torch.tensor([prompt]), len(prompt)
        with edited(batches.model, "decoder", adds(batches.tensors, lambda p, end=end: where(end, p))):
            output: Any = batches.model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), generation_config=batches.config
            )
        right.append(output[0, end:].tolist())
    assert right != batches.right[None]
    config = small(max_batch_tokens=7, page_size=4) if pieces else small()
    steering = vector(batches.vlm, batches.tensors, sk.Intervention(**change))
    with sk.steer(batches.vlm, steering, policy="off"):
        assert batches.batch(continuous_batching_config=config) == right


def test_factors_of_rows_are_of_one_request(batches: Batches) -> None:
    """A request is a call of its own: factors for several prompts belong to none, and the thread only logs that."""
    with sk.steer(batches.vlm, batches.vector("both", rows=(1.0,)), policy="off"):
        assert batches.batch() == batches.right["both"]

    def run() -> None:
        with sk.steer(batches.vlm, batches.vector("both", rows=(1.0, 0.0, 1.0, 1.0)), policy="off"):
            batches.model(torch.tensor([batches.prompts[0]] * 4))  # something is steered
            output = batches.model.generate_batch(  # type: ignore[operator]
                inputs=batches.prompts,
                generation_config=batches.config,
                progress_bar=False,
                continuous_batching_config=small(),
            )
            assert not any(each.generated_tokens for each in output.values())

    with pytest.raises(EngineError, match="factors for 4 rows, and the call has 1 prompts"):
        run()


def test_a_contrast_needs_the_image_of_a_request(llava: sk.VLM) -> None:
    """Requests hold ids alone: text is left alone by what corrects an image, and an image can't be measured."""
    model: Any = llava.model
    config = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def run(prompts: list[list[int]]) -> list[list[int]]:
        output = model.generate_batch(
            inputs=prompts, generation_config=config, progress_bar=False, continuous_batching_config=small()
        )
        return [each.generated_tokens for each in output.values()]

    text = [llava.processor.tokenizer(each)["input_ids"] for each in TEXTS[:2]]
    steering = sk.CMRM(level="sample").fit(llava)
    plain = run(text)
    with sk.steer(llava, steering, policy="off") as receipt:
        assert run(text) == plain
    assert receipt.left_alone == len(text)
    with (
        pytest.raises(EngineError, match="the images of the prompt were not seen"),
        sk.steer(llava, steering, policy="off"),
    ):
        run([llava.inputs(WITH_IMAGE[:1])["input_ids"][0].tolist()])
