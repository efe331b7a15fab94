"""Calls of the model from inside `generate`, and from inside a forward pass: each is right by itself.

What each must give is what the same call gives alone, and what plain hooks give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import CACHE, TEXT_ONLY, WITH_IMAGE, adds, cache_of, directions, edited, only, since, vector
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import steerkit as sk

STEPS: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


class Asking(LogitsProcessor):
    """Asks something at every step, and leaves the scores as they are."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        self.ask = ask
        self.answers: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.answers.append(self.ask(input_ids))
        return scores


class Judging(StoppingCriteria):
    """The same, as a stopping criterion."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        self.ask = ask
        self.answers: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.answers.append(self.ask(input_ids))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.fixture(scope="module")
def tensors(vlm_of: Any) -> Any:
    return directions(vlm_of("llava"))


@pytest.mark.parametrize("outer", [{}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("asked", [WITH_IMAGE[:1], TEXT_ONLY[2:], WITH_IMAGE[1:]])
def test_a_processor_and_a_criterion_ask_the_model_about_another_prompt(
    llava: sk.VLM, tensors: Any, outer: dict[str, Any], asked: Any
) -> None:
    model: Any = llava.model
    main, other = llava.inputs(WITH_IMAGE[:1]), llava.inputs(asked)
    outer = {**outer, "disable_compile": True} if outer.get("cache_implementation") else outer
    end = other["input_ids"].shape[1]
    with torch.no_grad(), edited(model, "llava", adds(tensors, only(end - 1))):
        logits = model(**other).logits[:, -1]
    with edited(model, "llava", adds(tensors, since(end - 1))):
        answer = model.generate(**other, **STEPS)
    steering = vector(llava, tensors, sk.Intervention(phase="both"))
    with sk.steer(llava, steering, policy="off"):
        alone = model.generate(**main, **STEPS, **outer)
    processor = Asking(lambda ids: model(**other).logits[:, -1])
    criterion = Judging(lambda ids: model.generate(**other, **STEPS))
    with sk.steer(llava, steering, policy="off"):
        found = model.generate(
            **main,
            **STEPS,
            **outer,
            logits_processor=LogitsProcessorList([processor]),
            stopping_criteria=StoppingCriteriaList([criterion]),
        )
    assert torch.equal(found, alone)
    assert len(processor.answers) == len(criterion.answers) == 4
    for asked_logits in processor.answers:
        torch.testing.assert_close(asked_logits, logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(each, answer) for each in criterion.answers)


@pytest.mark.parametrize("cached", [True, False])
def test_a_processor_asks_about_the_very_sequence_that_is_generated(llava: sk.VLM, tensors: Any, cached: bool) -> None:
    """Without a KV cache the question looks as a pass of `generate` does, but for who asks it."""
    model: Any = llava.model
    main = llava.inputs(TEXT_ONLY[2:])
    processor = Asking(lambda ids: (ids, model(input_ids=ids, use_cache=cached).logits[:, -1]))
    steering = vector(llava, tensors, sk.Intervention(phase="prompt"))
    with sk.steer(llava, steering, policy="off"):
        alone = model.generate(**main, **STEPS, use_cache=cached)
        found = model.generate(**main, **STEPS, use_cache=cached, logits_processor=LogitsProcessorList([processor]))
    assert torch.equal(found, alone)
    for ids, logits in processor.answers:
        with torch.no_grad(), edited(model, "llava", adds(tensors, only(ids.shape[1] - 1))):
            torch.testing.assert_close(logits, model(input_ids=ids).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_guidance_without_a_classifier_reads_a_sequence_of_its_own(llava: sk.VLM, tensors: Any) -> None:
    """Its second sequence begins with the last token of the prompt, in a KV cache of its own."""
    model: Any = llava.model
    main = llava.inputs(TEXT_ONLY[2:])
    options = {**STEPS, "guidance_scale": 1.5}

    def hook(module: Any, args: Any, output: Any, direction: Tensor) -> Any:
        """All generated tokens and the last of the prompt; of the other sequence, that is every token."""
        h = (output[0] if isinstance(output, tuple) else output).clone()
        h[:, -1] += direction
        return (h, *output[1:]) if isinstance(output, tuple) else h

    blocks = model.model.language_model.layers
    handles = [
        blocks[key.layer].register_forward_hook(lambda m, a, o, d=direction: hook(m, a, o, d))
        for key, direction in tensors.items()
    ]
    right = model.generate(**main, **options)
    for handle in handles:
        handle.remove()
    with sk.steer(llava, vector(llava, tensors, sk.Intervention(phase="both")), policy="off"):
        assert torch.equal(model.generate(**main, **options), right)
    assert not torch.equal(model.generate(**main, **options), right)


def branches(model: Any, steps: int, *prompts: Any) -> list[list[Tensor]]:
    """The logits of each step of a loop that reads several prompts in turn, each in a KV cache of its own."""
    seen: list[list[Tensor]] = [[] for _ in prompts]
    caches: list[Any] = [None for _ in prompts]
    masks = [prompt["attention_mask"] for prompt in prompts]
    token = None
    with torch.no_grad():
        for _ in range(steps):
            for index, prompt in enumerate(prompts):
                if token is None:
                    output = model(**prompt, use_cache=True)
                else:
                    masks[index] = torch.cat([masks[index], torch.ones_like(masks[index][:, :1])], 1)
                    output = model(
                        input_ids=token, attention_mask=masks[index], use_cache=True, **{CACHE: caches[index]}
                    )
                caches[index] = cache_of(output)
                seen[index].append(output.logits[:, -1])
            token = sum(each[-1] for each in seen).argmax(-1, keepdim=True)  # type: ignore[union-attr]
    return seen


@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
def test_a_loop_of_ones_own_with_two_branches(llava: sk.VLM, tensors: Any, phase: Any) -> None:
    model: Any = llava.model
    prompts = llava.inputs(WITH_IMAGE[:1]), llava.inputs(TEXT_ONLY[:1])
    steering = vector(llava, tensors, sk.Intervention(phase=phase))

    def hook(module: Any, args: Any, output: Any, direction: Tensor) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        reads_prompt = h.shape[1] > 1
        if (phase == "prompt" and not reads_prompt) or (phase == "generation" and reads_prompt):
            return output
        h = h.clone()
        h[:, -1] += direction
        return (h, *output[1:]) if isinstance(output, tuple) else h

    blocks = model.model.language_model.layers
    handles = [
        blocks[key.layer].register_forward_hook(lambda m, a, o, d=direction: hook(m, a, o, d))
        for key, direction in tensors.items()
    ]
    right = branches(model, 4, *prompts)
    for handle in handles:
        handle.remove()
    found: list[Any] = []

    def custom(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        found.append(branches(model, 4, *prompts))
        return input_ids

    with sk.steer(llava, steering, policy="off"):
        found.append(branches(model, 4, *prompts))
        model.generate(**prompts[0], custom_generate=custom, max_new_tokens=4)
    for each in found:
        for one, other in zip(each, right, strict=True):
            torch.testing.assert_close(torch.stack(one), torch.stack(other), atol=1e-4, rtol=1e-4)


def test_a_custom_loop_in_the_cache_of_generate_is_that_generate(llava: sk.VLM) -> None:
    """It reads the prompt in pieces: only with what `generate` was given are they all known for the prompt's."""
    model: Any = llava.model
    inputs = llava.inputs(TEXT_ONLY[2:])
    end = inputs["input_ids"].shape[1]
    tensors = directions(llava)

    def loop(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        cache = kwargs[CACHE]
        for piece in (input_ids[:, :5], input_ids[:, 5:]):
            logits = model(input_ids=piece, use_cache=True, **{CACHE: cache}).logits
        for _ in range(3):
            token = logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], 1)
            logits = model(input_ids=token, use_cache=True, **{CACHE: cache}).logits
        return input_ids

    def run() -> Tensor:
        return model.generate(**inputs, custom_generate=loop, max_new_tokens=4)

    with edited(model, "llava", adds(tensors, only(end - 1))):
        right = run()
    with sk.steer(llava, vector(llava, tensors, sk.Intervention(phase="prompt")), policy="off") as receipt:
        assert torch.equal(run(), right)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (1, 0)


