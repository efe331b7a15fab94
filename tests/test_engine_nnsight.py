"""The nnsight engine reads and steers as torch hooks do, in every family; traces of one's own see what is steered."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nnsight as nns
import pytest
import tiny
import torch
from nnsight.schema.request import RequestModel
from PIL import Image
from reference import mixed

import steerkit as sk
from steerkit.engines import capturing, nnsight
from steerkit.engines.receipt import Receipt
from steerkit.errors import EngineError, ModelError
from steerkit.interventions import (
    Ablate,
    Add,
    Gate,
    Intervention,
    Measure,
    MeasuredContrast,
    Phase,
    Scale,
    Site,
    Tokens,
)
from steerkit.models import Sample
from steerkit.vectors import Key, MethodRecord, PackMetadata, SteeringVector
from steerkit.vlm import VLM

TEXTS = ("What is this?", "How do I bake a cake for the neighbour?", "Answer briefly.")


def stored(
    vlm: VLM,
    *more: Intervention,
    phase: Phase = "both",
    tokens: Tokens = "last",
    site: Site = "resid_post",
    norm: float = 6.0,
    seed: int = 0,
) -> SteeringVector:
    """Random directions at every layer, large enough to change answers."""
    record = vlm.record
    made = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(record.layer_count):
        direction = torch.randn(record.hidden_size, generator=made)
        tensors[Key(layer, site, "")] = norm * direction / direction.norm()
    interventions = more or (Intervention(phase=phase, tokens=tokens, site=site),)
    metadata = PackMetadata(method=MethodRecord(name="random"), interventions=interventions, model=record)
    return SteeringVector(tensors, metadata)


def measured(vlm: VLM, **where: Any) -> SteeringVector:
    """The contrast of each prompt with its blank image, threefold."""
    contrast = Intervention(operation=Add(direction=MeasuredContrast()), layers="all", strength=3.0, **where)
    return SteeringVector(
        {}, PackMetadata(method=MethodRecord(name="contrast"), interventions=(contrast,), model=vlm.record)
    )


VECTORS: dict[str, Callable[[VLM], SteeringVector]] = {
    "prompt": lambda vlm: stored(vlm, phase="prompt"),
    "both": lambda vlm: stored(vlm, phase="both", tokens="all"),
    "measured": measured,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_k": 0},
}


@pytest.fixture
def samples(picture: Callable[..., Image.Image]) -> list[Sample]:
    return [Sample(text, (picture(index),)) for index, text in enumerate(TEXTS)]


def layers_of(vlm: VLM) -> Any:
    return vlm.model.get_submodule(vlm.architecture.layers)


def answers(vlm: VLM, samples: list[Sample], **options: Any) -> tuple[list[list[int]], list[str]]:
    """The token ids of a generation, with the texts, from a fixed seed."""
    seen: list[list[list[int]]] = []
    decode = vlm.processor.tokenizer.batch_decode

    def noting(ids: torch.Tensor, **settings: Any) -> list[str]:
        seen.append(ids.tolist())
        return decode(ids, **settings)

    vlm.processor.tokenizer.batch_decode = noting
    torch.manual_seed(7)
    try:
        texts = vlm.generate(samples, max_new_tokens=6, min_new_tokens=4, **options)
    finally:
        del vlm.processor.tokenizer.batch_decode
    return seen[0], texts


def counts(receipt: Receipt) -> dict[Any, tuple[int, int, float]]:
    return {
        place: (count.prompt_tokens, count.generated_tokens, pytest.approx(count.relative_change, nan_ok=True))
        for place, count in receipt.sites.items()
    }


def reading(
    vlm: VLM, inputs: dict[str, torch.Tensor], layer: int, *, raw: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of a block and logits of one pass of the raw model, by a plain hook; raw: of these inputs alone."""
    found: list[torch.Tensor] = []
    vlm.reset()
    handle = layers_of(vlm)[layer].register_forward_hook(lambda module, args, out: found.append(capturing.hidden(out)))
    try:
        with torch.no_grad():
            target = capturing.call_target(vlm.model, inputs, vlm.architecture)
            given = inputs if raw else capturing.forward_inputs(vlm.model, inputs, vlm.architecture)
            logits = target(**given).logits
    finally:
        handle.remove()
    return found[-1], logits  # the passes that measure a contrast come before


