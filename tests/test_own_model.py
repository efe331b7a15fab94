"""Models of code that is not transformers': registered, or brought by a repository whose code is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

import steerkit as sk
from steerkit.errors import UnsupportedModelError
from steerkit.models import Family, architecture_of
from steerkit.testing import tiny
from steerkit.vlm._load import _tried

CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration

class BroughtConfig(LlavaConfig):
    model_type = "brought_vl"

class BroughtForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = BroughtConfig
"""


class OwnConfig(LlavaConfig):
    model_type = "own_vl"


class OwnForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = OwnConfig


def own() -> tuple[Any, Any]:
    model, processor = tiny.build("llava")
    made = OwnForConditionalGeneration(OwnConfig(**{**model.config.to_dict(), "model_type": "own_vl"})).eval()
    made.load_state_dict(model.state_dict())
    return made, processor


@pytest.fixture
def registered() -> Iterator[None]:
    AutoConfig.register("own_vl", OwnConfig)
    AutoModelForImageTextToText.register(OwnConfig, OwnForConditionalGeneration)
    yield
    del transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content["own_vl"]
    del AutoModelForImageTextToText._model_mapping._extra_content[OwnConfig]


def test_a_type_of_ones_own_is_told_how_to_be_served() -> None:
    with pytest.raises(UnsupportedModelError, match=r"register the class with.*sk\.VLM\(model, processor, family\)"):
        sk.wrap(*own())


@pytest.mark.usefixtures("registered")
def test_a_registered_type_is_asked_as_any_other() -> None:
    model, processor = own()
    vlm = sk.wrap(model, processor)
    assert vlm.architecture.layers == "model.language_model.layers"
    sample, seen = sk.Sample("What is it?"), []
    hook = model.model.language_model.layers[1].register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        model(**vlm.inputs([sample], images=False))
    hook.remove()
    state = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found = vlm.capture([sample], images=False, layers=[1], engine="hooks")[1]
    torch.testing.assert_close(found, state[:, -1])


def test_the_image_token_of_another_entry_is_declared() -> None:
    model, processor = tiny.build("llava")
    config = model.config
    config.picture = processor.tokenizer.convert_tokens_to_ids("</s>")
    assert config.picture != config.image_token_index
    with pytest.raises(UnsupportedModelError, match="as pictures.*`ids:NAME` where another entry"):
        sk.VLM(model, processor, Family(types=("llava",), marks="ids:pictures"))
    found = architecture_of(model, Family(types=("llava",), marks="ids:picture"))
    assert (found.marks, found.image_token_ids) == ("ids", {config.picture})


def test_blocks_that_are_kept_by_name_are_refused() -> None:
    model, processor = tiny.build("llava")
    inside = model.model.language_model
    inside.named = nn.ModuleDict({f"block_{index}": block for index, block in enumerate(inside.layers)})
    with pytest.raises(UnsupportedModelError, match="but a ModuleDict with block_0, block_1"):
        sk.VLM(model, processor, Family(types=("llava",), layers="model.language_model.named"))


def test_a_class_of_ones_own_is_tried_whatever_its_type() -> None:
    class Backwards(LlavaForConditionalGeneration):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            inside = self.model.language_model
            forward = inside.forward

            def turned(*args: Any, **kwargs: Any) -> Any:
                kept = inside.layers
                inside.layers = nn.ModuleList(list(kept)[::-1])
                try:
                    return forward(*args, **kwargs)
                finally:
                    inside.layers = kept

            inside.forward = turned

    model, processor = tiny.build("llava")
    sk.wrap(model, processor)
    with pytest.raises(UnsupportedModelError, match="the check at loading fails"):
        sk.wrap(Backwards(model.config).eval(), processor)


def test_an_image_token_that_the_model_makes_several_of_is_found() -> None:
    def forward(self: Any, input_ids: Any, pixel_values: Any, attention_mask: Any, **_: Any) -> Any:
        place = int((input_ids[0] == self.config.image_token_id).nonzero()[0])
        read = self.get_input_embeddings()(input_ids)
        seen = torch.stack(list(self.get_image_features(pixel_values).pooler_output))
        read = torch.cat([read[:, :place], seen, read[:, place + 1 :]], 1)
        return self.model.language_model(inputs_embeds=read, attention_mask=attention_mask.new_ones(read.shape[:2]))

    kind: Any = type("Expanding", (LlavaForConditionalGeneration,), {"forward": forward, "__module__": __name__})
    model, processor = tiny.build("llava")
    made = kind(model.config).eval()
    processor.patch_size = 32  # a picture of 224 by 224 pixels is then one token for 32 by 32 of them
    for marks in ("ids", "none"):
        with pytest.raises(UnsupportedModelError, match=r"the blocks read \d+ positions for \d+ ids.*declare marks"):
            _tried(sk.VLM(made, processor, Family(types=("llava",), marks=marks)))


def test_a_repositorys_code_is_run_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tiny.save("llava", tmp_path / "brought")
    (folder / "brought.py").write_text(CODE)
    config = LlavaConfig.from_pretrained(folder)
    document = config.to_dict() | {
        "model_type": "brought_vl",
        "architectures": ["BroughtForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "brought.BroughtConfig",
            "AutoModelForImageTextToText": "brought.BroughtForConditionalGeneration",
        },
    }
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match="trust_remote_code=True"):
        sk.load(str(folder))
    assert not (tmp_path / "modules").exists()
    vlm = sk.load(str(folder), trust_remote_code=True)
    assert type(vlm.model).__name__ == "BroughtForConditionalGeneration"
    assert vlm.architecture.layers == "model.language_model.layers"
