"""A prompt with a video is steered as one with an image, or refused; never taken for text in silence."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import tiny
import torch
from reference import picture
from torch import Tensor

import steerkit as sk
from steerkit.errors import EngineError, NothingSteeredError
from steerkit.interventions import Intervention
from steerkit.vectors import Key, MethodRecord, PackMetadata

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
LAYER = 1


def video_id(vlm: sk.VLM) -> int:
    return int(vlm.model.config.video_token_id)  # type: ignore[union-attr,arg-type]


def with_video(vlm: sk.VLM, sample: sk.Sample) -> dict[str, Tensor]:
    """The inputs of a prompt with a video of one frame: those of an image, by other names."""
    inputs = dict(vlm.inputs([sample]))
    image, video = int(vlm.model.config.image_token_id), video_id(vlm)  # type: ignore[union-attr,arg-type]
    ids = torch.where(inputs["input_ids"] == image, video, inputs["input_ids"])
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    if "image_grid_thw" in inputs:
        inputs["video_grid_thw"] = inputs.pop("image_grid_thw")
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = inputs["mm_token_type_ids"] * 2
        return {**inputs, "input_ids": ids}
    for name in ("image_sizes", "batch_num_images"):
        inputs.pop(name, None)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:, :1]
    vision: Any = vlm.model.config.vision_config  # type: ignore[union-attr]
    tokens = math.ceil(vision.image_size // vision.patch_size / 2) ** 2 + 1
    row, first = ids[0], int((ids[0] == video).nonzero()[0])
    ids = torch.cat([row[:first], torch.full((tokens,), video), row[first:][row[first:] != video]])[None]
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def adding(vlm: sk.VLM, direction: Tensor, **where: Any) -> sk.SteeringVector:
    record = PackMetadata(
        model=vlm.record, method=MethodRecord(name="caa"), interventions=(Intervention(layers=(LAYER,), **where),)
    )
    return sk.SteeringVector({Key(LAYER): direction}, record)


def plainly(model: Any, inputs: dict[str, Tensor], direction: Tensor, chosen: Tensor | None) -> Tensor:
    """Logits with a direction added at some positions of the prompt, by a plain hook."""
    block = model.get_submodule("model.language_model.layers")[LAYER]

    def add(module: Any, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        h = torch.where(chosen[..., None], h + direction, h)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = block.register_forward_hook(add) if chosen is not None else None
    try:
        reset(model)
        with torch.no_grad():
            return model(**inputs).logits[:, -1]
    finally:
        if handle is not None:
            handle.remove()


def reset(model: Any) -> None:
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None


@pytest.mark.parametrize("where", [{"tokens": "last", "prompts": "with_image"}, {"tokens": "image"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_is_steered_as_an_image_is(family: str, where: dict[str, Any]) -> None:
    vlm = sk.wrap(*tiny.build(family))
    inputs = with_video(vlm, sk.Sample("What is this?", (picture(1),)))
    direction = 3 * torch.randn(vlm.record.hidden_size, generator=torch.Generator().manual_seed(0))
    of_video = inputs["input_ids"] == video_id(vlm)
    last = torch.zeros_like(of_video)
    last[:, -1] = True
    expected = plainly(vlm.model, inputs, direction, of_video if where["tokens"] == "image" else last)
    plain = plainly(vlm.model, inputs, direction, None)
    reset(vlm.model)
    with torch.no_grad(), sk.steer(vlm, adding(vlm, direction, **where), policy="off") as receipt:
        found = vlm.model(**inputs).logits[:, -1]
    assert torch.allclose(found, expected, atol=1e-5)
    assert float((expected - plain).abs().max()) > 1e-2
    assert receipt.left_alone == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_cmrm_steers_prompts_with_a_video(family: str) -> None:
    vlm = sk.wrap(*tiny.build(family))
    anchors = [sk.Sample(f"What is {at}?", (picture(at),)) for at in range(3)]
    made = sk.CMRM().fit(vlm, anchors, engine="hooks")
    inputs = with_video(vlm, anchors[0])
    with sk.steer(vlm, made, strength=5, policy="off") as receipt:
        vlm.model.generate(**inputs, max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    assert (receipt.left_alone, receipt.prompt_tokens) == (0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sample_level_measures_the_text_without_its_video(family: str) -> None:
    vlm = sk.wrap(*tiny.build(family))
    sample = sk.Sample("What is this?", (picture(1),))
    inputs = with_video(vlm, sample)
    read: list[Tensor] = []
    with sk.steer(vlm, sk.CMRM(level="sample").fit(vlm), policy="off") as receipt:
        vlm.model.get_input_embeddings().register_forward_pre_hook(  # type: ignore[operator]
            lambda module, args: read.append(args[0])
        )
        vlm.model.generate(**inputs, max_new_tokens=1)  # type: ignore[operator]
    assert receipt.prompt_tokens == 1
    assert vlm.inputs([sample], False)["input_ids"].tolist() in [ids.tolist() for ids in read]
    blank = sk.CMRM(level="sample", counterpart="blank").fit(vlm)
    with pytest.raises(EngineError, match="pixel_values_videos"), sk.steer(vlm, blank, policy="off"):
        vlm.model.generate(**inputs, max_new_tokens=1)  # type: ignore[operator]


BESIDE = {
    "an image without its tokens": {"pixel_values": torch.zeros(1, 3, 32, 32)},
    "a video without its tokens": {"pixel_values_videos": torch.zeros(1, 1, 3, 32, 32)},
    "sound": {"input_features": torch.zeros(1, 80, 10)},
    "something without a name": {"point_cloud": torch.zeros(1, 10, 3)},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("where", [{"prompts": "with_image"}, {"prompts": "without_image"}])
def test_what_no_token_stands_for_is_refused(beside: str, where: dict[str, Any]) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    inputs = {**vlm.inputs([sk.Sample("Hello?")]), **BESIDE[beside]}
    made = adding(vlm, torch.ones(vlm.record.hidden_size), **where)
    with pytest.raises(EngineError, match="by what they hold"), sk.steer(vlm, made, policy="off"):
        vlm.model.generate(**inputs, max_new_tokens=1)  # type: ignore[operator]


@pytest.mark.parametrize("tokens", ["text", "image", "after_image"])
def test_a_pass_over_what_no_token_stands_for_has_no_text_to_select(tokens: Any) -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    inputs = {**vlm.inputs([sk.Sample("Hello?")]), **BESIDE["something without a name"]}
    with (
        pytest.raises(EngineError, match="by what they hold"),
        sk.steer(vlm, adding(vlm, torch.ones(vlm.record.hidden_size), tokens=tokens), policy="off"),
    ):
        vlm.model(**inputs)


def test_placeholders_without_pixels_are_no_text() -> None:
    """As where embeddings of images are put in by hooks: what stands in the ids counts."""
    vlm = sk.wrap(*tiny.build("llava"))
    ids = vlm.inputs([sk.Sample("What is this?", (picture(1),))])["input_ids"]
    made = adding(vlm, torch.ones(vlm.record.hidden_size), prompts="with_image", tokens="last")
    with torch.no_grad(), sk.steer(vlm, made, policy="off") as receipt:
        vlm.model(input_ids=ids)
    assert (receipt.left_alone, receipt.prompt_tokens) == (0, 1)


def test_embeddings_alone_are_refused() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    embedded = torch.zeros(1, 4, vlm.record.hidden_size)
    made = adding(vlm, torch.ones(vlm.record.hidden_size), prompts="with_image", tokens="last")
    with pytest.raises(EngineError, match="no input_ids"), sk.steer(vlm, made, policy="off"):
        vlm.model(inputs_embeds=embedded)


def reached(vlm: sk.VLM, inputs: dict[str, Tensor], **where: Any) -> Tensor:
    """`[batch, length]`: at which positions a block's output differs from the unsteered one, by a plain hook."""
    block: Any = vlm.model.get_submodule("model.language_model.layers")[LAYER + 1]
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(
        lambda module, args, options: seen.append(args[0] if args else options["hidden_states"]), with_kwargs=True
    )
    try:
        for steered in (False, True):
            reset(vlm.model)
            made = adding(vlm, torch.ones(vlm.record.hidden_size), **where)
            block_of = sk.steer(vlm, made, policy="off") if steered else contextlib.nullcontext()
            with torch.no_grad(), block_of:
                vlm.model(**inputs)
    finally:
        handle.remove()
    return (seen[-1] - seen[0]).abs().amax(-1) > 1e-3  # between the two, the dose may be judged by passes of its own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_is_told_from_an_image(family: str) -> None:
    vlm = sk.wrap(*tiny.build(family))
    sample = sk.Sample("What is this?", (picture(1),))
    shown, played = dict(vlm.inputs([sample])), with_video(vlm, sample)
    where = {"tokens": "video", "phase": "prompt"}
    assert torch.equal(reached(vlm, played, **where), played["input_ids"] == video_id(vlm))
    assert not bool(
        (reached(vlm, played, tokens="text", phase="prompt") & (played["input_ids"] == video_id(vlm))).any()
    )
    with pytest.raises(NothingSteeredError):
        reached(vlm, shown, **where)