# -- capture ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch_size"), [(True, 3), (True, 1), (False, 3)])
def test_capture_equals_hooks(vlm: VLM, samples: list[Sample], images: bool, batch_size: int) -> None:
    by_default = vlm.capture(samples, images=images, batch_size=batch_size)
    by_hooks = vlm.capture(samples, images=images, batch_size=batch_size, engine="hooks")
    assert list(by_default) == list(by_hooks)
    for layer, h in by_hooks.items():
        assert torch.equal(by_default[layer], h)
        assert not by_default[layer].requires_grad


def seen_by_plain_hooks(vlm: VLM, samples: list[Sample], tower: Tower) -> dict[tuple[int, str], torch.Tensor]:
    """`{(layer, site): [batch, tokens, hidden]}`, from one pass over the batch."""
    found: dict[tuple[int, str], torch.Tensor] = {}
    sites: list[Site] = ["resid_post", "mlp_out", "attn_out"]
    if vlm.architecture.heads is not None and tower == "language":
        sites.append("head_out")
    handles = []
    for layer in range(vlm.architecture.count(tower)):
        for site in sites:
            module = vlm.model.get_submodule(vlm.architecture.site(layer, site, tower))

            def keep(m: Any, args: Any, output: Any = None, key: Any = (layer, site)) -> None:
                given = args if output is None else output
                found[key] = given[0] if isinstance(given, tuple) else given

            heads = site == "head_out"
            handles.append(module.register_forward_pre_hook(keep) if heads else module.register_forward_hook(keep))
    inputs = vlm.inputs(samples)
    start = {"decoder_input_ids": torch.zeros(len(samples), 1, dtype=torch.long)}
    vlm.reset()
    with torch.no_grad():
        vlm.model(**inputs, **(start if vlm.architecture.encoder_decoder else {}))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("engine", ["nnsight", "hooks"])
def test_capture_reads_every_place_and_pool(vlm: VLM, samples: list[Sample], engine: Any) -> None:
    mask = vlm.inputs(samples)["attention_mask"].float()
    for (layer, site), h in seen_by_plain_hooks(vlm, samples, "language").items():
        real = torch.ones(len(samples), 1) if vlm.architecture.encoder_decoder else mask
        last = vlm.capture(samples, layers=[layer], site=site, engine=engine, batch_size=8)[layer]
        mean = vlm.capture(samples, layers=[layer], site=site, pool="mean", engine=engine, batch_size=8)[layer]
        assert (last - h[:, -1]).abs().max() < 1e-5  # padded on the left
        assert (mean - (h * real[..., None]).sum(1) / real.sum(1, keepdim=True)).abs().max() < 1e-5
    seen = [seen_by_plain_hooks(vlm, [sample], "vision") for sample in samples]
    for layer, site in seen[0]:
        found = vlm.capture(samples, layers=[layer], site=site, tower="vision", engine=engine)[layer]
        for row, of_sample in zip(found, seen, strict=True):
            h = of_sample[layer, site]
            assert (row - h.reshape(-1, h.shape[-1]).mean(0)).abs().max() < 1e-5


def test_capture_stops_at_the_highest_layer(llava: VLM, samples: list[Sample]) -> None:
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(layers_of(llava))
        if index > 1
    ]
    try:
        llava.capture(samples, layers=[0, 1])
        assert ran == []
        llava.model.hf_device_map = {"": "cpu"}
        llava.capture(samples, layers=[0, 1])
        assert ran == []
        llava.model.hf_device_map = {"model": "cpu", "lm_head": "disk"}  # what is moved in has to be moved out
        llava.capture(samples, layers=[0, 1])
        assert ran == [2, 3]
    finally:
        vars(llava.model).pop("hf_device_map", None)
        for handle in handles:
            handle.remove()


def test_capture_within_a_block_steered_by_hooks(llava: VLM, samples: list[Sample]) -> None:
    with sk.steer(llava, stored(llava)):
        ours = llava.capture(samples)
        theirs = llava.capture(samples, engine="hooks")
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)


