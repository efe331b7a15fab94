"""Where each family's blocks are, what its batches hold, and that a batch answers as its prompts do alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from PIL import Image

from steerkit.errors import SampleError, UnsupportedModelError
from steerkit.models import Inputs, Sample, architecture_of, family_for
from steerkit.vlm import VLM

# Measured: at most 1.3e-5 (Qwen3.5), on logits between -5 and 5; a shifted position changes them by more than 0.1.
TOLERANCE = 3e-5

CHAT = Sample((("system", "Be brief."), ("user", "How do I bake a cake?"), ("assistant", "No."), ("user", "Why not?")))
PLAIN = Sample("What is this?")
MARKERS = {
    "llava": "USER:",
    "llava_next": "[INST]",
    "llava_onevision": "<|im_start|>user",
    "vipllava": "###Human:",
    "instructblip-llama": None,
    "instructblip-t5": None,
}
# name: path, number and width of the blocks, as written in steerkit/testing/tiny
BLOCKS = {
    "llava": ("model.language_model.layers", 4, 48),
    "llava_next": ("model.language_model.layers", 3, 48),
    "llava_onevision": ("model.language_model.layers", 3, 48),
    "vipllava": ("model.language_model.layers", 2, 48),
    "qwen2_vl": ("model.language_model.layers", 3, 48),
    "qwen2_5_vl": ("model.language_model.layers", 4, 48),
    "qwen3_vl": ("model.language_model.layers", 3, 48),
    "qwen3_5": ("model.language_model.layers", 4, 48),
    "instructblip-llama": ("language_model.model.layers", 3, 48),
    "instructblip-t5": ("language_model.decoder.block", 3, 48),
}
# Image tokens of one image of 32 x 32, and of 64 (width) x 32 pixels: patches of 8, or merged patches of 8. NeXT adds
# tiles of the image and a line-break token for each row: 16 + 4 * (4 + 1) when 32 x 32 fills its centre, and
# 16 + 4 * (8 + 1) for two tiles side by side.
IMAGE_TOKENS = {
    "llava": (16, 16),
    "llava_next": (16 + 20, 16 + 36),
    "llava_onevision": (16 + 20, 16 + 36),
    "vipllava": (16, 16),
    "qwen2_vl": (16, 32),
    "qwen2_5_vl": (16, 32),
    "qwen3_vl": (16, 32),
    "qwen3_5": (16, 32),
    "instructblip-llama": (6, 6),
    "instructblip-t5": (6, 6),
}


class Case:
    """One family: its model, processor, prompts and architecture."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model, self.processor = tiny.build(name)
        vlm = VLM(self.model, self.processor)
        assert vlm.format is not None
        self.format, self.architecture = vlm.format, vlm.architecture
        self.one_image = name.startswith("instructblip")

    def encode(self, *prompts: tuple[Sample, list[Image.Image]]) -> Inputs:
        texts = [self.format.render(sample, len(images)) for sample, images in prompts]
        return self.format.encode(texts, [images for _, images in prompts])

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """Logits of the last token."""
        given: dict[str, Any] = dict(inputs)
        for path in self.architecture.transient:
            owner, _, attribute = path.rpartition(".")
            setattr(self.model.get_submodule(owner), attribute, None)
        target = self.model if "pixel_values" in given else self.model.get_submodule(self.architecture.text_module)
        if self.architecture.encoder_decoder:
            given["decoder_input_ids"] = torch.zeros(len(given["input_ids"]), 1, dtype=torch.long)
        with torch.no_grad():
            return target(**given).logits[:, -1]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_blocks_are_where_declared(case: Case) -> None:
    path, count, width = BLOCKS[case.name]
    found = case.architecture
    assert (found.layers, found.layer_count, found.hidden_size) == (path, count, width)
    assert case.format.user_marker == MARKERS.get(case.name, "<|im_start|>user")
    assert found.encoder_decoder == (case.name == "instructblip-t5")
    seen: dict[str, Any] = {}
    handles = []
    for layer in range(count):
        for site in ("resid_post", "mlp_out", "attn_out"):
            name = f"{layer}.{site}"
            module = case.model.get_submodule(found.site(layer, site))
            handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out)))
    inputs = case.encode((PLAIN, [picture()]))
    case.logits(inputs)
    for handle in handles:
        handle.remove()
    length = 1 if found.encoder_decoder else inputs["input_ids"].shape[1]
    assert len(seen) == 3 * count
    for name, output in seen.items():
        tensor = output[0] if isinstance(output, tuple) else output
        assert tensor.shape == (1, length, width), name


