"""Steering as it is shipped with a remote trace: functions and tensors, and nothing of steerkit around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nnsight.intervention.interleaver import Mediator, OutOfOrderError


def replay(
    places: Sequence[tuple[str, Sequence[tuple[Any, ...]]]],
    decoder: str,
    images: Sequence[int],
    audio: Sequence[int],
    root: Any,
) -> None:
    """Steer a trace at its places, in a process that has neither a tracker nor steerkit.

    It travels by its source, so it names nothing but torch and nnsight. The first pass of the decoder reads the prompt,
    every later one a new token.
    """
    Mediator.current("a steered place").iteration = None
    prompt, pictured = True, None
    try:
        if any(step[4] != "all" for _, steps in places for step in steps):
            ids = root.inputs[1].get("input_ids")
            if ids is None:
                raise RuntimeError("remote steering of prompts by whether they hold an image needs their input_ids")
            pictured = torch.isin(ids, torch.tensor(images, device=ids.device)).any(1)
            others = ("pixel_values", "input_features", "input_values", "image_embeds", "video_embeds")
            beside = [name for name, value in root.inputs[1].items() if value is not None and name.startswith(others)]
            if beside and not bool(pictured.any()):
                raise RuntimeError(f"remote steering knows no token of input_ids that stands for {beside}")
            if bool((torch.isin(ids, torch.tensor(audio, device=ids.device)).any(1) & ~pictured).any()):
                raise RuntimeError("remote steering of prompts by whether they hold an image, and one holds audio")
        while places:
            _, given = root.get(decoder).inputs
            cache, mask = given.get("cache"), given.get("attention_mask")
            cache = given.get("past_key_values") if cache is None else cache  # its name before transformers 5.24
            if not prompt and (cache is None or cache.get_seq_length() == 0):
                raise RuntimeError("remote steering of generation without a KV cache: it can't tell prompt from answer")
            if mask is not None and mask.dim() != 2:
                raise RuntimeError("remote steering needs a decoder that is given a two-dimensional attention mask")
            for path, steps in places:
                envoy = root.get(path)
                output = envoy.output
                # spelt out, since this function leaves the process without the modules around it
                several = isinstance(output, (tuple, list))
                h = before = output[0] if several else output
                for operate, keep_norm, tokens, phase, prompts, arguments in steps:
                    if phase == ("generation" if prompt else "prompt") or (prompt and tokens == "generated"):
                        continue
                    chosen = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
                    if prompt and mask is not None:
                        chosen = mask[:, -h.shape[1] :].to(h.device) != 0
                    if prompt and tokens == "last":
                        chosen = chosen & (chosen.flip(1).int().cumsum(1).flip(1) == 1)
                    if pictured is not None and prompts != "all":
                        rows = pictured if prompts == "with_image" else ~pictured
                        rows = rows.repeat_interleave(h.shape[0] // rows.shape[0])
                        chosen = chosen & rows.to(h.device)[:, None]
                    there = [each.to(h.device) if isinstance(each, torch.Tensor) else each for each in arguments]
                    steered = operate(h[chosen], *there)
                    steered = steered if keep_norm is None else keep_norm(steered, h[chosen])
                    h = h.clone()
                    h[chosen] = steered
                if h is not before:
                    envoy.output = type(output)((h, *output[1:])) if several else h
            prompt = False
    except OutOfOrderError:
        return