def test_capture_after_a_module_was_replaced(samples: list[Sample]) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    vlm.capture(samples)
    other = sk.wrap(*tiny.build("llava"))
    with torch.no_grad():
        other.model.model.language_model.layers[0].mlp.down_proj.weight.zero_()
    vlm.model.model.language_model.layers[0] = other.model.model.language_model.layers[0]
    ours, theirs = vlm.capture(samples), vlm.capture(samples, engine="hooks")
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)


def test_captures_of_several_threads_take_turns(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    expected = capturing.capture(llava.model, inputs, llava.architecture, [3], "resid_post")[3]
    found: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(5):
            found.append(nnsight.capture(llava.model, inputs, llava.architecture, [3], "resid_post")[3])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all(torch.equal(h, expected) for h in found)


def test_the_wrapper_is_reused_and_does_not_keep_the_model(samples: list[Sample]) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    vlm.capture(samples)
    wrapped = nnsight._Wrapped.of(vlm.model)
    root = wrapped._root
    vlm.capture(samples)
    assert wrapped._root is root
    with sk.steer(vlm, stored(vlm), engine="nnsight"):
        vlm.generate(samples, max_new_tokens=1)
    assert wrapped._root is root
    model = weakref.ref(vlm.model)
    del vlm, wrapped, root
    gc.collect()
    assert model() is None


# -- VLM.generate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "option", "batch"),
    [
        ("prompt", "greedy", 3),
        ("both", "greedy", 1),
        ("measured", "greedy", 3),
        ("measured", "beams", 3),
        ("both", "beams", 1),
        ("both", "sampled", 3),
    ],
)
def test_generate_equals_hooks(vlm: VLM, samples: list[Sample], vector: str, option: str, batch: int) -> None:
    made, options, chosen = VECTORS[vector](vlm), OPTIONS[option], samples[:batch]
    plain = answers(vlm, chosen, **options)
    by_engine, receipts = {}, {}
    for engine in ("hooks", "nnsight"):
        with sk.steer(vlm, made, engine=engine) as receipts[engine]:
            by_engine[engine] = answers(vlm, chosen, **options)
    assert by_engine["nnsight"] == by_engine["hooks"]
    assert counts(receipts["nnsight"]) == counts(receipts["hooks"])
    assert answers(vlm, chosen, **options) == plain
    if vector != "measured":  # a contrast of three layers may leave the answer of a tiny model as it was
        assert by_engine["nnsight"] != plain


def test_a_measured_contrast_changes_an_answer(llava: VLM, samples: list[Sample]) -> None:
    plain = answers(llava, samples)
    with sk.steer(llava, measured(llava), engine="nnsight"):
        assert answers(llava, samples) != plain


def test_generate_without_images_equals_hooks(vlm: VLM, samples: list[Sample]) -> None:
    made = VECTORS["both"](vlm)
    plain = answers(vlm, samples, images=False)
    by_engine, receipts = {}, {}
    for engine in ("hooks", "nnsight"):
        with sk.steer(vlm, made, engine=engine) as receipts[engine]:
            by_engine[engine] = answers(vlm, samples, images=False)
    assert by_engine["nnsight"] == by_engine["hooks"] != plain
    assert counts(receipts["nnsight"]) == counts(receipts["hooks"])


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_sites_within_a_block(llava: VLM, samples: list[Sample], site: Site) -> None:
    vector = stored(llava, site=site)
    with sk.steer(llava, vector) as by_hooks:
        expected = answers(llava, samples)
    with sk.steer(llava, vector, engine="nnsight") as by_nnsight:
        assert answers(llava, samples) == expected
    assert counts(by_hooks) == counts(by_nnsight)


def test_a_single_layer(llava: VLM, samples: list[Sample]) -> None:
    vector = stored(llava, Intervention(layers=(2,)), norm=20.0)
    plain = answers(llava, samples)
    with sk.steer(llava, vector, policy="off") as by_hooks:  # the dose is large
        expected = answers(llava, samples)
    with sk.steer(llava, vector, engine="nnsight", policy="off") as by_nnsight:
        assert answers(llava, samples) == expected != plain
    assert counts(by_hooks) == counts(by_nnsight)


def test_a_gate_that_reads_a_lower_layer(llava: VLM, samples: list[Sample]) -> None:
    gate = Gate(measure=Measure(kind="cosine", layer=0), threshold=0.0)
    vector = stored(llava, Intervention(layers=(1, 2, 3), gate=gate, tokens="all"))
    with sk.steer(llava, vector):
        expected = answers(llava, samples)
    with sk.steer(llava, vector, engine="nnsight"):
        assert answers(llava, samples) == expected


