"""How prompts of each type are written and encoded by transformers itself: what steerkit is compared with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from breadth.processors import CHAT

WITHOUT_PROCESSOR = ("mistral4", "evolla", "pi0")
"""Types that are not "images and a prompt in, text out": language model, protein model, robot."""

DECODERS = ("pix2struct", "pp_formulanet", "vision-encoder-decoder")
"""Types whose encoder reads the image alone, and whose decoder the text behind its start token, as `generate` does."""

BARE = (
    *DECODERS,
    *"blip git blip-2 instructblip instructblipvideo kosmos-2 kosmos-2.5 florence2 udop paligemma fuyu idefics".split(),
)
"""Types without chats: the published models have no template, and their processor places the image."""

GLM = "glm4v glm4v_moe glm46v glm_ocr glmga glm5_next".split()
_FRAMES = {
    "ernie4_5_vl_moe": ("<image_start>", "<image_end>"),
    "paddleocr_vl": ("<|vision_start|>", "<|vision_end|>"),
    "hy_v4_vl": ("<|vision_start|>", "<|vision_end|>"),
    "hunyuan_vl": ("<img>", "</img>"),
    "qwen2_5_omni_thinker": ("<vision_bos>", "<vision_eos>"),
    "qwen3_omni_moe_thinker": ("<vision_bos>", "<vision_eos>"),
    **dict.fromkeys(
        "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe qwen4_exp cosmos3_omni lfm3_vl".split(),
        ("<|vision_start|>", "<|vision_end|>"),
    ),
    **dict.fromkeys(GLM, ("<|begin_of_image|>", "<|end_of_image|>")),
}
_WRITTEN = {"pp_chart2table": "<img>" + "<imgpad>" * 256 + "</img>"}
"""What the template writes for an image, where it is not the processor's own token."""


SIDES = {"mistral3": 112, "mistral_large4": 112}
"""Sides of pictures, where the usual ones are too small: Mistral 3 of transformers 5.24 fails on a single feature."""


def picture(seed: int, width: int = 56, height: int = 56) -> Image.Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def placeholder(name: str, processor: Any) -> str:
    """What a prompt of the type holds for one image."""
    if name in _WRITTEN:
        return _WRITTEN[name]
    token = getattr(processor, "image_placeholder_token", None) or getattr(processor, "image_token", None)
    own = tuple(str(getattr(processor, f"vision_{each}_token", None) or "") for each in ("start", "end"))
    before, after = own if all(own) else _FRAMES.get(name, ("", ""))
    return f"{before}{token}{after}"


def prepare(name: str, processor: Any) -> None:
    """Give a processor the chat template of a community model, and mend what its defaults lack."""
    if name == "fuyu":
        # It drops the first token of the image, which in its own tokenizer is the mark in front of every text.
        own = processor.replace_image_token
        processor.replace_image_token = lambda *given, **options: "<unk>" + own(*given, **options)
    if name == "kosmos-2.5":  # it asks for 4096 patches of every image, whatever its image processor says
        processor.images_kwargs = {**processor.images_kwargs, "max_patches": 64}
    if name not in BARE:
        from breadth import films

        written = {"@IMAGE@": placeholder(name, processor), "@VIDEO@": films.placeholder(name, processor)}
        written["@AUDIO@"] = str(getattr(processor, "audio_token", None) or "")
        processor.chat_template = re.sub("@[A-Z]+@", lambda match: written[match.group()], CHAT)
    if name == "shieldgemma2":  # its processor renders prompts without asking for the answer's turn to be opened
        processor.chat_template = processor.chat_template.replace("add_generation_prompt", "true")


