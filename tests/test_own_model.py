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
from steerkit.cli.new import scaffold
from steerkit.errors import OptionError, UnsupportedModelError
from steerkit.models import Family, architecture_of, family_for
from steerkit.testing import picture, tiny
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


PROCESSING = """
import numpy as np
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

class BroughtImages(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def preprocess(self, images, return_tensors=None, **kwargs):
        rows = [image for each in images for image in (each if isinstance(each, list) else [each])]
        rows = [np.asarray(image.resize((32, 32)), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1 for image in rows]
        return BatchFeature({"pixel_values": np.stack(rows)}, tensor_type=return_tensors)

class BroughtProcessor(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None, count=16, chat_template=None, **kwargs):
        self.count = count
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, return_tensors=None, **kwargs):
        texts = [text] if isinstance(text, str) else text
        texts = [each.replace("<image>", "<image>" * self.count) for each in texts]
        seen = {} if images is None else self.image_processor(images, return_tensors=return_tensors)
        return BatchFeature({**self.tokenizer(texts, return_tensors=return_tensors, **kwargs), **seen})
"""


def brought(folder: Path, auto_class: str, picture_entry: str = "picture_token_id") -> Path:
    """A repository whose config, model, image processor and processor are code of its own."""
    made: dict[str, Any] = {"__name__": "tiny_brought"}
    source = (scaffold("adapter", "brought_vl", folder / "project") / "steerkit_brought_vl" / "tiny.py").read_text()
    source = source.replace("picture_token_id", picture_entry)
    exec(source, made)
    model, processor = made["tiny_model"]()
    repository = folder / "brought"
    model.save_pretrained(repository)
    processor.tokenizer.save_pretrained(repository)
    (repository / "chat_template.jinja").write_text(processor.chat_template)
    (repository / "modeling_own.py").write_text(source)
    (repository / "processing_own.py").write_text(PROCESSING)
    maps = {"AutoProcessor": "processing_own.BroughtProcessor", "AutoImageProcessor": "processing_own.BroughtImages"}
    documents: dict[str, dict[str, Any]] = {
        "config.json": {"auto_map": {"AutoConfig": "modeling_own.Config", auto_class: "modeling_own.Model"}},
        "preprocessor_config.json": {"image_processor_type": "BroughtImages", "auto_map": maps},
        "processor_config.json": {"processor_class": "BroughtProcessor", "count": 16, "auto_map": maps},
    }
    for name, entries in documents.items():
        file = repository / name
        document = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(document | entries))
    return repository


def own() -> tuple[Any, Any]:
    model, processor = tiny.build("llava")
    made = OwnForConditionalGeneration(OwnConfig(**{**model.config.to_dict(), "model_type": "own_vl"})).eval()
    made.load_state_dict(model.state_dict())
    return made, processor


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the code of repositories is kept; what it registers is forgotten."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto = transformers.models.auto
    kept: list[Any] = [auto.configuration_auto.CONFIG_MAPPING, auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING]
    kinds = (AutoModelForImageTextToText, transformers.AutoModelForCausalLM, transformers.AutoModel)
    kept += [auto.processing_auto.PROCESSOR_MAPPING, *(kind._model_mapping for kind in kinds)]
    before = [dict(mapping._extra_content) for mapping in kept]
    yield tmp_path / "modules"
    for mapping, content in zip(kept, before, strict=True):
        mapping._extra_content = content


@pytest.fixture
def registered() -> Iterator[None]:
    AutoConfig.register("own_vl", OwnConfig)
    AutoModelForImageTextToText.register(OwnConfig, OwnForConditionalGeneration)
    yield
    del transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content["own_vl"]
    del AutoModelForImageTextToText._model_mapping._extra_content[OwnConfig]


def test_a_type_of_ones_own_is_told_how_to_be_served() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"register the class with.*sk\.wrap\(model, processor, family=FAMILY\)"
    ):
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
    with pytest.raises(UnsupportedModelError, match="as pictures.*marks='ids:image_token_index'"):
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


