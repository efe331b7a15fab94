"""From a processor's batch to padded tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.models._architecture import Inputs


def batch_of(
    call: Any,
    texts: Sequence[Any],
    images: Any,
    special: bool,
    options: Mapping[str, object],
    of_texts: Mapping[str, object],
) -> Mapping[str, Any]:
    """What a processor makes of texts and images, with rows of tokens that are not padded.

    A processor pads only with a token for it, which some tokenizers lack, and on its own side.
    """
    given = {} if images is None else {"images": images, "images_kwargs": {"return_tensors": "pt"}}
    of_text = {"padding": False, "add_special_tokens": special, "return_tensors": None}
    return call(text=list(texts), text_kwargs={**of_text, **of_texts}, **given, **options)


def padded(batch: Mapping[str, Any], filler: int | None, side: str, dropped: set[str]) -> Inputs:
    """The tensors of a batch, with all that is said of each token padded on one side."""
    import numpy as np
    import torch

    rows = batch["input_ids"]
    lengths = [len(row) for row in rows]
    width = max(lengths)

    def one(row: Any, fill: int) -> Any:
        tensor = torch.as_tensor(row, device="cpu")
        padding = tensor.new_full((width - len(tensor), *tensor.shape[1:]), fill)
        return torch.cat([padding, tensor] if side == "left" else [tensor, padding])

    made: Inputs = {
        "input_ids": torch.stack([one(row, filler or 0) for row in rows]),
        "attention_mask": torch.stack([one(row, 0) for row in batch.get("attention_mask", [[1] * n for n in lengths])]),
    }
    for key, value in batch.items():
        if key in made or key in dropped:
            continue
        counts = _lengths(value) if isinstance(value, (list, tuple)) else None
        other = key.partition("_")[0] + "_input_ids" in batch  # of another reader, whose positions are learned
        if counts is not None and other:
            made[key] = torch.nn.utils.rnn.pad_sequence(
                [torch.as_tensor(row, device="cpu") for row in value], batch_first=True
            )
        elif counts == lengths:
            made[key] = torch.stack([one(row, 0) for row in value])
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            made[key] = torch.as_tensor(value, device="cpu")
        elif isinstance(value, list) and value and all(isinstance(each, torch.Tensor) for each in value):
            if len({each.shape for each in value}) == 1:
                made[key] = torch.stack(value)
    return made


def tensors(batch: Mapping[str, Any]) -> Inputs:
    """A batch without tokens."""
    import numpy as np
    import torch

    return {
        key: torch.as_tensor(np.stack([np.asarray(row) for row in value]), device="cpu") for key, value in batch.items()
    }


def _lengths(rows: Sequence[Any]) -> list[int] | None:
    try:
        return [len(row) for row in rows]
    except TypeError:
        return None
