"""What the language model itself answers to harmless requests, in text; its refusals are left out."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from real_model.harmless import requests
from real_model.train import ASSISTANT, SYSTEM, USER

REFUSES = re.compile(r"sorry|\bcan(?:no|['\u2019])t\b|\bunable\b|as an ai\b|not able to", re.IGNORECASE)
TOKENS = 24
"""How much of an answer is kept; what is cut off there is learned without its end."""


def main() -> None:
    """Generate greedily and write what does not refuse."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.base, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.bfloat16).eval()
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    rows: list[dict[str, Any]] = []
    asked = sorted(requests(), key=len)
    for start in range(0, len(asked), 48):
        batch = asked[start : start + 48]
        prompts = [SYSTEM + USER + request + ASSISTANT for request in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(
                **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=ends[1]
            )
        for request, ids in zip(batch, made[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
            answer = tokenizer.decode(ids, skip_special_tokens=True).strip()
            ended = any(token in ends for token in ids)
            rows.append({"request": request, "answer": answer, "ended": ended})
    kept = [row for row in rows if row["answer"] and not REFUSES.search(row["answer"])]
    arguments.out.write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(kept)} of {len(rows)} answers kept")


if __name__ == "__main__":
    main()
