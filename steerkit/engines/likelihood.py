"""How likely a model finds given answers, read in one pass behind their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from steerkit.engines.capturing import call_target, forward_inputs
from steerkit.engines.prompts import prompt_lengths
from steerkit.models import Architecture, Inputs


def answer_log_likelihood(
    model: nn.Module, inputs: Inputs, answers: Sequence[Sequence[int]], architecture: Architecture
) -> list[Tensor]:
    """`[tokens]` for each prompt: the log-probabilities of the ids that are to follow it; float32, on the CPU."""
    ids = inputs["decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"]
    lengths = [len(answer) for answer in answers]
    width = max(lengths)
    if width == 0:
        return [torch.empty(0, device="cpu") for _ in answers]
    tokens, real = ids.new_zeros((len(answers), width)), ids.new_zeros((len(answers), width))
    for row, answer in enumerate(answers):
        tokens[row, : len(answer)] = ids.new_tensor(answer)
        real[row, : len(answer)] = 1
    if architecture.encoder_decoder:
        given = forward_inputs(model, inputs, architecture)
        ids = given["decoder_input_ids"]
        given["decoder_input_ids"] = torch.cat([ids, tokens[:, :-1]], dim=1)
    else:
        more = {"input_ids": tokens, "attention_mask": real}
        # whatever else a family says of each token (its modality, say) is 0 for text
        given = forward_inputs(
            model,
            {
                key: torch.cat([value, more.get(key, torch.zeros_like(tokens)).to(value.dtype)], dim=1)
                if value.shape == ids.shape and not key.startswith("qformer")
                else value
                for key, value in inputs.items()
            },
            architecture,
        )
    # the decoder of an encoder's tells its prompt, the start token, from what it is to write
    with torch.no_grad(), nullcontext() if architecture.encoder_decoder else prompt_lengths(ids.shape[1]):
        logits = call_target(model, inputs, architecture)(**given).logits
    logits = logits[:, ids.shape[1] - 1 :][:, :width]
    likely = logits.float().log_softmax(-1).gather(-1, tokens[..., None].to(logits.device))[..., 0].cpu()
    return [row[:length] for row, length in zip(likely, lengths, strict=True)]
