"""Where a pass of the decoder stands in its prompt and answer, by what the decoder is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steerkit.engines import model_inputs
from steerkit.engines.caches import kv_cache, note_length, past_length
from steerkit.engines.call_stack import Entered
from steerkit.engines.packed import Managers, is_packed
from steerkit.engines.passes import Pass
from steerkit.engines.prompts import Prompt, told_lengths


def read_pass(
    managers: Managers, call: Prompt, entered: Entered, given: Mapping[str, Any], start: int | None = None
) -> Pass:
    """A pass that begins.

    Args:
        managers: Where the requests of continuous batching are known.
        call: The call that it belongs to.
        entered: The forward pass of the model that it is in.
        given: The arguments of the decoder.
        start: Absolute position of its first token, where the KV cache does not tell it any more.
    """
    rows, length = model_inputs.extent(given)
    if not call.generating and is_packed(given):
        return Pass(call, rows, 0, length, length, parts=managers.passes(call, entered.given))
    start = past_length(given) if start is None else start
    if call.generating:
        if call.cache is None:
            call.cache = kv_cache(given)
        if not call.begun:
            _begin_reading(call, entered, given, start, length)
    elif call.ends is None:
        call.ends = told_lengths(rows, start + length, start)
    call.begun = True
    if call.ends is not None:
        prompt_length = int(call.ends.max())
    elif call.length is not None:
        prompt_length = call.length
    elif call.facts.architecture.encoder_decoder and not call.facts.architecture.only_images:
        prompt_length = 1  # its start token; where the encoder reads images alone, the decoder is given the prompt
    elif start == 0 or length > 1:
        prompt_length = start + length
    else:
        prompt_length = start
    redone = max(0, call.reached - start) if call.generating and start >= prompt_length else 0
    call.reached = start + length
    note_length(kv_cache(given), call.reached)
    if not call.generating:
        call.mask = model_inputs.mask(given, start + length)
    return Pass(call, rows, start, length, prompt_length, redone)


def _rewrites(entry: object) -> bool:
    """Whether a model makes another prompt of what its `generate` is given, as BLIP takes off the last token."""
    return "generate" in vars(type(entry))


def _begin_reading(call: Prompt, entered: Entered, given: Mapping[str, Any], start: int, length: int) -> None:
    """Correct the length of a prompt by what the decoder reads: it may get more than the ids of `generate`.

    A soft prompt stands before the embeddings of the ids, or, where it is one of keys and values, in the KV cache.
    """
    if call.length is None or (call.generating and not start and length < call.length and _rewrites(call.entry)):
        call.length = start + length
        return
    before = past_length(call.inputs)
    ids = entered.given.get("input_ids")
    read = length if not isinstance(ids, Tensor) or call.facts.architecture.encoder_decoder else int(ids.shape[1])
    more = start - before
    if not isinstance(ids, Tensor) and call.input_ids is not None and "inputs_embeds" not in call.inputs:
        more += max(0, start + length - more - call.length)
    elif read < length:
        more += length - read
    if more:
        call.length += more
        call.mask = model_inputs.mask(given, start + length)
