"""Decoding loops that are not those of transformers: given as `custom_generate`, with a KV cache and without.

Without one, each step reads the prompt and all of the answer so far: what is prompt and what is answer in it is known
only because the loop belongs to a `generate`. What must come out is what plain hooks at those positions give.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import CACHE, adds, directions, edited, only, since, vector
from torch import Tensor
from transformers import DynamicCache

import steerkit as sk
from steerkit.errors import EngineError

NEW = 4


def ask(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """A step that is made by a helper of the loop."""
    return model(input_ids=ids, **options).logits[:, -1]


def uncached(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    for _ in range(NEW):
        token = model(input_ids=input_ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], 1)
    return input_ids


def with_cache_left_unused(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """The model makes a KV cache in each step, which nobody takes up."""
    for _ in range(NEW):
        token = model(input_ids).logits[:, -1].argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], 1)
    return input_ids


def in_a_closure(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    def step(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)

    return functools.reduce(lambda ids, _: torch.cat([ids, step(ids)], 1), range(NEW), input_ids)


def best_of_two(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """Two candidates in a batch at every step, as contrastive search reads them: one answer stays."""
    for _ in range(NEW):
        logits = model(input_ids=input_ids, use_cache=False).logits[:, -1]
        both = torch.cat([input_ids.repeat(2, 1), logits.topk(2).indices.T], 1)
        value = model(input_ids=both, use_cache=False).logits[:, -1].amax(-1)
        input_ids = both[value.argmax()][None]
    return input_ids


def from_a_copied_cache(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """A KV cache of its own, which candidates read a copy of."""
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=input_ids, use_cache=True, **{CACHE: cache}).logits[:, -1]
    for _ in range(NEW):
        copied = copy.deepcopy(cache)
        copied.batch_repeat_interleave(2)
        tokens = logits.topk(2).indices
        value = model(input_ids=tokens.T, use_cache=True, **{CACHE: copied}).logits[:, -1].amax(-1)
        token = tokens[:, value.argmax()][:, None]
        input_ids = torch.cat([input_ids, token], 1)
        logits = model(input_ids=token, use_cache=True, **{CACHE: cache}).logits[:, -1]
    return input_ids


class Loop:
    """An object that is called, or whose method is."""

    def __call__(self, model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        return self.method(model, input_ids)

    def method(self, model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
        for _ in range(NEW):
            token = model(input_ids=input_ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], 1)
        return input_ids


LOOPS: dict[str, Callable[..., Any]] = {
    "uncached": uncached,
    "cache left unused": with_cache_left_unused,
    "closure": in_a_closure,
    "partial": functools.partial(uncached, more=1),
    "method": Loop().method,
    "best of two": best_of_two,
    "copied cache": from_a_copied_cache,
}
KEPT = ("copied cache",)


@pytest.fixture(scope="module")
def qwen3(vlm_of: Any) -> sk.VLM:
    return vlm_of("qwen3")


def prompt(vlm: sk.VLM) -> Tensor:
    return vlm.processor("How do I bake a cake?", return_tensors="pt")["input_ids"]


def right(vlm: sk.VLM, phase: Any, run: Callable[[], Any], *, cached: bool = False) -> Any:
    end = prompt(vlm).shape[1]
    where = {"prompt": only(end - 1), "generation": since(end), "both": since(end - 1)}[phase]
    with edited(vlm.model, "decoder", adds(directions(vlm), where), cached=cached):
        return run()


@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_steered_where_it_stands(qwen3: sk.VLM, name: str, phase: Any) -> None:
    model: Any = qwen3.model
    ids = prompt(qwen3)
    said: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: said.append(output[:, -1].detach()))

    def run() -> tuple[Tensor, list[Tensor]]:
        said.clear()
        return model.generate(ids, custom_generate=LOOPS[name], max_new_tokens=NEW), list(said)

    try:
        expected = right(qwen3, phase, run, cached=name in KEPT)
        plain = run()
        with sk.steer(qwen3, vector(qwen3, directions(qwen3), sk.Intervention(phase=phase)), policy="off") as receipt:
            found = run()
        assert torch.equal(found[0], expected[0])
        for each, one, other in zip(found[1], expected[1], plain[1], strict=True):
            torch.testing.assert_close(each, one, atol=1e-4, rtol=1e-4)
            assert each.shape == other.shape
        assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(expected[1], plain[1], strict=True))
        assert (receipt.prompt_tokens > 0, receipt.generated_tokens > 0) == (phase != "generation", phase != "prompt")
    finally:
        handle.remove()


def test_a_loop_from_a_repository(qwen3: sk.VLM, tmp_path: Path) -> None:
    """transformers loads it as a module of its own."""
    model: Any = qwen3.model
    folder = tmp_path / "loop" / "custom_generate"
    folder.mkdir(parents=True)
    (folder / "generate.py").write_text(
        "import torch\n\n\ndef step(model, ids):\n    return model(input_ids=ids, use_cache=False).logits[:, -1]\n\n\n"
        "def generate(model, input_ids, **kwargs):\n"
        "    for _ in range(4):\n"
        "        input_ids = torch.cat([input_ids, step(model, input_ids).argmax(-1, keepdim=True)], 1)\n"
        "    return input_ids\n"
    )

    def run() -> Tensor:
        return model.generate(
            input_ids=prompt(qwen3), custom_generate=str(folder.parent), trust_remote_code=True, max_new_tokens=NEW
        )

    for phase in ("prompt", "both"):
        expected = right(qwen3, phase, run)
        with sk.steer(qwen3, vector(qwen3, directions(qwen3), sk.Intervention(phase=phase)), policy="off") as receipt:
            assert torch.equal(run(), expected)
        assert bool(receipt.generated_tokens) == (phase == "both")


def test_what_reads_the_answer_outside_of_the_loop_is_refused(qwen3: sk.VLM) -> None:
    """A helper of the loop, or somebody who asks about the sequence: from outside they look the same."""
    model: Any = qwen3.model
    ids = prompt(qwen3)
    end = ids.shape[1]
    answer = torch.cat([ids, ids[:, :2]], 1)
    asked: list[Tensor] = []

    def loop(model: Any, input_ids: Tensor, *, lengths: int | None = None, **kwargs: Any) -> Tensor:
        asked.append(ask(model, input_ids))  # the prompt alone is a prompt, whoever reads it
        asked.append(ask(model, ids[:, 1:]))  # something else
        if lengths is None:
            asked.append(ask(model, answer, use_cache=False))
        else:
            with sk.prompt_lengths(lengths):
                asked.append(ask(model, answer, use_cache=False))
        return input_ids

    tensors = directions(qwen3)
    steering = vector(qwen3, tensors, sk.Intervention(phase="prompt"))
    with sk.steer(qwen3, steering, policy="off"):
        with pytest.raises(EngineError, match="inside custom_generate, and outside of its function"):
            model.generate(ids, custom_generate=loop, max_new_tokens=1)
        asked.clear()
        model.generate(ids, custom_generate=functools.partial(loop, lengths=end), max_new_tokens=1)
    with torch.no_grad():
        for found, given in zip(asked, (ids, ids[:, 1:], answer), strict=True):
            where = only(min(end, given.shape[1]) - 1)
            with edited(model, "decoder", adds(tensors, where)):
                torch.testing.assert_close(found, model(input_ids=given).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_a_loop_of_the_caller_outside_of_generate_says_where_the_prompt_ends(qwen3: sk.VLM) -> None:
    model: Any = qwen3.model
    ids = prompt(qwen3)
    tensors = directions(qwen3)
    expected = right(qwen3, "both", lambda: uncached(model, ids))
    steering = vector(qwen3, tensors, sk.Intervention(phase="both"))
    with sk.steer(qwen3, steering, policy="off"), torch.no_grad(), sk.prompt_lengths(ids.shape[1]):
        assert torch.equal(uncached(model, ids), expected)


def test_vmap_is_refused(qwen3: sk.VLM) -> None:
    """A dimension that nobody inside can see, and with it what each row holds."""
    model: Any = qwen3.model
    ids = prompt(qwen3)
    given = {name: value.detach() for name, value in model.named_parameters()}

    def run(row: Tensor) -> Tensor:
        return torch.func.functional_call(model, given, (row[None],), {"use_cache": False}).logits[0]

    with torch.no_grad(), sk.steer(qwen3, vector(qwen3, directions(qwen3)), policy="off"):
        with pytest.raises(EngineError, match=r"torch\.vmap"):
            torch.vmap(run)(torch.cat([ids, ids.flip(1)]))
        found = run(ids[0])
    with torch.no_grad(), edited(model, "decoder", adds(directions(qwen3), only(ids.shape[1] - 1))):
        torch.testing.assert_close(found, model(ids, use_cache=False).logits[0], atol=1e-4, rtol=1e-4)
