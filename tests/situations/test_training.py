"""Gradients through steering are those of plain hooks, also where the backward pass runs blocks again."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from reference import TEXT_ONLY, WITH_IMAGE, state, tensor_of, vector
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import steerkit as sk
from steerkit.engines import hooks
from steerkit.errors import EngineError
from steerkit.interventions import Ablate, Gate, LinearStrength, Measure, Site, Tower

CLEARLY = 1e-2
ROUNDING = 5e-5
"""Of gradients: a processor without vector instructions was seen at 1.3e-5."""
PLACES: tuple[tuple[Site, Tower], ...] = (
    ("resid_post", "language"),
    ("mlp_out", "language"),
    ("attn_out", "language"),
    ("head_out", "language"),
    ("mlp_out", "vision"),
    ("resid_post", "vision"),
)
KINDS = {"none": None, "reentrant": True, "not reentrant": False}

pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated:FutureWarning"
)

Gradients = dict[str, Tensor]


def trained(family: str, kind: str) -> sk.VLM:
    """A model in training mode, without what is random in it."""
    vlm = sk.wrap(*tiny.build(family))
    checkpointed(vlm.model, KINDS[kind])
    for module in vlm.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    vlm.model.train()
    return vlm


def checkpointed(model: Any, reentrant: bool | None) -> None:
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def prompt(vlm: sk.VLM, family: str, index: int = 0) -> dict[str, Any]:
    samples = TEXT_ONLY if family in ("qwen2", "qwen3") else WITH_IMAGE
    inputs: dict[str, Any] = dict(vlm.inputs(samples[index : index + 1]))
    if vlm.architecture.encoder_decoder:
        inputs["decoder_input_ids"] = torch.ones(1, 3, dtype=torch.long)
    return inputs


def loss_of(vlm: sk.VLM, inputs: Any) -> Tensor:
    return vlm.model(**inputs).logits.float().pow(2).mean()


def directions(vlm: sk.VLM, site: Site, tower: Tower, seed: int = 0) -> dict[sk.Key, Tensor]:
    generator = torch.Generator().manual_seed(60 + seed)
    width, layers = vlm.record.width(site, tower), range(vlm.architecture.count(tower))
    return {sk.Key(layer, site, tower=tower): 2 * torch.randn(width, generator=generator) for layer in layers}


def steering(vlm: sk.VLM, tensors: Any, site: Site, tower: Tower, **more: Any) -> sk.SteeringVector:
    return vector(vlm, tensors, sk.Intervention(site=site, tower=tower, tokens="all", **more))


@contextmanager
def plain(vlm: sk.VLM, tensors: Any, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """The truth: plain hooks ahead of all others; there as long as they are needed."""

    def after(module: Any, args: Any, output: Any, d: Tensor) -> Any:
        h = change(tensor_of(output), d)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handles = []
    for key, d in tensors.items():
        module = vlm.model.get_submodule(vlm.architecture.site(key.layer, key.site, key.tower))
        if key.site == "head_out":
            handles.append(
                module.register_forward_pre_hook(lambda m, args, d=d: (change(args[0], d), *args[1:]), prepend=True)
            )
        else:
            handles.append(module.register_forward_hook(functools.partial(after, d=d), prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add(h: Tensor, d: Tensor) -> Tensor:
    return h + d


def ablate(h: Tensor, d: Tensor) -> Tensor:
    unit = d / d.norm()
    return h - (h @ unit)[..., None] * unit


def taken(model: nn.Module) -> Gradients:
    """The gradients of the parameters, which are then forgotten."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def distance(one: Gradients, other: Gradients) -> float:
    """The largest difference, as a part of the largest gradient."""
    assert one.keys() == other.keys()
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("site", "tower"), PLACES)
@pytest.mark.parametrize("family_name", ["qwen3", "llava", "instructblip-t5"])
def test_gradients_are_those_of_plain_hooks(family_name: str, site: Site, tower: Tower, kind: str) -> None:
    if (family_name == "qwen3" and tower == "vision") or (family_name == "instructblip-t5" and site == "head_out"):
        return  # there is no such place
    reference, vlm = trained(family_name, "none"), trained(family_name, kind)
    inputs = prompt(vlm, family_name)
    tensors = directions(vlm, site, tower)
    loss_of(reference, inputs).backward()
    unsteered = taken(reference.model)
    loss_of(vlm, inputs).backward()  # also what is left on a model by its first pass
    taken(vlm.model)
    before = state(vlm.model)
    for change, operation in ((add, sk.Intervention().operation), (ablate, Ablate())):
        with plain(reference, tensors, change):
            expected = loss_of(reference, inputs)
            expected.backward()
        truth = taken(reference.model)
        given = steering(vlm, tensors, site, tower, operation=operation)
        with sk.steer(vlm, given, policy="off") as receipt:
            loss = loss_of(vlm, inputs)
            loss.backward()
            inside = taken(vlm.model)
            counted = (receipt.prompt_tokens, receipt.vision_tokens)
            later = loss_of(vlm, inputs)
        assert (receipt.prompt_tokens, receipt.vision_tokens) == tuple(2 * each for each in counted)
        assert state(vlm.model) == before
        later.backward()
        assert state(vlm.model) == before
        assert float(loss.detach() - expected.detach()) == pytest.approx(0, abs=1e-5)
        assert distance(inside, truth) < ROUNDING
        assert distance(taken(vlm.model), truth) < ROUNDING
        assert distance(unsteered, truth) > CLEARLY
    loss_of(vlm, inputs).backward()
    assert distance(taken(vlm.model), unsteered) < ROUNDING


