"""Copies, replacements and identities: what is steered is the model that was given, as it is now, and nothing else."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import tiny
import torch
from reference import TEXT_ONLY, WITH_IMAGE, module_at, tensor_of, vector
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import steerkit as sk
from steerkit.errors import EngineError
from steerkit.interventions import Site

CLEARLY = 1e-2
SITES: tuple[Site, ...] = ("resid_post", "mlp_out", "attn_out", "head_out")


@pytest.fixture
def qwen3() -> sk.VLM:
    return sk.wrap(*tiny.build("qwen3"))


def inputs_of(vlm: sk.VLM) -> dict[str, Any]:
    return dict(vlm.inputs(TEXT_ONLY[:1]))


def logits(vlm: sk.VLM) -> Tensor:
    with torch.no_grad():
        return vlm.model(**inputs_of(vlm)).logits


def direction(vlm: sk.VLM, site: Site) -> Tensor:
    return 3 * torch.randn(vlm.record.width(site, "language"), generator=torch.Generator().manual_seed(80))


def steering(vlm: sk.VLM, site: Site = "resid_post", **more: Any) -> sk.SteeringVector:
    return vector(vlm, {sk.Key(1, site): direction(vlm, site)}, sk.Intervention(site=site, tokens="all", **more))


@contextmanager
def added(module: nn.Module, d: Tensor, *, on_input: bool = False) -> Iterator[None]:
    """The truth: a plain hook on whatever module stands there."""

    def after(m: Any, args: Any, output: Any) -> Any:
        h = tensor_of(output) + d.to(tensor_of(output).dtype)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    if on_input:
        handle = module.register_forward_pre_hook(lambda m, args: (args[0] + d.to(args[0].dtype), *args[1:]))
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def expected_of(vlm: sk.VLM, site: Site) -> Tensor:
    with added(
        vlm.model.get_submodule(vlm.architecture.site(1, site)), direction(vlm, site), on_input=site == "head_out"
    ):
        return logits(vlm)


def everything(model: nn.Module) -> Any:
    """What the modules hold, hooks in their order, by identity."""
    return [
        (
            name,
            {key: list(value.items()) if hasattr(value, "items") else id(value) for key, value in vars(module).items()},
        )
        for name, module in model.named_modules()
    ]


# -- copies ------------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda each: torch.save(each, io.BytesIO()),
}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("way", COPIES)
def test_a_steered_model_and_its_parts_are_not_copied(qwen3: sk.VLM, way: str, site: Site) -> None:
    model = qwen3.model
    logits(qwen3)
    before = everything(model)
    with sk.steer(qwen3, steering(qwen3, site), policy="off"):
        found = logits(qwen3)
        for part in (model, model.model, model.model.layers, model.model.layers[1]):
            with pytest.raises(EngineError, match="copied or pickled while it is steered"):
                COPIES[way](part)
        COPIES[way](model.model.layers[0])  # nothing is done there
        assert torch.equal(logits(qwen3), found)
    assert everything(model) == before
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(**inputs_of(qwen3)).logits, logits(qwen3))


def test_shallow_copies_are_refused_where_they_would_be_bound_to_the_original(qwen3: sk.VLM) -> None:
    """A copy of the model would keep a `generate` that is the original's; one of a block is steered where it stands."""
    model: Any = qwen3.model
    blocks = model.model.layers
    unsteered, block = logits(qwen3), blocks[1]
    with sk.steer(qwen3, steering(qwen3), policy="off"):
        found = logits(qwen3)
        with pytest.raises(EngineError, match="copied or pickled while it is steered"):
            copy.copy(model)
        twin = copy.copy(block)
        try:
            blocks[1] = twin
            assert torch.equal(logits(qwen3), found)
        finally:
            blocks[1] = block
        assert torch.equal(logits(qwen3), found)
    assert torch.equal(logits(qwen3), unsteered)
    assert not twin._forward_hooks
    assert torch.equal(copy.copy(model)(**inputs_of(qwen3)).logits, unsteered)


def test_weights_are_saved_while_the_model_is_steered(qwen3: sk.VLM, tmp_path: Any) -> None:
    before = {key: value.clone() for key, value in qwen3.model.state_dict().items()}
    with sk.steer(qwen3, steering(qwen3), policy="off"):
        logits(qwen3)
        inside = qwen3.model.state_dict()
        qwen3.model.save_pretrained(tmp_path)
    assert inside.keys() == before.keys()
    assert all(torch.equal(inside[key], before[key]) for key in before)
    loaded = type(qwen3.model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs_of(qwen3)).logits, logits(qwen3))


