"""The view of a prompt without its images has the ids that the tokenizer makes of the text without placeholders."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import tiny
import tokenizer_kinds
import torch
import transformers
from reference import picture

import steerkit as sk
from steerkit.errors import EngineError
from steerkit.models import PromptFormat, view

STRANGE = "Ünïcödé: 日本語 🙂 ½"
"""Some tokenizers know hardly any of its letters: what is unknown, the ids do not say."""

TEXTS = (
    "What is in this picture?",
    "  two spaces in front, and two behind  ",
    "\nA line break in front",
    "Line one\n\nline  two\n",
    STRANGE,
    "##joined",
    "don't",
)

WORKING = [kind for kind in tokenizer_kinds.KINDS if kind not in ("prepend, normalized image", "prepend, single word")]
"""The processors of the others lose image tokens, and say so themselves."""

# what stands around the image: in front, the placeholder, and behind (the placeholder goes away as a whole)
LAYOUTS = {
    "LLaVA-1.5": ("USER: ", "<image>\n", "{text} ASSISTANT:"),
    "LLaVA-1.5 with its begin token": ("<s>USER: ", "<image>\n", "{text} ASSISTANT:"),
    "image first": ("", "<image>\n", "USER: {text} ASSISTANT:"),
    "image first, with its begin token": ("<s>", "<image>\n", "USER: {text}"),
    "image last": ("USER: {text}\n", "<image>\n", "ASSISTANT:"),
    "Mistral": ("[INST] ", "<image>\n", "{text} [/INST]"),
    "turns": ("USER: Hello?</s>USER: ", "<image>\n", "{text}</s>ASSISTANT:"),
}


@cache
def tokenizer(kind: str) -> Any:
    return tokenizer_kinds.KINDS[kind]()


def processor(llava: sk.VLM, kind: str, layout: str) -> Any:
    """A LLaVA processor with such a tokenizer, and with a template that writes such prompts."""
    front, image, back = LAYOUTS[layout]
    content = "messages[0]['content']"
    images = f"{{% for part in {content} if part['type'] == 'image' %}}{{{{ {image!r} }}}}{{% endfor %}}"
    spell = lambda text: "".join(  # noqa: E731
        f"{{{{ {piece!r} }}}}" if piece != "TEXT" else f"{{{{ {content}[-1]['text'] }}}}"
        for piece in text.replace("{text}", "|TEXT|").split("|")
        if piece
    )
    return transformers.LlavaProcessor(
        image_processor=llava.processor.image_processor,
        tokenizer=tokenizer(kind),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=spell(front) + images + spell(back),
    )


def ids_of(processor: Any, text: str, image: bool) -> Any:
    """What a user types: the processor, applied to a prompt that was written as text."""
    images = {"images": [picture(0)]} if image else {}
    return dict(processor(text=[text], add_special_tokens=not text.startswith("<s>"), return_tensors="pt", **images))


def derived(llava: sk.VLM, made: Any, inputs: Any) -> list[int] | None:
    """The ids of the text view; None if it is refused because several texts have the ids of the prompt."""
    image = made.tokenizer.convert_tokens_to_ids("<image>")
    architecture = replace(llava.architecture, image_token_ids=frozenset({image}))
    prompts = PromptFormat(llava.model, made, llava.family, architecture)
    try:
        return view("text", inputs, prompts, architecture, 0)["input_ids"][0].tolist()
    except EngineError as error:
        if "are those of several texts, which differ once their images are removed" not in str(error):
            raise
        return None


def views(llava: sk.VLM, made: Any, text: str) -> tuple[list[int] | None, list[int]]:
    front, image, back = (part.replace("{text}", text) for part in LAYOUTS[made.layout])
    found = derived(llava, made, ids_of(made, front + image + back, image=True))
    return found, ids_of(made, front + back, image=False)["input_ids"][0].tolist()


# the prompt does not say what white space its image token has swallowed, if text of the user's comes next to it
SWALLOWED = {
    "image strips right": {"LLaVA-1.5", "LLaVA-1.5 with its begin token", "Mistral", "turns"},
    "image strips left": {"image last"},
}


def swallows(kind: str, layout: str) -> bool:
    name = kind.replace("strips both", "strips left, image strips right")
    return any(strip in name and layout in layouts for strip, layouts in SWALLOWED.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", tokenizer_kinds.KINDS)
def test_the_text_view_has_the_ids_of_the_text_without_its_image(llava: sk.VLM, kind: str, layout: str) -> None:
    made = processor(llava, kind, layout)
    made.layout = layout
    if kind == "prepend, normalized image":
        with pytest.raises(ValueError, match="Mismatch in `image` token count"):  # the processor itself refuses it
            views(llava, made, TEXTS[0])
        return
    for text in TEXTS:
        found, expected = views(llava, made, text)
        if found is not None:
            assert found == expected, text
        # white space that leaves no trace anywhere makes no difference either
        refusable = swallows(kind, layout) or (text is STRANGE and kind.startswith(("word piece", "unigram")))
        assert (found is None) is refusable or (refusable and kind.startswith(("word piece", "unigram"))), text


@pytest.mark.parametrize("kind", WORKING)
def test_prompts_that_the_template_would_not_write_are_read_right_or_refused(llava: sk.VLM, kind: str) -> None:
    made = processor(llava, kind, "LLaVA-1.5")
    read = 0
    for front, back in (
        ("", "What?"),
        ("What?", ""),
        ("", " What?"),
        ("USER: Hello?", "What?"),
        ("USER: Hello? ", " What?"),
        ("a<image>\nb", "c"),
    ):
        two = {"images": [[picture(0), picture(1)][: 1 + front.count("<image>")]]}
        inputs = dict(made(text=[f"{front}<image>{back}"], return_tensors="pt", **two))
        found = derived(llava, made, inputs)
        text = front.replace("<image>\n", "") + back
        if found is not None:
            read += 1
            assert found == ids_of(made, text, image=False)["input_ids"][0].tolist(), text
    assert read or "strips" in kind


@pytest.mark.parametrize("kind", WORKING)
def test_samples_are_measured_on_their_own_text(llava: sk.VLM, kind: str) -> None:
    """What the ids do not tell, the samples do: every kind of tokenizer is served where samples are answered."""
    made = processor(llava, kind, "LLaVA-1.5")
    model, _ = tiny.build("llava")
    model.resize_token_embeddings(len(made.tokenizer))
    model.config.image_token_id = made.tokenizer.convert_tokens_to_ids("<image>")
    vlm = sk.wrap(model, made)
    read: list[torch.Tensor] = []
    samples = [sk.Sample(text, (picture(at),)) for at, text in enumerate(TEXTS)]
    with sk.steer(vlm, sk.CMRM(level="sample").fit(vlm), policy="off"):
        model.get_input_embeddings().register_forward_pre_hook(lambda module, args: read.append(args[0]))
        vlm.generate(samples, batch_size=1, max_new_tokens=1)
    assert len(read) == 3 * len(samples)  # the two views of a prompt, and the prompt
    for at, text in enumerate(TEXTS):
        expected = ids_of(made, f"USER: {text} ASSISTANT:", image=False)["input_ids"]
        assert [ids.tolist() for ids in read[3 * at : 3 * at + 3]].count(expected.tolist()) == 1, text
