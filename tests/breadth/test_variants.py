"""What communities make of a published model: other image tokens, and chat templates with habits of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import steerkit as sk
from breadth import checks, configs, pairs, processor_options, prompts
from breadth.processors import CHAT
from steerkit.models import Sample
from steerkit.models._views import without_image
from steerkit.vectors import MethodRecord, PackMetadata
from steerkit.vlm import _load

_COUNTING = "{% set seen = namespace(count=0) %}{% for m in messages %}"
NUMBERED = CHAT.replace("{% for m in messages %}", _COUNTING, 1).replace(
    "@IMAGE@", "{% set seen.count = seen.count + 1 %}Picture {{ seen.count }}: @IMAGE@\n"
)
DROPS_SYSTEM = CHAT.replace(
    "{% for m in messages %}",
    "{% set seen = namespace(images=false) %}{% for m in messages %}{% if m['content'] is not string %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{% set seen.images = true %}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% for m in messages if not (seen.images and m['role'] == 'system') %}",
    1,
)
BREAKS_LINES = CHAT.replace("{{ c['text'] }}", "{{ c['text'] }}{{ '\n' }}")
BREAK_BEHIND_IMAGE = CHAT.replace("@IMAGE@", "@IMAGE@\n")
_RAISE = "{{ raise_exception('no system turns here') }}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}" + _RAISE + "{% endif %}" + CHAT
TAKES_TURNS = CHAT.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}" + _RAISE + "{% endif %}",
    1,
)
THINKS = CHAT.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}",
)
TEMPLATES = {
    "numbers pictures": NUMBERED,
    "drops the system turn with images": DROPS_SYSTEM,
    "ends every text with a line break": BREAKS_LINES,
    "breaks the line behind an image": BREAK_BEHIND_IMAGE,
    "has an option": THINKS,
    "refuses a system turn": NO_SYSTEM,
    "wants turns to alternate": TAKES_TURNS,
}
SEPARATES = CHAT.replace("@IMAGE@", "{% if not loop.first %}, {% endif %}@IMAGE@")
TOTALS = CHAT.replace(
    "{% for c in m['content'] %}",
    "{% set own = m['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% if own %}{{ own | length }} in all: {% endif %}{% for c in m['content'] %}",
    1,
)
COUNTS = CHAT.replace("<|im_start|>", "{{ messages | string | length }}<|im_start|>", 1)
"""Of which no image can be taken out again."""
REFUSING = ("refuses a system turn", "wants turns to alternate")
TYPES = ("llava", "qwen2_vl", "gemma3", "idefics3")
SYSTEM_AND_QUESTION = (("system", "Be brief."), ("user", checks.SHORT))


@pytest.mark.parametrize("token", ["<|image_pad|>", "[IMG]", "<image_soft_token>"])
def test_another_image_token(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(processor_options.NAMED, "llava", {"image_token": token})
    case = checks.Case("llava")
    assert case.plain.processor.image_token == token
    for key in ("inputs", "capture", "image tokens", "padding", "several images", "counterpart", "text", "mixed"):
        checks.CHECKS[key](case)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("habit", TEMPLATES)
def test_a_template_with_a_habit(name: str, habit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CHAT", TEMPLATES[habit])
    case = checks.Case(name)
    for key in ("inputs", "capture", "padding", "several images", "counterpart", "text", "mixed"):
        checks.CHECKS[key](case)
    told = Sample(SYSTEM_AND_QUESTION, (case.images[0],))
    if habit not in REFUSING:
        _only_the_image_is_cut(case, told)
        bare = case.vlm.inputs([case.sample(checks.SHORT, 0)], images=False)["input_ids"][0]
        written = case.plain.processor.tokenizer.decode(bare, skip_special_tokens=True)
        assert written.split() == _without_images(case).split()
        return
    for images in (True, False):
        with pytest.raises(sk.errors.SampleError, match="no system turns here"):
            case.vlm.inputs([told], images=images)
    if habit == "wants turns to alternate":
        twice = Sample((("user", checks.SHORT), ("user", checks.LONG)), (case.images[0],))
        with pytest.raises(sk.errors.SampleError, match="sample 1"):
            case.vlm.generate([case.sample(checks.SHORT, 0), twice], max_new_tokens=1)


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "idefics3"])
@pytest.mark.parametrize("template", [SEPARATES, TOTALS], ids=["separates", "totals"])
def test_a_template_that_writes_several_images_in_another_way(
    name: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image is as plain as ever; nothing is cut that would leave a trace of others, and from ids nothing at all."""
    monkeypatch.setattr(prompts, "CHAT", template)
    case = checks.Case(name)
    for key in ("inputs", "capture", "padding", "counterpart", "text", "mixed"):
        checks.CHECKS[key](case)
    several = Sample([_turn("image", "image", "text")], tuple(case.images[:2]))
    assert case.vlm.inputs([several], images=False)["input_ids"][0].tolist() == case.text_ids(checks.SHORT)
    for kinds in (("text", "image"), ("text", "image", "image")):
        sample = Sample([_turn(*kinds)], tuple(case.images[: len(kinds) - 1]))
        with pytest.raises(sk.errors.ProcessorError):
            case.vlm.inputs([sample], images=False)
    if template is SEPARATES:
        checks.CHECKS["several images"](case)
        shown = case.shown(checks.SHORT, 0, 1)["input_ids"][0].tolist()
        assert case.vlm.inputs([several])["input_ids"][0].tolist() == shown
    assert case.vlm.format is not None
    with pytest.raises(sk.errors.ProcessorError, match="in another way than one"):
        without_image(dict(case.shown(checks.SHORT, 0)), case.vlm.format, case.vlm.architecture)


