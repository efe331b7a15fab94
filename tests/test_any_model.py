"""The same vectors and methods on a model however it comes, each against plain PyTorch hooks on the same model."""

from __future__ import annotations

import copy
import itertools
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import tiny
import torch
import transformers
from reference import (
    TEXT_ONLY,
    WITH_IMAGE,
    Edit,
    adds,
    captured,
    directions,
    distance,
    edited,
    generate,
    no_images,
    only,
    picture,
    since,
    state,
    vector,
)
from tiny import decoder

import steerkit as sk
from steerkit.analysis import _responses as fingerprint
from steerkit.errors import EngineError, UnsupportedModelError
from steerkit.interventions import Ablate, Clamp, Gate, Measure

CLEARLY = 1e-2
ANCHORS = [sk.Sample(each.text, each.images, label=("bad", "good")[at % 2]) for at, each in enumerate(WITH_IMAGE)]
MEANS = sk.methods.CAA(positive="bad", negative="good", phase="both", layers=(1, 2))


def expected_means(model: Any, family: str, inputs: Any) -> dict[int, torch.Tensor]:
    """What MEANS fits, from plain hooks."""
    states = captured(model, family, inputs)
    return {layer: states[layer][[0, 2]].mean(0) - states[layer][1] for layer in (1, 2)}


def check_fit(vlm: sk.VLM, model: Any, family: str, tolerance: float = 1e-4) -> sk.SteeringVector:
    """MEANS and CMRM fit the directions that plain hooks find."""
    fitted = MEANS.fit(vlm, ANCHORS, batch_size=2)
    for layer, expected in expected_means(model, family, vlm.inputs(WITH_IMAGE)).items():
        assert (fitted.directions[layer] - expected).abs().max() < tolerance
    shift = sk.CMRM(counterpart="blank", aggregate="mean", form="literal", layers=(1,)).fit(vlm, ANCHORS).directions[1]
    text, blank = (captured(model, family, vlm.inputs(WITH_IMAGE, images))[1] for images in (False, "blank"))
    assert (shift - (text - blank).mean(0)).abs().max() < tolerance
    return fitted


# -- methods that are fitted on a model, however it runs ---------------------------------------------------------------

SHIFT = sk.CMRM(counterpart="blank", aggregate="mean", form="literal")
GATED = sk.methods.CAST(meets="bad", fails="good", layers=(2,), condition_layers=(1,), coefficient=0.5)
OPEN = torch.tensor([True, False, True])
"""For which of the anchors GATED opens its gate: those that meet the condition."""


def by_hooks(method: Any, model: Any, inputs: Any, blank: Any, phase: str = "prompt") -> list[Edit]:
    """What a method does to the three anchors, from plain hooks on this model: directions, gate and places."""
    length = inputs["input_ids"].shape[1]
    if method is SHIFT:
        text, white = (torch.stack(captured(model, "llava", each)) for each in blank)
        where = {"prompt": only(length - 1), "both": since(length - 1)}[phase]
        return adds({sk.Key(layer): d for layer, d in enumerate((text - white).mean(1))}, where)
    h = captured(model, "llava", inputs)[2].double()
    differences = torch.stack([h[0] - h[1], h[2] - h[1]])
    component = torch.linalg.svd(differences, full_matrices=False)[2][0]
    shift = component * (differences.mean(0) @ component)
    seen: list[torch.Tensor] = []  # whether a prompt meets the condition is told by its mean at block 1
    handle = model.model.language_model.layers[1].register_forward_hook(lambda m, a, o: seen.append(o.double()))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    mask = inputs["attention_mask"].double()[:, :, None]
    mean = (seen[0] * mask).sum(1) / mask.sum(1)
    condition = torch.linalg.svd(torch.stack([mean[0] - mean[1], mean[2] - mean[1]]), full_matrices=False)[2][0]
    similar = torch.cosine_similarity(mean, torch.tanh(torch.outer(mean @ condition, condition)))
    assert similar[1] < similar[[0, 2]].min() or similar[1] > similar[[0, 2]].max(), "one threshold tells them apart"
    real = inputs["attention_mask"].bool()

    def where(positions: Any) -> Any:
        shown = torch.ones(3, len(positions), dtype=torch.bool)
        shown[:, positions < length] = real[:, positions[positions < length]]
        return shown & OPEN[:, None]

    return [Edit(2, where, lambda x, rows: x + 0.5 * shift)]