def test_blocks_are_really_run_again() -> None:
    """Otherwise the tests here would show nothing."""
    for kind, runs in (("none", 1), ("reentrant", 2), ("not reentrant", 2)):
        vlm = trained("qwen3", kind)
        seen: list[int] = []
        vlm.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        loss_of(vlm, prompt(vlm, "qwen3")).backward()
        assert len(seen) == runs


@pytest.mark.parametrize("kind", KINDS)
def test_several_passes_meet_in_one_backward_pass(kind: str) -> None:
    """Two steered ones, differently, and one from before the block, as in preference training."""
    reference, vlm = trained("qwen3", "none"), trained("qwen3", kind)
    first, second = (directions(vlm, "mlp_out", "language", seed) for seed in (0, 1))
    inputs = [prompt(vlm, "qwen3", index) for index in range(3)]
    total = loss_of(reference, inputs[0])
    with plain(reference, first, ablate):
        total = total + 2 * loss_of(reference, inputs[1])
    with plain(reference, second, ablate):
        total = total + 3 * loss_of(reference, inputs[2])
    total.backward()
    expected = taken(reference.model)
    found = loss_of(vlm, inputs[0])
    made = [steering(vlm, each, "mlp_out", "language", operation=Ablate()) for each in (first, second)]
    with sk.steer(vlm, made[0], policy="off"):
        found = found + 2 * loss_of(vlm, inputs[1])
    with sk.steer(vlm, made[1], policy="off"):
        found = found + 3 * loss_of(vlm, inputs[2])
        found.backward(retain_graph=kind != "reentrant")
    assert distance(taken(vlm.model), expected) < ROUNDING
    if kind != "reentrant":
        found.backward()
        assert distance(taken(vlm.model), expected) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_nested_blocks_in_their_order(kind: str) -> None:
    reference, vlm = trained("qwen3", "none"), trained("qwen3", kind)
    inputs = prompt(vlm, "qwen3")
    first, second = (directions(vlm, "attn_out", "language", seed) for seed in (0, 1))
    with plain(reference, second, ablate), plain(reference, first, add):
        loss_of(reference, inputs).backward()
    truth = taken(reference.model)
    outer = steering(vlm, first, "attn_out", "language")
    inner = steering(vlm, second, "attn_out", "language", operation=Ablate())
    with sk.steer(vlm, outer, policy="off"):
        with sk.steer(vlm, inner, policy="off"):
            loss = loss_of(vlm, inputs)
        loss.backward()
    assert distance(taken(vlm.model), truth) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_directions_are_trained_under_checkpointing(site: Site, kind: str) -> None:
    reference, vlm = trained("qwen3", "none"), trained("qwen3", kind)
    inputs = prompt(vlm, "qwen3")
    learned = {key: d.requires_grad_() for key, d in directions(vlm, site, "language").items()}
    copies = {key: d.detach().clone().requires_grad_() for key, d in learned.items()}
    with plain(reference, copies, ablate):
        loss_of(reference, inputs).backward()
    with sk.steer(vlm, steering(vlm, learned, site, "language", operation=Ablate()), policy="off"):
        loss = loss_of(vlm, inputs)
    loss.backward()
    for key, d in learned.items():
        torch.testing.assert_close(d.grad, copies[key].grad, rtol=1e-3, atol=1e-6)
        assert copies[key].grad.abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_on_states_in_the_middle(kind: str) -> None:
    """No gradient comes by the decoder's output."""
    reference, vlm = trained("qwen3", "none"), trained("qwen3", kind)
    inputs = prompt(vlm, "qwen3")
    tensors = directions(vlm, "mlp_out", "language")

    def loss(of: sk.VLM) -> Tensor:
        kept: list[Tensor] = []
        handle = of.model.model.layers[1].register_forward_hook(lambda m, a, o: kept.append(tensor_of(o)))
        of.model(**inputs)
        handle.remove()
        return kept[0].pow(2).mean()

    with plain(reference, tensors, ablate):
        loss(reference).backward()
    with sk.steer(vlm, steering(vlm, tensors, "mlp_out", "language", operation=Ablate()), policy="off"):
        found = loss(vlm)
    found.backward()
    assert distance(taken(vlm.model), taken(reference.model)) < ROUNDING


