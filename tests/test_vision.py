"""Steering the vision tower: the right tokens of the right blocks, in both engines, against plain hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from reference import TEXT_ONLY, WITH_IMAGE, distance, forget, generate, tensor_of, vector
from torch import Tensor

import steerkit as sk
from steerkit.errors import EngineError, LayerRangeError, MissingImageError, ModelMismatchError, OptionError
from steerkit.interventions import Add, Gate, Measure, MeasuredContrast, Site
from steerkit.vectors.formats import encode_document

CLIP, QWEN = "model.vision_tower.encoder.layers", "model.visual.blocks"
TOWERS = {"qwen": (QWEN, 2, 0, "attn"), "instructblip": ("vision_model.encoder.layers", 2, 1, "self_attn")}
"""Path, blocks and class tokens of each family's tower, as its tiny config has them, and its attention."""


def tower(family: str) -> tuple[str, int, int, str]:
    known = TOWERS.get(family.partition("-" if "-" in family else "2" if "2" in family else "3")[0])
    return known or (CLIP, 3, 0 if family == "llava_onevision" else 1, "self_attn")


def blocks(vlm: sk.VLM, family: str) -> list[torch.nn.Module]:
    path, count, _, _ = tower(family)
    found = list(vlm.model.get_submodule(path))  # type: ignore[arg-type]
    assert len(found) == count
    return found


def module_of(block: torch.nn.Module, site: Site, attention: str) -> torch.nn.Module:
    inner = {"resid_post": "", "mlp_out": "mlp", "attn_out": attention}[site]
    return block.get_submodule(inner) if inner else block


def a_direction(layer: int, width: int = 32) -> Tensor:
    made = torch.randn(width, generator=torch.Generator().manual_seed(900 + layer))
    return 8 * made / made.norm()