def rendered(name: str, processor: Any, question: str, count: int, system: str | None = None) -> str:
    """A prompt as text."""
    if name in BARE or name == "shieldgemma2":
        return question
    parts = [{"type": "image"}] * count + [{"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _flat(images: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    return [image for own in images for image in own]


def _udop(processor: Any, texts: Sequence[str], images: Any) -> Any:
    words = [text.split() for text in texts]
    boxes = [[[0, 0, 1000, 1000]] * len(own) for own in words]  # of the whole page: nothing is known of a word's place
    return processor(images=_flat(images), text=words, boxes=boxes, return_tensors="pt", is_split_into_words=True)


def _video(processor: Any, texts: Sequence[str], images: Any) -> Any:
    clips = [[own[0]] * 4 for own in images]
    return processor(images=clips, text=list(texts), return_tensors="pt", padding=True)


def _decoder(processor: Any, texts: Sequence[str], images: Any) -> Any:
    made = dict(processor(images=_flat(images), return_tensors="pt"))
    rows = [[START, *processor.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    return {**made, "decoder_input_ids": torch.tensor(rows)}


def _policies(processor: Any, texts: Sequence[str], images: Any) -> Any:
    """The prompt of ShieldGemma 2 with a policy of our own: its processor writes the chat itself."""
    policy = {"question": texts[0]}
    return processor(images=images, policies=["question"], custom_policies=policy, return_tensors="pt")


def alone(name: str, processor: Any, text: str) -> dict[str, Any] | None:
    """What transformers makes of a text without an image, where that is more than tokens; None where it is not."""
    if name == "udop":
        words = text.split()
        made = processor.tokenizer(words, boxes=[[0, 0, 1000, 1000]] * len(words), return_tensors="pt")
        made["bbox"] = made["bbox"].float()
    elif name == "idefics":
        made = processor(text=[[text]], return_tensors="pt")
    else:
        return None
    return dict(made)


START = 0
"""The token with which decoders of encoders start here."""
_ENCODERS: dict[str, Callable[[Any, Sequence[str], Any], Any]] = {
    "udop": _udop,
    "instructblipvideo": _video,
    "shieldgemma2": _policies,
    **dict.fromkeys(DECODERS, _decoder),
}
CALLED_WITH: dict[str, dict[str, Any]] = {
    **{key: {"return_mm_token_type_ids": True} for key in ("cosmos3_edge", "exaone4_5")},
    "fuyu": {"return_legacy_image_output": False},
}


def encoded(
    name: str, processor: Any, questions: Sequence[str], images: Sequence[Sequence[Image.Image]], side: str = "left"
) -> dict[str, Any]:
    """What the model takes for prompts with these images, all of them with as many."""
    texts = [rendered(name, processor, text, len(own)) for text, own in zip(questions, images, strict=True)]
    return encoded_texts(name, processor, texts, images, side)


def encoded_texts(
    name: str, processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], side: str = "left"
) -> dict[str, Any]:
    """The same for prompts that are rendered."""
    processor.tokenizer.padding_side = side
    if name in _ENCODERS:
        made = _ENCODERS[name](processor, texts, images)
    else:
        options = {"return_tensors": "pt", "padding": True, **CALLED_WITH.get(name, {})}
        given = [[list(own) for own in images], _flat(images)]
        made = _first_that_works(lambda own: processor(images=own, text=list(texts), **options), given)
    return {key: value for key, value in made.items() if isinstance(value, torch.Tensor) and key != "labels"}


def _first_that_works(call: Callable[[Any], Any], options: Sequence[Any]) -> Any:
    """Processors want the images of a batch in one list, or in one list for each prompt: some take only one of them."""
    failed: Exception | None = None
    for option in options:
        try:
            return call(option)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _vocabulary_map(document: dict[str, Any], found: dict[str, int]) -> None:
    document["vocabulary_map"]["<image>"] = document["image_token_id"] = found["image_token_id"]


def _vision_start(document: dict[str, Any], found: dict[str, int]) -> None:
    document["vision_start_token_id"] = found.get("vision_bos_token_id", found["vision_start_token_id"])


IDS: dict[str, Callable[[dict[str, Any], dict[str, int]], None]] = {
    "chameleon": _vocabulary_map,
    "emu3": _vocabulary_map,
    "molmo2": lambda document, found: document.update(image_patch_id=found["image_token_id"]),
    "qwen4_exp": lambda document, found: document["text_config"].update(eos_token_id=2, pad_token_id=0),
    "qwen2_5_omni_thinker": _vision_start,
    "qwen3_omni_moe_thinker": _vision_start,
}
"""Ids that configurations keep in other places."""
