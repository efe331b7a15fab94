"""The attention heads as a site: where they are, what is read there, and steering them in both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from reference import CAUSAL, TEXT_ONLY, WITH_IMAGE, distance, forget, generate, vector
from torch import Tensor, nn

import steerkit as sk
from steerkit.errors import EngineError, ModelMismatchError, OptionError
from steerkit.interventions import Gate, Measure
from steerkit.testing.tiny import seeded, text

WITH_HEADS = ("llava", "llava_next", "llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
HEADS, SIZE = 4, 12


def projections(vlm: sk.VLM, family: str) -> list[nn.Module]:
    path = {"instructblip-llama": "language_model.model.layers"}.get(family, CAUSAL)
    return [block.self_attn.o_proj for block in vlm.model.get_submodule(path)]  # type: ignore[union-attr,misc]


def shift(layer: int) -> Tensor:
    """Zero outside of one head."""
    made = torch.zeros(HEADS, SIZE)
    made[layer % HEADS] = 3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(layer))
    return made.flatten()


@contextmanager
def shifted(vlm: sk.VLM, family: str, layers: list[int]) -> Iterator[None]:
    """Plain hooks: the last token of every pass, of one head, before the projection."""

    def hook(layer: int) -> Callable[..., Any]:
        def run(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            x = args[0].clone()
            x[:, -1] += shift(layer)
            return (x,)

        return run

    every = projections(vlm, family)
    handles = [every[layer].register_forward_pre_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steering(vlm: sk.VLM, layers: list[int], **more: Any) -> sk.SteeringVector:
    tensors = {sk.Key(layer, "head_out"): shift(layer) for layer in layers}
    return vector(vlm, tensors, sk.Intervention(site="head_out", **more))


@pytest.mark.parametrize("family_name", [*WITH_HEADS, "instructblip-llama"])
def test_heads_are_steered_in_every_family_and_engine(vlm_of: Callable[[str], sk.VLM], family_name: str) -> None:
    vlm = vlm_of(family_name)
    layers = [0, vlm.record.layer_count - 1]
    inputs = vlm.inputs(WITH_IMAGE[:2])
    plain = generate(vlm.model, inputs, 4)
    with shifted(vlm, family_name, layers):
        expected = generate(vlm.model, inputs, 4)
        answers = vlm.generate(WITH_IMAGE[:2], max_new_tokens=4)
    with sk.steer(vlm, steering(vlm, layers)) as receipt:
        found = generate(vlm.model, inputs, 4)
    assert distance(found, expected) == 0
    assert distance(found, plain) > 1e-3
    assert {k: (c.prompt_tokens, c.generated_tokens) for k, c in receipt.sites.items()} == {
        (layer, "head_out"): (2, 6) for layer in layers
    }
    with sk.steer(vlm, steering(vlm, layers), engine="nnsight") as receipt:
        assert vlm.generate(WITH_IMAGE[:2], max_new_tokens=4) == answers
        assert receipt.generated_tokens > 0
        forget(vlm.model)
        with torch.no_grad(), receipt.nnsight.trace(**inputs):
            traced = receipt.nnsight.output.logits.save()
    with sk.steer(vlm, steering(vlm, layers)), torch.no_grad():
        forget(vlm.model)
        assert torch.equal(vlm.model(**inputs).logits, traced)


DENSE = {
    "falcon": ("falcon", "transformer.h", "self_attention", {}),  # many heads, one key and value, as Falcon 7B
    "falcon-alibi": ("falcon", "transformer.h", "self_attention", {"alibi": True, "multi_query": False}),
    "falcon-serial": ("falcon", "transformer.h", "self_attention", {"parallel_attn": False, "bias": True}),
    "falcon-grouped": (
        "falcon",
        "transformer.h",
        "self_attention",
        {"new_decoder_architecture": True, "num_kv_heads": 2},  # as Falcon 40B
    ),
    "phi": ("phi", "model.layers", "self_attn", {"partial_rotary_factor": 0.5}),
    "phi-grouped": ("phi", "model.layers", "self_attn", {"num_key_value_heads": 2, "qk_layernorm": True}),
}
"""Language models whose attention ends in `dense`: model type, path of the blocks, name of the attention, options."""


@cache
def with_dense(name: str) -> tuple[sk.VLM, list[nn.Module]]:
    """A tiny seeded model and the projections of its blocks."""
    kind, blocks, attention, options = DENSE[name]

    def make() -> tuple[Any, Any]:
        tokenizer = text.llama()
        config: Any = transformers.AutoConfig.for_model(
            kind,
            **{"vocab_size": len(tokenizer), "hidden_size": HEADS * SIZE, "num_hidden_layers": 3},
            **{"num_attention_heads": HEADS, "pad_token_id": tokenizer.pad_token_id},
            **({"intermediate_size": 96} if kind == "phi" else {"ffn_hidden_size": 96}),
            **options,
        )
        return transformers.AutoModelForCausalLM.from_config(config), tokenizer

    vlm = sk.wrap(*seeded(make))
    return vlm, [vlm.model.get_submodule(f"{blocks}.{layer}.{attention}.dense") for layer in range(3)]


@contextmanager
def moved(projections: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Plain hooks: the last token of every pass, before these projections."""

    def hook(by: Tensor) -> Callable[..., Any]:
        return lambda module, args: (torch.cat([args[0][:, :-1], args[0][:, -1:] + by], dim=1),)

    handles = [module.register_forward_pre_hook(hook(by)) for module, by in projections.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", DENSE)
def test_heads_before_a_dense_projection(name: str) -> None:
    """Falcon and Phi: what is read, what is steered, and what a method makes of it."""
    vlm, projections = with_dense(name)
    assert type(vlm.model).__name__ == {"falcon": "FalconForCausalLM", "phi": "PhiForCausalLM"}[DENSE[name][0]]
    assert (vlm.record.head_count, vlm.record.head_size) == (HEADS, SIZE)
    seen: list[Tensor] = []
    handles = [each.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for each in projections]
    for sample in TEXT_ONLY:  # one prompt alone, so that nothing is padded
        with torch.no_grad():
            vlm.model(input_ids=vlm.inputs([sample])["input_ids"])
    for handle in handles:
        handle.remove()
    for engine in ("hooks", "nnsight"):
        found = vlm.capture(TEXT_ONLY, site="head_out", engine=engine)
        for index in range(len(TEXT_ONLY)):
            for layer in range(3):
                assert (found[layer][index] - seen[3 * index + layer][0, -1]).abs().max() < 1e-4

    inputs = vlm.inputs(TEXT_ONLY)
    plain = generate(vlm.model, inputs, 4)
    with moved({projections[layer]: shift(layer) for layer in (0, 2)}):
        expected = generate(vlm.model, inputs, 4)
    with sk.steer(vlm, steering(vlm, [0, 2])) as receipt:
        assert distance(generate(vlm.model, inputs, 4), expected) == 0
    assert distance(plain, expected) > 1e-3
    assert {key: (c.prompt_tokens, c.generated_tokens) for key, c in receipt.sites.items()} == {
        (layer, "head_out"): (3, 9) for layer in (0, 2)
    }
    alone = vlm.inputs(TEXT_ONLY[:1])  # nnsight counts positions from the first real token, which rounds otherwise
    with sk.steer(vlm, steering(vlm, [0, 2]), engine="nnsight") as receipt:
        with torch.no_grad(), receipt.nnsight.trace(**alone):
            traced = receipt.nnsight.output.logits.save()
    with moved({projections[layer]: shift(layer) for layer in (0, 2)}), torch.no_grad():
        assert torch.equal(vlm.model(**alone).logits, traced)


@pytest.mark.parametrize("name", ["falcon", "phi"])
def test_iti_moves_heads_before_a_dense_projection(name: str) -> None:
    vlm, projections = with_dense(name)
    anchors = [
        sk.Sample(f"How do I plan {topic}?", label="no" if index % 2 else "yes")
        for index, topic in enumerate(("a bomb", "a cake", "a fight", "a garden", "a theft", "a letter"))
    ]
    fitted = sk.methods.ITI(positive="yes", negative="no", heads=2, held_out=0.4).fit(vlm, anchors)
    doses = {key.layer: tensor for key, tensor in fitted.tensors.items()}
    assert {key.site for key in fitted.tensors} == {"head_out"}
    assert sum(int(row.reshape(HEADS, SIZE).abs().sum(1).count_nonzero()) for row in doses.values()) == 2
    inputs = vlm.inputs(TEXT_ONLY)
    strength = float(fitted.interventions[0].strength)  # type: ignore[arg-type]
    with moved({projections[layer]: strength * row for layer, row in doses.items()}):
        expected = generate(vlm.model, inputs, 4)
    with sk.steer(vlm, fitted, policy="off"):
        assert distance(generate(vlm.model, inputs, 4), expected) < 1e-4
    assert distance(generate(vlm.model, inputs, 4), expected) > 1e-3


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_capture_reads_the_input_of_the_projection(llava: sk.VLM, engine: Any, pool: Any) -> None:
    seen: list[Tensor] = []
    handles = [
        projection.register_forward_pre_hook(lambda m, args: seen.append(args[0].double()))
        for projection in projections(llava, "llava")
    ]
    inputs = llava.inputs(WITH_IMAGE)
    with torch.no_grad():
        llava.model(**inputs)
    for handle in handles:
        handle.remove()
    found = llava.capture(WITH_IMAGE, site="head_out", pool=pool, engine=engine)
    mask = inputs["attention_mask"].double()[:, :, None]
    for layer, x in enumerate(seen):
        expected = x[:, -1] if pool == "last" else (x * mask).sum(1) / mask.sum(1)
        assert torch.allclose(found[layer].double(), expected, atol=1e-6)


@pytest.mark.parametrize("family_name", ["qwen3_5", "instructblip-t5"])
def test_refuses_blocks_without_equal_heads(vlm_of: Callable[[str], sk.VLM], family_name: str) -> None:
    vlm = vlm_of(family_name)
    assert vlm.architecture.heads is None
    made = steering(vlm, [0]) if vlm.record.head_count else vector(vlm, {}, sk.Intervention(operation=MEASURED))
    with pytest.raises(EngineError, match="head_out"):
        vlm.capture(WITH_IMAGE, site="head_out")
    with pytest.raises(EngineError, match="head_out"):
        sk.steer(vlm, made.with_metadata(interventions=[sk.Intervention(site="head_out", operation=MEASURED)]))
    with pytest.raises(OptionError, match="gives no sizes for that place"):
        vector(vlm, {sk.Key(0, "head_out"): shift(0)})


MEASURED = {"kind": "add", "direction": {"source": "contrast"}}


def test_heads_of_other_sizes_are_refused(llava: sk.VLM) -> None:
    wide = vector(
        llava, {sk.Key(0, "head_out"): torch.ones(64)}, sk.Intervention(site="head_out"), head_count=4, head_size=16
    )
    with pytest.raises(ModelMismatchError, match="width at head_out"):
        sk.steer(llava, wide)


def test_a_projection_of_another_width_has_no_heads(llava: sk.VLM) -> None:
    import tiny

    model, processor = tiny.build("llava")
    model.config.text_config.head_dim = 16
    assert sk.wrap(model, processor).architecture.heads is None


def test_an_older_architecture_still_serves(llava: sk.VLM) -> None:
    """Third-party adapters declare neither heads nor tower."""
    bare = replace(llava.architecture, heads=None, vision=None)
    assert bare.site(1, "mlp_out") == llava.architecture.site(1, "mlp_out")
    assert (bare.count("language"), bare.count("vision")) == (4, 0)


def test_a_remote_trace_refuses_heads(llava: sk.VLM) -> None:
    from steerkit.engines.application import Application
    from steerkit.engines.steps import Place

    application = Application([steering(llava, [0])], [1.0], llava.architecture, sk.Receipt(), lambda *_: {})
    with pytest.raises(EngineError, match="head_out runs in a remote trace"):
        application.portable(Place(0, "head_out"))


def test_heads_pass_gates(llava: sk.VLM) -> None:
    """A measure at the heads reads the heads."""
    inputs = llava.inputs(WITH_IMAGE)
    state = llava.capture(WITH_IMAGE, site="head_out", layers=[1])[1] @ shift(1) / shift(1).norm()
    threshold = float(state.sort().values[:2].mean())
    gate = Gate(measure=Measure(kind="projection", layer=1), threshold=threshold)
    with torch.no_grad():
        plain = llava.model(**inputs).logits
        with sk.steer(llava, steering(llava, [1], gate=gate)):
            found = llava.model(**inputs).logits
    assert torch.equal((plain != found).flatten(1).any(1), state > threshold)
