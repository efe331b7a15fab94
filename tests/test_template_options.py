"""Options of the chat template: for one prompt, for all of a model's, in the pack, and compared where it is applied."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
from reference import picture
from typer.testing import CliRunner

import steerkit as sk
from steerkit.cli.app import app
from steerkit.errors import CheckpointError, ProcessorError, SampleError

THINKS = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
LAYER = 1


def built(family: str = "qwen3_vl", **options: Any) -> sk.VLM:
    model, processor = tiny.build(family)
    processor.chat_template += THINKS
    return sk.wrap(model, processor, **options)


def prompt(vlm: sk.VLM, **options: Any) -> str:
    sample = sk.Sample("What is this?", (picture(1),), chat_template_kwargs=options)
    return vlm.processor.tokenizer.decode(vlm.inputs([sample])["input_ids"][0])


def anchors(**options: Any) -> list[sk.Sample]:
    return [sk.Sample(f"What is {at}?", (picture(at),), chat_template_kwargs=options) for at in range(3)]


def fitted(vlm: sk.VLM, **options: Any) -> sk.SteeringVector:
    return sk.CMRM(layers=(LAYER,)).fit(vlm, anchors(**options), engine="hooks")


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "llava_onevision"])
def test_they_reach_every_prompt_of_the_model_and_a_sample_says_otherwise(family: str) -> None:
    off = built(family, chat_template_kwargs={"enable_thinking": False})
    own = off.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert own.endswith("<think></think>")  # as transformers itself renders it
    assert prompt(off).endswith("<think></think>")
    assert not prompt(off, enable_thinking=True).endswith("<think></think>")
    assert not prompt(built(family)).endswith("<think></think>")


def test_an_option_that_the_template_does_not_read_is_refused_at_once() -> None:
    with pytest.raises(SampleError, match="no_such"):
        built(chat_template_kwargs={"no_such": 1})
    with pytest.raises(SampleError, match="this model has none"):
        sk.wrap(*tiny.build("instructblip-llama"), chat_template_kwargs={"enable_thinking": False})
    model, _ = tiny.build("qwen3_vl")
    with pytest.raises(ProcessorError, match="processor"):
        sk.wrap(model, chat_template_kwargs={"enable_thinking": False})


def test_a_loaded_model_has_them(tmp_path: Path) -> None:
    vlm = built("llava")
    vlm.model.save_pretrained(tmp_path)  # type: ignore[operator]
    vlm.processor.save_pretrained(tmp_path)
    off = sk.load(str(tmp_path), chat_template_kwargs={"enable_thinking": False})
    assert prompt(off).endswith("<think></think>")


@pytest.mark.parametrize("where", ["model", "sample"])
def test_a_pack_keeps_them_and_another_setting_is_told(where: str, tmp_path: Path) -> None:
    off = {"enable_thinking": False}
    vlm = built(chat_template_kwargs=off if where == "model" else None)
    made = fitted(vlm, **(off if where == "sample" else {}))
    pack = sk.SteeringVector.load(made.save(tmp_path / "v.safetensors"))
    assert pack.metadata.anchors is not None
    assert pack.metadata.anchors.chat_template_kwargs == {json.dumps(off): 3}
    other = built()
    with pytest.warns(UserWarning, match='options {"enable_thinking": false}'), sk.steer(other, pack):
        other.generate(anchors()[:1], max_new_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        same = built(chat_template_kwargs=off)
        with sk.steer(same, pack) as receipt:
            same.generate(anchors()[:1], max_new_tokens=1)
    assert receipt.prompt_tokens == 1


def test_a_pack_made_without_any_tells_a_model_that_has_some() -> None:
    made = fitted(built())
    on = built(chat_template_kwargs={"enable_thinking": False})
    with pytest.warns(UserWarning, match="those by default, and this model's"), sk.steer(on, made):
        on.generate(anchors()[:1], max_new_tokens=1)


def test_the_fingerprint_is_of_the_model_whatever_its_prompts_are_told() -> None:
    assert built().fingerprint() == built(chat_template_kwargs={"enable_thinking": False}).fingerprint()


def test_an_extraction_is_not_resumed_with_other_ones(tmp_path: Path) -> None:
    kept = tmp_path / "state"
    sk.CMRM(layers=(LAYER,)).fit(built(), anchors(), engine="hooks", checkpoint=kept)
    off = built(chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(CheckpointError, match="chat_template_kwargs"):
        sk.CMRM(layers=(LAYER,)).fit(off, anchors(), engine="hooks", checkpoint=kept)


def test_those_of_a_call_reach_its_prompts_alone() -> None:
    vlm, read = built(), []
    vlm.model.register_forward_pre_hook(  # type: ignore[operator]
        lambda module, args, given: read.append(given.get("input_ids")), with_kwargs=True
    )
    sample = sk.Sample("What is this?", (picture(1),))
    vlm.generate([sample], max_new_tokens=1, chat_template_kwargs={"enable_thinking": False})
    vlm.generate([sample], max_new_tokens=1)
    texts = [vlm.processor.tokenizer.decode(ids[0]) for ids in read if ids is not None]
    assert [text.endswith("<think></think>") for text in texts] == [True, False]


def test_the_command_line_takes_them(tmp_path: Path) -> None:
    vlm = built("llava")
    vlm.model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    vlm.processor.save_pretrained(tmp_path / "model")
    rows, pack = tmp_path / "rows.jsonl", tmp_path / "v.safetensors"
    for at in range(3):
        picture(at).save(tmp_path / f"{at}.png")
    rows.write_text("\n".join(json.dumps({"text": f"What is {at}?", "image": f"{at}.png"}) for at in range(3)))
    off = ("--template-option", "enable_thinking=false")
    command = ["extract", str(tmp_path / "model"), str(rows), "--method", "cmrm", "-o", str(pack)]
    result = CliRunner().invoke(app, [*command, *off])
    assert result.exit_code == 0, result.output
    record = sk.SteeringVector.load(pack).metadata.anchors
    assert record is not None
    assert record.chat_template_kwargs == {'{"enable_thinking": false}': 3}
    for wrong, said in (("enable_thinking", "KEY=VALUE"), ("no_such=1", "no_such"), ("a=1", "'a'")):
        result = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "w.safetensors"), "--template-option", wrong])
        assert result.exit_code in (1, 2)
        assert said in result.output


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("reasoning", "high", "{% if reasoning is defined %}<effort {{ reasoning }}>{% endif %}"),
        ("thinking", True, "{% if thinking|default(false) %}<think>{% endif %}"),
        ("budget", 512, "{% if budget is defined %}<budget {{ budget }}>{% endif %}"),
        ("documents_seen", ["a", "b"], "{% for each in documents_seen or [] %}[{{ each }}]{% endfor %}"),
    ],
)
def test_options_of_any_name_and_kind_are_rendered_as_transformers_does_and_recorded(
    family: str, name: str, value: Any, written: str
) -> None:
    model, processor = tiny.build(family)
    processor.chat_template += written
    vlm = sk.wrap(model, processor, chat_template_kwargs={name: value})
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    own = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, **{name: value}
    )
    image = picture(1)
    ids = processor(text=[own], images=[image], add_special_tokens=not own.startswith("<s>"))["input_ids"][0]
    assert vlm.inputs([sk.Sample("What is this?", (image,))])["input_ids"][0].tolist() == list(ids)
    made = fitted(vlm)
    assert made.metadata.anchors is not None
    assert made.metadata.anchors.chat_template_kwargs == {json.dumps({name: value}): 3}
    plain = sk.wrap(model, processor)
    with pytest.warns(UserWarning, match="had the options"), sk.steer(plain, made, strength=0.1):
        model.generate(**vlm.inputs(anchors()[:1]), max_new_tokens=1)
