"""In the workers: buffers at every place that can be steered, filled before each step of the model.

The hooks are there before the model is warmed up and compiled. What a step holds is told by the runner: V1 calls
`_model_forward`, V2 the `preprocess_state` of its model state, right before the model runs.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import nn

from steerkit.errors import EngineError
from steerkit_vllm.arithmetic import with_gates
from steerkit_vllm.banks import PREFIX, Now, Place, allocate, write
from steerkit_vllm.eager import Host
from steerkit_vllm.settings import KEY, MODULES, SITES, settings_of

_RECEIPTS = 16
"""Prompts with a receipt that can be measured in one step, at least."""

Scheduled = tuple[str, Any, int, int, int]
"""A request in a step: its id, its plan or None, tokens computed before, first row, number of rows."""


def decoder_layers(model: nn.Module) -> Any:
    """The decoder blocks of a served model.

    Raises:
        EngineError: They are not where vLLM keeps them.
    """
    language = model.get_language_model() if hasattr(model, "get_language_model") else model  # type: ignore[operator]
    for owner in (getattr(language, "model", None), language):
        if owner is not None and hasattr(owner, "layers"):
            return owner.layers
    raise EngineError(f"{type(model).__name__} has no decoder layers where vLLM keeps them", expected="model.layers")


class Steering:
    """The steering of one worker.

    Args:
        runner: The model runner, its model loaded.
        config: vLLM's.
    """

    def __init__(self, runner: Any, config: Any) -> None:
        settings = settings_of(config.additional_config)
        if settings is None or settings.allocated is None:
            raise EngineError(
                "the process that takes requests has not loaded steerkit's plug-in, and would drop what they ask of it",
                expected="vLLM's own front end, with the plug-in",
            )
        self.room = room = settings.allocated
        self.model = runner.get_model()
        self.hidden = config.model_config.get_hidden_size()
        self._layers = decoder_layers(self.model)
        self._now = Now()
        running = config.scheduler_config.max_num_seqs
        tokens = max(config.scheduler_config.max_num_batched_tokens, getattr(runner, "max_num_tokens", 0))
        device = runner.device
        shape = (len(SITES), room.depth, tokens)
        self._own = room.vectors * running
        self._readable = running if room.measured else min(running, _RECEIPTS)
        eager = bool(config.model_config.enforce_eager)
        # V2's preprocessing sees padded batches, too: one row more than any step holds is never written
        names = {"row": np.int64, "coefficient": np.float32, **({"vector": np.int64} if eager or room.general else {})}
        self._host = {name: np.zeros(shape, kind) for name, kind in names.items()}
        self._shared = shared = {"read_row": torch.zeros(self._readable, dtype=torch.int64, device=device)}
        self._eager = Host(room, device, self._now) if eager else None
        if not eager:
            shared |= {name: torch.from_numpy(values).to(device, copy=True) for name, values in self._host.items()}
        self._dirty = 0
        self._places: dict[tuple[int, int], Any] = {}
        self._slots: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._reading: list[tuple[str, bool]] = []  # tag, and whether it is for a receipt
        self.states: OrderedDict[str, dict[int, torch.Tensor]] = OrderedDict()
        self.moved: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.counts: OrderedDict[str, int] = OrderedDict()
        for layer, block in enumerate(self._layers):
            if type(block).__name__ == "PPMissingLayer":
                continue
            for index, site in enumerate(SITES):
                steers, reads = site in room.sites, site == "resid_post"
                if not steers and not reads:
                    continue
                module = block if reads else getattr(block, MODULES[site], None)
                if module is None:
                    raise EngineError(f"{type(block).__name__} has no {MODULES[site]}", expected="sites resid_post")
                place = Place(index, layer, room, eager, self._now, steers)
                allocate(module, place, shared, self.hidden, self._own, self._readable)
                self._places[layer, index] = module

    # -- what the front end calls in every worker -------------------------------------------------------------------

    def add(self, site: int, start: int, payload: bytes) -> None:
        """Write the rows of a change, at every layer that is here."""
        tensors = load(payload)
        if self.room.general:
            tensors["numbers"] = with_gates(tensors["numbers"], self.room.gates)
        for (_, index), module in self._places.items():
            if index == site and module.steerkit_place.steers:
                write(module, start, tensors)
        if self._eager is not None:
            self._eager.add(site, start, tensors)

    def read(self, tag: str, layers: list[int], logits: bool) -> dict[str, Any]:
        """The states that a request was read for, and forget them: `{layer: bytes}`, float32."""
        self._keep()
        kept = self.states.pop(tag, None)
        if kept is None:
            raise EngineError(f"nothing was read for {tag}", expected="a request that was read before")
        here = [layer for layer in layers if layer in kept]
        found: dict[str, Any] = {str(layer): kept[layer].cpu().numpy().tobytes() for layer in here}
        last = len(self._layers) - 1
        if logits and last in kept:
            language = self.model.get_language_model() if hasattr(self.model, "get_language_model") else self.model
            norm = getattr(getattr(language, "model", language), "norm", None)
            if norm is not None:
                dtype = next(self.model.parameters()).dtype
                with torch.inference_mode():
                    given = self.model.compute_logits(norm(kept[last][None].to(dtype)))
                if given is not None:
                    found["logits"] = given[0].float().cpu().numpy().tobytes()
        return found

    def changes(self, tag: str) -> list[tuple[int, int, float]]:
        """By how much a request was changed where its receipt is measured: `(site, layer, relative)`, and forget it."""
        self._keep()
        found = self.moved.pop(tag, None)
        places = [key for key, module in self._places.items() if module.steerkit_place.steers]
        return (
            [] if found is None else [(site, layer, x) for (layer, site), x in zip(places, found.tolist(), strict=True)]
        )

    def forget(self, tags: list[str]) -> None:
        """Forget what was read and counted."""
        for tag in tags:
            self.states.pop(tag, None)
            self.counts.pop(tag, None)

    # -- what the runner calls before each step ---------------------------------------------------------------------

    def begin(self, batch: list[Scheduled]) -> None:
        """Fill the buffers for one step."""
        self._keep()
        filled, wanted = 0, []
        single: list[tuple[int, int, int, int, float, int]] = []  # decoding steers one row of each request
        for request, plan, done, first, count in batch:
            if plan is None:
                continue
            if "read" in plan and done <= plan["prompt"] - 1 < done + count:
                wanted.append((False, plan["read"], first + plan["prompt"] - 1 - done))
            if "measure" in plan and done <= plan["measure"][1] < done + count:
                wanted.append((True, plan["measure"][0], first + plan["measure"][1] - done))
            touched = np.zeros(count, dtype=bool) if "count" in plan else None
            for site, depth, row, own, runs in plan["changes"]:
                vector = row if own < 0 else 1 + self.room.rows + self._slot(request, own, site, plan, batch)
                for start, stop, coefficient in runs:
                    low, high = max(start, done), min(stop, done + count)
                    if low >= high:
                        continue
                    if not filled:
                        self._clear()
                    start_row, stop_row = first + low - done, first + high - done
                    if stop_row == start_row + 1:
                        single.append((site, depth, start_row, row, coefficient, vector))
                    else:
                        self._fill((site, depth, slice(start_row, stop_row)), row, coefficient, vector)
                    filled = max(filled, stop_row)
                    if touched is not None:
                        touched[low - done : high - done] = True
            if touched is not None:
                self.counts[plan["count"]] = self.counts.get(plan["count"], 0) + int(touched.sum())
        if single:
            sites, depths, places, rows, coefficients, vectors = zip(*single, strict=True)
            self._fill((sites, depths, places), rows, coefficients, vectors)
        # what is read has its rows; receipts take those that are left
        for at, (receipt, tag, row) in enumerate(sorted(wanted, key=lambda each: each[0])[: self._readable]):
            self._reading.append((tag, receipt))
            self._shared["read_row"][at] = row
        if filled or self._dirty:
            wide = max(filled, self._dirty)
            if not filled:
                self._clear()
            if self._eager is not None:
                self._eager.tell({name: values[:, :, :filled] for name, values in self._host.items()})
            else:
                for name, values in self._host.items():
                    self._shared[name][:, :, :wide].copy_(torch.from_numpy(values[:, :, :wide]))
            self._dirty = filled
        self._now.reads = bool(self._reading)

    def _fill(self, where: Any, row: Any, coefficient: Any, vector: Any) -> None:
        self._host["row"][where] = row
        self._host["coefficient"][where] = coefficient
        if "vector" in self._host:
            self._host["vector"][where] = vector

    def _clear(self) -> None:
        for values in self._host.values():
            values[:, :, : self._dirty] = 0

    def _keep(self) -> None:
        """Take what the step before has read, before the next one overwrites it."""
        if not self._reading:
            return
        for index, (tag, receipt) in enumerate(self._reading):
            if receipt:
                self.moved[tag] = self._relative(index)
                continue
            self.states[tag] = {
                layer: getattr(module, PREFIX + "state")[index].clone()
                for (layer, site), module in self._places.items()
                if SITES[site] == "resid_post"
            }
        self._reading = []
        self._shared["read_row"].zero_()  # the next step may hold fewer rows, and a graph reads them in every step
        for kept in (self.states, self.moved):
            while len(kept) > 8 * max(self._readable, 8):
                kept.popitem(last=False)  # of requests that were cancelled in between

    def _relative(self, index: int) -> torch.Tensor:
        """`|change| / |state|` of a token at every place that is steered."""
        found = []
        for module in self._places.values():
            if module.steerkit_place.steers:
                before, after = (getattr(module, PREFIX + name)[index] for name in ("state", "after"))
                found.append((after - before).norm() / before.norm().clamp_min(1e-12))
        return torch.stack(found)

    def _slot(self, request: str, own: int, site: int, plan: Any, batch: list[Scheduled]) -> int:
        """The row of a vector that was measured on a request's prompt; written when the request comes in."""
        key = (request, own)
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        if len(self._slots) < self._own:
            slot = len(self._slots)
        else:
            here = {each[0] for each in batch}
            slot = self._slots.pop(next(old for old in self._slots if old[0] not in here))
        self._slots[key] = slot
        for (layer, index), module in self._places.items():
            if index != site:
                continue
            bank = getattr(module, PREFIX + "u")[1 + self.room.rows + slot]
            given = plan["vectors"][own].get(layer)
            if given is None:
                bank.zero_()
            else:
                bank.copy_(torch.from_numpy(np.frombuffer(given, dtype=np.float32).copy()))
        return slot