def test_a_context_is_not_copied(qwen3: sk.VLM) -> None:
    context = sk.steer(qwen3, steering(qwen3), policy="off")
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(EngineError, match="belongs to one model"):
            way(context)
    with context:
        with pytest.raises(EngineError, match="belongs to one model"):
            copy.deepcopy(context)
        logits(qwen3)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_a_receipt_is_what_it_was_then(qwen3: sk.VLM, way: Any, engine: Any) -> None:
    with sk.steer(qwen3, steering(qwen3), policy="off", engine=engine) as receipt:
        qwen3.generate(TEXT_ONLY[:1], max_new_tokens=2, min_new_tokens=2)
        taken = way(receipt)
        said = str(receipt)
        change = receipt.relative_change[1]
        qwen3.generate(TEXT_ONLY[:2], max_new_tokens=3, min_new_tokens=3)
    assert str(taken) == said != str(receipt)
    assert taken.nnsight is None
    assert taken.relative_change[1] == change
    assert taken.vectors[0].prompt_tokens == taken.prompt_tokens < receipt.prompt_tokens
    assert taken.checks == receipt.checks


def replica_of(module: nn.Module) -> Any:
    """As torch.nn.parallel.replicate makes them, on one device."""
    made = module._replicate_for_data_parallel()
    made._parameters = dict(module._parameters)
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else replica_of(child)
    for name, parameter in made._parameters.items():
        object.__setattr__(made, name, parameter)
    return made


@pytest.mark.parametrize("site", SITES)
def test_replicas_that_share_the_hooks_are_refused(qwen3: sk.VLM, site: Site) -> None:
    unsteered = logits(qwen3)
    with sk.steer(qwen3, steering(qwen3, site), policy="off"):
        found = logits(qwen3)
        replica = replica_of(qwen3.model)
        with pytest.raises(EngineError, match="a copy of .* that shares the hooks"), torch.no_grad():
            replica(**inputs_of(qwen3))
        assert torch.equal(logits(qwen3), found)
    with torch.no_grad():
        assert torch.equal(replica(**inputs_of(qwen3)).logits, unsteered)


def test_a_copy_from_before_the_block_is_left_alone(qwen3: sk.VLM) -> None:
    twin = copy.deepcopy(qwen3.model)
    unsteered = logits(qwen3)
    with sk.steer(qwen3, steering(qwen3), policy="off"), torch.no_grad():
        found = logits(qwen3)
        assert torch.equal(twin(**inputs_of(qwen3)).logits, unsteered)
    assert (found - unsteered).abs().max() > CLEARLY


# -- replacements ------------------------------------------------------------------------------------------------------