def test_reentrant_checkpointing_is_refused_where_transformers_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_LOSES_GRADIENTS", True)
    vlm = trained("qwen3", "reentrant")
    tensors = directions(vlm, "mlp_out", "language")
    with (
        pytest.raises(EngineError, match="reentrant gradient checkpointing would lose"),
        sk.steer(vlm, steering(vlm, tensors, "mlp_out", "language"), policy="off"),
    ):
        loss_of(vlm, prompt(vlm, "qwen3"))


@pytest.mark.parametrize("kind", KINDS)
def test_gates_and_strengths_that_are_read_elsewhere(kind: str) -> None:
    vlm, reference = trained("qwen3", kind), trained("qwen3", "none")
    inputs = prompt(vlm, "qwen3")
    tensors = directions(vlm, "mlp_out", "language")
    measure = Measure(kind="projection", layer=0)
    gate = Gate(measure=measure, threshold=-1e6)
    gated = steering(vlm, tensors, "mlp_out", "language", gate=gate, layers=(1, 2))
    with plain(reference, {key: d for key, d in tensors.items() if key.layer}, add):
        loss_of(reference, inputs).backward()
    with sk.steer(vlm, gated, policy="off"):
        loss = loss_of(vlm, inputs)
    loss.backward()
    assert distance(taken(vlm.model), taken(reference.model)) < ROUNDING

    rule = LinearStrength(measure=measure, slope=0.1, intercept=1.0, minimum=-5, maximum=5)
    ruled = steering(vlm, tensors, "mlp_out", "language", strength=rule, layers=(1, 2))
    if kind == "reentrant":
        with pytest.raises(EngineError, match="would cut the gradient"), sk.steer(vlm, ruled, policy="off"):
            loss_of(vlm, inputs)
        return
    dose: list[Tensor] = []

    def read(m: Any, args: Any, output: Any) -> None:
        d = tensors[sk.Key(0, "mlp_out")]
        dose[:] = [(0.1 * (output[:, -1] @ (d / d.norm())) + 1.0).clamp(-5, 5)]

    handle = reference.model.model.layers[0].mlp.register_forward_hook(read)
    with plain(
        reference, {key: d for key, d in tensors.items() if key.layer}, lambda h, d: h + dose[0][:, None, None] * d
    ):
        loss_of(reference, inputs).backward()
    handle.remove()
    with sk.steer(vlm, ruled, policy="off"):
        loss = loss_of(vlm, inputs)
    loss.backward()
    assert distance(taken(vlm.model), taken(reference.model)) < ROUNDING


