"""Whoever reads hidden states inside a block reads steered ones, whichever hook came first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from reference import TEXT_ONLY, WITH_IMAGE, forget, module_at, state, tensor_of, vector
from tiny import decoder
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import steerkit as sk
from steerkit.errors import EngineError
from steerkit.interventions import Site

CLEARLY = 1e-2
SITES: tuple[Site, ...] = ("resid_post", "mlp_out", "attn_out")
LANGUAGE = ("llama", "gpt2", "gpt_neox", "qwen3")
"""Kinds of `tiny.decoder`."""


def direction(width: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(width, generator=torch.Generator().manual_seed(40 + seed))


def steering(vlm: sk.VLM, layer: int, site: Site, seed: int = 0, **more: Any) -> sk.SteeringVector:
    width = vlm.record.width(site, more.get("tower", "language"))
    key = sk.Key(layer, site, tower=more.get("tower", "language"))
    return vector(vlm, {key: direction(width, seed)}, sk.Intervention(site=site, tokens="all", **more))


@contextmanager
def added(module: nn.Module, d: Tensor, *, on_input: bool = False) -> Iterator[None]:
    """The truth: a plain hook ahead of all others."""

    def after(m: Any, args: Any, output: Any) -> Any:
        h = tensor_of(output) + d
        return (h, *output[1:]) if isinstance(output, tuple) else h

    if on_input:
        handle = module.register_forward_pre_hook(lambda m, args: (args[0] + d, *args[1:]), prepend=True)
    else:
        handle = module.register_forward_hook(after, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def run(vlm: sk.VLM, inputs: Any, **options: Any) -> Any:
    forget(vlm.model)
    more = {"decoder_input_ids": torch.ones(1, 3, dtype=torch.long)} if vlm.architecture.encoder_decoder else {}
    with torch.no_grad():
        return vlm.model(**inputs, **more, **options)


def states(output: Any) -> Any:
    """The hidden states of the decoder, wherever a family puts them."""
    for each in (output, output.get("language_model_outputs")):
        for name in ("hidden_states", "decoder_hidden_states"):
            if each is not None and each.get(name) is not None:
                return each[name]
    raise AssertionError("no hidden states")


@pytest.mark.parametrize("recorded", [False, True], ids=["fresh", "recorded before"])
def test_hidden_states_are_steered_in_every_family(family: str, recorded: bool) -> None:
    vlm = sk.wrap(*tiny.build(family))
    inputs = vlm.inputs(WITH_IMAGE[:1])
    block = module_at(vlm.model, family, 0)
    if recorded:  # transformers leaves its recorders on the blocks
        unsteered = states(run(vlm, inputs, output_hidden_states=True))
    seen: list[Tensor] = []
    with added(block, direction(vlm.record.hidden_size)):
        handle = block.register_forward_hook(lambda m, a, o: seen.append(tensor_of(o)))
        run(vlm, inputs)
        handle.remove()
    for _ in range(2):
        with sk.steer(vlm, steering(vlm, 0, "resid_post"), policy="off"):
            found = states(run(vlm, inputs, output_hidden_states=True))
        assert (found[1] - seen[0]).abs().max() < 1e-5
    if recorded:
        assert (found[1] - unsteered[1]).abs().max() > CLEARLY
        assert torch.equal(states(run(vlm, inputs, output_hidden_states=True))[1], unsteered[1])


def test_hidden_states_of_generate_and_of_nested_blocks() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    model, inputs = vlm.model, vlm.inputs(WITH_IMAGE[:1])
    block = module_at(model, "llava", 1)
    options = {"max_new_tokens": 2, "output_hidden_states": True, "return_dict_in_generate": True}
    one, other = direction(48), direction(48, 1)
    first, second = (steering(vlm, 1, "resid_post", seed, phase="both") for seed in (0, 1))
    with sk.steer(vlm, first, policy="off"), sk.steer(vlm, second, policy="off"):
        found = model.generate(**inputs, **options).hidden_states
    with added(block, one), added(block, other):
        expected = model.generate(**inputs, **options).hidden_states
    for step in range(2):
        assert (found[step][2] - expected[step][2]).abs().max() < 1e-5


Reader = Callable[[nn.Module, Callable[[Tensor], None]], Any]

READERS: dict[str, Reader] = {
    "plain": lambda m, see: m.register_forward_hook(lambda m, a, o: see(tensor_of(o))),
    "prepended": lambda m, see: m.register_forward_hook(lambda m, a, o: see(tensor_of(o)), prepend=True),
    "always called": lambda m, see: m.register_forward_hook(lambda m, a, o: see(tensor_of(o)), always_call=True),
    "with keywords": lambda m, see: m.register_forward_hook(
        lambda m, a, k, o: see(tensor_of(o)), with_kwargs=True, prepend=True
    ),
    "global": lambda m, see: register_module_forward_hook(lambda each, a, o: see(tensor_of(o)) if each is m else None),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("when", ["before", "between", "inside"])
@pytest.mark.parametrize("site", SITES)
def test_hooks_of_others_see_steered_outputs(reader: str, when: str, site: Site) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    inputs = vlm.inputs(WITH_IMAGE[:1])
    module = module_at(vlm.model, "llava", 1, site)
    seen: list[Tensor] = []
    with added(module, direction(48)), added(module, direction(48, 1)):
        handle = module.register_forward_hook(lambda m, a, o: seen.append(tensor_of(o)))
        run(vlm, inputs)
        handle.remove()
    (expected,) = seen
    seen.clear()
    before = [dict(m._forward_hooks) for m in vlm.model.modules()]
    handles = [READERS[reader](module, seen.append)] if when == "before" else []
    with sk.steer(vlm, steering(vlm, 1, site), policy="off"):
        handles += [READERS[reader](module, seen.append)] if when == "between" else []
        with sk.steer(vlm, steering(vlm, 1, site, 1), policy="off"):
            seen.clear()  # a block that opens looks at the model's own responses
            run(vlm, inputs)
            handles += [READERS[reader](module, seen.append)] if when == "inside" else []
            run(vlm, inputs)
    assert len(seen) == (1 if when == "inside" else 2)
    assert all((each - expected).abs().max() < 1e-5 for each in seen)
    run(vlm, inputs)
    assert (seen[-1] - expected).abs().max() > CLEARLY
    for handle in handles:
        handle.remove()
    assert [dict(m._forward_hooks) for m in vlm.model.modules()] == before


@pytest.mark.parametrize("kind", LANGUAGE)
@pytest.mark.parametrize("way", ["plain", "prepended", "global", "output hook"])
def test_hooks_of_others_see_steered_heads(kind: str, way: str) -> None:
    vlm = sk.wrap(*decoder.build(kind))
    inputs = vlm.inputs(TEXT_ONLY[:1])
    module = vlm.model.get_submodule(vlm.architecture.site(1, "head_out"))
    d = direction(vlm.record.width("head_out", "language"))
    seen: list[Tensor] = []

    def read(m: nn.Module, args: Any, output: Any = None) -> None:
        if m is module:
            seen.append(args[0])

    def register() -> Any:
        if way == "global":
            return register_module_forward_pre_hook(read)
        if way == "output hook":
            return module.register_forward_hook(read)
        return module.register_forward_pre_hook(read, prepend=way == "prepended")

    with added(module, d, on_input=True):
        handle = module.register_forward_pre_hook(read)
        run(vlm, inputs)
        handle.remove()
    (expected,), found = seen, seen
    first = register()
    with sk.steer(vlm, steering(vlm, 1, "head_out"), policy="off"):
        second = register()
        found.clear()
        run(vlm, inputs)
    first.remove(), second.remove()
    assert len(found) == 2
    assert all((each - expected).abs().max() < 1e-5 for each in found)


def test_the_next_block_and_what_changes_states_further() -> None:
    """A hook of another library that changes the state changes the steered one, and is not lost."""
    vlm = sk.wrap(*tiny.build("qwen3"))
    inputs = vlm.inputs(TEXT_ONLY[:1])
    block, following = module_at(vlm.model, "decoder", 1), module_at(vlm.model, "decoder", 2)
    d = direction(vlm.record.hidden_size)
    doubled = block.register_forward_hook(lambda m, a, o: 2 * tensor_of(o))
    seen: list[Tensor] = []
    following.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with added(block, d):
        run(vlm, inputs)
    with sk.steer(vlm, steering(vlm, 1, "resid_post"), policy="off"):
        del seen[1:]
        run(vlm, inputs)
    run(vlm, inputs)
    doubled.remove()
    assert (seen[0] - seen[1]).abs().max() < 1e-5
    assert (seen[1] - seen[2]).abs().max() > CLEARLY


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_accelerate_and_peft_see_steered_states() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
    from peft import LoraConfig, get_peft_model

    vlm = sk.wrap(*tiny.build("llava"))
    inputs = vlm.inputs(WITH_IMAGE[:1])
    block = module_at(vlm.model, "llava", 1)
    torch.manual_seed(0)
    tuned = get_peft_model(vlm.model, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    add_hook_to_module(block, ModelHook())
    seen: list[Tensor] = []
    handle = block.register_forward_hook(lambda m, a, o: seen.append(tensor_of(o)), prepend=True)
    with added(block, direction(48)):
        after = block.register_forward_hook(lambda m, a, o: seen.append(tensor_of(o)))
        expected = run(vlm, inputs).logits
        after.remove()
    expected_state = seen[-1]
    with sk.steer(tuned, steering(vlm, 1, "resid_post"), policy="off"):
        found = run(vlm, inputs).logits
    handle.remove()
    remove_hook_from_module(block)
    assert (found - expected).abs().max() < 1e-5
    assert (seen[-1] - expected_state).abs().max() < 1e-5


def test_the_vision_towers_readers_see_steered_states(vlm: sk.VLM, family: str) -> None:
    tower = vlm.architecture.vision
    assert tower is not None
    inputs = vlm.inputs(WITH_IMAGE[:1])
    block = vlm.model.get_submodule(f"{tower.layers}.0")
    seen: list[Tensor] = []
    with added(block, direction(tower.hidden_size)):
        handle = block.register_forward_hook(lambda m, a, o: seen.append(tensor_of(o)))
        expected = run(vlm, inputs).logits
        handle.remove()
    handle = block.register_forward_hook(lambda m, a, o: seen.append(tensor_of(o)), prepend=True)
    with sk.steer(vlm, steering(vlm, 0, "resid_post", tower="vision"), policy="off"):
        del seen[1:]
        found = run(vlm, inputs).logits
    handle.remove()
    assert (found - expected).abs().max() < 1e-5
    assert (seen[0] - seen[1]).abs().max() < 1e-5


def test_a_hook_put_in_front_while_a_pass_runs_is_refused() -> None:
    vlm = sk.wrap(*tiny.build("qwen3"))
    inputs = vlm.inputs(TEXT_ONLY[:1])
    first, second = module_at(vlm.model, "decoder", 0), module_at(vlm.model, "decoder", 1)
    late: list[Any] = []

    def register(m: Any, args: Any) -> None:
        late.append(second.register_forward_hook(lambda m, a, o: None, prepend=True))

    handle = first.register_forward_pre_hook(register)
    with sk.steer(vlm, steering(vlm, 1, "resid_post"), policy="off"):
        with pytest.raises(EngineError, match="put in front of the steering"):
            run(vlm, inputs)
        handle.remove()
        run(vlm, inputs)
    late[0].remove()


def test_hooks_that_somebody_clears_are_put_back_or_missed() -> None:
    """`module._forward_hooks.clear()` takes everybody's away."""
    vlm = sk.wrap(*tiny.build("qwen3"))
    inputs = vlm.inputs(TEXT_ONLY[:1])
    block = module_at(vlm.model, "decoder", 1)
    plain = run(vlm, inputs).logits
    handle = block.register_forward_hook(lambda m, a, o: tensor_of(o) + direction(vlm.record.hidden_size))
    right = run(vlm, inputs).logits
    handle.remove()
    before = state(vlm.model)
    with sk.steer(vlm, steering(vlm, 1, "resid_post"), policy="off"):
        run(vlm, inputs)
        block._forward_hooks.clear()
        found = run(vlm, inputs).logits
    assert state(vlm.model) == before
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(right, plain, atol=CLEARLY)
    context = sk.steer(vlm, steering(vlm, 1, "resid_post"), policy="off")
    context.__enter__()
    run(vlm, inputs)
    for module in vlm.model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    run(vlm, inputs)
    with pytest.raises(EngineError, match="were removed inside the steering block"):
        context.__exit__(None, None, None)
