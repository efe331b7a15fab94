"""Ways into a model beside `model(...)`: each is steered as that, or refused for what is true.

What each must give is what plain hooks give on the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import peft
import pytest
import tiny
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from reference import (
    CACHE,
    TEXT_ONLY,
    WITH_IMAGE,
    adds,
    cache_of,
    captured,
    directions,
    edited,
    mixed,
    only,
    since,
    tensor_of,
    vector,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

import steerkit as sk
from steerkit.errors import EngineError, UnsupportedModelError

ENTRIES: dict[str, Callable[[Any, Any], Any]] = {
    "model": lambda model, x: model(**x).logits,
    "forward": lambda model, x: model.forward(**x).logits,
    "body": lambda model, x: model.lm_head(model.model(**x).last_hidden_state),
    "forward of the body": lambda model, x: model.lm_head(model.model.forward(**x).last_hidden_state),
    "functional call": lambda model, x: (
        torch.func.functional_call(model, dict(model.named_parameters()), kwargs=dict(x)).logits
    ),
    "DataParallel without accelerators": lambda model, x: torch.nn.DataParallel(model)(**x).logits,
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("tokens", ["last", "image", "after_image"])
def test_every_entry_knows_which_prompts_hold_an_image(vlm_of: Any, family: str, entry: str, tokens: Any) -> None:
    vlm = vlm_of(family)
    inputs = mixed(vlm) if family == "llava" else vlm.inputs(WITH_IMAGE)
    ids = inputs["input_ids"]
    image = torch.isin(ids, torch.tensor(sorted(vlm.architecture.image_token_ids)))
    behind = (image.flip(1).cumsum(1).flip(1) == 0) & image.any(1, keepdim=True)
    last = torch.zeros_like(image)
    last[:, -1] = image.any(1)
    where = {"last": last, "image": image, "after_image": behind}[tokens]
    tensors = directions(vlm)
    call = ENTRIES[entry]
    vlm.reset()
    with torch.no_grad(), edited(vlm.model, family, adds(tensors, lambda positions: where[:, positions])):
        right = call(vlm.model, inputs)
    made = vector(vlm, tensors, sk.Intervention(tokens=tokens, phase="prompt", prompts="with_image"))
    vlm.reset()
    with torch.no_grad(), sk.steer(vlm, made, policy="off") as receipt:
        found = call(vlm.model, inputs)
    torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)
    assert receipt.prompt_tokens == int(where.sum())


@pytest.mark.parametrize("by", ["ids", "embeddings"])
def test_forward_of_the_decoder_and_single_blocks_are_refused(vlm_of: Any, by: str) -> None:
    """torch calls no hook of a module whose forward() is called: which tokens its blocks read is not known."""
    qwen3 = vlm_of("qwen3")
    model: Any = qwen3.model
    ids = qwen3.inputs(TEXT_ONLY[:1])["input_ids"]
    given = {"input_ids": ids} if by == "ids" else {"inputs_embeds": model.get_input_embeddings()(ids)}
    states = torch.zeros(1, 3, qwen3.record.hidden_size)
    embeddings = model.model.rotary_emb(states, torch.arange(3)[None])
    tensors = directions(qwen3)
    block = model.model.layers[next(iter(tensors)).layer]
    with torch.no_grad(), edited(model, "decoder", adds(tensors, only(ids.shape[1] - 1))):
        right = model(**given).logits
    with torch.no_grad():
        alone = block(states, position_embeddings=embeddings)
    with torch.no_grad(), sk.steer(qwen3, vector(qwen3, tensors, sk.Intervention(phase="prompt")), policy="off"):
        with pytest.raises(EngineError, match="outside of a call of model"):
            model.model.forward(**given)
        with pytest.raises(EngineError, match="outside of a call of model"):
            block(states, position_embeddings=embeddings)
        torch.testing.assert_close(model.forward(**given).logits, right, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(tensor_of(block(states, position_embeddings=embeddings)), tensor_of(alone))


def test_the_decoder_alone(llava: sk.VLM) -> None:
    """Called by its ids, and by embeddings that somebody has made: what their ids were is not known."""
    decoder = llava.model.get_submodule("model.language_model")
    ids = torch.tensor([[40, 41, 42, 43]])
    tensors = directions(llava)
    embeds = torch.randn(1, 4, llava.record.hidden_size, generator=torch.Generator().manual_seed(0))
    for given in ({"input_ids": ids}, {"inputs_embeds": embeds}):
        with torch.no_grad(), edited(llava.model, "llava", adds(tensors, only(3))):
            right = decoder(**given).last_hidden_state
        with torch.no_grad(), sk.steer(llava, vector(llava, tensors), policy="off"):
            torch.testing.assert_close(decoder(**given).last_hidden_state, right, atol=1e-4, rtol=1e-4)
    pictures = vector(llava, tensors, sk.Intervention(prompts="with_image"))
    with sk.steer(llava, pictures, policy="off"):
        # ids were embedded before, but they are not those of these embeddings
        llava.model.get_input_embeddings()(ids)  # type: ignore[operator]
        with pytest.raises(EngineError, match="the call has no input_ids"):
            decoder(inputs_embeds=embeds)
        decoder(input_ids=ids)


@pytest.mark.parametrize("phase", ["prompt", "generation", "both"])
def test_a_model_without_its_head(phase: Any) -> None:
    """What AutoModel gives of a language model is the decoder itself: a padded batch, and a loop with a KV cache."""
    model, tokenizer = tiny.build("qwen3")
    body = model.model
    vlm = sk.wrap(body, tokenizer)
    tensors = directions(vlm)
    batch = tokenizer(
        ["What is this?", "How do I bake a cake?"], padding=True, padding_side="left", return_tensors="pt"
    )
    end = batch["input_ids"].shape[1]

    def run() -> torch.Tensor:
        states = [(output := body(**batch, use_cache=True)).last_hidden_state]
        mask = batch["attention_mask"]
        for token in (7, 8):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            given = {"input_ids": torch.full((2, 1), token), "attention_mask": mask, CACHE: cache_of(output)}
            states.append((output := body(**given)).last_hidden_state)
        return torch.cat(states, 1)

    where = {"prompt": only(end - 1), "generation": since(end), "both": since(end - 1)}[phase]
    with torch.no_grad(), edited(model, "decoder", adds(tensors, where)):
        right = run()
    made = vector(vlm, tensors, sk.Intervention(phase=phase))
    with torch.no_grad(), sk.steer(body, made, policy="off") as receipt:
        found = run()
    real = torch.cat([batch["attention_mask"], torch.ones(2, 2).long()], 1).bool()
    torch.testing.assert_close(found[real], right[real], atol=1e-4, rtol=1e-4)
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (2 * (phase != "generation"), 4 * (phase != "prompt"))


def test_a_model_without_its_head_is_measured_and_does_not_answer() -> None:
    model, tokenizer = tiny.build("qwen3")
    vlm = sk.wrap(model.model, tokenizer)
    inputs = vlm.inputs(TEXT_ONLY)
    right = captured(model, "decoder", inputs)
    for engine in ("hooks", "nnsight"):
        found = vlm.capture(TEXT_ONLY, engine=engine)
        for layer, states in found.items():
            torch.testing.assert_close(states, right[layer], atol=1e-4, rtol=1e-4)
    for ask in (
        lambda: vlm.generate(TEXT_ONLY),
        lambda: vlm.log_likelihood(TEXT_ONLY, ["yes"] * len(TEXT_ONLY)),
        lambda: vlm.next_token_log_probabilities(TEXT_ONLY),
    ):
        with pytest.raises(UnsupportedModelError, match="Qwen3Model does not"):
            ask()


def test_a_contrast_is_not_measured_on_a_prompt_whose_images_were_not_seen(llava: sk.VLM) -> None:
    made = sk.CMRM(level="sample", counterpart="blank").fit(llava)
    inputs = llava.inputs(WITH_IMAGE[:1])
    with torch.no_grad(), sk.steer(llava, made, policy="off"):
        right = llava.model(**inputs).logits
        body = llava.model.lm_head(llava.model.model(**inputs).last_hidden_state)  # type: ignore[operator]
        torch.testing.assert_close(llava.model.forward(**inputs).logits, right, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(body, right, atol=1e-4, rtol=1e-4)
        with pytest.raises(EngineError, match="images"):
            llava.model.model.forward(**inputs)  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("entry", ["call", "forward", "generate", "base"])
def test_a_model_inside_peft(entry: str) -> None:
    model, processor = tiny.build("llava")
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))  # type: ignore[arg-type]
    vlm = sk.wrap(wrapped.eval(), processor)
    inputs = mixed(vlm)
    tensors = directions(vlm)
    pictured = torch.isin(inputs["input_ids"], torch.tensor(sorted(vlm.architecture.image_token_ids))).any(1)
    end = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    call = {
        "call": lambda: wrapped(**inputs).logits,
        "forward": lambda: wrapped.forward(**inputs).logits,
        "generate": lambda: wrapped.generate(**inputs, **options),
        "base": lambda: wrapped.base_model.model(**inputs).logits,
    }[entry]
    edits = adds(tensors, lambda positions: (positions == end - 1) & pictured[:, None])
    with torch.no_grad(), edited(wrapped, "peft-llava", edits):
        right = call()
    made = vector(vlm, tensors, sk.Intervention(phase="prompt", prompts="with_image"))
    with torch.no_grad(), sk.steer(wrapped, made, policy="off") as receipt:
        found = call()
    torch.testing.assert_close(found.float(), right.float(), atol=1e-4, rtol=1e-4)
    assert receipt.prompt_tokens == int(pictured.sum())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone, as a script has it that was started without torchrun."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("how", ["distributed", "sharded", "data parallel"])
def test_a_model_that_several_processes_share(one_process: None, how: str) -> None:
    """FSDP puts a class of its own, and of a name of its own, in front of the model's."""
    model, tokenizer = tiny.build("qwen3")
    vlm = sk.wrap(model, tokenizer)
    tensors, inputs = directions(vlm), tokenizer("What is in this picture?", return_tensors="pt")
    made = vector(vlm, tensors)
    with torch.no_grad(), edited(model, "decoder", adds(tensors, only(inputs["input_ids"].shape[1] - 1))):
        right = model(**inputs).logits
    wrapped: Any = model
    if how == "sharded":
        for part in (*model.model.layers, model):
            fully_shard(part)
    else:
        wrapped = nn.parallel.DistributedDataParallel(model) if how == "distributed" else nn.DataParallel(model)
    for steered in (wrapped, sk.wrap(wrapped, tokenizer)):
        with torch.no_grad(), sk.steer(steered, made):
            torch.testing.assert_close(wrapped(**inputs).logits, right, atol=1e-4, rtol=1e-4)