def test_image_tokens(case: Case) -> None:
    known = case.architecture.image_token_ids  # where the family takes videos, those of videos as well
    for size, expected in zip((32, 64), IMAGE_TOKENS[case.name], strict=True):
        row = case.encode((PLAIN, [picture(size)]))["input_ids"][0]
        (token,) = known & set(row.tolist())
        positions = (row == token).nonzero().flatten().tolist()
        assert positions == list(range(positions[0], positions[0] + expected))
        assert positions[-1] < len(row) - 1
    assert not known & set(case.encode((PLAIN, []))["input_ids"].flatten().tolist())


def test_begin_token_is_single(case: Case) -> None:
    begin = case.processor.tokenizer.bos_token_id
    rows = [case.encode((sample, images))["input_ids"][0] for sample in (PLAIN, CHAT) for images in ([], [picture()])]
    assert [row.tolist().count(begin) for row in rows] == [0 if begin is None else 1] * 4


@pytest.mark.parametrize("images", [0, 1])
def test_batch_answers_as_its_prompts_alone(case: Case, images: int) -> None:
    pictures = [picture(48, 32, seed=1), picture(32, 56, seed=2)]
    prompts = [(PLAIN, pictures[:images]), (CHAT, pictures[1:] * images)]
    batch = case.encode(*prompts)
    mask = batch["attention_mask"]
    assert mask[:, -1].tolist() == [1, 1]
    assert mask[0, 0] == 0
    assert (mask.diff(dim=1) >= 0).all(), "padding is not all in front"
    together = case.logits(batch)
    alone = torch.cat([case.logits(case.encode(prompt)) for prompt in prompts])
    assert torch.allclose(together, alone, atol=TOLERANCE, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_image_and_text_change_the_answer(case: Case) -> None:
    prompts = [
        (PLAIN, []),
        (PLAIN, [picture(seed=1)]),
        (PLAIN, [Image.new("RGB", (32, 32), (255, 255, 255))]),
        (CHAT, [picture(seed=1)]),
    ]
    answers = [case.logits(case.encode(prompt)) for prompt in prompts]
    for index, answer in enumerate(answers):
        for other in answers[:index]:
            assert (answer - other).abs().max() > 0.05


def test_several_images(case: Case) -> None:
    three = [picture(32, 32, 1), picture(64, 32, 2), picture(40, 64, 3)]
    if case.one_image:
        with pytest.raises(SampleError, match="trained on one"):
            case.encode((PLAIN, three))
        return
    prompts = [(PLAIN, three[:1]), (CHAT, three[1:])]
    together = case.logits(case.encode(*prompts))
    alone = torch.cat([case.logits(case.encode(prompt)) for prompt in prompts])
    assert torch.allclose(together, alone, atol=TOLERANCE, rtol=0)
    swapped = case.logits(case.encode((CHAT, three[:0:-1])))
    assert (swapped - alone[1:]).abs().max() > 0.05


def test_text_only_is_the_prompt_without_its_placeholder(case: Case) -> None:
    tokenizer = case.processor.tokenizer
    for sample in (PLAIN, CHAT):
        bare = case.encode((sample, []))["input_ids"][0].tolist()
        for count in (1,) if case.one_image else (1, 2):
            row = case.encode((sample, [picture(48, 32)] * count))["input_ids"][0]
            shown = tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            removed = re.sub(case.format.placeholder, "", shown)
            assert tokenizer(removed, add_special_tokens=False)["input_ids"] == bare


def test_image_sizes_process_to_the_same_shapes(case: Case) -> None:
    sizes = [(32, 32), (64, 24), (20, 60)]
    inputs = case.encode(*[(PLAIN, [picture(*size)]) for size in sizes])
    found = case.format.image_sizes(inputs)
    assert sum(map(len, found)) == 3
    blank = [[Image.new("RGB", (width, height)) for height, width in group] for group in found]
    again = case.processor.image_processor(images=blank, return_tensors="pt")
    for key, value in again.items():
        assert value.shape == inputs[key].shape
        if key not in ("pixel_values",):
            assert torch.equal(value, inputs[key])


def test_image_sizes_process_to_the_same_shapes_with_several_images(case: Case) -> None:
    if case.one_image:
        return
    inputs = case.encode((PLAIN, [picture(32, 32), picture(64, 24)]), (PLAIN, [picture(20, 60)]))
    found = case.format.image_sizes(inputs)
    blank = [[Image.new("RGB", (width, height)) for height, width in group] for group in found]
    again = case.processor.image_processor(images=blank, return_tensors="pt")
    assert again["pixel_values"].shape == inputs["pixel_values"].shape


def test_encoding_leaves_the_processor_alone(case: Case) -> None:
    case.processor.tokenizer.padding_side = "right"
    inputs = case.encode((PLAIN, []), (CHAT, []))
    assert inputs["attention_mask"][0, 0] == 0
    assert case.processor.tokenizer.padding_side == "right"
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())