def _turn(*kinds: str) -> dict[str, Any]:
    parts = {"text": {"type": "text", "text": checks.SHORT}, "image": {"type": "image"}}
    return {"role": "user", "content": [parts[kind] for kind in kinds]}


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "idefics3"])
def test_a_template_that_changes_with_every_image_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CHAT", COUNTS)
    model, processor = pairs.pair(name)
    vlm = sk.wrap(model, processor)
    for images in (True, False):
        with pytest.raises(sk.errors.ProcessorError, match="in another way than one.*declare image in a Family record"):
            vlm.inputs([Sample(checks.SHORT, (prompts.picture(0),))], images=images)


def _without_images(case: checks.Case) -> str:
    """What the template writes of a question without an image."""
    tokenizer = case.plain.processor.tokenizer
    text = prompts.rendered(case.name, case.plain.processor, checks.SHORT, 0)
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)


def _only_the_image_is_cut(case: checks.Case, sample: Sample) -> None:
    """What differs between a prompt and its counterpart is one run of tokens, which holds the image's."""
    shown, bare = (case.vlm.inputs([sample], images=images)["input_ids"][0].tolist() for images in (True, False))
    front = next((n for n, (a, b) in enumerate(zip(shown, bare, strict=False)) if a != b), len(bare))
    assert any(shown[:n] + shown[n + len(shown) - len(bare) :] == bare for n in range(front + 1))
    assert not set(bare) & case.vlm.architecture.image_token_ids


