"""Processors loaded from what a hub repository holds encode as the ones that were saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from steerkit.errors import ProcessorError
from steerkit.models import NoVideo, Sample, family_for, load_processor
from steerkit.vlm import VLM

PLAIN = Sample("What is this?")
PICTURE = Image.linear_gradient("L").resize((48, 32)).convert("RGB")


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_saved_and_loaded_processors_encode_alike(name: str, tmp_path: Path) -> None:
    model, processor = tiny.build(name)
    family = family_for(model.config.model_type)
    loaded = load_processor(str(tiny.save(name, tmp_path)), family, local_files_only=True)
    assert isinstance(loaded, ProcessorMixin)
    assert type(loaded).__name__ == type(processor).__name__
    for images in ([], [PICTURE]):
        formats = [VLM(model, part).format for part in (processor, loaded)]
        ours, theirs = (each.encode([each.render(PLAIN, len(images))], [images]) for each in formats)  # type: ignore[union-attr]
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.skipif(is_torchvision_available(), reason="the whole processor can be built")
def test_video_settings_of_a_repository_are_passed_over(tmp_path: Path) -> None:
    folder = tiny.save("qwen2_5_vl", tmp_path)
    document = folder / "processor_config.json"
    settings = json.loads(document.read_text())
    settings["video_processor"] = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 4}
    settings["image_processor"] = json.loads((folder / "preprocessor_config.json").read_text())
    document.write_text(json.dumps(settings))
    loaded = load_processor(str(folder), family_for("qwen2_5_vl"))
    assert loaded.image_processor.patch_size == 4
    assert isinstance(loaded.video_processor, NoVideo)
    assert loaded.chat_template is not None


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_folder_of_parts_is_refused(name: str, tmp_path: Path) -> None:
    model, processor = tiny.build(name)
    processor.tokenizer.save_pretrained(tmp_path)
    document = tmp_path / "tokenizer_config.json"
    settings = json.loads(document.read_text())
    settings.pop("processor_class", None)
    document.write_text(json.dumps(settings))
    with pytest.raises(ProcessorError, match=r"only\. Expected: a processor.*Fix: add"):
        load_processor(str(tmp_path), family_for(model.config.model_type))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "instructblip-t5"])
def test_an_empty_folder_is_refused(name: str, tmp_path: Path) -> None:
    model, _ = tiny.build(name)
    with pytest.raises(ProcessorError, match="can't be loaded"):
        load_processor(str(tmp_path), family_for(model.config.model_type))


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [("llava", "patch_size", "its patch_size"), ("instructblip-llama", "num_query_tokens", "its num_query_tokens")],
)
def test_early_repositories_are_refused(name: str, field: str, message: str, tmp_path: Path) -> None:
    folder = tiny.save(name, tmp_path)
    document = folder / "processor_config.json"
    settings = json.loads(document.read_text())
    del settings[field]
    document.write_text(json.dumps(settings))
    model, _ = tiny.build(name)
    with pytest.raises(ProcessorError, match=message):
        load_processor(str(folder), family_for(model.config.model_type))


def test_instructblip_is_loaded_from_repositories_that_name_the_video_processor(tmp_path: Path) -> None:
    folder = tiny.save("instructblip-llama", tmp_path)
    document = folder / "processor_config.json"
    settings = json.loads(document.read_text())
    document.write_text(json.dumps(settings | {"processor_class": "InstructBlipVideoProcessor"}))
    loaded = load_processor(str(folder), family_for("instructblip"))
    assert type(loaded).__name__ == "InstructBlipProcessor"
    model, _ = tiny.build("instructblip-llama")
    assert "pixel_values" in VLM(model, loaded).inputs([Sample("What is this?", (PICTURE,))])
