"""Ways in which people call a model that are neither plain `generate` nor a plain forward pass.

Each is run with plain hooks at the positions that are meant, and steered: the two must agree.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from reference import CACHE, adds, directions, edited, only, since, vector
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import DynamicCache

import steerkit as sk

STEPS: dict[str, Any] = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "do_sample": False,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
Run = Callable[[Any, Tensor], Any]


@pytest.fixture(scope="module")
def qwen3() -> sk.VLM:
    return sk.wrap(*tiny.build("qwen3"))


def prompt(vlm: sk.VLM) -> Tensor:
    return vlm.processor("How do I bake a cake?", return_tensors="pt")["input_ids"]


def answer(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """The logits of every step."""
    return torch.cat(model.generate(ids, attention_mask=torch.ones_like(ids), **{**STEPS, **options}).logits)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def scores(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return model(ids, **options)["logits"].detach().float()


@contextlib.contextmanager
def hook_of_accelerate(model: Any) -> Iterator[None]:
    class Watching(ModelHook):
        pass

    add_hook_to_module(model.model.layers[1], Watching())
    try:
        yield
    finally:
        remove_hook_from_module(model.model.layers[1])


@contextlib.contextmanager
def another_forward(model: Any) -> Iterator[None]:
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    try:
        yield
    finally:
        del model.forward


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


@contextlib.contextmanager
def parametrized(model: Any) -> Iterator[None]:
    projection = model.model.layers[1].mlp.down_proj
    parametrize.register_parametrization(projection, "weight", Half())
    try:
        yield
    finally:
        parametrize.remove_parametrizations(projection, "weight", leave_parametrized=False)


def inside(context: Callable[[Any], Any], run: Run) -> Run:
    def both(model: Any, ids: Tensor) -> Any:
        with context(model):
            return run(model, ids)

    return both


def another_model_around(model: Any, ids: Tensor) -> Tensor:
    other = type(model)(model.config).eval()
    other.model, other.lm_head = model.model, model.lm_head
    return answer(other, ids)


def gradient_of_functions(model: Any, ids: Tensor) -> Tensor:
    given = {name: value.detach() for name, value in model.named_parameters()}

    def likely(weights: Any) -> Tensor:
        output = torch.func.functional_call(model, weights, (ids,), {"use_cache": False})
        return output.logits[:, -1].logsumexp(-1).sum()

    return torch.func.grad(likely)(given)["model.layers.1.mlp.down_proj.weight"]


WAYS: dict[str, Run] = {
    "drafts of the model itself": lambda model, ids: answer(model, ids, assistant_model=model),
    "static cache": lambda model, ids: answer(model, ids, cache_implementation="static", disable_compile=True),
    "prompt in pieces": lambda model, ids: answer(model, ids, prefill_chunk_size=3),
    "generate of the class": lambda model, ids: torch.cat(type(model).generate(model, ids, **STEPS).logits),
    "embeddings alone": lambda model, ids: torch.cat(
        model.generate(inputs_embeds=model.get_input_embeddings()(ids).detach(), **STEPS).logits
    ),
    "one token": lambda model, ids: answer(model, ids, max_new_tokens=1, min_new_tokens=1),
    "inference mode": inside(lambda _: torch.inference_mode(), answer),
    "autocast": inside(lambda _: torch.autocast("cpu", torch.bfloat16), scores),
    "functional call": lambda model, ids: torch.func.functional_call(
        model, dict(model.named_parameters()), (ids,)
    ).logits.detach(),
    "gradient of functions": gradient_of_functions,
    "tuples": lambda model, ids: model(ids, return_dict=False)[0].detach(),
    "some logits": lambda model, ids: scores(model, ids, logits_to_keep=2),
    "other positions": lambda model, ids: scores(model, ids, position_ids=torch.arange(ids.shape[1])[None] + 7),
    "a mask of four dimensions": lambda model, ids: scores(
        model, ids, attention_mask=torch.ones(ids.shape[1], ids.shape[1]).tril().bool()[None, None]
    ),
    "a hook of accelerate": inside(hook_of_accelerate, answer),
    "another forward": inside(another_forward, answer),
    "a parametrization": inside(parametrized, answer),
    "another model around": another_model_around,
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_steered(qwen3: sk.VLM, way: str) -> None:
    model, ids, tensors = qwen3.model, prompt(qwen3), directions(qwen3)
    end = ids.shape[1]
    plain = WAYS[way](model, ids)
    for phase in ("prompt", "both"):
        where = only(end - 1) if phase == "prompt" else since(end - 1)
        if way == "drafts of the model itself":  # which read ahead, and again
            with edited(model, "decoder", adds(tensors, where)):
                right = answer(model, ids)
        else:
            with edited(model, "decoder", adds(tensors, where)):
                right = WAYS[way](model, ids)
        with sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase=phase)), policy="off"):
            found = WAYS[way](model, ids)
        same(found, right)
        assert (right - plain).abs().max() > 1e-2
    same(WAYS[way](model, ids), plain)


@pytest.mark.parametrize("change", [lambda cache: cache, copy.deepcopy, lambda cache: cache.crop(-2) or cache])
def test_a_cache_of_a_beginning_is_used_again(qwen3: sk.VLM, change: Any) -> None:
    """The beginning is a prompt of its own, with a last token; what is generated after it goes on from the whole."""
    model: Any = qwen3.model
    ids, tensors = prompt(qwen3), directions(qwen3)
    end, begun = ids.shape[1], 6

    def run() -> Tensor:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :begun], use_cache=True, **{CACHE: cache})
        cache = change(cache)
        return answer(model, ids, **{CACHE: cache})

    def where(positions: Tensor) -> Tensor:
        first = len(positions) == begun and int(positions[0]) == 0
        return positions == begun - 1 if first else positions >= seen[0]

    # the hooks count what they have seen, and the cache may have lost some of it
    probe = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids[:, :begun], use_cache=True, **{CACHE: probe})
        lost = begun - change(probe).get_seq_length()
        seen = [end - 1 + lost]
        with edited(model, "decoder", adds(tensors, where)):
            right = run()
        with sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase="both")), policy="off"):
            same(run(), right)


def test_masks_with_holes_and_padding_on_both_sides(qwen3: sk.VLM) -> None:
    model: Any = qwen3.model
    ids, tensors = prompt(qwen3).repeat(3, 1), directions(qwen3)
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, -3:], mask[2, 2] = 0, 0, 0
    last = torch.tensor([ids.shape[1] - 1, ids.shape[1] - 4, ids.shape[1] - 1])
    real = mask.bool()
    cases = {"last": lambda p: p == last[:, None], "all": lambda p: real}
    for tokens, where in cases.items():
        with torch.no_grad(), edited(model, "decoder", adds(tensors, where)):
            right = model(ids, attention_mask=mask).logits[real]
        change = sk.Intervention(tokens=tokens, phase="prompt")  # type: ignore[arg-type]
        with torch.no_grad(), sk.steer(qwen3, vector(qwen3, tensors, change), policy="off"):
            torch.testing.assert_close(model(ids, attention_mask=mask).logits[real], right, atol=1e-4, rtol=1e-4)


def test_an_interrupt_in_a_hook_leaves_the_next_call_right(qwen3: sk.VLM) -> None:
    model: Any = qwen3.model
    ids, tensors = prompt(qwen3), directions(qwen3)
    with edited(model, "decoder", adds(tensors, since(ids.shape[1] - 1))):
        right = answer(model, ids)
    visits: list[int] = []

    def interrupt(*_: Any) -> None:
        visits.append(1)
        if len(visits) == 3:
            raise KeyboardInterrupt

    with sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase="both")), policy="off"):
        handle = model.model.layers[2].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer(model, ids)
        handle.remove()
        same(answer(model, ids), right)


def test_blocks_that_are_entered_and_left_by_hand(qwen3: sk.VLM) -> None:
    """Twice the same object; in the initializer of a pool; left in another thread."""
    model: Any = qwen3.model
    ids, tensors = prompt(qwen3), directions(qwen3)
    plain, right = answer(model, ids), []
    for factor in (1, 2):
        edits = adds({key: factor * tensor for key, tensor in tensors.items()}, since(ids.shape[1] - 1))
        with edited(model, "decoder", edits):
            right.append(answer(model, ids))
    steering = vector(qwen3, tensors, sk.Intervention(phase="both"))
    twice = sk.steer(qwen3, steering, policy="off")
    with twice:
        with twice:
            same(answer(model, ids), right[1])
        same(answer(model, ids), right[0])
    worker = sk.steer(qwen3, steering, policy="off")
    with ThreadPoolExecutor(1, initializer=worker.__enter__) as pool:
        same(pool.submit(answer, model, ids).result(), right[0])
        with pytest.warns(UserWarning, match="not steered"):
            same(answer(model, ids), plain)
        pool.submit(worker.__exit__, None, None, None).result()
        same(pool.submit(answer, model, ids).result(), plain)
    left = sk.steer(qwen3, steering, policy="off")
    left.__enter__()
    same(answer(model, ids), right[0])
    closing = threading.Thread(target=left.__exit__, args=(None, None, None))
    closing.start()
    closing.join()
    same(answer(model, ids), plain)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_copies_of_a_prompt_are_steered_before_its_last_token_too(tokens: Any) -> None:
    """What is before the last token of a prompt is read once for all copies, but where something acts there."""
    vlm = sk.wrap(*tiny.build("qwen3"))
    samples = [sk.Sample("How do I bake a cake?")]
    tensors = directions(vlm)
    end = vlm.inputs(samples)["input_ids"].shape[1]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    right = {}
    for name, where in (("last", since(end - 1)), ("all", since(0))):
        with edited(vlm.model, "decoder", adds(tensors, where)):
            right[name] = vlm.generate(samples, **options)[0]
    assert right["last"] != right["all"]
    with sk.steer(vlm, vector(vlm, tensors, sk.Intervention(tokens=tokens, phase="both")), policy="off"):
        found = [each.text for each in vlm.answers(samples, copies=2, **options)]
    assert found == [right[tokens]] * 2