def test_checkpoints_of_the_users_own(llava: sk.VLM) -> None:
    vlm, reference = trained("qwen3", "none"), trained("qwen3", "none")
    inputs = prompt(vlm, "qwen3")
    tensors = directions(vlm, "mlp_out", "language")
    given = steering(vlm, tensors, "mlp_out", "language", operation=Ablate())
    with plain(reference, tensors, ablate):
        loss_of(reference, inputs).backward()
    truth = taken(reference.model)
    for reentrant in (False, True):
        for layer in vlm.model.model.layers:
            mlp = layer.mlp
            mlp.forward = functools.partial(checkpoint, type(mlp).forward, mlp, use_reentrant=reentrant)
        with sk.steer(vlm, given, policy="off"):
            loss = loss_of(vlm, inputs)
        loss.backward()
        assert distance(taken(vlm.model), truth) < ROUNDING
        for layer in vlm.model.model.layers:
            del layer.mlp.forward
    with sk.steer(vlm, given, policy="off"):
        embeddings = vlm.model.get_input_embeddings()(inputs["input_ids"])
        for reentrant in (False, True):
            with pytest.raises(EngineError, match=r"runs inside torch\.utils\.checkpoint while"):
                checkpoint(lambda e: vlm.model(inputs_embeds=e).logits, embeddings, use_reentrant=reentrant)
        loss_of(vlm, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_that_fails_leaves_nothing(kind: str) -> None:
    vlm = trained("qwen3", kind)
    inputs = prompt(vlm, "qwen3")
    loss_of(vlm, inputs).backward()
    taken(vlm.model)
    before = state(vlm.model)

    class Stop(Exception):
        pass

    def stop(gradient: Tensor) -> None:
        raise Stop

    handle = vlm.model.model.embed_tokens.weight.register_hook(stop)
    with sk.steer(vlm, steering(vlm, directions(vlm, "mlp_out", "language"), "mlp_out", "language"), policy="off"):
        loss = loss_of(vlm, inputs)
    with pytest.raises(Stop):
        loss.backward()
    handle.remove()
    loss_of(vlm, inputs)  # torch does not tell anybody that the pass failed: the next call notices
    assert state(vlm.model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_steps_leave_nothing_in_memory(kind: str) -> None:
    """Gates and rules keep what they read; a graph that such a value is part of must not keep itself by it."""
    vlm = trained("qwen3", kind)
    inputs, tensors = prompt(vlm, "qwen3"), directions(vlm, "mlp_out", "language")
    measure = Measure(kind="projection", layer=1)
    below = steering(vlm, {key: d for key, d in tensors.items() if key.layer == 0}, "mlp_out", "language", layers=(0,))
    above = [steering(vlm, tensors, "mlp_out", "language", layers=(2,), gate=Gate(measure=measure, threshold=-1e6))]
    if kind != "reentrant":
        rule = LinearStrength(measure=measure, slope=0.1, intercept=1.0, minimum=-5, maximum=5)
        above.append(steering(vlm, tensors, "mlp_out", "language", layers=(2,), strength=rule))
    states = []
    for _ in range(3):
        with sk.steer(vlm, [below, *above], policy="off"):
            loss = loss_of(vlm, inputs)
        loss.backward()
        del loss
        gc.collect()
        alive = [each for each in gc.get_objects() if issubclass(type(each), Tensor) and each.grad_fn is not None]
        ours = [each for each in gc.get_objects() if "steerkit.engines" in repr(type(each))]
        states.append((len(alive), len(ours)))
        del alive, ours
    assert states[1] == states[2]


def test_nnsight_refuses_checkpointing() -> None:
    vlm = trained("qwen3", "not reentrant")
    given = steering(vlm, directions(vlm, "mlp_out", "language"), "mlp_out", "language")
    with (
        pytest.raises(EngineError, match="trained with gradient checkpointing"),
        sk.steer(vlm, given, policy="off", engine="nnsight") as receipt,
        receipt.nnsight.trace(**prompt(vlm, "qwen3")),
    ):
        receipt.nnsight.output.logits.save()