def test_states_that_are_spread_over_processes_are_refused(one_process: None) -> None:
    """As modules give them that torch has parallelised by sequence, and told to keep them so."""
    model, tokenizer = tiny.build("qwen3")
    vlm, mesh = sk.wrap(model, tokenizer), init_device_mesh("cpu", (1,))
    block = model.model.layers[1]
    forward = block.forward
    block.forward = lambda *given, **named: DTensor.from_local(tensor_of(forward(*given, **named)), mesh, [Shard(1)])
    with pytest.raises(EngineError, match="gives a DTensor"), sk.steer(vlm, vector(vlm, directions(vlm)), policy="off"):
        model(**tokenizer("What is in this picture?", return_tensors="pt"))


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("how", ["prepare", "prepare in bfloat16", "offload"])
def test_a_model_that_accelerate_has_prepared(how: str, when: str) -> None:
    """It replaces `forward` on the model, and wraps what calls it."""
    AcceleratorState._reset_state(True)
    model, processor = tiny.build("llava")
    vlm = sk.wrap(model, processor)
    inputs = mixed(vlm)
    tensors = directions(vlm)
    pictured = torch.isin(inputs["input_ids"], torch.tensor(sorted(vlm.architecture.image_token_ids))).any(1)
    end = inputs["input_ids"].shape[1]
    made = vector(vlm, tensors, sk.Intervention(phase="prompt", prompts="with_image"))

    def prepare() -> Any:
        if how == "offload":
            return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        mixed_precision = "bf16" if "bfloat16" in how else "no"
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=mixed_precision)
        return accelerator.prepare_model(model, evaluation_mode=True)

    prepared = prepare() if when == "before" else None
    with torch.no_grad(), sk.steer(vlm, made, policy="off") as receipt:
        prepared = prepare() if prepared is None else prepared
        found = [prepared(**inputs).logits, prepared.forward(**inputs).logits]
    edits = adds(tensors, lambda positions: (positions == end - 1) & pictured[:, None])
    with torch.no_grad(), edited(model, "llava", edits):
        right = prepared(**inputs).logits
    for each in found:
        torch.testing.assert_close(each.float(), right.float(), atol=2e-2, rtol=2e-2)
    assert receipt.prompt_tokens == 2 * int(pictured.sum())