@pytest.mark.parametrize("name", TYPES)
def test_an_option_of_the_template_reaches_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CHAT", THINKS)
    case = checks.Case(name)

    def prompt(images: Any, **options: Any) -> str:
        sample = Sample(checks.SHORT, (case.images[0],), chat_template_kwargs=options)
        return case.plain.processor.tokenizer.decode(case.vlm.inputs([sample], images=images)["input_ids"][0])

    for images in (True, False):
        assert "<think>" not in prompt(images)
        assert "<think>" not in prompt(images, enable_thinking=True)
        assert prompt(images, enable_thinking=False).rstrip().endswith("</think>")
    with pytest.raises(sk.SteerKitError):
        prompt(True, no_such_option=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the processors of transformers
@pytest.mark.parametrize("name", ["paligemma", "mllama", "idefics", "ernie4_5_vl_moe", *TYPES])
def test_a_tokenizer_without_a_token_to_pad_with(name: str) -> None:
    """Some processors pad by themselves, whatever they are told; the user's own is left as it is."""
    try:
        model, processor = pairs.pair(name)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    asked = [(text, prompts.picture(seed)) for seed, text in enumerate((checks.SHORT, checks.LONG))]
    with torch.no_grad():
        alone = [model(**prompts.encoded(name, processor, [text], [[shown]])).logits[0, -1] for text, shown in asked]
        processor.tokenizer.pad_token = None
        vlm = sk.wrap(model, processor)
        inputs = vlm.inputs([Sample(text, (shown,)) for text, shown in asked])
        together = model(**inputs).logits[:, -1]
    assert not inputs["attention_mask"].all()
    assert (together - torch.stack(alone)).abs().max() < 1e-3 * torch.stack(alone).abs().max()
    assert processor.tokenizer.pad_token is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the processors of transformers
def test_paligemmas_counterpart_begins_as_its_prompt_with_an_image_does() -> None:
    """Its processor writes the token behind the image, though its tokenizer adds none."""
    model, processor = pairs.pair("paligemma")
    vlm = sk.wrap(model, processor)
    sample = Sample(checks.SHORT, (prompts.picture(1),))
    shown = vlm.inputs([sample])
    rest = [token for token in shown["input_ids"][0].tolist() if token not in vlm.architecture.image_token_ids]
    bos = processor.tokenizer.bos_token_id
    assert rest[0] == bos
    assert bos not in rest[1:]
    assert vlm.inputs([sample], images=False)["input_ids"][0].tolist() == rest


def test_prompts_with_other_numbers_of_images_do_not_touch_each_other() -> None:
    vlm = sk.wrap(*pairs.pair("mllama"))
    samples = [Sample("Say it", (prompts.picture(1), prompts.picture(2))), Sample("Say it", (prompts.picture(3),))]
    together = vlm.next_token_log_probabilities(samples)
    alone = torch.cat([vlm.next_token_log_probabilities([sample]) for sample in samples])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("tower", "others"),
    [
        ("llama4_vision_model", [-1]),
        ("dinov2_with_registers", [0, 1, 2, 3]),
        ("dinov3_vit", [0, 1, 2, 3]),
        ("dinov2", [0]),
        ("siglip_vision_model", []),
        ("aimv2_vision_model", []),  # it pools by a token of its own, behind the blocks
        ("internvl_vision", [0]),
    ],
)
def test_what_stands_for_no_patch_is_left_alone(tower: str, others: list[int]) -> None:
    """Registers, and a token of the class where a tower puts it: of Llama 4 behind the patches."""
    if tower == "llama4_vision_model":
        config = configs.tiny("llama4")
        with pairs._patched("llama4"):
            model = pairs.build(transformers.Llama4ForConditionalGeneration, config)
        size, token = config.vision_config.image_size, config.image_token_index
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
        size, given = 56, {"image_size": 56, "patch_size": 14, "num_register_tokens": 3}
        if tower == "internvl_vision":
            given |= {"image_size": [56, 56], "patch_size": [14, 14]}
        text = pairs.pair("llava")[0].config
        config = transformers.LlavaConfig(
            vision_config=transformers.AutoConfig.for_model(tower, **sizes, **given),
            text_config=text.text_config,
            image_token_index=text.image_token_index,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        model, token = pairs.build(transformers.LlavaForConditionalGeneration, config), text.image_token_index
    vlm = sk.wrap(model)
    found = vlm.architecture.vision
    assert found is not None
    pixels = torch.randn(1, 3, size, size)
    with torch.no_grad():
        features: Any = model.get_image_features(pixel_values=pixels)
    features = next(f for f in (features.pooler_output, features.last_hidden_state) if f is not None)
    count = sum(part.reshape(-1, part.shape[-1]).shape[0] for part in features)
    inputs = {"input_ids": torch.tensor([[41] + [token] * count + [45, 46]]), "pixel_values": pixels}
    seen: list[torch.Tensor] = []
    block = model.get_submodule(found.layers)[1]

    def keep(module: Any, args: Any, options: Any) -> None:
        given = args[0] if args else options["hidden_state"]
        seen.append(given.reshape(-1, given.shape[-1]))

    block.register_forward_pre_hook(keep, with_kwargs=True)
    change = sk.Intervention(layers=(0,), tower="vision", tokens="image")
    record = PackMetadata(method=MethodRecord(name="check"), interventions=(change,), model=vlm.record)
    vector = sk.SteeringVector({sk.Key(0, tower="vision"): torch.full((found.hidden_size,), 3.0)}, record)
    with torch.no_grad():
        model(**inputs)
        with sk.steer(model, vector, policy="off"):
            model(**inputs)
    same = ((seen[0] - seen[-1]).abs().amax(-1) < 1e-3).nonzero().flatten().tolist()
    assert same == [place % len(seen[0]) for place in others]


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
@pytest.mark.parametrize("name", ["gemma3n", "fast_vlm"])
def test_what_the_model_needs_is_named_before_there_are_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs.tiny(name).save_pretrained(tmp_path)
    monkeypatch.setattr(_load, "load_processor", lambda *args, **options: None)
    with pytest.raises(sk.errors.UnsupportedModelError, match=r"needs what is not installed: .*timm"):
        sk.load(str(tmp_path))