FITTED = pytest.mark.parametrize("method", [SHIFT, GATED], ids=["cmrm", "cast"])


# -- a pipeline --------------------------------------------------------------------------------------------------------


def test_a_method_fits_on_a_pipeline_and_steers_it() -> None:
    pipe = transformers.pipeline(
        "image-text-to-text", **dict(zip(("model", "processor"), tiny.build("llava"), strict=True))
    )
    fitted = check_fit(sk.wrap(pipe.model, pipe.processor), pipe.model, "llava")
    call = {"images": [picture(0)], "text": "USER: <image>\nWhat? ASSISTANT:", "return_full_text": False}
    call |= {"generate_kwargs": {"max_new_tokens": 6, "min_new_tokens": 6}}
    before = pipe(**call)[0]["generated_text"]
    with sk.steer(pipe.model, fitted, strength=4.0, policy="off") as receipt:  # the dose is large
        steered = pipe(**call)[0]["generated_text"]
    length = pipe.processor(images=[picture(0)], text=call["text"], return_tensors="pt")["input_ids"].shape[1]
    with edited(pipe.model, "llava", adds(fitted.tensors, since(length - 1), 4.0)):
        assert pipe(**call)[0]["generated_text"] == steered
    assert steered != before
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (1, 5)
    with pytest.raises(sk.SteerKitError, match="Pipeline is not a Hugging Face model") as caught:
        sk.steer(pipe, fitted)
    assert "pipe.model" in str(caught.value)


# -- PEFT --------------------------------------------------------------------------------------------------------------


# PEFT asks transformers by a name that is going away
OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def lora() -> tuple[Any, Any]:
    model, processor = tiny.build("llava")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=2, init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).eval(), processor


@OF_PEFT
def test_a_peft_model_is_steered_from_outside_and_inside() -> None:
    model, processor = lora()
    vlm = sk.wrap(model, processor)
    assert vlm.record.architecture == "LlavaForConditionalGeneration"
    assert vlm.model is model.get_base_model()
    fitted = check_fit(vlm, model, "peft-llava")
    inputs = vlm.inputs(WITH_IMAGE)
    steering = vector(vlm, directions(vlm))
    edits = adds(steering.tensors, since(inputs["input_ids"].shape[1] - 1))
    with edited(model, "peft-llava", edits):
        expected = generate(model, inputs)
    before = state(model)
    for given, called in itertools.product((model, model.get_base_model(), vlm), (model, model.get_base_model())):
        with sk.steer(given, steering) as receipt:
            assert distance(generate(called, inputs), expected) == 0.0
        assert (receipt.prompt_tokens, receipt.generated_tokens) == (3, 12)
    assert state(model) == before
    assert distance(generate(model, inputs), expected) > CLEARLY

    with model.disable_adapter(), edited(model, "peft-llava", edits):
        without = generate(model, inputs)
    with model.disable_adapter(), sk.steer(model, steering):
        assert distance(generate(model, inputs), without) == 0.0
    assert distance(without, expected) > CLEARLY

    merged = model.merge_and_unload()
    with sk.steer(merged, steering):
        assert distance(generate(merged, inputs), expected) < 1e-3
    assert sk.wrap(merged).record.architecture == fitted.metadata.model.architecture


@OF_PEFT
def test_a_peft_model_that_adds_tokens_is_refused() -> None:
    model, tokenizer = decoder.build("llama")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    prompted = peft.get_peft_model(model, config)
    with pytest.raises(UnsupportedModelError, match="'default'.*put tokens of their own in front"):
        sk.wrap(prompted, tokenizer)


# -- weights elsewhere -------------------------------------------------------------------------------------------------


def device_map() -> dict[str, str]:
    """Embeddings and one block on the disk, the rest on the CPU."""
    inner = "model.language_model"
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    places |= {f"{inner}.norm": "cpu", f"{inner}.rotary_emb": "cpu", f"{inner}.embed_tokens": "disk"}
    places |= {f"{inner}.layers.{layer}": "disk" if layer == 1 else "cpu" for layer in range(4)}
    return places


