"""Several sequences in one row: continuous batching (`generate_batch`) of transformers, and packed forward passes.

A manager of continuous batching runs the model in a thread of its own, over what its scheduler has packed: whole
prompts, parts of prompts, single tokens of answers. Which request a piece belongs to stands in the manager, and not
among the arguments of the model. So managers are noted where they are made. Inside a block they are made without what
would make a request depend on others: blocks of the KV cache that requests share hold states that were steered as the
first of them wanted, and a recorded CUDA graph replays without asking what is open.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from steerkit.engines.caches import held_by, kv_cache
from steerkit.engines.model_inputs import extent
from steerkit.engines.passes import Pass
from steerkit.engines.prompts import Prompt
from steerkit.errors import EngineError

_FIX = "model.destroy_cached_continuous_batching_manager(), and make the manager inside the block"


@dataclass(slots=True, eq=False)
class _Request:
    """A request that has been seen: its prompt, and how far the decoder has read it."""

    prompt: Prompt
    length: int
    reached: int


class Managers:
    """The managers of continuous batching that were made for one model inside a block."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, dict[str, _Request]] = weakref.WeakKeyDictionary()

    def make(self, entry: nn.Module, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `init_continuous_batching` returns, fit to be steered.

        Raises:
            EngineError: The manager is there already, or is to record or compile the model.
        """
        kept = getattr(entry, "_cached_continuous_batching_manager", None)
        if kept is not None and kept not in self._known:
            raise EngineError(
                "a manager of continuous batching was made outside of the steering block, and is kept on the model",
                expected="one that is made inside: its KV cache holds what was read without steering",
                fix=_FIX,
            )
        from transformers import ContinuousBatchingConfig

        names = ("generation_config", "continuous_batching_config", "workload_hints")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        generation = given.get("generation_config") or getattr(entry, "generation_config", None)
        config = given.get("continuous_batching_config") or getattr(generation, "continuous_batching_config", None)
        config = ContinuousBatchingConfig() if config is None else copy.deepcopy(config)
        asked = [config.varlen_compile_config, config.decode_compile_config, config.default_compile_level]
        graphs = config.use_cuda_graph
        if any(asked) or (any(graphs) if isinstance(graphs, tuple) else graphs):
            raise EngineError(
                "continuous batching with CUDA graphs or compilation while the model is steered",
                expected="a model that runs eagerly: a recorded graph replays without steering",
                fix="ContinuousBatchingConfig() without use_cuda_graph and compile configurations",
            )
        config.use_cuda_graph = False
        config.allow_block_sharing = False
        config.use_async_batching = False
        given["continuous_batching_config"] = config
        manager = inner(**given)
        self._known.setdefault(manager, {})
        return manager

    def passes(self, call: Prompt, given: Mapping[str, Any]) -> tuple[tuple[slice, Pass], ...]:
        """The sequences of a packed pass, each with a pass of its own.

        Args:
            call: The call of the model.
            given: Its arguments, or the decoder's.

        Raises:
            EngineError: Whose they are is not known.
        """
        places = [slice(low, high) for low, high in pairwise(_bounds(given)) if high > low]
        cache = kv_cache(given)
        if not is_paged(cache):
            ids = given.get("input_ids")
            return tuple(self._alone(call, ids, place, given) for place in places)
        manager = next((each for each in self._known if _cache_of(each) is cache), None)
        if manager is None:
            raise EngineError(
                "a manager of continuous batching that was made outside of the steering block runs inside it",
                expected="one that is made inside: its KV cache holds what was read without steering",
                fix=_FIX,
            )
        requests, running = self._known[manager], manager.batch_processor.inputs_and_outputs.requests_in_batch
        starts = given["position_ids"][0, [place.start for place in places]].tolist()
        return tuple(
            (place, self._part(call, requests, future.state, start, place.stop - place.start))
            for place, future, start in zip(places, running, starts, strict=True)
        )

    def _alone(self, call: Prompt, ids: Tensor | None, place: slice, given: Mapping[str, Any]) -> tuple[slice, Pass]:
        """One of several prompts that a forward pass of the caller's reads in a row."""
        if kv_cache(given) is not None and held_by(kv_cache(given)):
            raise EngineError(
                "a packed forward pass that continues from a KV cache", expected="whole sequences, or generate_batch"
            )
        inputs = {} if ids is None else {"input_ids": ids[:, place]}
        length = place.stop - place.start
        prompt = _prompt(call, inputs, length)
        return place, Pass(prompt, 1, 0, length, length)

    def _part(self, call: Prompt, requests: dict[str, _Request], state: Any, start: int, length: int) -> Pass:
        name = state.request_id
        if start == 0:
            # a request that was put off reads its prompt again, with what it has answered so far behind it
            end = state._true_initial_tokens or len(state.initial_tokens)
            ids = torch.tensor([state.initial_tokens[:end]], device="cpu")
            requests[name] = _Request(_prompt(call, {"input_ids": ids}, end), end, 0)
        elif name not in requests and "__child#" in name:  # one of several answers to a prompt
            parent = requests[name.partition("__child#")[0]]
            requests[name] = _Request(parent.prompt, parent.length, start)
        request = requests.get(name)
        if request is None or request.reached != start:
            raise EngineError(
                f"request {name} goes on at position {start}, and what came before was not read inside the block",
                expected="requests that begin inside the block",
                fix=_FIX,
            )
        request.reached = start + length
        return Pass(request.prompt, 1, start, length, request.length)


def is_packed(given: Mapping[str, Any]) -> bool:
    """Whether the rows of a call hold several sequences: it gives their bounds, or counts positions anew in a row.

    Only without an attention_mask: with one, positions count anew behind padding, and a row is one sequence.
    """
    if isinstance(given.get("cu_seq_lens_q"), Tensor):
        return True
    positions = given.get("position_ids")
    if given.get("attention_mask") is not None or not isinstance(positions, Tensor) or positions.dim() != 2:
        return False
    return positions.shape[1] > 1 and bool((positions[:, 1:] < positions[:, :-1]).any())


def _bounds(given: Mapping[str, Any]) -> list[int]:
    """Where the sequences of a packed row begin, and where the last one ends.

    Raises:
        EngineError: There are several rows, each with bounds of its own.
    """
    if isinstance(given.get("cu_seq_lens_q"), Tensor):
        return given["cu_seq_lens_q"].tolist()
    rows, length = extent(given)
    if rows != 1:
        raise EngineError(
            f"position_ids begin anew within {rows} rows: each holds several sequences",
            expected="packed sequences in one row, or one sequence in each row",
            fix="flatten the rows into one, or pass the attention_mask of rows with padding",
        )
    positions = given["position_ids"][0]
    return [0, *((positions[1:] < positions[:-1]).nonzero()[:, 0] + 1).tolist(), length]


def is_paged(cache: Any) -> bool:
    """Whether a KV cache is that of a manager of continuous batching."""
    return hasattr(cache, "cache_allocators")


def _cache_of(manager: Any) -> Any:
    return None if manager.batch_processor is None else manager.batch_processor.cache


def _prompt(call: Prompt, inputs: dict[str, Any], length: int) -> Prompt:
    prompt = Prompt(inputs, length, generating=True, facts=call.facts, owners=call.owners, entry=call.entry)
    for block in call.owners:
        block.begin(prompt)
    return prompt
