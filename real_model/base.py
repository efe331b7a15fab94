"""The folder of a language model from its GGUF file, which transformers dequantises to bfloat16."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SHA256 = {
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046": "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M",
}
"""The files that the figures of `docs/real-model.md` are of."""


def convert(gguf: Path, out: Path) -> None:
    """Write the model and its tokenizer as transformers saves them.

    A model that was loaded from GGUF can't be saved, so its weights are handed to a fresh one, without a copy of them.
    """
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config, state = loaded.config, loaded.state_dict()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh: Any = type(loaded)(config)
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


def main() -> None:
    """Check the file and convert it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True, help="the whole file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the language model: BASE")
    arguments = parser.parse_args()
    with arguments.gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in SHA256:
        raise SystemExit(f"{arguments.gguf} has the SHA-256 {found}; known are {SHA256}. Check that it is whole.")
    print(SHA256[found])
    convert(arguments.gguf, arguments.out)


if __name__ == "__main__":
    main()