def check_config(config: Any) -> None:
    """Refuse what splits or leaves out the tokens of a step, or serves states that a salt does not tell apart.

    Raises:
        EngineError: It is so.
    """
    parallel, compilation = config.parallel_config, config.compilation_config
    speculative = config.speculative_config
    from vllm import envs

    problems = {
        "the front end in Rust, which no plug-in reaches": bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False)),
        "dual batch overlap": getattr(parallel, "use_ubatching", False) or getattr(parallel, "enable_dbo", False),
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "decode context parallelism": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        "data parallelism inside one server": getattr(parallel, "data_parallel_size", 1) > 1,
        "sequence parallelism": getattr(compilation.pass_config, "enable_sp", False),
        "fast prefill with a shared KV cache": getattr(config.cache_config, "kv_sharing_fast_prefill", False),
        "prompt embeddings": getattr(config.model_config, "enable_prompt_embeds", False),
        "a KV connector": getattr(config, "kv_transfer_config", None) is not None,
        "speculation by a model": speculative is not None and speculative.method not in ("ngram", "ngram_gpu"),
        "pooling": config.model_config.runner_type != "generate",
    }
    for what, there in problems.items():
        if there:
            raise EngineError(f"steerkit-vllm does not serve with {what}", expected="a server without it")


def attach(worker: Any, config: Any) -> None:
    """Hook a worker's model, and have the runner say what each step holds."""
    if settings_of(config.additional_config) is None:
        return
    check_config(config)
    runner = worker.model_runner
    runner.steerkit = steering = Steering(runner, config)
    if hasattr(runner, "model_state"):
        _attach_v2(runner.model_state, steering)
    else:
        _attach_v1(runner, steering)


