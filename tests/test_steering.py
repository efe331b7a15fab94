"""What a steering context promises: order, strengths, restoring, errors, and every way of calling the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier
from typing import Any

import pytest
import tiny
import torch
import transformers
from reference import (
    CACHE,
    TEXT_ONLY,
    WITH_IMAGE,
    Edit,
    adds,
    cache_of,
    captured,
    directions,
    distance,
    edited,
    forget,
    generate,
    no_images,
    only,
    picture,
    places,
    prompt_length,
    since,
    state,
    touched,
    vector,
    white,
)

import steerkit as sk
from steerkit.errors import (
    EngineError,
    ModelMismatchError,
    NonFiniteError,
    NothingSteeredError,
    OptionError,
    ProcessorError,
)
from steerkit.interventions import Ablate, Add, MeasuredContrast, Scale
from steerkit.policy import TrustWarning

CLEARLY = 1e-2


@pytest.fixture
def inputs(llava: sk.VLM) -> dict[str, torch.Tensor]:
    return llava.inputs(WITH_IMAGE)


@pytest.fixture(scope="module")
def plain(llava: sk.VLM) -> sk.SteeringVector:
    return vector(llava, directions(llava))


@contextmanager
def restored(vlm: sk.VLM) -> Iterator[None]:
    """The body leaves the model bit-equal and without a trace."""
    inputs = vlm.inputs(WITH_IMAGE)
    answer = generate(vlm.model, inputs)  # first: transformers leaves hooks of its own on what has run once
    before = state(vlm.model)
    yield
    assert state(vlm.model) == before
    assert distance(generate(vlm.model, inputs), answer) == 0.0


# -- composition -------------------------------------------------------------------------------------------------------


def test_vectors_apply_in_order_with_their_own_strengths(llava: sk.VLM, inputs: Any) -> None:
    first, second = directions(llava), directions(llava, seed=1)
    scaling = sk.Intervention(operation=Scale(factor=3.0))
    one, other = vector(llava, first), vector(llava, second, scaling)
    where = since(prompt_length("llava", inputs) - 1)

    def scaled(h: Any, d: Any, strength: float) -> Any:
        unit = d / d.norm()
        return h + strength * 2.0 * torch.outer(h @ unit, unit)

    def answer(order: str) -> Any:
        edits = []
        for layer in range(4):
            a, b = first[sk.Key(layer)], second[sk.Key(layer)]
            added = Edit(layer, where, lambda h, rows, d=a: h + 0.5 * d)
            multiplied = Edit(layer, where, lambda h, rows, d=b: scaled(h, d, 0.25))
            edits += [added, multiplied] if order == "ab" else [multiplied, added]
        with edited(llava.model, "llava", edits):
            return generate(llava.model, inputs)

    with sk.steer(llava.model, [one, other], strength=[0.5, 0.25]):
        together = generate(llava.model, inputs)
    with sk.steer(llava.model, one, strength=0.5), sk.steer(llava.model, other, strength=0.25):
        nested = generate(llava.model, inputs)
    with sk.steer(llava.model, [other, one], strength=[0.25, 0.5]):
        reverse = generate(llava.model, inputs)
    assert distance(together, answer("ab")) < 2e-5
    assert distance(reverse, answer("ba")) < 2e-5
    assert distance(nested, together) == 0.0
    assert distance(together, reverse) > CLEARLY


def test_one_strength_serves_all_vectors(llava: sk.VLM, inputs: Any) -> None:
    first, second = directions(llava), directions(llava, seed=1)
    with sk.steer(llava.model, [vector(llava, first), vector(llava, second)], strength=-0.5):
        found = generate(llava.model, inputs)
    where = since(prompt_length("llava", inputs) - 1)
    with edited(llava.model, "llava", [*adds(first, where, -0.5), *adds(second, where, -0.5)]):
        assert distance(found, generate(llava.model, inputs)) < 2e-5
    assert distance(found, generate(llava.model, inputs)) > CLEARLY


def test_leaving_the_inner_block_leaves_the_outer_one(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    with restored(llava), sk.steer(llava.model, plain) as outer:
        alone = generate(llava.model, inputs)
        with sk.steer(llava.model, vector(llava, directions(llava, seed=1))) as inner:
            both = generate(llava.model, inputs)
        assert distance(generate(llava.model, inputs), alone) == 0.0
        assert distance(both, alone) > CLEARLY
    assert (outer.prompt_tokens, inner.prompt_tokens) == (9, 3)


def test_one_context_opens_again_and_inside_itself(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    context = sk.steer(llava.model, plain)
    with restored(llava):
        with context as first:
            once = generate(llava.model, inputs)
            with context as second:
                twice = generate(llava.model, inputs)
        with context:
            again = generate(llava.model, inputs)
    assert first is not second
    assert distance(once, again) == 0.0
    where = since(prompt_length("llava", inputs) - 1)
    with edited(llava.model, "llava", adds(directions(llava), where)):
        assert distance(once, generate(llava.model, inputs)) == 0.0
    assert distance(once, twice) > CLEARLY


# -- sample-level contrasts --------------------------------------------------------------------------------------------


def counted(model: Any) -> tuple[list[int], Any]:
    """A list that gets the length of every pass of the decoder, and the handle of the hook."""
    lengths: list[int] = []
    decoder = model.get_submodule("model.language_model")
    handle = decoder.layers[0].register_forward_hook(lambda m, args, output: lengths.append(output.shape[1]))
    return lengths, handle


def test_a_contrast_is_measured_once_per_prompt(llava: sk.VLM, inputs: Any) -> None:
    sample_level = sk.CMRM(level="sample", counterpart="blank", phase="both").fit(llava)
    lengths, handle = counted(llava.model)
    try:
        with sk.steer(llava, sample_level):
            generate(llava.model, inputs, steps=4)
            assert lengths == [27, 45, 45, 1, 1, 1]  # text only, blank, then the answer
            with sk.steer(llava, sample_level, strength=0.5):  # the same contrast is not measured again
                lengths.clear()
                generate(llava.model, inputs, steps=2)
            assert lengths == [27, 45, 45, 1]
    finally:
        handle.remove()


def test_a_contrast_is_measured_on_unsteered_passes(llava: sk.VLM, inputs: Any) -> None:
    text = captured(llava.model, "llava", llava.inputs(TEXT_ONLY))
    blank = captured(llava.model, "llava", llava.inputs([white(sample) for sample in WITH_IMAGE]))
    shift = [a - b for a, b in zip(text, blank, strict=True)]
    last = prompt_length("llava", inputs) - 1
    contrast = [Edit(at, only(last), lambda h, rows, c=c: h + c[rows]) for at, c in enumerate(shift)]
    other = adds(directions(llava), since(last))
    sample_level = sk.CMRM(level="sample", counterpart="blank", form="literal").fit(llava)
    with sk.steer(llava, vector(llava, directions(llava))), sk.steer(llava, sample_level):
        found = generate(llava.model, inputs)
    with edited(llava.model, "llava", [*other, *contrast]):
        assert distance(found, generate(llava.model, inputs)) == 0.0
    with sk.steer(llava, sample_level), sk.steer(llava, vector(llava, directions(llava))):
        found = generate(llava.model, inputs)
    with edited(llava.model, "llava", [*contrast, *(Edit(e.layer, e.where, e.change) for e in other)]):
        assert distance(found, generate(llava.model, inputs)) == 0.0


def test_a_contrast_needs_the_processor(llava: sk.VLM) -> None:
    sample_level = sk.CMRM(level="sample", counterpart="blank").fit(llava)
    with pytest.raises(ProcessorError, match="measured on each prompt"):
        sk.steer(llava.model, sample_level)


@pytest.mark.parametrize("counterpart", ["blank", "noise", "original"])
def test_a_prompt_without_an_image_needs_no_correction(family: str, counterpart: str) -> None:
    vlm = sk.wrap(*tiny.build(family))
    sample_level = sk.CMRM(level="sample", counterpart=counterpart).fit(vlm)
    samples = [WITH_IMAGE[0], TEXT_ONLY[1]]
    plain = vlm.generate(samples, max_new_tokens=4)
    with sk.steer(vlm, sample_level):
        steered = vlm.generate(samples, max_new_tokens=4)
    assert steered[1] == plain[1]
    assert steered[0] != plain[0]


def test_a_contrast_is_measured_at_the_site_that_it_steers(llava: sk.VLM, inputs: Any) -> None:
    change = sk.Intervention(operation=Add(direction=MeasuredContrast(form="literal")), site="mlp_out", phase="prompt")
    shifted = {
        layer: llava.capture(WITH_IMAGE, images=False, site="mlp_out", engine="hooks")[layer]
        - llava.capture(WITH_IMAGE, images="blank", site="mlp_out", engine="hooks")[layer]
        for layer in range(llava.architecture.layer_count)
    }
    with ExitStack() as stack:
        for layer, shift in shifted.items():
            block = llava.model.get_submodule(f"model.language_model.layers.{layer}.mlp")

            def hook(module: Any, args: Any, out: Any, shift: Any = shift) -> Any:
                return torch.cat([out[:, :-1], out[:, -1:] + shift[:, None]], dim=1)

            stack.callback(block.register_forward_hook(hook).remove)
        expected = llava.model(**inputs).logits
    metadata = vector(llava, directions(llava)).metadata.model_copy(update={"interventions": (change,)})
    with sk.steer(llava, sk.SteeringVector({}, metadata)):
        found = llava.model(**inputs).logits
    assert torch.equal(found, expected)
    assert (found - llava.model(**inputs).logits).abs().max() > CLEARLY


def test_a_compiled_model_is_refused(plain: sk.SteeringVector) -> None:
    model, _ = tiny.build("llava")
    with pytest.raises(EngineError, match=r"compiled with torch\.compile"):
        sk.steer(torch.compile(model, backend="eager"), plain)
    forward = model.forward
    model.forward = torch.compile(forward, backend="eager")
    with pytest.raises(EngineError, match=r"compiled with torch\.compile"):
        sk.steer(model, plain)
    model.forward = forward
    sk.steer(model, plain)
    model.compile(backend="eager")
    with pytest.raises(EngineError, match=r"compiled with torch\.compile"):
        sk.steer(model, plain)


def test_a_steered_model_is_not_copied(plain: sk.SteeringVector) -> None:
    model, _ = tiny.build("llava")
    with pytest.raises(EngineError, match="copied or pickled while it is steered"), sk.steer(model, plain):
        copy.deepcopy(model)


def test_one_steer_object_serves_several_threads(llava: sk.VLM, plain: sk.SteeringVector, inputs: Any) -> None:
    steering = sk.steer(llava.model, plain)
    first, second = Barrier(2), Barrier(2)

    def run() -> int:
        with steering as receipt:
            first.wait(timeout=60)
            llava.model(**inputs)
            second.wait(timeout=60)
        return receipt.prompt_tokens

    with ThreadPoolExecutor(2) as pool:
        assert [each.result() for each in [pool.submit(run), pool.submit(run)]] == [3, 3]


def test_a_contrast_can_not_follow_a_cache_without_its_prompt(llava: sk.VLM, inputs: Any) -> None:
    sample_level = sk.CMRM(level="sample", counterpart="blank", phase="both", prompts="all").fit(llava)
    with torch.no_grad():
        cache = cache_of(llava.model(**inputs, use_cache=True))
        with pytest.raises(EngineError, match="continues from a KV cache"), sk.steer(llava, sample_level):
            llava.model(input_ids=torch.tensor([[70]] * 3), **{CACHE: cache})


# -- restoring ---------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def failing(at: int, error: BaseException) -> Any:
    class Failing(transformers.LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                raise error
            return scores

    return transformers.LogitsProcessorList([Failing()])


@pytest.mark.parametrize("error", [Stop("stop"), KeyboardInterrupt()])
def test_an_error_inside_generate_leaves_the_context_right(
    llava: sk.VLM, inputs: Any, plain: sk.SteeringVector, error: BaseException
) -> None:
    with restored(llava):
        with sk.steer(llava.model, plain):
            expected = generate(llava.model, inputs)
        with sk.steer(llava.model, plain):
            with pytest.raises(type(error)):
                generate(llava.model, inputs, logits_processor=failing(3, error))
            assert distance(generate(llava.model, inputs), expected) == 0.0
        with pytest.raises(type(error)), sk.steer(llava.model, plain):
            generate(llava.model, inputs, logits_processor=failing(1, error))


def test_an_interrupted_pass_of_the_text_module_is_not_taken_for_the_next_call(vlm_of: Any) -> None:
    """An interrupt skips the hook that ends the pass; the model's own next pass is a call of its own."""
    vlm = vlm_of("instructblip-llama")
    vector = sk.CMRM(level="sample").fit(vlm)
    inputs, text = vlm.inputs(WITH_IMAGE[:1]), vlm.inputs(WITH_IMAGE[:1], images=False)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad(), sk.steer(vlm, vector):
        expected = vlm.model(**inputs).logits
        block = vlm.model.get_submodule(vlm.architecture.site(1, "resid_post"))
        handle = block.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            vlm.model.get_submodule(vlm.architecture.text_module)(**text)
        handle.remove()
        assert torch.equal(vlm.model(**inputs).logits, expected)