def test_a_repositorys_code_is_run_only_where_it_is_trusted(tmp_path: Path, modules: Path) -> None:
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
    assert not modules.exists()
    vlm = sk.load(str(folder), trust_remote_code=True)
    assert type(vlm.model).__name__ == "BroughtForConditionalGeneration"
    assert vlm.architecture.layers == "model.language_model.layers"


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("auto_class", ["AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel"])
def test_a_repository_brings_model_and_processor(auto_class: str, tmp_path: Path) -> None:
    folder = str(brought(tmp_path, auto_class))
    with pytest.raises(UnsupportedModelError, match=r"trust_remote_code=True"):
        sk.load(folder)
    with pytest.raises(UnsupportedModelError, match="names no image token.*marks='ids:picture_token_id'"):
        sk.load(folder, trust_remote_code=True)
    family = Family(types=("brought_vl",), marks="ids:picture_token_id")
    vlm = sk.load(folder, trust_remote_code=True, family=family)
    assert type(vlm.processor).__name__ == "BroughtProcessor"
    blocks: Any = vlm.model.get_submodule("decoder.layers")
    states: list[torch.Tensor] = []
    sample = sk.Sample("What is it?", (picture(3),))
    hook = blocks[2].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    with torch.no_grad():
        vlm.model(**vlm.inputs([sample]))
        vlm.model(**vlm.inputs([sample], images=False))
        vector = sk.CMRM(layers=(1,)).fit(vlm, [sample], engine="hooks")
        states, expected = [], states[1][0, -1] - states[0][0, -1]
        with sk.steer(vlm, vector):
            vlm.model(**vlm.inputs([sample]))
        vlm.model(**vlm.inputs([sample]))
    hook.remove()
    torch.testing.assert_close(vector.directions[1], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states[0][0, -1], states[1][0, -1] + expected, rtol=1e-4, atol=1e-4)
    pack = vector.save(tmp_path / "own.safetensors")
    wrapped = sk.wrap(vlm.model, vlm.processor, family=family)
    report = sk.verify(pack, model=wrapped, screening=False)
    assert {check.name: check.status for check in report.checks}["fingerprint"] == "pass"


@pytest.mark.usefixtures("modules")
def test_a_brought_language_model_with_a_processor_is_asked_for_its_images(tmp_path: Path) -> None:
    folder = brought(tmp_path, "AutoModelForCausalLM", "image_token_index")
    vlm = sk.load(str(folder), trust_remote_code=True)
    again = sk.wrap(vlm.model, vlm.processor)
    for each in (vlm, again):
        assert each.architecture.takes_images
        config: Any = each.model.config
        ids = each.inputs([sk.Sample("What?", (picture(1),))])["input_ids"][0].tolist()
        assert ids.count(config.image_token_index) == 16
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    assert not sk.load(str(folder), trust_remote_code=True).architecture.takes_images


def test_a_record_without_a_class_is_told_what_is_missing(tmp_path: Path) -> None:
    folder = brought(tmp_path, "AutoModelForCausalLM")
    with pytest.raises(UnsupportedModelError, match="no class of it.*registered with AutoConfig"):
        sk.load(str(folder), family=Family(types=("brought_vl",)))


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"marks": "prefix"}, "changes positions"),
        ({"marks": "mask:pixel_values"}, r"has the shape \[3, 3, 32, 32\]"),
        ({"layers": "model.language_model"}, "no list of decoder blocks"),
        ({"text_module": "model.vision_tower"}, "the blocks of"),
        ({"text_module": "nowhere"}, "the blocks of"),
        ({"loop": ("a", "b", "c")}, "the entry 'a'"),
        ({"only_with_image": "hidden_size"}, "the entry 'hidden_size'"),
        ({"padding": "right"}, "padding changes the state"),
        ({"types": ("llava_next",)}, "is for llava_next"),
    ],
)
def test_a_record_that_is_not_true_is_refused_where_it_is_given(declared: dict[str, Any], said: str) -> None:
    model, processor = tiny.build("llava")
    with pytest.raises(sk.SteerKitError, match=said):
        sk.wrap(model, processor, family=Family(**{"types": ("llava",), **declared}))
    sk.wrap(model, processor, family=Family(types=("llava",)))  # and leaves nothing behind


@pytest.mark.parametrize(
    "declared",
    [
        {"types": ()},
        {"types": "llava"},
        {"marks": "idz"},
        {"marks": None},
        {"state": "streams"},
        {"layers": 3},
        {"max_images": 0},
        {"image": "("},
        {"frame": "x"},
        {"call": 3},
        {"padding": "top"},
    ],
    ids=str,
)
def test_a_field_of_a_record_that_can_not_be_is_refused_when_it_is_made(declared: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(declared))}.*of a Family"):
        Family(**{"types": ("llava",), **declared})


@pytest.mark.parametrize("option", ["devce_map", "load_in_4bit", "processor"])
def test_an_option_that_from_pretrained_does_not_take_is_named(option: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {option: 1}
    with pytest.raises(OptionError, match=f"loaded with {option}=.*check the spelling"):
        sk.load(str(tiny.save("llava", tmp_path)), **given)


def test_a_model_without_weights_says_so_before_it_runs() -> None:
    made, processor = tiny.build("llava")
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(made.config).eval()
    vlm, samples = sk.wrap(model, processor), [sk.Sample("What?", (picture(1),))]
    for call in (lambda: vlm.generate(samples), lambda: vlm.capture(samples), lambda: sk.CMRM().fit(vlm, samples)):
        with pytest.raises(OptionError, match="the model has no weights"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_on_the_wrong_side_is_told_from_rounding(dtype: torch.dtype) -> None:
    for name in ("llava", "qwen2_vl", "instructblip-t5"):
        model, processor = tiny.build(name)
        sk.wrap(model.to(dtype), processor, family=family_for(model.config.model_type))
    model, processor = tiny.build("llava")
    with pytest.raises(UnsupportedModelError, match="padding changes the state"):
        sk.wrap(model.to(dtype), processor, family=Family(types=("llava",), padding="right"))