def offloaded(folder: Path) -> sk.VLM:
    model, processor = tiny.build("llava")
    moved = accelerate.dispatch_model(model, device_map=device_map(), main_device="cpu", offload_dir=folder)
    return sk.wrap(moved, processor)


def test_offloaded_weights(llava: sk.VLM, tmp_path: Path) -> None:
    vlm = offloaded(tmp_path)
    weights = vlm.model.model.language_model.layers[1].mlp.up_proj.weight
    assert weights.device.type == "meta"
    assert vlm.device == torch.device("cpu")
    check_fit(vlm, llava.model, "llava")
    steering = vector(vlm, directions(vlm))
    inputs = vlm.inputs(WITH_IMAGE)
    with edited(llava.model, "llava", adds(steering.tensors, since(inputs["input_ids"].shape[1] - 1))):
        expected = generate(llava.model, inputs)
    with sk.steer(vlm.model, steering) as receipt:
        assert distance(generate(vlm.model, inputs), expected) < 1e-5
    assert receipt.generated_tokens == 12
    assert distance(generate(vlm.model, inputs), generate(llava.model, inputs)) < 1e-5
    assert distance(generate(vlm.model, inputs), expected) > CLEARLY
    assert vlm.model.model.language_model.layers[1].mlp.up_proj.weight.device.type == "meta"


def test_loads_with_a_device_map(llava: sk.VLM, tmp_path: Path) -> None:
    tiny.save("llava", tmp_path / "model")
    vlm = sk.load(str(tmp_path / "model"), device_map=device_map(), offload_folder=str(tmp_path / "offload"))
    assert vlm.model.model.language_model.layers[1].mlp.up_proj.weight.device.type == "meta"
    steering = vector(llava, directions(llava))
    options = {"max_new_tokens": 5, "min_new_tokens": 5, **no_images(llava.model)}
    with sk.steer(llava, steering):
        expected = llava.generate(WITH_IMAGE, **options)
    with sk.steer(vlm, steering):
        assert vlm.generate(WITH_IMAGE, **options) == expected
    assert vlm.generate(WITH_IMAGE, **options) != expected


# -- 8-bit weights -----------------------------------------------------------------------------------------------------