def test_blocks_nest(llava: VLM, samples: list[Sample]) -> None:
    first, second = stored(llava), stored(llava, Intervention(operation=Ablate(), tokens="all"), seed=1)
    with sk.steer(llava, first), sk.steer(llava, second):
        expected = answers(llava, samples)
    with sk.steer(llava, first, engine="nnsight") as outer:
        alone = answers(llava, samples)
        with sk.steer(llava, second, engine="nnsight") as inner:
            assert answers(llava, samples) == expected
        assert answers(llava, samples) == alone != expected
    assert not outer.empty
    assert not inner.empty


def texts(vlm: VLM, samples: list[Sample]) -> list[str]:
    """Answers of one length, so that they differ where steering does."""
    return vlm.generate(samples, max_new_tokens=6, min_new_tokens=6)


def test_threads_that_are_started_inside_are_steered(llava: VLM, samples: list[Sample]) -> None:
    plain = texts(llava, samples)
    with sk.steer(llava, stored(llava)):
        right = texts(llava, samples)
    assert right != plain
    found: list[Any] = []
    before, go = threading.Event(), threading.Event()

    def bystander() -> None:
        before.set()
        assert go.wait(60)
        found.append(texts(llava, samples))

    outside = threading.Thread(target=bystander)
    outside.start()
    assert before.wait(60)
    with sk.steer(llava, stored(llava), engine="nnsight"), ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(texts, llava, samples) for _ in range(2)]
        assert [each.result() for each in inside] == [right] * 2
        go.set()
        with pytest.warns(UserWarning, match="not steered"):
            outside.join()
    assert found == [plain]
    assert texts(llava, samples) == plain


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_blocks_of_one_context_are_closed_in_any_order(llava: VLM, samples: list[Sample], first: str) -> None:
    plain, tensors = texts(llava, samples), stored(llava)
    right = []
    for strength in (1.0, -1.0):
        with sk.steer(llava, tensors, strength=strength, policy="off"):
            right.append(texts(llava, samples))
    outer, inner = (sk.steer(llava, tensors, strength=each, policy="off", engine="nnsight") for each in (1.0, -1.0))
    outer.__enter__()
    inner.__enter__()
    texts(llava, samples)
    closed, other = (outer, inner) if first == "outer" else (inner, outer)
    closed.__exit__(None, None, None)
    assert texts(llava, samples) == right[first == "outer"] != plain
    other.__exit__(None, None, None)
    assert texts(llava, samples) == plain


def test_tasks_close_their_blocks_in_any_order(llava: VLM, samples: list[Sample]) -> None:
    plain, tensors = texts(llava, samples), stored(llava)
    right = []
    for strength in (1.0, -1.0):
        with sk.steer(llava, tensors, strength=strength, policy="off"):
            right.append(texts(llava, samples))

    async def request(number: int, mine: asyncio.Event, others: asyncio.Event) -> list[Any]:
        with sk.steer(llava, tensors, strength=(1.0, -1.0)[number], policy="off", engine="nnsight"):
            mine.set()
            await others.wait()  # both blocks are open
            found = [texts(llava, samples)]
            if number == 0:  # opened first, and closed first
                mine.clear()
            else:
                while others.is_set():
                    await asyncio.sleep(0)
                found.append(texts(llava, samples))
        return found

    async def both() -> list[list[Any]]:
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(request(0, *events), request(1, *reversed(events)))

    assert asyncio.run(both()) == [[right[0]], [right[1], right[1]]]
    assert texts(llava, samples) == plain


