"""A model of a type that was never tested is tried when it is wrapped, and refused with the field to declare."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

import steerkit as sk
from steerkit.errors import OptionError, ProcessorError, UnsupportedModelError
from steerkit.models import Family, PromptFormat, architecture_of, family_for, meaningless_image
from steerkit.vlm import _self_check
from steerkit.vlm._load import _tried


@pytest.fixture(autouse=True)
def nothing_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerkit.vlm._load.as_tested", lambda config: False)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that the decoder of a model reads."""
    seen: list[Any] = []
    own = torch.nn.Module.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self).__name__.endswith("ForConditionalGeneration") and "pixel_values" in kwargs:
            seen.append(len(kwargs["input_ids"]))
        return own(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    return seen


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_what_is_asked_of_a_sound_model_holds(name: str, passes: list[Any]) -> None:
    model, processor = tiny.build(name)
    sk.wrap(model, processor)
    assert passes[:2] == [1, 1]
    assert len(passes) == 3  # with an image
    left = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [hook for hook in left if hook.__module__.startswith("steerkit")]


def test_a_model_without_its_processor_is_not_tried(passes: list[Any]) -> None:
    sk.wrap(tiny.build("llava")[0])
    assert not passes


def broken(name: str, **declared: Any) -> Any:
    model, processor = tiny.build(name)
    return sk.VLM(model, processor, Family(types=(model.config.model_type,), image=r"(?:{image})+\n?", **declared))


def test_padding_that_counts_is_found() -> None:
    with pytest.raises(UnsupportedModelError, match="padding changes the state.*declare positions, padding or batch"):
        _tried(broken("llava", padding="right"))


def test_blocks_of_the_tower_are_found() -> None:
    with pytest.raises(UnsupportedModelError, match=r"declare"):
        _tried(broken("llava_next", layers="model.vision_tower.encoder.layers"))


def test_an_image_at_other_positions_is_found() -> None:
    with pytest.raises(UnsupportedModelError, match=r"another image changes positions \[.*declare marks"):
        _tried(broken("llava", marks="mask:attention_mask_of_images"))


def test_a_block_that_is_passed_over_is_found() -> None:
    model, processor = tiny.build("llava")
    block = model.model.language_model.layers[1]
    block.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    with pytest.raises(UnsupportedModelError, match="declare"):
        sk.wrap(model, processor)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_an_edit_that_does_not_reach_the_next_block_is_found(kept: int) -> None:
    """A block reads what the one before kept for itself, not what it returned: equal as long as nothing is steered.

    The check adds behind the first block of the last kind that there is.
    """
    model, processor = tiny.build("llava")
    layers = model.model.language_model.layers
    if kept:
        layers[kept].mlp = type("OfAnotherKind", (type(layers[kept].mlp),), {})(layers[kept].self_attn.config)
    sk.wrap(model, processor)
    forward, states = layers[kept].forward, []

    def keeping(*args: Any, **options: Any) -> Any:
        found = forward(*args, **options)
        states[:] = [found.clone()]
        return found

    layers[kept].forward = keeping
    layers[kept + 1].register_forward_pre_hook(lambda module, args: (states[0], *args[1:]))
    with pytest.raises(UnsupportedModelError, match=rf"added behind block {kept} is not what the next block is given"):
        sk.wrap(model, processor)


def test_blocks_in_another_order_than_they_run_in_are_found() -> None:
    vlm = broken("llava")
    own = type(vlm.model.model.language_model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        listed, self.layers = self.layers, torch.nn.ModuleList(self.layers[::-1])
        try:
            return own(self, *args, **kwargs)
        finally:
            self.layers = listed

    decoder = vlm.model.model.language_model
    decoder.forward = forward.__get__(decoder)
    with pytest.raises(UnsupportedModelError, match=r"run in the order \[.*declare layers"):
        _tried(vlm)


def test_an_image_one_position_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _self_check.visual_positions
    monkeypatch.setattr(_self_check, "visual_positions", lambda *args: real(*args).roll(1, -1))
    with pytest.raises(UnsupportedModelError, match=r"another image changes positions \[\d+\], where no image is"):
        _tried(broken("llava"))


@pytest.mark.parametrize(
    ("name", "layer", "told"),
    [("llava", 0, False), ("llava", 2, True), ("llava_next", 2, False), ("llava_next", 1, False)],
)
def test_a_block_that_reads_padding_is_found(name: str, layer: int, told: bool) -> None:
    """Also one of the same classes as others; if it is told nothing else, where an image is of many tokens."""
    model, processor = tiny.build(name)
    attention = model.model.language_model.layers[layer].self_attn
    attention.is_sliding = told
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
    )
    with pytest.raises(UnsupportedModelError, match=f"padding changes the state behind block {layer} of"):
        sk.wrap(model, processor)


def test_an_image_of_one_token_is_taken_out_of_an_undeclared_family_too() -> None:
    """The blank image that the processor is asked with is one of several tokens here; no image is text alone."""
    model, processor = tiny.build("llava")
    family = Family(types=("llava",))
    asked = PromptFormat(model, processor, family, architecture_of(model, family))
    written = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], tokenize=False
    )
    assert written.count("<image>") == 1
    for tokens in (1, 2, 16):
        assert re.sub(asked.placeholder, "", written.replace("<image>", "<image>" * tokens)).count("<image>") == 0
    assert re.search(asked.placeholder, "two\n\nlines\n") is None