class Around(nn.Module):
    """What stands where a module stood, and runs it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        h = 0.5 * tensor_of(output)
        return (h, *output[1:]) if isinstance(output, tuple) else h


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@pytest.mark.parametrize("how", ["copied", "wrapped"])
@pytest.mark.parametrize("site", SITES)
def test_what_is_put_in_a_modules_place_is_steered(qwen3: sk.VLM, site: Site, how: str) -> None:
    model, path = qwen3.model, qwen3.architecture.site(1, site)
    old = model.get_submodule(path)
    new = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(1.3)
    new = new if how == "copied" else Around(new)
    once = expected_of(qwen3, site)
    unsteered = logits(qwen3)
    put(model, path, new)
    expected, other = expected_of(qwen3, site), logits(qwen3)
    put(model, path, old)
    before = everything(model), everything(new)
    with sk.steer(qwen3, steering(qwen3, site), policy="off") as receipt:
        assert (logits(qwen3) - once).abs().max() < 1e-5
        put(model, path, new)
        assert (logits(qwen3) - expected).abs().max() < 1e-5
        with torch.no_grad():
            old_output = old  # what was there before is nobody's any more
        assert not old_output._forward_hooks
        put(model, path, old)
        assert (logits(qwen3) - once).abs().max() < 1e-5
        put(model, path, new)
        logits(qwen3)
    assert receipt.sites[1, site].prompt_tokens == 4 * inputs_of(qwen3)["input_ids"].shape[1]
    assert torch.equal(logits(qwen3), other)
    put(model, path, old)
    assert (everything(model), everything(new)) == before
    assert torch.equal(logits(qwen3), unsteered)
    assert (expected - other).abs().max() > CLEARLY


def test_all_blocks_are_replaced_at_once(qwen3: sk.VLM) -> None:
    model = qwen3.model
    expected = expected_of(qwen3, "mlp_out")
    with sk.steer(qwen3, steering(qwen3, "mlp_out"), policy="off"):
        model.model.layers = nn.ModuleList([copy.deepcopy(model.model.layers[0]), *list(model.model.layers)[1:]])
        assert (logits(qwen3) - expected).abs().max() < 1e-5


def test_a_vision_block_is_replaced() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    inputs = vlm.inputs(WITH_IMAGE[:1])
    path = f"{vlm.architecture.vision.layers}.0"  # type: ignore[union-attr]
    old = vlm.model.get_submodule(path)
    with torch.no_grad():
        vlm.model(**inputs)  # transformers leaves the hooks by which it reads features
    new = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(1.3)
    d = 5 * torch.ones(32)
    put(vlm.model, path, new)
    with added(new, d), torch.no_grad():
        expected = vlm.model(**inputs).logits
    put(vlm.model, path, old)
    given = vector(vlm, {sk.Key(0, tower="vision"): d}, sk.Intervention(tower="vision", tokens="all"))
    with sk.steer(vlm, given, policy="off"), torch.no_grad():
        vlm.model(**inputs)
        put(vlm.model, path, new)
        assert (vlm.model(**inputs).logits - expected).abs().max() < 1e-5


def test_what_can_not_be_followed_is_refused(qwen3: sk.VLM) -> None:
    model, inputs = qwen3.model, inputs_of(qwen3)

    def call() -> Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    unsteered = call()
    before = everything(model)
    block, decoder = model.model.layers[1], model.model
    given = steering(qwen3, "mlp_out")
    with sk.steer(qwen3, given, policy="off"):
        call()
        model.model.layers[1] = Around(block)
        with pytest.raises(EngineError, match=r"has no 'mlp'"):
            call()
        model.model.layers[1] = block
        call()
    assert everything(model) == before
    with pytest.raises(EngineError, match="model was replaced inside the steering block"):  # noqa: PT012
        with sk.steer(qwen3, given, policy="off"):
            call()
            model.model = Around(decoder)
    model.model = decoder
    assert everything(model) == before
    with sk.steer(qwen3, given, policy="off"):
        call()
        model.model = Around(decoder)
        with pytest.raises(EngineError, match="model was replaced inside the steering block"):
            call()
        model.model = decoder
    assert everything(model) == before
    assert torch.equal(call(), unsteered)


def test_nnsight_refuses_replaced_modules(qwen3: sk.VLM) -> None:
    with sk.steer(qwen3, steering(qwen3), policy="off", engine="nnsight"):
        qwen3.generate(TEXT_ONLY[:1], max_new_tokens=1)
        qwen3.model.model.layers[1] = copy.deepcopy(qwen3.model.model.layers[1])
        with pytest.raises(EngineError, match="was replaced inside a block that steers with nnsight"):
            qwen3.generate(TEXT_ONLY[:1], max_new_tokens=1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("site", SITES)
def test_lora_is_added_inside(qwen3: sk.VLM, site: Site) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    expected_base = expected_of(qwen3, site)
    before = everything(qwen3.model)
    with sk.steer(qwen3, steering(qwen3, site), policy="off"):
        assert (logits(qwen3) - expected_base).abs().max() < 1e-5
        torch.manual_seed(0)
        tuned = get_peft_model(qwen3.model, config)
        with torch.no_grad():
            found, outer = logits(qwen3), tuned(**inputs_of(qwen3)).logits
    expected = expected_of(qwen3, site)
    assert (found - expected).abs().max() < 1e-5
    assert torch.equal(found, outer)
    assert (expected - expected_base).abs().max() > CLEARLY
    tuned.unload()
    after = everything(qwen3.model)
    hooks = [{key: held[key] for key in held if key.startswith("_forward")} for _, held in after]
    assert hooks == [{key: held[key] for key in held if key.startswith("_forward")} for _, held in before]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("site", SITES)
def test_linear_layers_are_quantised_inside(qwen3: sk.VLM, site: Site) -> None:
    with sk.steer(qwen3, steering(qwen3, site), policy="off"):
        logits(qwen3)
        torch.ao.quantization.quantize_dynamic(qwen3.model, {nn.Linear}, inplace=True)
        found = logits(qwen3)
        torch.ao.quantization.quantize_dynamic(qwen3.model, {nn.Linear}, inplace=True)  # and nothing after that
    assert (found - expected_of(qwen3, site)).abs().max() < 1e-5
    assert not any("steerkit" in repr(each) for m in qwen3.model.modules() for each in m._forward_pre_hooks.values())


@pytest.mark.parametrize("site", SITES)
def test_the_model_changes_its_type_inside(qwen3: sk.VLM, site: Site) -> None:
    with sk.steer(qwen3, steering(qwen3, site), policy="off"):
        logits(qwen3)
        qwen3.model.bfloat16()
        found = logits(qwen3)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected_of(qwen3, site))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_would_keep_the_steering(qwen3: sk.VLM) -> None:
    inputs = inputs_of(qwen3)["input_ids"]

    def run(ids: Tensor) -> Tensor:
        return qwen3.model(input_ids=ids, use_cache=False).logits

    with sk.steer(qwen3, steering(qwen3), policy="off"), torch.no_grad():
        with pytest.raises(EngineError, match=r"runs inside torch\.jit\.trace"):
            torch.jit.trace(run, (inputs,), check_trace=False)
        logits(qwen3)


@pytest.mark.parametrize("how", ["make_fx", "export", "export by dynamo"])
def test_a_graph_would_keep_the_steering_or_lose_it(qwen3: sk.VLM, how: str) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = qwen3.model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(input_ids=ids, use_cache=False).logits

    ids, module = inputs_of(qwen3)["input_ids"], Logits()
    with sk.steer(qwen3, steering(qwen3), policy="off"), torch.no_grad():
        logits(qwen3)
        if how == "make_fx":
            with pytest.raises(EngineError, match="runs inside make_fx"):
                make_fx(module)(ids)
        else:
            error = EngineError if how == "export" else Exception  # dynamo wraps what its code raises
            with pytest.raises(error, match=r"torch\.export"):
                torch.export.export(module, (ids,), strict=how == "export by dynamo")
        logits(qwen3)
    torch._dynamo.reset()


@pytest.mark.parametrize("result", [lambda h: {"one": h, "other": h}, lambda h: (None, h), lambda h: None])
def test_an_output_without_a_hidden_state_in_front_is_refused(qwen3: sk.VLM, result: Any) -> None:
    block = qwen3.model.get_submodule(qwen3.architecture.site(1, "resid_post"))
    forward = block.forward
    block.forward = lambda *args, **kwargs: result(tensor_of(forward(*args, **kwargs)))
    with (
        pytest.raises(EngineError, match="a module that is steered or read gives a"),
        sk.steer(qwen3, steering(qwen3), policy="off"),
    ):
        logits(qwen3)


# -- identities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("site", SITES)
def test_one_module_at_two_places_is_refused(qwen3: sk.VLM, site: Site, engine: Any) -> None:
    put(qwen3.model, qwen3.architecture.site(0, site), qwen3.model.get_submodule(qwen3.architecture.site(1, site)))
    before = everything(qwen3.model)
    with (
        pytest.raises(EngineError, match="one and the same module"),
        sk.steer(qwen3, steering(qwen3, site), policy="off", engine=engine),
    ):
        pass
    assert everything(qwen3.model) == before or engine == "nnsight"


def test_blocks_that_share_weights_are_steered_each_by_itself(qwen3: sk.VLM) -> None:
    first, second = (module_at(qwen3.model, "decoder", layer) for layer in (0, 1))
    for name, parameter in first.named_parameters():
        owner, _, last = name.rpartition(".")
        setattr(second.get_submodule(owner), last, parameter)
    expected = expected_of(qwen3, "mlp_out")
    with sk.steer(qwen3, steering(qwen3, "mlp_out"), policy="off"):
        found = logits(qwen3)
    assert (found - expected).abs().max() < 1e-5


def test_weights_given_for_one_call(qwen3: sk.VLM) -> None:
    weights = {name: 1.2 * parameter.detach() for name, parameter in qwen3.model.named_parameters()}

    def call() -> Tensor:
        with torch.no_grad():
            return torch.func.functional_call(qwen3.model, weights, kwargs=inputs_of(qwen3)).logits

    with added(module_at(qwen3.model, "decoder", 1), direction(qwen3, "resid_post")):
        expected = call()
    with sk.steer(qwen3, steering(qwen3), policy="off"):
        found = call()
    assert (found - expected).abs().max() < 1e-5
    assert (found - call()).abs().max() > CLEARLY


@pytest.mark.parametrize("how", ["meta", "fake"])
def test_tensors_without_values_are_refused(qwen3: sk.VLM, how: str) -> None:
    """As in estimates of memory: whose tokens are steered can't be read off them."""
    model: Any = qwen3.model
    with sk.steer(qwen3, steering(qwen3), policy="off"):
        model(**inputs_of(qwen3))
        with FakeTensorMode(allow_non_fake_inputs=True) if how == "fake" else nullcontext():
            given = torch.ones(1, 5, dtype=torch.long, device="cpu" if how == "fake" else "meta")
            with pytest.raises(EngineError, match="tensors with values"):
                (model if how == "fake" else model.to("meta"))(input_ids=given)