def test_a_hook_asks_the_model_in_the_middle_of_a_forward_pass(llava: sk.VLM, tensors: Any) -> None:
    """What comes after it, in the pass that it interrupts, is steered as before."""
    model: Any = llava.model
    main, other = llava.inputs(WITH_IMAGE[:1]), llava.inputs(TEXT_ONLY[2:])
    block = model.model.language_model.layers[1]
    asked: list[Tensor] = []
    asking: list[bool] = []

    def ask(*_: Any) -> None:
        if not asking:
            asking.append(True)
            asked.append(model(**other).logits[:, -1])
            asking.clear()

    def both(call: Callable[[], Any]) -> Any:
        asked.clear()
        handle = block.register_forward_hook(ask)
        try:
            with torch.no_grad():
                return call(), asked[0]
        finally:
            handle.remove()

    with torch.no_grad(), edited(model, "llava", adds(tensors, only(main["input_ids"].shape[1] - 1))):
        right = model(**main).logits[:, -1]
    with torch.no_grad(), edited(model, "llava", adds(tensors, only(other["input_ids"].shape[1] - 1))):
        right_inner = model(**other).logits[:, -1]
    with sk.steer(llava, vector(llava, tensors), policy="off"):
        logits, inner = both(lambda: model(**main).logits[:, -1])
        generated = both(lambda: model.generate(**main, **STEPS))[0]
        alone = model.generate(**main, **STEPS)
    torch.testing.assert_close(logits, right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inner, right_inner, atol=1e-4, rtol=1e-4)
    assert torch.equal(generated, alone)


@pytest.mark.parametrize("drafts", [{"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 1}])
def test_drafts_do_not_change_what_the_model_says(vlm_of: Any, drafts: dict[str, int]) -> None:
    """The model itself, cut short, may be asked for them from inside `generate`."""
    vlm = vlm_of("qwen3")
    model: Any = vlm.model
    inputs = dict(vlm.processor("How do I bake a cake?", return_tensors="pt"))
    tensors = directions(vlm)
    with edited(model, "decoder", adds(tensors, since(inputs["input_ids"].shape[1] - 1))):
        right = model.generate(**inputs, **STEPS)
    with sk.steer(vlm, vector(vlm, tensors, sk.Intervention(phase="both")), policy="off"):
        assert torch.equal(model.generate(**inputs, **STEPS, **drafts), right)