def counted(vlm: Any) -> dict[str, int]:
    """How many rows the last block of the tower, and that of the decoder, are given while a model is tried."""
    found = vlm.architecture
    rows = {"tower": 0, "decoder": 0}

    def count(where: str, path: str, block: int) -> Any:
        def hook(module: Any, args: Any, options: Any) -> None:
            rows[where] += len(args[0] if args else next(iter(options.values())))

        return vlm.model.get_submodule(f"{path}.{block}.mlp").register_forward_pre_hook(hook, with_kwargs=True)

    handles = [count("tower", found.vision.layers, found.vision.layer_count - 1)]
    handles += [count("decoder", found.layers, found.layer_count - 1)]
    forwards = {module: vars(module).get("forward") for module in vlm.model.modules()}
    _tried(vlm, True)
    for handle in handles:
        handle.remove()
    assert forwards == {module: vars(module).get("forward") for module in vlm.model.modules()}
    return rows


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_it_costs_less_than_two_passes(name: str) -> None:
    """One image through the whole tower; one prompt through the whole decoder, and two without their images."""
    vlm = sk.wrap(*tiny.build(name), check=False)
    pixels = vlm.inputs([sk.Sample("?", (meaningless_image((224, 224), None),))])["pixel_values"]
    one = len(pixels.flatten(0, -4))  # tiles
    assert counted(vlm) == {"tower": one, "decoder": 3 if name == "llava_next" else 1}


def test_a_tower_whose_blocks_are_not_alike_runs_whole() -> None:
    """A block that returns something beside the state can't be passed over, nor the one that is given both."""
    model, processor = tiny.build("llava")
    first, last = tuple(model.model.vision_tower.encoder.layers)[-2:]
    forward, behind, rows = first.forward, last.forward, []

    def both(*given: Any, **options: Any) -> Any:
        return forward(*given, **options), torch.ones(1)

    def one(given: Any, *others: Any, **options: Any) -> Any:
        rows.append(len(given[0]))
        return behind(given[0], *others, **options)

    first.forward, last.forward = both, one
    sk.wrap(model, processor)
    assert len(rows) == 2
    assert rows[0] == 1 < rows[1]
    assert (first.forward, last.forward) == (both, one)


@pytest.mark.parametrize(
    ("given", "tried"), [({}, False), ({"check": True}, True), ({"family": family_for("llava")}, True)]
)
def test_what_is_as_tested_is_tried_where_that_is_asked_for(
    given: dict[str, Any], tried: bool, passes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerkit.vlm._load.as_tested", lambda config: True)
    model, processor = tiny.build("llava")
    sk.wrap(model, processor, **given)
    assert bool(passes) == tried
    del passes[:]
    sk.wrap(model, processor, **{**given, "check": False})
    assert not passes


def test_to_try_a_model_takes_its_processor() -> None:
    model, _ = tiny.build("llava")
    sk.wrap(model, family=family_for("llava"))
    with pytest.raises(ProcessorError, match="trying a model needs the model's processor"):
        sk.wrap(model, check=True)
    with pytest.raises(OptionError, match="check is 1"):
        sk.wrap(model, check=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("steered", [True, False])
def test_blocks_that_run_several_times_are_tried_in_their_last_run(steered: bool) -> None:
    model, processor = tiny.build("llava")
    text, inside = model.config.text_config, model.model.language_model
    run, listed = inside.forward, inside.layers
    *before, looped, last = listed
    text.loop_from, text.loop_to, text.loop_times = len(before), len(before) + 1, 3

    def forward(*args: Any, **options: Any) -> Any:
        inside.layers = torch.nn.ModuleList([*before, looped, looped, looped, last])
        text.num_hidden_layers = len(inside.layers)
        try:
            return run(*args, **options)
        finally:
            inside.layers, text.num_hidden_layers = listed, len(listed)

    inside.forward = forward
    family = replace(family_for("llava"), loop=("loop_from", "loop_to", "loop_times"))
    if steered:
        assert sk.wrap(model, processor, family=family).architecture.runs == (*(1 for _ in before), 3, 1)
        return
    text.loop_times = 2
    with pytest.raises(UnsupportedModelError, match=r"run in the order \[0, 1, 2, 2, 2, 3\].*loop"):
        sk.wrap(model, processor, family=family)


def test_a_model_in_training_is_tried_without_dropout() -> None:
    model, processor = tiny.build("llava")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.train()
    model.model.vision_tower.eval()
    sk.wrap(model, processor)
    assert model.training
    assert model.model.language_model.layers[0].self_attn.training
    assert not model.model.vision_tower.training
    ids = torch.arange(40, 50)[None]
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits)


def test_a_machine_without_memory_says_nothing_about_the_model() -> None:
    model, processor = tiny.build("llava")

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    model.get_decoder().layers[0].register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        sk.wrap(model, processor, check=True)