def test_raw_calls_are_refused(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    with sk.steer(llava, stored(llava), engine="nnsight"):
        for call in (llava.model, llava.model.generate, llava.model.model):
            with pytest.raises(EngineError, match="outside of its traces"):
                call(**inputs)
        answers(llava, samples)


# -- nothing stays behind ----------------------------------------------------------------------------------------------


def test_the_raw_model_is_what_it_was(vlm: VLM, samples: list[Sample]) -> None:
    inputs = vlm.inputs(samples)
    tokenizer = vlm.processor.tokenizer
    settings = (tokenizer.padding_side, tokenizer.pad_token, vlm.model.generation_config.to_json_string())
    h, logits = reading(vlm, inputs, 0)
    with sk.steer(vlm, stored(vlm, tokens="all"), engine="nnsight"):
        vlm.generate(samples, max_new_tokens=2)
    after = reading(vlm, inputs, 0)
    assert torch.equal(after[0], h)
    assert torch.equal(after[1], logits)
    assert settings == (tokenizer.padding_side, tokenizer.pad_token, vlm.model.generation_config.to_json_string())
    assert "generate" not in vars(vlm.model)


class _Broken(Exception):
    pass


def test_an_exception_in_the_block_leaves_nothing(llava: VLM, samples: list[Sample]) -> None:
    plain = answers(llava, samples)
    llava.fingerprint()  # known before the model breaks

    def fail(module: Any, args: Any) -> None:
        raise _Broken

    def run() -> None:
        with sk.steer(llava, stored(llava), engine="nnsight") as receipt:
            receipts.append(receipt)
            llava.generate(samples, max_new_tokens=2)

    receipts: list[Receipt] = []
    handle = layers_of(llava)[2].register_forward_pre_hook(fail)
    with pytest.raises(ModelError, match="_Broken"):
        run()
    handle.remove()
    assert receipts[0].nnsight._edits == []
    assert answers(llava, samples) == plain
    with sk.steer(llava, stored(llava)):
        expected = answers(llava, samples)
    with sk.steer(llava, stored(llava), engine="nnsight"):
        assert answers(llava, samples) == expected


def test_edits_of_others_stay(llava: VLM, samples: list[Sample]) -> None:
    theirs = nns.NNsight(llava.model)
    with theirs.edit(inplace=True):
        theirs.lm_head.output = theirs.lm_head.output * 0
    with sk.steer(llava, stored(llava), engine="nnsight"):
        llava.generate(samples, max_new_tokens=1)
    inputs = llava.inputs(samples)
    with torch.no_grad(), theirs.trace(**inputs):
        logits = theirs.lm_head.output.save()
    assert len(theirs._edits) == 1
    assert not logits.any()


# -- traces of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS)
def test_a_trace_sees_what_is_steered(vlm: VLM, samples: list[Sample], vector: str) -> None:
    inputs, made = vlm.inputs(samples), VECTORS[vector](vlm)
    given = capturing.forward_inputs(vlm.model, inputs, vlm.architecture)
    layer = vlm.record.layer_count - 1
    with sk.steer(vlm, made) as by_hooks:
        expected, logits = reading(vlm, inputs, layer)
    vlm.reset()
    with sk.steer(vlm, made, engine="nnsight") as receipt:
        block = receipt.nnsight.get(vlm.architecture.layers)[layer]
        with torch.no_grad(), receipt.nnsight.trace(**given) as tracer:
            h = block.output.save()
            result = tracer.result.save()
    assert torch.equal(capturing.hidden(h), expected)
    assert torch.equal(result.logits, logits)
    assert counts(receipt) == counts(by_hooks)


def test_a_trace_edits_further(llava: VLM, samples: list[Sample]) -> None:
    inputs, made = llava.inputs(samples), stored(llava)

    def halve(module: Any, args: Any, output: Any) -> Any:
        return output / 2

    with sk.steer(llava, made):
        handle = layers_of(llava)[1].register_forward_hook(halve)
        expected, logits = reading(llava, inputs, 3, raw=True)
        handle.remove()
    with sk.steer(llava, made, engine="nnsight") as receipt:
        steered = receipt.nnsight
        with torch.no_grad(), steered.trace(**inputs):
            steered.model.language_model.layers[1].output = steered.model.language_model.layers[1].output / 2
            h = steered.model.language_model.layers[3].output.save()
            head = steered.lm_head.output.save()
    assert torch.equal(h, expected)
    assert torch.equal(head, logits)


def test_a_trace_has_gradients(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    with sk.steer(llava, stored(llava), engine="nnsight") as receipt:
        steered = receipt.nnsight
        with steered.trace(**inputs):
            first = steered.model.language_model.layers[0].output
            loss = steered.lm_head.output[:, -1].sum()
            with loss.backward():
                gradient = first.grad.save()
    llava.model.zero_grad()
    assert gradient[:, -1].any()


@pytest.mark.parametrize("how", ["trace", "interleave", "generate", "traced generate"])
def test_generation_on_the_receipt(llava: VLM, samples: list[Sample], how: str) -> None:
    inputs, made = llava.inputs(samples), stored(llava)
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with sk.steer(llava, made) as by_hooks, torch.no_grad():
        expected = llava.model.generate(**inputs, **options)
    with sk.steer(llava, made, engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        if how == "trace":
            with steered.trace(**inputs, **options, fn="generate") as tracer:
                ids = tracer.result.save()
        elif how == "traced generate":
            with steered.generate(**inputs, **options) as tracer:
                ids = tracer.result.save()
        else:
            ids = steered.interleave("generate", **inputs, **options) if how == "interleave" else None
        if how == "generate":
            ids = steered.generate(**inputs, **options)
    assert torch.equal(ids, expected)
    assert counts(receipt) == counts(by_hooks)


def test_every_step_can_be_read(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    seen: list[torch.Tensor] = []
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with sk.steer(llava, stored(llava)), torch.no_grad():
        handle = layers_of(llava)[2].register_forward_hook(lambda module, args, out: seen.append(out[:, -1]))
        llava.model.generate(**inputs, **options)
        handle.remove()
    with sk.steer(llava, stored(llava), engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.trace(**inputs, **options, fn="generate") as tracer:
            read = nns.save([])
            for _ in tracer.iter[:4]:
                read.append(steered.model.language_model.layers[2].output[:, -1])
    assert len(read) == len(seen) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read, seen, strict=True))


def test_a_part_of_the_model_is_traced_with_fn(vlm_of: Callable[[str], VLM], samples: list[Sample]) -> None:
    vlm = vlm_of("instructblip-llama")
    inputs = vlm.inputs(samples, images=False)
    with sk.steer(vlm, stored(vlm)):
        expected, _ = reading(vlm, inputs, 2)
    with sk.steer(vlm, stored(vlm), engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.trace(inputs["input_ids"], attention_mask=inputs["attention_mask"], fn=vlm.model.language_model):
            h = steered.language_model.model.layers[2].output.save()
    # nnsight numbers the positions of a left-padded batch of text by its mask; the raw forward pass counts padding
    assert torch.equal(h[1], expected[1])
    assert h.shape == expected.shape


def test_a_skipped_block_costs_no_other_place_its_turn(llava: VLM, samples: list[Sample]) -> None:
    inputs, made = llava.inputs(samples), stored(llava, site="mlp_out")
    with sk.steer(llava, made, engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.trace(**inputs):
            block = steered.model.language_model.layers[1]
            block.skip(block.input)
            h = steered.model.language_model.layers[3].output.save()
    assert sorted(layer for layer, _ in receipt.sites) == [0, 2, 3]
    assert h.isfinite().all()


def test_a_trace_that_stops_early(llava: VLM, samples: list[Sample]) -> None:
    with sk.steer(llava, stored(llava), engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.trace(**llava.inputs(samples)) as tracer:
            h = steered.model.language_model.layers[1].output.save()
            tracer.stop()
    assert receipt.layers == [0, 1]
    assert h.isfinite().all()


def test_after_the_block_traces_are_not_steered(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    expected, _ = reading(llava, inputs, 3, raw=True)
    with sk.steer(llava, stored(llava), engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.edit() as (_, theirs):
            theirs.lm_head.output = theirs.lm_head.output * 0
        with theirs.trace(**inputs):
            inside = theirs.model.language_model.layers[3].output.save()
    kept = counts(receipt)
    assert not torch.equal(inside, expected)
    for model in (steered, theirs):
        with torch.no_grad(), model.trace(**inputs):
            h = model.model.language_model.layers[3].output.save()
        assert torch.equal(h, expected)
    assert counts(receipt) == kept


def test_a_model_without_processor_is_traced_too(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    with sk.steer(llava, stored(llava)):
        expected, _ = reading(llava, inputs, 3, raw=True)
    with sk.steer(llava.model, stored(llava), engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.trace(**inputs):
            h = steered.model.language_model.layers[3].output.save()
    assert torch.equal(h, expected)


def test_a_measured_contrast_is_hidden_from_a_trace_around_hooks(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    plain, _ = reading(llava, inputs, 0, raw=True)
    with sk.steer(llava, measured(llava)):
        _, logits = reading(llava, inputs, 0, raw=True)
    mine = nns.NNsight(llava.model)
    with sk.steer(llava, measured(llava)), torch.no_grad(), mine.trace(**inputs):
        h = mine.model.language_model.layers[0].output.save()
        head = mine.lm_head.output.save()
    assert torch.equal(h, plain)  # a torch hook runs after nnsight has seen the output
    assert torch.equal(head, logits)


# -- remote traces -----------------------------------------------------------------------------------------------------


def test_remote_local(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)
    with sk.steer(llava, stored(llava)):
        expected, _ = reading(llava, inputs, 3, raw=True)
    with sk.steer(llava, stored(llava), engine="nnsight") as receipt, torch.no_grad():
        steered = receipt.nnsight
        with steered.trace(**inputs, remote="local"):
            h = steered.model.language_model.layers[3].output.save()
    assert torch.equal(h, expected)


class _AsOnServer:
    """What a server does with a trace: the block and the edits arrive as bytes, and what arrives is run."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.size = 0
        self.found: dict[str, Any] = {}

    def __call__(self, tracer: Any) -> None:
        from nnsight.intervention.backends.local import LocalSimulationBackend

        simulation = LocalSimulationBackend(self.model)
        blob = RequestModel.serialize(tracer, compress=False)
        self.size = len(blob)
        hidden = simulation._hide_local_modules()
        try:
            arrived = RequestModel.deserialize(blob, self.model._remoteable_persistent_objects(), compress=False)
        finally:
            simulation._restore(hidden)
        arrived.execute(arrived.info.code)
        self.found = dict(arrived.info.frame.f_locals)


REMOTE: dict[str, Callable[[VLM], SteeringVector]] = {
    "last": stored,
    "all": lambda vlm: stored(vlm, tokens="all"),
    "with image": lambda vlm: stored(vlm, Intervention(prompts="with_image")),
    "without image": lambda vlm: stored(vlm, Intervention(prompts="without_image")),
    "prompt": lambda vlm: stored(vlm, phase="prompt"),
    "generated": lambda vlm: stored(vlm, tokens="generated"),
    "mlp": lambda vlm: stored(vlm, site="mlp_out"),
    "relative": lambda vlm: stored(vlm, Intervention(operation=Add(relative=True), strength=0.5)),
    "ablate": lambda vlm: stored(vlm, Intervention(operation=Ablate(), tokens="all")),
    "scale": lambda vlm: stored(vlm, Intervention(operation=Scale(factor=2.0), norm_preserving=True)),
}


@pytest.mark.parametrize(
    ("name", "vector"), [*(("llava", name) for name in REMOTE), *((name, "all") for name in tiny.FAMILIES[1:])]
)
def test_what_arrives_at_a_server_steers_the_same(
    vlm_of: Callable[[str], VLM], samples: list[Sample], name: str, vector: str
) -> None:
    vlm = vlm_of(name)
    inputs, made = mixed(vlm) if "image" in vector else vlm.inputs(samples), REMOTE[vector](vlm)
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    vlm.reset()
    with sk.steer(vlm, made), torch.no_grad():
        expected = vlm.model.generate(**inputs, **options)
    vlm.reset()

    def run() -> _AsOnServer:
        with sk.steer(vlm, made, engine="nnsight") as receipt, torch.no_grad():
            steered = receipt.nnsight
            backend = _AsOnServer(steered)
            with steered.trace(**inputs, **options, fn="generate", backend=backend) as tracer:
                ids = tracer.result.save()  # noqa: F841
            assert receipt.shipped
            assert receipt.empty  # it is not counted here
        return backend

    server = run()
    assert torch.equal(server.found["ids"], expected)
    assert server.size < 200_000


def test_what_can_not_be_shipped_says_so(llava: VLM, samples: list[Sample]) -> None:
    inputs = llava.inputs(samples)

    def run() -> None:
        with sk.steer(llava, measured(llava), engine="nnsight") as receipt:
            steered = receipt.nnsight
            with steered.trace(**inputs, remote="local"):
                steered.lm_head.output = steered.lm_head.output * 0

    with pytest.raises(EngineError, match="a contrast that is measured on the prompt"):
        run()
