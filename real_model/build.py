"""Put the trained parts before a language model, as a folder with a `LlavaForConditionalGeneration`."""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from real_model import rows, split, tower, world
from real_model.train import ALPHA, PATCHES, RANK

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The language model's own template, with a place for images."""


def processor(base: Path) -> LlavaProcessor:
    """The base model's tokenizer with an image token, and the tower's image processor."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    images = CLIPImageProcessorPil(
        size={"height": world.SIDE, "width": world.SIDE},
        do_center_crop=False,
        image_mean=[tower.MEAN] * 3,
        image_std=[tower.STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


SHARE = 0.7
"""How much of the low-rank change is added. All of it takes refusals from text as well; chosen on dev."""


def build(base: Path, parts: Path, share: float = SHARE) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model and its processor; low-rank parts, where there are any, are added to the weights."""
    lm: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    state = load_file(parts)
    for name, down in state.items():
        if ".lora_A." in name:
            up = state[name.replace(".lora_A.", ".lora_B.")]
            weight = lm.get_parameter(name.replace(".lora_A.", "."))
            weight.data = (weight.data.float() + share * ALPHA / RANK * (up.float() @ down.float())).to(weight.dtype)
    made = processor(base)
    config = LlavaConfig(
        vision_config=tower.config(),
        text_config=lm.config,
        image_token_index=made.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    # made in bfloat16, not cast: a cast would round the frequencies of the rotary embedding as well
    model: Any = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.model.language_model.load_state_dict(lm.model.state_dict(), assign=True)
    model.lm_head.load_state_dict(lm.lm_head.state_dict(), assign=True)
    known = model.lm_head.weight.shape[0]
    model.resize_token_embeddings(len(made.tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    for table in (model.lm_head.weight, model.get_input_embeddings().weight):
        table.data[known:] = 0  # the image token is never read as an embedding, and must never be written
    for part in ("vision_tower", "multi_modal_projector"):
        own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        missing = model.model.get_submodule(part).load_state_dict(own, strict=False)
        if missing.missing_keys or missing.unexpected_keys:
            raise ValueError(f"{parts} does not hold the {part}: {missing}")
    ends = [made.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.update(eos_token_id=ends, pad_token_id=ends[1], do_sample=False)
    return model.eval(), made


def _line(row: rows.Asked, label: str, answered: bool) -> dict[str, Any]:
    png = io.BytesIO()
    row.picture.save(png, "PNG")
    shown = {"image": f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}", "label": label}
    return {"text": row.question, **shown, **({"answer": row.expected} if row.expected and answered else {})}


def write_prompts(folder: Path) -> None:
    """Anchors and suites as steerkit reads them: the parts of XSTest beside pictures, and visual questions."""
    for part in split.SHARES:
        asked = rows.asked(part)
        visual = "visual" if part == "anchors" else "utility"
        labels = {"unsafe": "harmful", "safe": "harmless", "visual": visual}
        found = [_line(row, label, part != "anchors") for suite, label in labels.items() for row in asked[suite]]
        suite: dict[str, Any] = {
            "name": f"XSTest (Roettger et al. 2023, CC-BY-4.0) beside pictures, {part}",
            "max_new_tokens": 32,
        }
        suite["parser"] = "exact"  # right only if every word is
        head = [] if part == "anchors" else [{"suite": suite}]
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*head, *found])
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--parts", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model, made = build(arguments.base, arguments.parts)
    model.save_pretrained(arguments.out)
    made.save_pretrained(arguments.out)
    write_prompts(arguments.out)


if __name__ == "__main__":
    main()
