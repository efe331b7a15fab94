"""What communities make of a published model: other image tokens, and chat templates with habits of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steerkit as sk
from breadth import checks, pairs, processor_options, prompts
from breadth.processors import CHAT
from steerkit.models import Sample
from steerkit.models._views import without_image

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