def by_torch(model: Any) -> type[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is on its way out of torch, in favour of torchao
        torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return torch.ao.nn.quantized.dynamic.Linear


def by_torchao(model: Any) -> type[Any]:
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert "Int8" in type(model.model.layers[0].mlp.up_proj.weight).__name__
    return torch.nn.Linear


@pytest.mark.parametrize("quantise", [by_torch, by_torchao])
def test_eight_bit_weights(quantise: Callable[[Any], type[Any]]) -> None:
    model, tokenizer = decoder.build("qwen2")
    record = sk.wrap(model, tokenizer).record
    inputs = sk.wrap(model, tokenizer).inputs(TEXT_ONLY)
    exact = generate(model, inputs)
    kind = quantise(model)
    assert isinstance(model.model.layers[0].mlp.up_proj, kind)
    vlm = sk.wrap(model, tokenizer)
    assert vlm.record == record
    assert distance(generate(model, inputs), exact) > 0
    states = captured(model, "decoder", inputs)
    for layer, found in vlm.capture(TEXT_ONLY, engine="hooks").items():
        assert (found - states[layer]).abs().max() < 1e-5
    steering = vector(vlm, directions(vlm))
    with sk.steer(model, steering):
        found = generate(model, inputs)
    with edited(model, "decoder", adds(steering.tensors, since(inputs["input_ids"].shape[1] - 1))):
        assert distance(found, generate(model, inputs)) == 0.0
    assert distance(found, generate(model, inputs)) > CLEARLY


@FITTED
def test_methods_fit_on_eight_bit_weights_and_steer_them(method: Any) -> None:
    """Dynamic quantisation goes by the whole batch, so the anchors are fitted, and answered, in one."""
    model, processor = tiny.build("llava")
    exact = method.fit(sk.wrap(model, processor), ANCHORS)
    by_torch(model)
    assert "quantized" in type(model.model.language_model.layers[0].mlp.up_proj).__module__
    vlm = sk.wrap(model, processor)
    inputs = vlm.inputs(WITH_IMAGE)
    fitted = method.fit(vlm, ANCHORS)
    assert (fitted.directions[2] - exact.directions[2]).abs().max() > 1e-4, "it is measured on the quantised model"
    edits = by_hooks(method, model, inputs, [vlm.inputs(WITH_IMAGE, images) for images in (False, "blank")])
    with sk.steer(model, fitted, policy="off"):
        found = generate(model, inputs)
    with edited(model, "llava", edits):
        assert distance(found, generate(model, inputs)) < 1e-3
    assert distance(found, generate(model, inputs)) > CLEARLY


# -- torch.compile -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    """Graphs of one test are no other's."""
    torch._dynamo.reset()
    trace = logging.getLogger("torch.__trace")  # pytest would collect, and format, all of it
    level = trace.level
    trace.setLevel(logging.CRITICAL)
    yield
    trace.setLevel(level)
    torch._dynamo.reset()


def static(backend: Any) -> dict[str, Any]:
    """Options under which `generate` compiles its decoding step, on a CPU too; a graph break would be an error."""
    config = transformers.CompileConfig(backend=backend, mode=None, fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


class Counting:
    """A backend of torch.compile that runs the graph as it is, and counts how often it is asked to compile."""

    compiled = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        Counting.compiled += 1
        return graph.forward

    def __repr__(self) -> str:
        return "Counting()"

    def __hash__(self) -> int:
        return hash(Counting)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counting)


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize("family", ["llava", "decoder"])
def test_a_static_cache_is_compiled_once_and_steered(family: str) -> None:
    vlm = sk.wrap(*(tiny.build("llava") if family == "llava" else decoder.build("qwen2")))
    model, inputs = vlm.model, vlm.inputs(TEXT_ONLY if family == "decoder" else WITH_IMAGE)
    where = since(inputs["input_ids"].shape[1] - 1)
    Counting.compiled = 0
    options = static(Counting())
    unsteered = generate(model, inputs, steps=7, **options)
    assert Counting.compiled == 1
    for seed in (0, 1):  # the graph of the first block serves the second one
        tensors = directions(vlm, seed=seed)
        with sk.steer(model, vector(vlm, tensors)) as receipt:
            found = generate(model, inputs, steps=7, **options)
        assert Counting.compiled == 2
        with edited(model, family, adds(tensors, where)):
            assert distance(found, generate(model, inputs, steps=7)) < 2e-5
        assert distance(found, unsteered) > CLEARLY
        assert (receipt.layers, receipt.prompt_tokens, receipt.generated_tokens) == (
            list(range(vlm.record.layer_count)),
            3,
            18,
        )
        assert distance(generate(model, inputs, steps=7, **options), unsteered) < 1e-5
        assert Counting.compiled == 2
    part = {sk.Key(1): tensors[sk.Key(1)]}
    with sk.steer(model, vector(vlm, part)):  # other places, another graph
        found = generate(model, inputs, steps=7, **options)
    assert Counting.compiled == 3
    with edited(model, family, adds(part, where)):
        assert distance(found, generate(model, inputs, steps=7)) < 2e-5


@pytest.mark.usefixtures("fresh_graphs")
def test_what_steers_answers_alone_is_measured_in_a_graph_too() -> None:
    """At their first token; inside the graph the cache has grown by it already."""
    vlm = sk.wrap(*tiny.build("llava"))
    made = vector(vlm, directions(vlm), sk.Intervention(phase="generation"))
    changes = []
    for options in ({}, static("eager")):
        with sk.steer(vlm, made) as receipt:
            generate(vlm.model, vlm.inputs(WITH_IMAGE), **options)
        assert (receipt.prompt_tokens, receipt.generated_tokens) == (0, 12)
        changes.append(receipt.relative_change)
    assert changes[1] == pytest.approx(changes[0], rel=1e-3)


@FITTED
@pytest.mark.usefixtures("fresh_graphs")
def test_fitted_methods_steer_a_static_cache(method: Any) -> None:
    """As they steer without a graph, which is as plain hooks do; the gate of each prompt holds in every step."""
    vlm = sk.wrap(*tiny.build("llava"))
    model, inputs = vlm.model, vlm.inputs(WITH_IMAGE)
    given = SHIFT.model_copy(update={"phase": "both"}) if method is SHIFT else method
    fitted = given.fit(vlm, ANCHORS)
    edits = by_hooks(method, model, inputs, [vlm.inputs(WITH_IMAGE, images) for images in (False, "blank")], "both")
    Counting.compiled = 0
    with sk.steer(model, fitted, policy="off") as receipt:
        found = generate(model, inputs, steps=6, **static(Counting()))
    assert Counting.compiled == 1
    with sk.steer(model, fitted, policy="off") as eager:
        assert distance(found, generate(model, inputs, steps=6)) < 2e-5
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (eager.prompt_tokens, eager.generated_tokens)
    with edited(model, "llava", edits):
        assert distance(found, generate(model, inputs, steps=6)) < 1e-3
    plain = generate(model, inputs, steps=6)
    assert distance(found, plain) > CLEARLY
    left_alone = (torch.stack(found.logits) - torch.stack(plain.logits))[:, 1].abs().max() < 2e-5
    assert bool(left_alone) == (method is GATED)


@pytest.mark.usefixtures("fresh_graphs")
def test_whatever_an_intervention_does_is_done_in_the_graph() -> None:
    model, tokenizer = decoder.build("llama")
    vlm = sk.wrap(model, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY)
    tensors = directions(vlm)
    gate = Gate(measure=Measure(kind="cosine", layer=0), threshold=0.0)
    held = Gate(measure=Measure(kind="projection"), threshold=0.0, above=False)
    vectors = [
        vector(vlm, tensors, sk.Intervention(operation=Ablate(), gate=held, norm_preserving=True)),
        vector(vlm, tensors, sk.Intervention(operation=Clamp(maximum=1.0), site="resid_post", layers=(1, 2))),
        vector(vlm, tensors, sk.Intervention(gate=gate, tokens="generated")),
    ]
    with sk.steer(model, vectors) as eager, sk.steer(model, vector(vlm, directions(vlm, seed=1), sk.Intervention())):
        expected = generate(model, inputs, steps=6)
    with sk.steer(model, vectors) as receipt, sk.steer(model, vector(vlm, directions(vlm, seed=1), sk.Intervention())):
        found = generate(model, inputs, steps=6, **static("eager"))
    assert distance(found, expected) < 2e-5
    assert distance(found, generate(model, inputs, steps=6)) > CLEARLY
    for one, other in zip(receipt.vectors, eager.vectors, strict=True):
        assert (one.prompt_tokens, one.generated_tokens) == (other.prompt_tokens, other.generated_tokens)


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="inductor needs a C++ compiler")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="inductor needs vector instructions")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_inductor_runs_the_steering() -> None:
    model, tokenizer = decoder.build("llama", layers=2)
    vlm = sk.wrap(model, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY)
    tensors = directions(vlm)
    with sk.steer(model, vector(vlm, tensors)) as receipt:
        found = generate(model, inputs, steps=4, **static("inductor"))
    with edited(model, "decoder", adds(tensors, since(inputs["input_ids"].shape[1] - 1))):
        assert distance(found, generate(model, inputs, steps=4)) < 1e-4
    assert distance(found, generate(model, inputs, steps=4)) > CLEARLY
    assert receipt.generated_tokens == 9