def test_generation_takes_the_inputs(case: Case) -> None:
    for images in ([], [picture()]):
        inputs = case.encode((PLAIN, images), (CHAT, images))
        target = case.model if images else case.model.get_submodule(case.architecture.text_module)
        rows = target.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
        assert len(rows) == 2
        assert rows[0].tolist()[-4:] != rows[1].tolist()[-4:]


def test_batches_that_do_not_match_are_refused(case: Case) -> None:
    with pytest.raises(SampleError, match="mixes prompts"):
        case.encode((PLAIN, []), (CHAT, [picture()]))
    with pytest.raises(SampleError, match="one list for each"):
        case.format.encode(["a", "b"], [[]])
    if not case.one_image:
        text = case.format.render(PLAIN, 1)
        with pytest.raises(SampleError, match="1 image placeholders and 2 images"):
            case.format.encode([text], [[picture(), picture()]])


@pytest.mark.parametrize(
    ("kind", "path"), [("BloomConfig", "h"), ("GPTNeoXConfig", "layers"), ("OPTConfig", "decoder.layers")]
)
def test_other_language_models_are_found_where_transformers_has_them(kind: str, path: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = getattr(transformers, kind)(**sizes, vocab_size=50, tie_word_embeddings=False)
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    config.image_token_index = 3
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    assert architecture_of(model, family_for("llava")).layers == f"model.language_model.{path}"


def test_two_lists_of_as_many_blocks_are_not_chosen_from() -> None:
    model, _ = tiny.build("llava")
    decoder: Any = model.get_decoder()
    decoder.more = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in decoder.layers)
    found = architecture_of(model, family_for("llava"))
    assert found.layers == "model.language_model.layers", "transformers names the class of its blocks"
    decoder.more = torch.nn.ModuleList(decoder.layers)
    with pytest.raises(UnsupportedModelError, match=r"2 lists of 4 blocks.*layers.*more.*declare layers"):
        architecture_of(model, family_for("llava"))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5"])
def test_mixtures_of_experts_have_the_same_paths(name: str) -> None:
    dense, _ = tiny.build(name)
    kind = {"qwen3_vl": "Qwen3VLMoe", "qwen3_5": "Qwen3_5Moe"}[name]
    settings = dense.config.to_dict()
    text = {key: value for key, value in settings["text_config"].items() if key not in ("model_type", "dtype")}
    text |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    text |= {"shared_expert_intermediate_size": 16} if name == "qwen3_5" else {}
    vision = {key: value for key, value in settings["vision_config"].items() if key not in ("model_type", "dtype")}
    ids = {key: value for key, value in settings.items() if key.endswith("token_id")}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **ids)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    found = architecture_of(model, family_for(model.config.model_type))
    seen: list[Any] = []
    for layer in range(found.layer_count):
        for site in ("resid_post", "mlp_out", "attn_out"):
            module = model.get_submodule(found.site(layer, site))
            module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        model(input_ids=torch.tensor([[40, 41, 42]]))
    shapes = {tuple((out[0] if isinstance(out, tuple) else out).shape) for out in seen}
    assert len(seen) == 3 * found.layer_count
    assert shapes == {(1, 3, found.hidden_size)}


def test_missing_image_token_is_refused() -> None:
    model, _ = tiny.build("instructblip-llama")
    model.config.image_token_index = None
    with pytest.raises(UnsupportedModelError, match="names no image token"):
        architecture_of(model, family_for("instructblip"))


def test_linear_attention_blocks_have_their_own_path() -> None:
    model, _ = tiny.build("qwen3_5")
    found = architecture_of(model, family_for(model.config.model_type))
    assert found.site(0, "attn_out") == "model.language_model.layers.0.linear_attn"
    assert found.site(1, "attn_out") == "model.language_model.layers.1.self_attn"