def test_a_block_is_closed_from_another_thread(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    """As where a generator that opened it is finalised by a worker."""
    with restored(llava):
        steering = sk.steer(llava.model, plain)
        steering.__enter__()
        generate(llava.model, inputs)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(steering.__exit__, None, None, None).result()
    with pytest.raises(EngineError, match="not open"):
        steering.__exit__(None, None, None)


@pytest.mark.parametrize(("value", "strength"), [(float("nan"), 1.0), (None, 1e200), (None, 3e38)])
def test_what_is_not_finite_at_its_dose_is_refused_before_the_model_runs(
    llava: sk.VLM, plain: sk.SteeringVector, value: float | None, strength: float
) -> None:
    """Tensors can be written to after the vector was made, and a finite strength can overflow."""
    vector = sk.SteeringVector({key: 10 * each.clone() for key, each in plain.tensors.items()}, plain.metadata)
    if value is not None:
        vector.directions[1].fill_(value)
    with restored(llava):
        for model in (llava.model, llava):
            with pytest.raises(NonFiniteError, match="layer"):
                sk.steer(model, vector, strength=strength, policy="off")
    half = copy.deepcopy(llava.model).to(torch.float16)
    with pytest.raises(NonFiniteError, match="float16"):
        sk.steer(half, plain, strength=1e6, policy="off")


@pytest.mark.parametrize("way", ["generate", "forward"])
@pytest.mark.parametrize("error", [Stop("stop"), KeyboardInterrupt()])
def test_an_error_inside_a_forward_pass_leaves_the_context_right(
    llava: sk.VLM, inputs: Any, plain: sk.SteeringVector, way: str, error: BaseException
) -> None:
    short = llava.inputs(TEXT_ONLY[:1])

    def fail(*_: Any) -> None:
        raise error

    with restored(llava), torch.no_grad():
        with sk.steer(llava.model, plain):
            answer, logits = generate(llava.model, short), llava.model(**short).logits
        with sk.steer(llava.model, plain) as receipt:
            handle = llava.model.get_submodule("model.language_model.layers.2.mlp").register_forward_hook(fail)
            with pytest.raises(type(error)):
                _ = generate(llava.model, inputs) if way == "generate" else llava.model(**inputs)
            handle.remove()
            assert torch.equal(llava.model(**short).logits, logits)
            assert distance(generate(llava.model, short), answer) == 0.0
            assert receipt.sites[3, "resid_post"].prompt_tokens == 2


def test_an_error_that_passes_is_not_replaced(llava: sk.VLM, plain: sk.SteeringVector) -> None:
    with restored(llava), pytest.raises(Stop), sk.steer(llava.model, plain):
        raise Stop


def test_a_context_that_can_not_open_leaves_nothing(llava: sk.VLM, plain: sk.SteeringVector, monkeypatch: Any) -> None:
    from steerkit.engines import hooks

    def refuse(*_: Any) -> Any:
        raise Stop

    with restored(llava):
        context = sk.steer(llava.model, plain)
        monkeypatch.setattr(hooks, "_Outlet", refuse)
        with pytest.raises(Stop):
            context.__enter__()


def test_a_generate_of_the_users_own_is_kept(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    calls = []
    model, original = llava.model, llava.model.generate

    def mine(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(*args, **kwargs)

    model.generate = mine
    try:
        with sk.steer(model, plain):
            found = generate(model, inputs)
        assert vars(model)["generate"] is mine
    finally:
        del model.generate
    assert len(calls) == 1
    with sk.steer(model, plain):
        assert distance(generate(model, inputs), found) == 0.0


# -- nothing steered ---------------------------------------------------------------------------------------------------


def test_an_idle_context_is_an_error(llava: sk.VLM, plain: sk.SteeringVector) -> None:
    with (
        restored(llava),
        pytest.raises(NothingSteeredError, match="was not steered once"),
        sk.steer(llava.model, plain),
    ):
        pass


def test_calling_another_model_is_an_error(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    twin = copy.deepcopy(llava.model)
    with pytest.raises(NothingSteeredError), sk.steer(llava.model, plain):
        generate(twin, inputs)


def test_selecting_no_token_is_an_error(llava: sk.VLM) -> None:
    with (
        pytest.raises(NothingSteeredError),
        sk.steer(llava, vector(llava, directions(llava), sk.Intervention(tokens="image"))),
    ):
        generate(llava.model, llava.inputs(TEXT_ONLY))


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refuses_another_model(llava: sk.VLM, inputs: Any) -> None:
    relative = vector(llava, directions(llava), architecture="ShareGPT4VForConditionalGeneration")
    with pytest.raises(ModelMismatchError, match="architecture ShareGPT4V"):
        sk.steer(llava, relative)
    with pytest.warns(TrustWarning, match="architecture ShareGPT4V"), sk.steer(llava, relative, policy="warn"):
        found = generate(llava.model, inputs)
    with sk.steer(llava, vector(llava, directions(llava))):
        assert distance(found, generate(llava.model, inputs)) == 0.0

    wide = vector(llava, {sk.Key(0): torch.ones(64)}, hidden_size=64)
    tall = vector(llava, directions(llava), layer_count=5)
    for policy in ("strict", "warn", "off"):
        with pytest.raises(ModelMismatchError, match="hidden size 64, and the model has 48"):
            sk.steer(llava, wide, policy=policy)
        with pytest.raises(ModelMismatchError, match="5 layers, and the model has 4"):
            sk.steer(llava, tall, policy=policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "hook"}, "engine is 'hook'"),
        ({"scope": "any"}, "scope is 'any'"),
        ({"policy": "shape"}, "policy is 'shape'"),
        ({"engine": "nnsight", "scope": "all"}, "not thread safe"),
        ({"strength": [1.0, 2.0]}, "2 strengths for 1 vectors"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": [float("-inf")]}, "strength is -inf"),
    ],
)
def test_refuses_options(llava: sk.VLM, plain: sk.SteeringVector, options: Any, message: str) -> None:
    with restored(llava), pytest.raises(OptionError, match=message):
        sk.steer(llava, plain, **options)


def test_refuses_no_vector(llava: sk.VLM) -> None:
    with pytest.raises(OptionError, match="no vector"):
        sk.steer(llava, [])


# -- ways of calling ---------------------------------------------------------------------------------------------------


def test_a_forward_pass_steers_the_last_token(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    last = prompt_length("llava", inputs) - 1
    with torch.no_grad():
        with sk.steer(llava.model, plain):
            found = llava.model(**inputs).logits
        with edited(llava.model, "llava", adds(directions(llava), only(last))):
            expected = llava.model(**inputs).logits
        unsteered = llava.model(**inputs).logits
    assert torch.equal(found, expected)
    assert torch.equal(found[:, :last], unsteered[:, :last])
    assert (found[:, last] - unsteered[:, last]).abs().max() > CLEARLY


def test_a_manual_loop_equals_generate(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE[:1])
    length = inputs["input_ids"].shape[1]
    for phase in ("prompt", "generation", "both"):
        steering = vector(llava, directions(llava), sk.Intervention(phase=phase))
        with sk.steer(llava.model, steering):
            expected = generate(llava.model, inputs, steps=4)
        with sk.steer(llava.model, steering) as receipt, torch.no_grad():
            output = llava.model(**inputs, use_cache=True)
            found = [output.logits[:, -1]]
            for step in range(3):
                cache, chosen = cache_of(output), expected.sequences[:, length + step, None]
                output = llava.model(input_ids=chosen, **{CACHE: cache}, use_cache=True)
                found.append(output.logits[:, -1])
        assert all((a - b).abs().max() < 2e-5 for a, b in zip(found, expected.logits, strict=True))
        assert receipt.prompt_tokens == (0 if phase == "generation" else 1)
        assert receipt.generated_tokens == (0 if phase == "prompt" else 3)


@pytest.mark.parametrize("masked", [True, False])
def test_a_second_turn_steers_its_own_last_token(llava: sk.VLM, plain: sk.SteeringVector, masked: bool) -> None:
    first, second = torch.tensor([[1, 70, 71, 72, 73]]), torch.tensor([[80, 81, 82]])
    model = llava.model
    with torch.no_grad():
        cache = cache_of(model(input_ids=first, use_cache=True))
        more = {"attention_mask": torch.ones(1, 8, dtype=torch.long)} if masked else {}

        def call() -> None:
            model(input_ids=second, **{CACHE: copy.deepcopy(cache)}, **more)

        found = touched(model, "llava", 0, lambda: sk.steer(model, plain), call)
        everywhere = vector(llava, directions(llava), sk.Intervention(tokens="all", phase="prompt"))
        all_of_it = touched(model, "llava", 0, lambda: sk.steer(model, everywhere), call)
        assert [places(mask) for mask in found] == [[[2]]]
        assert [places(mask) for mask in all_of_it] == [[[0, 1, 2]]]
        by_content = vector(llava, directions(llava), sk.Intervention(tokens="image"))
        with pytest.raises(EngineError, match="whole prompt"), sk.steer(model, by_content):
            call()


def test_generate_goes_on_from_a_cache(llava: sk.VLM, plain: sk.SteeringVector) -> None:
    model = llava.model
    ids = torch.tensor([[1, 70, 71, 72, 73, 80, 81, 82]])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        cache = cache_of(model(input_ids=ids[:, :5], use_cache=True))

    def call() -> Any:
        kept = copy.deepcopy(cache)
        return model.generate(ids, attention_mask=torch.ones_like(ids), **{CACHE: kept}, **options)

    found = touched(model, "llava", 0, lambda: sk.steer(model, plain), call)
    assert [places(mask) for mask in found] == [[[2]], [[0]], [[0]]]


def test_positional_arguments(llava: sk.VLM, plain: sk.SteeringVector) -> None:
    inputs = llava.inputs(TEXT_ONLY[:1])
    ids = inputs["input_ids"]
    options = {"max_new_tokens": 3, "min_new_tokens": 3}
    model = llava.model
    for call in (
        lambda: model.generate(ids, **options),
        lambda: model.generate(inputs=ids, **options),
        lambda: model.generate(input_ids=ids, **options),
    ):
        found = touched(model, "llava", 0, lambda: sk.steer(model, plain), call)
        assert [places(mask) for mask in found] == [[[ids.shape[1] - 1]], [[0]], [[0]]]
    with torch.no_grad():
        found = touched(model, "llava", 0, lambda: sk.steer(model, plain), lambda: model(ids))
    assert [places(mask) for mask in found] == [[[ids.shape[1] - 1]]]


def test_embeddings_instead_of_ids(llava: sk.VLM, plain: sk.SteeringVector) -> None:
    model = llava.model
    inputs = llava.inputs(TEXT_ONLY[:2])
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()

    def call() -> Any:
        return model.generate(
            inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], max_new_tokens=2, min_new_tokens=2
        )

    last = embeddings.shape[1] - 1
    found = touched(model, "llava", 0, lambda: sk.steer(model, plain), call)
    assert [places(mask) for mask in found] == [[[last], [last]], [[0], [0]]]


def test_the_model_without_its_head(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    last = prompt_length("llava", inputs) - 1
    with torch.no_grad():
        found = touched(llava.model, "llava", 0, lambda: sk.steer(llava, plain), lambda: llava.model.model(**inputs))
    assert [places(mask) for mask in found] == [[[last]] * 3]


def test_a_pipeline(llava: sk.VLM, plain: sk.SteeringVector) -> None:
    pipe = transformers.pipeline("image-text-to-text", model=llava.model, processor=llava.processor)
    call = {"images": [picture(0)], "text": "USER: <image>\nWhat? ASSISTANT:", "return_full_text": False}
    call |= {"generate_kwargs": {"max_new_tokens": 5, "min_new_tokens": 5}}
    unsteered = pipe(**call)[0]["generated_text"]
    with sk.steer(llava.model, plain) as receipt:
        steered = pipe(**call)[0]["generated_text"]
    assert steered != unsteered
    assert (receipt.prompt_tokens, receipt.generated_tokens) == (1, 4)
    inputs = llava.processor(images=[picture(0)], text=call["text"], return_tensors="pt")
    where = since(inputs["input_ids"].shape[1] - 1)
    with edited(llava.model, "llava", adds(directions(llava), where)):
        assert steered == pipe(**call)[0]["generated_text"]


def test_gradients_flow_through_a_steered_pass(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    for operation in (Add(), Add(relative=True), Scale(factor=2.0)):
        steering = vector(llava, directions(llava), sk.Intervention(operation=operation))
        embeddings = llava.model.get_input_embeddings().weight
        gradients = []
        for context in (sk.steer(llava, steering), ExitStack()):
            with context:
                loss = llava.model(**inputs).logits[:, -1].pow(2).sum()
            (found,) = torch.autograd.grad(loss, embeddings)
            gradients.append(found)
        assert gradients[0].isfinite().all()
        assert gradients[0].abs().max() > 0
        assert not torch.allclose(gradients[0], gradients[1])


def test_after_inference_mode_gradients_still_flow(llava: sk.VLM) -> None:
    inputs = llava.inputs(WITH_IMAGE)
    steering = vector(llava, directions(llava), sk.Intervention(operation=Ablate()))
    with sk.steer(llava, steering):
        with torch.inference_mode():
            generate(llava.model, inputs, steps=2)
        loss = llava.model(**inputs).logits[:, -1].pow(2).sum()
        (found,) = torch.autograd.grad(loss, llava.model.get_input_embeddings().weight)
    assert found.abs().max() > 0


def test_bfloat16(vlm_of: Any) -> None:
    model = copy.deepcopy(vlm_of("llava").model).to(torch.bfloat16)
    vlm = sk.wrap(model, vlm_of("llava").processor)
    inputs = vlm.inputs(WITH_IMAGE)
    assert inputs["pixel_values"].dtype == torch.bfloat16
    tensors = directions(vlm)
    with sk.steer(vlm, vector(vlm, tensors), strength=0.75):
        found = generate(model, inputs)
    where = since(prompt_length("llava", inputs) - 1)
    rounded = [Edit(key.layer, where, lambda h, rows, d=d: h + (0.75 * d).bfloat16()) for key, d in tensors.items()]
    with edited(model, "llava", rounded):
        assert distance(found, generate(model, inputs)) == 0.0
    assert distance(found, generate(model, inputs)) > CLEARLY
    with sk.steer(vlm, sk.CMRM(level="sample", counterpart="blank").fit(vlm)):
        assert distance(generate(model, inputs), generate(model, inputs)) == 0.0


def test_directions_in_any_stored_type(llava: sk.VLM, inputs: Any, plain: sk.SteeringVector) -> None:
    low = plain.to("bfloat16")
    with sk.steer(llava, low):
        found = generate(llava.model, inputs)
    where = since(prompt_length("llava", inputs) - 1)
    wide = {key: d.float() for key, d in low.tensors.items()}
    with edited(llava.model, "llava", adds(wide, where)):
        assert distance(found, generate(llava.model, inputs)) == 0.0


def test_qwen_is_left_as_it_was_by_a_measurement(qwen: sk.VLM) -> None:
    """What Qwen-VL keeps of a prompt for the next step must be the user's own, not the contrast's."""
    inputs = qwen.inputs(WITH_IMAGE)
    forget(qwen.model)
    steering = sk.CMRM(level="sample", counterpart="blank").fit(qwen)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, **no_images(qwen.model)}
    with sk.steer(qwen, steering):
        first = qwen.model.generate(**inputs, **options)
        second = qwen.model.generate(**inputs, **options)
        third = qwen.generate(WITH_IMAGE, **options)
    assert torch.equal(first, second)
    length = inputs["input_ids"].shape[1]
    texts = qwen.processor.tokenizer.batch_decode(first[:, length:], skip_special_tokens=True)
    assert third == [text.strip() for text in texts]


def test_directions_that_are_written_to_before_a_block_opens_count(llava: sk.VLM, inputs: Any) -> None:
    """What was compiled to check the arguments is not what steers, once they have changed."""
    tensors = directions(llava)
    steering = vector(llava, tensors)
    context = sk.steer(llava, steering, policy="off")
    where = since(prompt_length("llava", inputs) - 1)
    for factor in (2.0, 3.0):
        for tensor in steering.tensors.values():
            tensor.mul_(factor)
        tensors = {key: factor * tensor for key, tensor in tensors.items()}
        with context:
            found = generate(llava.model, inputs)
        with edited(llava.model, "llava", adds(tensors, where)):
            assert distance(found, generate(llava.model, inputs)) < 1e-3
    next(iter(steering.tensors.values()))[0] = float("inf")
    with pytest.raises(NonFiniteError), context:
        pass
