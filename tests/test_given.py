"""An argument of another type than the public API takes gives the documented error, before any work."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
import torch
from reference import directions, vector

import steerkit as sk
from steerkit._internal.validation import as_layers, expect, expect_each, expect_one_of, expect_whole
from steerkit.errors import LayerRangeError, MissingImageError, OptionError, ProcessorError, SampleError


class Given(NamedTuple):
    """What the calls need that is right."""

    vlm: sk.VLM
    vector: sk.SteeringVector
    samples: list[sk.Sample]
    suite: sk.evaluation.Suite

    def one_case(self) -> Any:
        return (sk.evaluation.Case(self.samples[0], "a"),)


@pytest.fixture(scope="module")
def given(llava: sk.VLM, anchors: list[sk.Sample]) -> Given:
    case = (sk.evaluation.Case(anchors[0], "a"),)
    suite = sk.evaluation.Suite("toy", case, case, case, sk.evaluation.PhraseJudge(), 2)
    return Given(llava, vector(llava, directions(llava)), anchors[:2], suite)


@pytest.fixture(scope="module")
def untouched(llava: sk.VLM) -> Any:
    """A model whose blocks count their calls: whoever refuses an argument does so before the model runs."""
    calls: list[int] = []
    hooks = [llava.model.register_forward_pre_hook(lambda *_: calls.append(1))]
    yield calls
    for hook in hooks:
        hook.remove()


BUDGET = sk.evaluation.Budget("kl", 1.0)
CAA = sk.methods.CAA(positive="harmful", negative="harmless")
NO_COUNT = (None, "4", 2.5, 0, -1, float("nan"), True, [4])
NO_FUNCTION = ("x", 3, [print])
NO_VLM = (None, "llava", 3)
NO_LIST_OF_LAYERS = (3, "3", ["3"], [1.5], [None], [True], b"\x01")
NO_NUMBER = (None, "1", [1.0], float("nan"), -1.0, True)
NO_VECTOR = (None, "caa.safetensors", [3])
NO_SUITE = (None, "toy", ())
NO_PATH = (None, 3, b"x", [])

REFUSED: dict[str, tuple[Callable[[Given, Any], object], tuple[Any, ...]]] = {
    "load": (lambda g, x: sk.load(x), (None, 3, True, ["llava"])),
    "load, dtype": (lambda g, x: sk.load("nowhere", dtype=x), ("float99", "nn", 3, ["float32"], {"": "float99"})),
    "load, torch_dtype": (lambda g, x: sk.load("nowhere", torch_dtype=x), ("float99",)),
    "VLM, model": (lambda g, x: sk.VLM(x, g.vlm.processor, g.vlm.family), (None, torch.nn.Linear(1, 1), "llava")),
    "VLM, family": (lambda g, x: sk.VLM(g.vlm.model, g.vlm.processor, x), (3, "llava")),
    "inputs, seed": (lambda g, x: g.vlm.inputs(g.samples, "noise", seed=x), (None, "0", -1, 1.5, [0])),
    "generate, images": (lambda g, x: g.vlm.generate(g.samples, images=x), (None, "foo", 3, [])),
    "generate, batch_size": (lambda g, x: g.vlm.generate(g.samples, batch_size=x), NO_COUNT),
    "generate, max_new_tokens": (lambda g, x: g.vlm.generate(g.samples, max_new_tokens=x), NO_COUNT[1:]),
    "generate, progress": (lambda g, x: g.vlm.generate(g.samples, progress=x), NO_FUNCTION),
    "capture, layers": (lambda g, x: g.vlm.capture(g.samples, layers=x), NO_LIST_OF_LAYERS),
    "capture, batch_size": (lambda g, x: g.vlm.capture(g.samples, batch_size=x), NO_COUNT),
    "capture, site": (lambda g, x: g.vlm.capture(g.samples, site=x), (None, "foo", ["mlp_out"])),
    "capture, engine": (lambda g, x: g.vlm.capture(g.samples, engine=x), (None, "torch", 3)),
    "check_layers": (lambda g, x: g.vlm.check_layers(x), NO_LIST_OF_LAYERS),
    "check_layers, tower": (lambda g, x: g.vlm.check_layers([0], x), (None, "foo")),
    "log_likelihood": (lambda g, x: g.vlm.log_likelihood(g.samples, x), (None, 3, "ab", ["a", None], {"a": 1, "b": 2})),
    "next token, batch_size": (lambda g, x: g.vlm.next_token_log_probabilities(g.samples, batch_size=x), NO_COUNT),
    "fit, batch_size": (lambda g, x: CAA.fit(g.vlm, g.samples, batch_size=x), NO_COUNT),
    "fit, checkpoint": (lambda g, x: CAA.fit(g.vlm, g.samples, checkpoint=x), NO_PATH[1:]),
    "fit, progress": (lambda g, x: CAA.fit(g.vlm, g.samples, progress=x), NO_FUNCTION),
    "fit, anchor_name": (lambda g, x: CAA.fit(g.vlm, g.samples, anchor_name=x), (None, 3)),
    "fit, anchor_license": (lambda g, x: CAA.fit(g.vlm, g.samples, anchor_license=x), (3, ["MIT"])),
    "read_samples, columns": (lambda g, x: sk.read_samples(["a"], columns=x), ("text", 3, [("a", "text")])),
    "read_samples, image_root": (lambda g, x: sk.read_samples(["a"], image_root=x), NO_PATH[1:]),
    "SteeringVector": (lambda g, x: sk.SteeringVector(x, g.vector.metadata), (None, [], 3)),
    "SteeringVector, keys": (
        lambda g, x: sk.SteeringVector({x: torch.ones(48)}, g.vector.metadata),
        (0, "x", (), ("0",)),
    ),
    "SteeringVector, tensors": (lambda g, x: sk.SteeringVector({sk.Key(0): x}, g.vector.metadata), (None, [1.0])),
    "SteeringVector, metadata": (lambda g, x: sk.SteeringVector(g.vector.tensors, x), (None, {})),
    "select": (lambda g, x: g.vector.select(x), (None, *NO_LIST_OF_LAYERS)),
    "direction": (lambda g, x: g.vector.direction(x, 0, "resid_post"), (None, "name")),
    "layers_of": (lambda g, x: g.vector.layers_of(x), (None, 0)),
    "to": (lambda g, x: g.vector.to(x), (None, "float99", ["float32"], torch.float32)),
    "save": (lambda g, x: g.vector.save(x), (*NO_PATH, "", ".")),
    "SteeringVector.load": (lambda g, x: sk.SteeringVector.load(x), NO_PATH),
    "from_bytes": (lambda g, x: sk.SteeringVector.from_bytes(x), (None, "text", 3)),
    "get_method": (lambda g, x: sk.get_method(x), (None, 3, ["caa"])),
    "get_adapter": (lambda g, x: sk.models.get_adapter(x), (None, 3, ["llava"])),
    "steer": (lambda g, x: sk.steer(g.vlm, x), (None, "caa", 3, [None])),
    "Case": (lambda g, x: sk.evaluation.Case(x), (None, "text")),
    "Case, answer": (lambda g, x: sk.evaluation.Case(g.samples[0], x), (3, ["a"])),
    "PhraseJudge": (lambda g, x: sk.evaluation.PhraseJudge(x), (None, "sorry", [3])),
    "Suite": (
        lambda g, x: sk.evaluation.Suite("s", x, g.one_case(), g.one_case(), sk.evaluation.PhraseJudge()),
        (None, "x", [None], ["x"]),
    ),
    "Suite, name": (lambda g, x: sk.evaluation.Suite(x, *[g.one_case()] * 3, sk.evaluation.PhraseJudge()), (None, 3)),
    "Suite, judge": (lambda g, x: sk.evaluation.Suite("s", *[g.one_case()] * 3, x), (None, "phrases")),
    "Suite, tokens": (
        lambda g, x: sk.evaluation.Suite("s", *[g.one_case()] * 3, sk.evaluation.PhraseJudge(), x),
        NO_COUNT,
    ),
    "Budget, kind": (lambda g, x: sk.evaluation.Budget(x, 1.0), (None, "cost", ["kl"])),
    "Budget": (lambda g, x: sk.evaluation.Budget("kl", x), NO_NUMBER),
    "evaluate, vlm": (lambda g, x: sk.evaluate(x, g.suite), NO_VLM),
    "evaluate, suite": (lambda g, x: sk.evaluate(g.vlm, x), NO_SUITE),
    "evaluate, vector": (lambda g, x: sk.evaluate(g.vlm, g.suite, x), NO_VECTOR[1:]),
    "evaluate, batch_size": (lambda g, x: sk.evaluate(g.vlm, g.suite, batch_size=x), NO_COUNT),
    "evaluate, progress": (lambda g, x: sk.evaluate(g.vlm, g.suite, progress=x), NO_FUNCTION),
    "compare, vlm": (lambda g, x: sk.compare(x, {"a": g.vector}, g.suite), NO_VLM),
    "compare, methods": (lambda g, x: sk.compare(g.vlm, x, g.suite), (None, 3, "caa", [CAA], {})),
    "compare, entry": (
        lambda g, x: sk.compare(g.vlm, {"a": x}, g.suite),
        (None, "caa", sk.methods.CAA, (CAA,), ("a", [])),
    ),
    "compare, suite": (lambda g, x: sk.compare(g.vlm, {"a": g.vector}, x), NO_SUITE),
    "compare, sweep": (
        lambda g, x: sk.compare(g.vlm, {"a": g.vector}, g.suite, sweep=x),
        (None, 1.0, "12", ["1"], [float("nan")]),
    ),
    "compare, batch_size": (lambda g, x: sk.compare(g.vlm, {"a": g.vector}, g.suite, batch_size=x), NO_COUNT),
    "compare, progress": (lambda g, x: sk.compare(g.vlm, {"a": g.vector}, g.suite, progress=x), NO_FUNCTION),
    "calibrate, vlm": (lambda g, x: sk.calibrate(x, g.vector, g.suite, BUDGET), NO_VLM),
    "calibrate, vector": (lambda g, x: sk.calibrate(g.vlm, x, g.suite, BUDGET), NO_VECTOR),
    "calibrate, suite": (lambda g, x: sk.calibrate(g.vlm, g.vector, x, BUDGET), NO_SUITE),
    "calibrate, budget": (lambda g, x: sk.calibrate(g.vlm, g.vector, g.suite, x), (None, "kl", 0.1)),
    "calibrate, per_layer": (
        lambda g, x: sk.calibrate(g.vlm, g.vector, g.suite, BUDGET, per_layer=x),
        NO_NUMBER[1:],
    ),
    "calibrate, maximum": (lambda g, x: sk.calibrate(g.vlm, g.vector, g.suite, BUDGET, maximum=x), NO_NUMBER),
    "calibrate, tolerance": (lambda g, x: sk.calibrate(g.vlm, g.vector, g.suite, BUDGET, tolerance=x), NO_NUMBER),
    "calibrate, batch_size": (lambda g, x: sk.calibrate(g.vlm, g.vector, g.suite, BUDGET, batch_size=x), NO_COUNT),
    "calibrate, progress": (lambda g, x: sk.calibrate(g.vlm, g.vector, g.suite, BUDGET, progress=x), NO_FUNCTION),
    "equal_kl, vlm": (lambda g, x: sk.evaluation.equal_kl(x, [g.vector], g.samples, 0.1), NO_VLM),
    "equal_kl, vectors": (lambda g, x: sk.evaluation.equal_kl(g.vlm, x, g.samples, 0.1), (*NO_VECTOR, [])),
    "equal_kl, kl": (lambda g, x: sk.evaluation.equal_kl(g.vlm, [g.vector], g.samples, x), NO_NUMBER),
    "equal_kl, progress": (
        lambda g, x: sk.evaluation.equal_kl(g.vlm, [g.vector], g.samples, 0.1, progress=x),
        NO_FUNCTION,
    ),
    "per_layer, vlm": (lambda g, x: sk.evaluation.per_layer(x, g.vector, g.samples, 0.1), NO_VLM),
    "per_layer, vector": (lambda g, x: sk.evaluation.per_layer(g.vlm, x, g.samples, 0.1), NO_VECTOR),
    "per_layer, kl": (lambda g, x: sk.evaluation.per_layer(g.vlm, g.vector, g.samples, x), NO_NUMBER),
}
CASES = [
    pytest.param(call, value, id=f"{name}: {value!r:.30}")
    for name, (call, values) in REFUSED.items()
    for value in values
]


@pytest.mark.parametrize(("call", "value"), CASES)
def test_another_type_is_refused_before_the_model_runs(
    given: Given, untouched: list[int], call: Callable[[Given, Any], object], value: Any
) -> None:
    untouched.clear()
    with pytest.raises(OptionError) as caught:
        call(given, value)
    assert caught.value.expected
    assert not untouched


@pytest.mark.parametrize("value", [None, 3, b"text", {"text": "Hi"}, sk.Sample("Hi")])
def test_what_is_neither_file_nor_list_is_no_samples(value: Any) -> None:
    with pytest.raises(SampleError, match="of type") as caught:
        sk.read_samples(value)
    assert caught.value.fix == "put it in a list"


@pytest.mark.parametrize("value", [None, "text", 3, [None]])
def test_what_is_no_list_of_samples_is_no_prompts(given: Given, value: Any) -> None:
    for call in (given.vlm.inputs, given.vlm.generate, given.vlm.capture, given.vlm.check_prompt):
        with pytest.raises(SampleError):
            call(value)


@pytest.mark.parametrize("made", [None, 3, "picture.png", object()])
def test_a_function_of_images_that_gives_none_is_refused(given: Given, made: Any) -> None:
    with pytest.raises(MissingImageError, match=r"sample 0 .*the function gave") as caught:
        given.vlm.inputs(given.samples, lambda sample: made)
    assert caught.value.expected == "a list of as many images as the sample has"
    with pytest.raises(MissingImageError, match="the function gave"):
        sk.CMRM(counterpart=lambda sample: made).fit(given.vlm, given.samples)


@pytest.mark.parametrize("processor", [3, "processor", {}])
def test_what_has_no_tokenizer_is_no_processor(given: Given, processor: Any) -> None:
    with pytest.raises(ProcessorError, match="the processor of this LlavaForConditionalGeneration is a") as caught:
        sk.wrap(given.vlm.model, processor)
    assert "AutoProcessor" in str(caught.value.fix)


def test_a_vector_plus_something_else_is_pythons_own_error(given: Given) -> None:
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for \+: 'SteeringVector' and 'int'"):
        given.vector + 3  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for -: 'SteeringVector' and 'float'"):
        given.vector - 3.0  # type: ignore[operator]


def test_numbers_of_numpy_and_any_collection_of_layers_will_do(given: Given, tmp_path: Path) -> None:
    expect_whole(batch_size=np.int64(1))
    expect_each(str, "texts", answers=np.array(["a", "b"]))
    assert (
        as_layers(range(2))
        == as_layers(np.arange(2))
        == as_layers(iter([0, 1]))
        == as_layers({0: "a", 1: "b"})
        == [0, 1]
    )
    assert all(type(layer) is int for layer in as_layers(np.arange(2)))
    assert set(given.vlm.capture(given.samples, layers=np.arange(2), engine="hooks")) == {0, 1}
    with pytest.raises(LayerRangeError):
        given.vlm.check_layers([99])


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_type_of_torch_by_name_or_itself_is_loaded(tmp_path: Path, dtype: Any) -> None:
    model, processor = tiny.build("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert sk.load(str(tmp_path), dtype=dtype).dtype == torch.bfloat16
    assert sk.load(str(tmp_path), dtype=None).dtype == sk.load(str(tmp_path), dtype="auto").dtype == torch.float32


def test_a_message_names_the_argument_the_value_and_what_was_meant() -> None:
    with pytest.raises(OptionError, match=r"^batch_size is '4' of type str\. Expected: a whole number, at least 1\.$"):
        expect_whole(batch_size="4")
    with pytest.raises(OptionError, match=r"^answers\[1\] is None of type NoneType\. Expected: texts\.$"):
        expect_each(str, "texts", answers=["a", None])
    with pytest.raises(OptionError, match=r"^site is 'foo'\. Expected: 'a' or 'b'\.$"):
        expect_one_of(("a", "b"), site="foo")


@pytest.mark.parametrize("kind", [int, float | int, Integral, int | None])
def test_a_truth_value_is_no_number_and_is_named(kind: Any) -> None:
    with pytest.raises(OptionError, match="share is True of type bool"):
        expect(kind, "a number", share=True)
    expect(kind, "a number", share=1)
    expect(bool | None, "True or False", share=True)