def _plan(params: Any) -> Any:
    plan = (params.extra_args or {}).get(KEY) if params is not None else None
    return plan if isinstance(plan, dict) else None


def _attach_v1(runner: Any, steering: Steering) -> None:
    forward = runner._model_forward

    def before(*args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        starts = runner.query_start_loc.np
        steering.begin(
            [
                (
                    request,
                    _plan(runner.requests[request].sampling_params),
                    int(batch.num_computed_tokens_cpu[at]),
                    int(starts[at]),
                    int(starts[at + 1] - starts[at]),
                )
                for at, request in enumerate(batch.req_ids[: batch.num_reqs])
            ]
        )
        return forward(*args, **kwargs)

    runner._model_forward = before


def _attach_v2(state: Any, steering: Steering) -> None:
    plans: dict[str, Any] = {}
    add, remove, preprocess = state.add_request, state.remove_request, state.preprocess_state

    def add_request(index: int, new: Any) -> Any:
        plans[new.req_id] = _plan(new.sampling_params)
        return add(index, new)

    def remove_request(request: str) -> Any:
        plans.pop(request, None)
        return remove(request)

    def preprocess_state(batch: Any, *args: Any, **kwargs: Any) -> Any:
        starts = batch.query_start_loc_np
        steering.begin(
            [
                (request, plans[request], int(done), int(starts[at]), int(starts[at + 1] - starts[at]))
                for at, (request, done) in enumerate(
                    zip(batch.req_ids, batch.num_computed_tokens_np[: len(batch.req_ids)], strict=True)
                )
            ]
        )
        return preprocess(batch, *args, **kwargs)

    state.add_request, state.remove_request, state.preprocess_state = add_request, remove_request, preprocess_state


def install() -> None:
    """Have every worker of this process steer; a method that begins with `steerkit_` is called by `collective_rpc`."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if hasattr(WorkerWrapperBase, "steerkit_add"):
        return

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.worker.load_model(*args, **kwargs)
        attach(self.worker, self.vllm_config)
        return result

    def of(self: Any) -> Steering:
        return self.worker.model_runner.steerkit

    def facts(self: Any) -> dict[str, Any]:
        runner = self.worker.model_runner
        return {"runner": "V2" if hasattr(runner, "model_state") else "V1", "counts": dict(of(self).counts)}

    methods = {
        "load_model": load_model,
        "steerkit_add": lambda self, *args: of(self).add(*args),
        "steerkit_read": lambda self, *args: of(self).read(*args),
        "steerkit_changes": lambda self, *args: of(self).changes(*args),
        "steerkit_forget": lambda self, *args: of(self).forget(*args),
        "steerkit_facts": facts,
    }
    for name, method in methods.items():
        setattr(WorkerWrapperBase, name, method)