@pytest.mark.usefixtures("fresh_graphs")
def test_a_forward_pass_compiled_inside_the_block() -> None:
    model, tokenizer = decoder.build("llama", layers=2)
    vlm = sk.wrap(model, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY)
    tensors = directions(vlm)
    forward = model.forward
    with torch.no_grad():
        before = model(**inputs).logits
        with sk.steer(model, vector(vlm, tensors)) as receipt:
            model.forward = torch.compile(forward, backend="eager", fullgraph=True)
            found = model(**inputs).logits
        assert (receipt.prompt_tokens, receipt.layers) == (3, [0, 1])
        assert (model(**inputs).logits - before).abs().max() < 1e-5  # the graph does nothing outside
        model.forward = forward
        with edited(model, "decoder", adds(tensors, since(inputs["input_ids"].shape[1] - 1))):
            assert (found - model(**inputs).logits).abs().max() < 2e-5
    assert (found - before).abs().max() > CLEARLY


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.filterwarnings("ignore:Dynamo")
def test_graphs_that_can_not_be_steered_say_so() -> None:
    model, tokenizer = decoder.build("llama", layers=2)
    vlm = sk.wrap(model, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY)
    steering = vector(vlm, directions(vlm))
    forward = model.forward
    with torch.no_grad():
        with sk.steer(model, steering) as receipt:
            whole = torch.compile(model, backend="eager")
            with pytest.raises(EngineError, match="hides where its call begins"):
                whole(**inputs)
            model(**inputs)
        assert receipt.prompt_tokens == 3
        torch._dynamo.reset()
        before = torch.compile(model, backend="eager")
        unsteered = before(**inputs).logits
        with sk.steer(model, steering) as receipt:
            steered = model(**inputs).logits
            with pytest.raises(EngineError, match="hides where its call begins"):
                before(**inputs)
        assert receipt.prompt_tokens == 3
        assert torch.equal(before(**inputs).logits, unsteered), "and outside, the graph serves as before"
        torch._dynamo.reset()
        model.forward = torch.compile(forward, backend="eager")
        model(**inputs)
        model.forward = forward
        with sk.steer(model, steering) as receipt:
            model.forward = torch.compile(forward, backend="eager")
            assert (model(**inputs).logits - steered).abs().max() < 2e-5, "no graph from before the block serves it"
            model.forward = forward
        assert receipt.prompt_tokens == 3
        torch._dynamo.reset()
        with sk.steer(vlm, steering, engine="nnsight"):
            vlm.generate(TEXT_ONLY, max_new_tokens=1)
            with pytest.raises(EngineError, match="nothing is steered by hooks"):
                vlm.generate(TEXT_ONLY, max_new_tokens=3, min_new_tokens=3, **static("eager"))


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["add", "ablate", "two"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_directions_are_trained_through_the_steering(llava: sk.VLM, operation: str, site: str) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    last = since(inputs["input_ids"].shape[1] - 1)
    trained = {key: t.clone().requires_grad_() for key, t in directions(llava, site=site).items()}
    plain = {key: t.detach().clone().requires_grad_() for key, t in trained.items()}
    fixed = directions(llava, seed=1, site=site)

    def change(key: sk.Key) -> Any:
        d = plain[key]
        if operation == "ablate":
            return lambda h, rows: h - 0.5 * torch.outer(h @ (d / d.norm()), d / d.norm())
        return lambda h, rows: h + 0.5 * d + (0.5 * fixed[key] if operation == "two" else 0.0)

    done = Ablate() if operation == "ablate" else sk.Intervention().operation
    vectors = [vector(llava, trained, sk.Intervention(operation=done, site=site))]
    if operation == "two":
        vectors.append(vector(llava, fixed, sk.Intervention(site=site)))
    losses = []
    with sk.steer(llava.model, vectors, strength=0.5):
        with torch.no_grad():
            llava.model(**inputs)  # what a pass without gradients keeps must not serve one with them
        for _ in range(2):  # gradients accumulate
            losses.append(llava.model(**inputs).logits[:, -1].pow(2).mean())
            losses[-1].backward()
    with edited(llava.model, "llava", [Edit(key.layer, last, change(key), site) for key in plain], cached=False):
        loss = llava.model(**inputs).logits[:, -1].pow(2).mean()
        (2 * loss).backward()
    llava.model.zero_grad()
    assert losses[0].item() == losses[1].item() == pytest.approx(loss.item(), rel=1e-5)
    for key, direction in trained.items():
        torch.testing.assert_close(direction.grad, plain[key].grad, rtol=1e-3, atol=1e-6)
        assert direction.grad.abs().max() > 1e-6


def test_a_vector_around_trained_directions_is_saved_and_copied(llava: sk.VLM, tmp_path: Path) -> None:
    steering = vector(llava, {key: t.requires_grad_() for key, t in directions(llava).items()})
    loaded = sk.SteeringVector.load(steering.save(tmp_path / "pack.safetensors"))
    assert loaded.digest() == steering.digest() == copy.deepcopy(steering).digest()
    assert not any(t.requires_grad for t in copy.deepcopy(steering).tensors.values())


# -- speculative decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["both", "prompt", "generation"])
@pytest.mark.parametrize("draft", ["itself", "another", "lookup"])
def test_an_assistant_changes_no_answer(draft: str, phase: str) -> None:
    model, tokenizer = decoder.build("llama")
    vlm = sk.wrap(model, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY[2:])
    tensors = directions(vlm, norm=3.0)
    if draft == "lookup":
        options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    else:
        assistant = copy.deepcopy(model) if draft == "itself" else decoder.build("llama", layers=2, seed=1)[0]
        assistant.generation_config.update(
            num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        options = {"assistant_model": assistant}
    steering = vector(vlm, tensors, sk.Intervention(phase=phase))
    with sk.steer(model, steering) as alone:
        expected = generate(model, inputs, steps=12)
    length = inputs["input_ids"].shape[1]
    where = {
        "both": since(length - 1),
        "prompt": lambda positions: positions == length - 1,
        "generation": since(length),
    }[phase]
    with edited(model, "decoder", adds(tensors, where)):
        assert distance(expected, generate(model, inputs, steps=12)) == 0.0
    assert not torch.equal(expected.sequences, generate(model, inputs, steps=12).sequences)
    passes: list[int] = []
    handle = model.model.layers[0].register_forward_hook(lambda m, a, output: passes.append(output.shape[1]))
    with sk.steer(model, steering) as receipt:
        found = generate(model, inputs, steps=12, **options)
    handle.remove()
    assert torch.equal(found.sequences, expected.sequences)
    assert max(passes[1:]) > 1
    assert sum(passes) > length + 11  # something was proposed and rejected
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (alone.prompt_tokens, alone.generated_tokens)


@pytest.mark.parametrize("draft", ["itself", "lookup"])
@pytest.mark.parametrize("sample", [0, 1], ids=["meets", "fails"])
@FITTED
def test_an_assistant_changes_no_answer_of_a_fitted_method(method: Any, sample: int, draft: str) -> None:
    """A gate is decided by the prompt, and stays so while proposals come and go."""
    vlm = sk.wrap(*tiny.build("llava"))
    model = vlm.model
    if draft == "lookup":
        options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    else:
        assistant = copy.deepcopy(model)
        assistant.generation_config.update(
            num_assistant_tokens=4, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        options = {"assistant_model": assistant}
    given = SHIFT.model_copy(update={"phase": "both"}) if method is SHIFT else method
    fitted = given.fit(vlm, ANCHORS)
    inputs = vlm.inputs(WITH_IMAGE[sample : sample + 1])
    plain = generate(model, inputs, steps=12)
    with sk.steer(model, fitted, strength=4.0, policy="off") as alone:
        expected = generate(model, inputs, steps=12)
    passes: list[int] = []
    block = model.model.language_model.layers[0]
    handle = block.register_forward_hook(lambda m, a, output: passes.append(output.shape[1]))
    with sk.steer(model, fitted, strength=4.0, policy="off") as receipt:
        found = generate(model, inputs, steps=12, **options)
    handle.remove()
    assert torch.equal(found.sequences, expected.sequences)
    assert max(passes[1:]) > 1
    assert sum(passes) > inputs["input_ids"].shape[1] + 11, "something was proposed and rejected"
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (alone.prompt_tokens, alone.generated_tokens)
    opened = method is SHIFT or bool(OPEN[sample])
    assert torch.equal(found.sequences, plain.sequences) != opened


def with_fingerprint(vlm: sk.VLM) -> sk.SteeringVector:
    made = vector(vlm, directions(vlm, norm=2.0))
    return sk.SteeringVector(made.tensors, made.metadata.model_copy(update={"fingerprint": vlm.fingerprint()}))


def answered(receipt: sk.Receipt) -> str:
    (status,) = [check.status for check in receipt.checks if check.name == "fingerprint"]
    return status


def test_a_language_model_has_a_fingerprint() -> None:
    vlm = sk.wrap(*decoder.build("llama"))
    steering = with_fingerprint(vlm)
    with sk.steer(vlm, steering) as receipt:
        generate(vlm.model, vlm.inputs(TEXT_ONLY))
    assert answered(receipt) == "pass"
    assert not any(probe.pixel_shape for probe in vlm.fingerprint().probes)
    with pytest.raises(sk.SteerKitError, match="made on another model"):
        sk.steer(sk.wrap(*decoder.build("llama", seed=5)), steering).__enter__()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_switching_a_peft_adapter_is_noticed_by_the_fingerprint() -> None:
    model, tokenizer = decoder.build("llama")
    steering = with_fingerprint(sk.wrap(model, tokenizer))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, config).eval()
    vlm = sk.wrap(tuned, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY)
    block = sk.steer(vlm, steering, policy="off")
    with block as receipt:
        generate(vlm.model, inputs)
    with tuned.disable_adapter(), block as bare:
        generate(vlm.model, inputs)
    assert answered(receipt) in ("warn", "fail")
    assert answered(bare) == "pass"


def test_the_fingerprint_of_an_offloaded_model_stays_known() -> None:
    model, tokenizer = decoder.build("llama")
    steering = with_fingerprint(sk.wrap(model, tokenizer))
    accelerate.cpu_offload(model, torch.device("cpu"))
    model.hf_device_map = {"": "cpu"}
    vlm = sk.wrap(model, tokenizer)
    state = fingerprint.state_of(vlm)
    for _ in range(2):
        with sk.steer(vlm, steering) as receipt:
            generate(model, vlm.inputs(TEXT_ONLY))
        assert answered(receipt) == "pass"
        assert fingerprint.state_of(vlm) == state


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_a_fingerprint_inside_a_compiled_block_is_that_of_the_bare_model() -> None:
    vlm = sk.wrap(*decoder.build("llama", layers=1))
    steering, inputs = with_fingerprint(vlm), vlm.inputs(TEXT_ONLY)
    known, forward = vlm.fingerprint(), vlm.model.forward
    with torch.no_grad():
        with sk.steer(vlm, steering):
            expected = vlm.model(**inputs).logits
        with sk.steer(vlm, steering):
            vlm.model.forward = torch.compile(forward, backend="eager")
            before = vlm.model(**inputs).logits
            fingerprint._known.pop(vlm.model)
            assert vlm.fingerprint() == known
            after = vlm.model(**inputs).logits
    vlm.model.forward = forward
    torch._dynamo.reset()
    assert (before - expected).abs().max() < 1e-5
    assert (after - expected).abs().max() < 1e-5


def vision_vector(vlm: sk.VLM, seed: int, tokens: Any = "all") -> sk.SteeringVector:
    tower = vlm.architecture.vision
    assert tower is not None
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        sk.Key(layer, tower="vision"): torch.randn(tower.hidden_size, generator=generator)
        for layer in range(tower.layer_count)
    }
    return vector(vlm, tensors, sk.Intervention(tower="vision", tokens=tokens, phase="prompt"))


def test_vision_and_language_vectors_share_a_receipt(llava: sk.VLM) -> None:
    one, other, language = vision_vector(llava, 0), vision_vector(llava, 1, "image"), vector(llava, directions(llava))
    inputs = llava.inputs(WITH_IMAGE)
    with torch.no_grad():
        with sk.steer(llava, one), sk.steer(llava, other), sk.steer(llava, language):
            nested = llava.model(**inputs).logits
        with sk.steer(llava, [one, other, language]) as receipt:
            together = llava.model(**inputs).logits
        plain = llava.model(**inputs).logits
    assert (together - nested).abs().max() < 1e-4
    assert (together - plain).abs().max() > 1e-1
    assert [bool(each.vision_layers) for each in receipt.vectors] == [True, True, False]
    assert sum(each.share for each in receipt.vectors) == pytest.approx(1.0)
    found = sk.analysis.conflicts([one, one, language], strength=[1, -1, 1])
    assert {each.site for each in found} == {"vision.resid_post"}
    first, second = sk.analysis.orthogonalized([one, other])
    for layer in range(3):
        a, b = (next(t for key, t in each.tensors.items() if key.layer == layer) for each in (first, second))
        assert abs(float(torch.cosine_similarity(a, b, dim=0))) < 1e-5


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_a_vision_tower_in_a_compiled_graph_is_refused(llava: sk.VLM) -> None:
    inputs, forward = llava.inputs(WITH_IMAGE), llava.model.forward
    try:
        with torch.no_grad(), sk.steer(llava, vision_vector(llava, 0)):
            llava.model.forward = torch.compile(forward, backend="eager")
            with pytest.raises(EngineError, match="vision tower is steered inside a compiled graph"):
                llava.model(**inputs)
            llava.model.forward = forward
            llava.model(**inputs)  # a block that steers nothing is an error
    finally:
        llava.model.forward = forward
        torch._dynamo.reset()
