"""The attention heads as a site: where they are, what is read there, and steering them in both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import CAUSAL, WITH_IMAGE, distance, forget, generate, vector
from torch import Tensor, nn

import steerkit as sk
from steerkit.errors import EngineError, ModelMismatchError, OptionError
from steerkit.intervention import Gate, Measure

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