@contextmanager
def added(vlm: sk.VLM, family: str, layers: list[int], site: Site, patches_only: bool) -> Iterator[None]:
    """Plain hooks that add the directions, put ahead of those by which transformers reads features."""
    _, _, class_tokens, attention = tower(family)
    first = class_tokens if patches_only else 0

    def hook(layer: int) -> Callable[..., Any]:
        def run(module: Any, args: Any, output: Any) -> Any:
            h = tensor_of(output).clone()
            h[..., first:, :] += a_direction(layer)
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return run

    every = blocks(vlm, family)
    handles = [
        module_of(every[layer], site, attention).register_forward_hook(hook(layer), prepend=True) for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def steering(vlm: sk.VLM, layers: list[int], site: Site, tokens: Any = "all", **more: Any) -> sk.SteeringVector:
    tensors = {sk.Key(layer, site, tower="vision"): a_direction(layer) for layer in layers}
    return vector(vlm, tensors, sk.Intervention(tower="vision", site=site, tokens=tokens, **more))


def logits(vlm: sk.VLM, inputs: Mapping[str, Any]) -> Tensor:
    more = {"decoder_input_ids": torch.zeros(2, 1, dtype=torch.long)} if vlm.architecture.encoder_decoder else {}
    forget(vlm.model)
    with torch.no_grad():
        return vlm.model(**inputs, **more).logits


@pytest.mark.parametrize(("site", "tokens"), [("resid_post", "all"), ("mlp_out", "image"), ("attn_out", "all")])
def test_all_families_are_steered_at_the_right_tokens(vlm: sk.VLM, family: str, site: Site, tokens: str) -> None:
    inputs = vlm.inputs(WITH_IMAGE[:2])
    plain = logits(vlm, inputs)
    layers = list(range(len(blocks(vlm, family))))
    with added(vlm, family, layers, site, tokens == "image"):
        expected = logits(vlm, inputs)
    with sk.steer(vlm, steering(vlm, layers, site, tokens)) as receipt:
        found = logits(vlm, inputs)
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(found, expected)
    assert torch.equal(logits(vlm, inputs), plain)
    assert receipt.vision_layers == layers
    assert (receipt.layers, receipt.prompt_tokens, receipt.generated_tokens) == ([], 0, 0)
    assert "layers of the vision tower" in str(receipt)


def test_image_tokens_are_the_patches_without_the_class_token(vlm: sk.VLM, family: str) -> None:
    """Golden positions: which tokens of the tower change, and how many are counted."""
    _, _, class_tokens, _ = tower(family)
    block = blocks(vlm, family)[0]
    inputs = vlm.inputs(WITH_IMAGE[:2])
    for tokens in ("all", "image"):
        seen: list[Tensor] = []
        before = block.register_forward_hook(lambda m, a, o, seen=seen: seen.append(tensor_of(o).clone()))
        logits(vlm, inputs)
        before.remove()
        with sk.steer(vlm, steering(vlm, [0], "resid_post", tokens)) as receipt:
            after = block.register_forward_hook(lambda m, a, o, seen=seen: seen.append(tensor_of(o).clone()))
            logits(vlm, inputs)
            after.remove()
        changed = (seen[0] != seen[1]).any(-1)
        first = class_tokens if tokens == "image" else 0
        expected = torch.ones_like(changed)
        expected[..., :first] = False
        assert torch.equal(changed, expected)
        assert receipt.vision_tokens == int(expected.sum()) > 0


@pytest.mark.parametrize("family_name", ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "instructblip-t5"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_both_engines_give_the_same(vlm_of: Callable[[str], sk.VLM], family_name: str, site: Site) -> None:
    vlm = vlm_of(family_name)
    samples, layers = list(WITH_IMAGE[:2]), list(range(vlm.architecture.count("vision")))
    seen = steering(vlm, layers, site, "image")
    both = [seen, vector(vlm, {sk.Key(1): 4 * torch.ones(vlm.record.hidden_size)})]
    plain = vlm.generate(samples, max_new_tokens=4, min_new_tokens=4)
    answers, counts = [], []
    for engine in ("hooks", "nnsight"):
        with sk.steer(vlm, both, engine=engine, policy="off") as receipt:  # the dose is large
            answers.append(vlm.generate(samples, max_new_tokens=4, min_new_tokens=4))
        counts.append({k: (c.prompt_tokens, c.generated_tokens) for k, c in receipt.sites.items()})
    assert answers[0] == answers[1] != plain
    assert counts[0] == counts[1]
    assert counts[0][1, "resid_post"][1] > 0, "the decoder is steered at every token"
    inputs = vlm.inputs(samples)
    more = {"decoder_input_ids": torch.zeros(2, 1, dtype=torch.long)} if vlm.architecture.encoder_decoder else {}
    with sk.steer(vlm, seen):
        expected = logits(vlm, inputs)
    forget(vlm.model)
    with sk.steer(vlm, seen, engine="nnsight") as receipt, torch.no_grad(), receipt.nnsight.trace(**inputs, **more):
        traced = receipt.nnsight.output.logits.save()
    assert torch.equal(traced, expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_generation_is_steered_while_the_prompt_is_read(llava: sk.VLM, options: dict[str, Any]) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    with added(llava, "llava", [0, 1], "resid_post", False):
        expected = generate(llava.model, inputs, **options)
    with sk.steer(llava, steering(llava, [0, 1], "resid_post")) as receipt:
        found = generate(llava.model, inputs, **options)
    assert distance(found, expected) == 0
    assert distance(found, generate(llava.model, inputs, **options)) > 0
    assert all(count.generated_tokens == 0 for count in receipt.sites.values())


def test_the_block_that_features_are_read_from_is_steered_whenever_it_first_ran(llava: sk.VLM) -> None:
    """transformers reads features by hooks that it leaves behind: a hook added later would come too late."""
    import tiny

    inputs = llava.inputs(WITH_IMAGE[:1])
    logits(llava, inputs)
    fresh = sk.wrap(*tiny.build("llava"))
    found = []
    for vlm in (llava, fresh):  # one whose features were read before, and one whose first pass is the steered one
        with sk.steer(vlm, steering(vlm, [1], "resid_post")):
            found.append(logits(vlm, inputs))
    assert torch.equal(*found)
    assert (found[0] - logits(llava, inputs)).abs().max() > 1e-3


def test_blocks_nest_in_the_order_in_which_they_were_opened(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE[:1])
    logits(llava, inputs)
    key = sk.Key(0, tower="vision")
    scale = vector(
        llava,
        {key: a_direction(0)},
        sk.Intervention(tower="vision", tokens="all", operation={"kind": "ablate"}),  # type: ignore[arg-type]
    )
    add = steering(llava, [0], "resid_post")
    results = []
    for first, second in ((scale, add), (add, scale)):
        with sk.steer(llava, [first, second]):
            together = logits(llava, inputs)
        with sk.steer(llava, first), sk.steer(llava, second):
            assert torch.equal(logits(llava, inputs), together)
        results.append(together)
    assert not torch.allclose(*results)


def test_a_measure_of_the_token_itself_gates_it(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE[:1])
    gate = Gate(measure=Measure(kind="projection"), threshold=0.0)
    seen: list[Tensor] = []
    block = blocks(llava, "llava")[0]
    handle = block.register_forward_hook(lambda m, a, o: seen.append(o.clone()))
    with sk.steer(llava, steering(llava, [0], "resid_post", gate=gate)) as receipt:
        handle.remove()
        handle = block.register_forward_hook(lambda m, a, o: seen.append(o.clone()))
        logits(llava, inputs)
    handle.remove()
    unit = a_direction(0) / a_direction(0).norm()
    logits(llava, inputs)
    (steered,) = seen
    handle = block.register_forward_hook(lambda m, a, o: seen.append(o.clone()))
    logits(llava, inputs)
    handle.remove()
    passes = (seen[-1] @ unit) > 0
    assert 0 < int(passes.sum()) < passes.numel()
    assert torch.equal((steered != seen[-1]).any(-1), passes)
    assert receipt.vision_tokens == int(passes.sum())


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_capture_is_the_mean_over_the_tokens_of_each_samples_images(vlm: sk.VLM, family: str, engine: Any) -> None:
    found = vlm.capture(WITH_IMAGE, tower="vision", site="mlp_out", engine=engine)
    every = blocks(vlm, family)
    assert list(found) == list(range(len(every)))
    for index, sample in enumerate(WITH_IMAGE):
        seen: dict[int, Tensor] = {}
        handles = [
            block.get_submodule("mlp").register_forward_hook(
                lambda m, a, o, layer=layer, seen=seen: seen.__setitem__(layer, o)
            )
            for layer, block in enumerate(every)
        ]
        inputs = vlm.inputs([sample])
        more = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if vlm.architecture.encoder_decoder else {}
        forget(vlm.model)
        with torch.no_grad():
            vlm.model(**inputs, **more)
        for handle in handles:
            handle.remove()
        for layer, h in seen.items():
            mean = h.double().reshape(-1, h.shape[-1]).mean(0)
            assert torch.allclose(found[layer][index].double(), mean, atol=1e-6)


def test_a_pack_of_both_towers_is_read_back(llava: sk.VLM, tmp_path: Path) -> None:
    tensors = {
        sk.Key(0): torch.ones(48),
        sk.Key(0, "mlp_out", tower="vision"): a_direction(0),
        sk.Key(2, "mlp_out", "other", "vision"): a_direction(2),
    }
    seen = sk.Intervention(tower="vision", site="mlp_out", tokens="all")
    made = vector(llava, tensors, sk.Intervention(), seen)
    assert made.select([0]).tensors.keys() == made.tensors.keys()
    loaded = sk.SteeringVector.load(made.save(tmp_path / "both.safetensors"))
    assert loaded.tensors.keys() == made.tensors.keys()
    assert loaded.digest() == made.digest()
    assert loaded.metadata == made.metadata.model_copy(update={"tensors_sha256": made.digest()})
    with sk.steer(llava, loaded) as receipt:
        logits(llava, llava.inputs(WITH_IMAGE[:1]))
    assert receipt.sites.keys() == {(0, "resid_post"), (0, "vision.mlp_out")}
    assert (receipt.layers, receipt.vision_layers) == ([0], [0])
    assert "; and 1 layer of the vision tower, 17 image tokens each" in str(receipt)


def test_sizes_are_those_of_the_tower(llava: sk.VLM) -> None:
    for key, tensor, error in (
        (sk.Key(3, tower="vision"), torch.ones(32), LayerRangeError),
        (sk.Key(0, tower="vision"), torch.ones(48), OptionError),
        (sk.Key(0, "head_out", tower="vision"), torch.ones(32), OptionError),
    ):
        with pytest.raises(error):
            vector(llava, {key: tensor}, sk.Intervention(tower="vision", tokens="all", site=key.site))
    with pytest.raises(OptionError, match="gives no sizes for that place"):
        vector(llava, {sk.Key(0, tower="vision"): torch.ones(32)}, vision_hidden_size=None)
    longer = vector(
        llava,
        {sk.Key(0, tower="vision"): torch.ones(32)},
        sk.Intervention(tower="vision", tokens="all"),
        vision_layer_count=7,
    )
    with pytest.raises(ModelMismatchError, match=r"\(7, 32\) layers and width at vision.resid_post"):
        sk.steer(llava, longer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": "last"}, "tokens='last'"),
        ({"tokens": "text"}, "tokens='text'"),
        ({"tokens": "all", "phase": "generation"}, "phase='generation'"),
        ({"tokens": "all", "operation": Add(direction=MeasuredContrast())}, "a contrast"),
        ({"gate": Gate(measure=Measure(kind="cosine", layer=0), threshold=0)}, "a measure with a layer"),
        ({"gate": Gate(measure=Measure(kind="cosine", state=MeasuredContrast()), threshold=0)}, "a contrast"),
    ],
)
def test_refuses_what_means_nothing_in_the_tower(llava: sk.VLM, change: dict[str, Any], message: str) -> None:
    intervention = sk.Intervention(**{"tower": "vision", "tokens": "all", "layers": (0,), **change})
    made = vector(llava, {sk.Key(0, tower="vision"): a_direction(0)}, intervention)
    with pytest.raises(EngineError, match=message):
        sk.steer(llava, made)


def test_refuses_a_model_without_a_declared_tower(llava: sk.VLM) -> None:
    made = steering(llava, [0], "resid_post")
    bare = sk.wrap(llava.model, llava.processor)
    bare.architecture = replace(bare.architecture, vision=None)
    with pytest.raises(EngineError, match="none whose blocks are known"):
        sk.steer(bare, made)
    with pytest.raises(EngineError, match="none whose blocks are known"):
        bare.capture(WITH_IMAGE, tower="vision")


def test_nothing_is_read_where_no_image_is_shown(llava: sk.VLM) -> None:
    with pytest.raises(MissingImageError, match="sample 0"):
        llava.capture(TEXT_ONLY, tower="vision")
    with pytest.raises(MissingImageError, match="sample 0"):
        llava.capture(WITH_IMAGE, tower="vision", images=False)


def test_packs_from_before_there_were_towers_and_heads_still_load(llava: sk.VLM, tmp_path: Path) -> None:
    """Their documents lack the fields that came later."""
    made = vector(
        llava,
        {sk.Key(1): torch.ones(48)},
        sk.Intervention(layers=(1,), gate=Gate(measure=Measure(kind="cosine", layer=1), threshold=0.25)),
    )
    document = made.metadata.model_copy(update={"tensors_sha256": made.digest()}).model_dump(mode="json")
    for field in ("head_count", "head_size", "vision_hidden_size", "vision_layer_count"):
        del document["model"][field]
    for field in ("pool", "state"):
        del document["interventions"][0]["gate"]["measure"][field]
    data = safetensors.torch.save({"directions.1.resid_post": torch.ones(48)}, metadata=encode_document(document))
    loaded = sk.SteeringVector.from_bytes(data)
    assert loaded.interventions == made.interventions
    with sk.steer(llava, loaded):
        logits(llava, llava.inputs(WITH_IMAGE[:1]))