def test_a_model_without_videos_says_so() -> None:
    vlm = sk.wrap(*tiny.build("llava"))
    with pytest.raises(EngineError, match="tokens='video'"):
        reached(vlm, dict(vlm.inputs([sk.Sample("What is this?", (picture(1),))])), tokens="video", phase="prompt")
    with pytest.raises(EngineError, match="tokens='audio'"):
        reached(vlm, dict(vlm.inputs([sk.Sample("Hello?")])), tokens="audio", phase="prompt")


def test_positions_that_the_decoder_does_not_read_are_refused() -> None:
    model, processor = tiny.build("qwen2_vl")
    model.config.video_pruning_rate = 0.5
    vlm = sk.wrap(model, processor)
    sample = sk.Sample("What is this?", (picture(1),))
    with pytest.raises(EngineError, match="reads fewer of a video"):
        reached(vlm, with_video(vlm, sample), tokens="image", phase="prompt")
    shown = dict(vlm.inputs([sample]))
    assert torch.equal(
        reached(vlm, shown, tokens="image", phase="prompt"), shown["input_ids"] == model.config.image_token_id
    )


def hearing() -> tuple[sk.VLM, dict[str, Tensor]]:
    """A model with a token for audio, and a prompt that holds two of them, as where embeddings are put in by hooks."""
    model, processor = tiny.build("qwen2_vl")
    heard = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    model.config.audio_token_id = heard
    vlm = sk.wrap(model, processor)
    inputs = dict(vlm.inputs([sk.Sample("What do you hear?")]))
    inputs["input_ids"][0, 3:5] = heard
    return vlm, inputs


def test_audio_is_neither_text_nor_visual() -> None:
    vlm, inputs = hearing()
    audio = inputs["input_ids"] == vlm.model.config.audio_token_id  # type: ignore[union-attr]
    assert torch.equal(reached(vlm, inputs, tokens="audio", phase="prompt"), audio)
    assert not bool((reached(vlm, inputs, tokens="text", phase="prompt") & audio).any())
    assert torch.equal(reached(vlm, inputs, tokens="all", phase="prompt") & audio, audio)


@pytest.mark.parametrize("prompts", ["with_image", "without_image"])
def test_a_prompt_of_audio_alone_is_refused_by_what_asks_for_images(prompts: Any) -> None:
    vlm, inputs = hearing()
    with pytest.raises(EngineError, match="prompt 0 of the call holds audio"):
        reached(vlm, inputs, prompts=prompts)


def test_the_text_of_a_prompt_with_audio_is_refused() -> None:
    vlm, inputs = hearing()
    made = sk.CMRM(level="sample").fit(vlm)
    with pytest.raises(EngineError, match="audio"), sk.steer(vlm, made, policy="off"):
        vlm.model.generate(**inputs, max_new_tokens=1)  # type: ignore[operator]
