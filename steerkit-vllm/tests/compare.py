"""Start engines, answer many requests with each, and print as JSON what they said: `compare.py FOLDER OUTPUT`.

Each line of the standard input is a job, each line written to the descriptor OUTPUT what came of it. Engines with other
environment variables need a process of their own: vLLM reads most of them once.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lab as laboratory
import torch
from lab import TOKENS


class Served:
    """An engine with the packs of a lab."""

    def __init__(self, lab: laboratory.Lab, options: dict[str, Any], only: list[str] | None) -> None:
        from vllm import LLM

        self.lab = lab
        packs = {name: ref for name, ref in lab.packs.items() if only is None or name in only}
        arguments: dict[str, Any] = {
            "model": str(lab.model),
            "dtype": "float32",
            "max_model_len": 256,
            "enforce_eager": True,
            "max_num_seqs": 32,
            "block_size": 32,
            "limit_mm_per_prompt": {"image": 1},
            # doses beyond what a strict policy lets pass show a difference at every token
            "additional_config": {"steerkit": {"packs": packs, "policy": "off"}},
        }
        self.llm = LLM(**(arguments | options))
        self.packs = sorted(packs)

    def answer(self, prompts: list[Any], asked: list[Any], **more: Any) -> list[Any]:
        from vllm import SamplingParams

        options = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False, **more}
        sampling = [SamplingParams(**options, extra_args=each) for each in asked]
        config = self.llm.llm_engine.vllm_config.scheduler_config
        priority = [at * 7 % 5 for at in range(len(prompts))] if config.policy == "priority" else None
        return self.llm.generate(prompts, sampling, use_tqdm=False, priority=priority)

    def tokens(self, at: list[int], asked: list[Any]) -> list[list[int]]:
        found = self.answer([self.lab.prompt(each) for each in at], asked)
        return [list(each.outputs[0].token_ids) for each in found]


def wish(name: str | None, strength: float = 1.0) -> dict[str, Any] | None:
    return None if name is None else {"steerkit_pack": name, "steerkit_strength": strength}


def table(served: Served) -> dict[str, Any]:
    """Each recipe on every prompt, all in one batch: by recipe the prompts that transformers answers otherwise."""
    return _compared(served, lambda number: range(len(served.lab.samples)))


def mixed(served: Served) -> dict[str, Any]:
    """The same, each recipe on three prompts."""
    return _compared(served, lambda number: [(number + at) % len(served.lab.samples) for at in (0, 5, 10)])


def _compared(served: Served, prompts: Callable[[int], Iterable[int]]) -> dict[str, list[int]]:
    lab = served.lab
    recipes = ["plain", *(each for each in lab.answers if each.rpartition("@")[0] in served.packs)]
    jobs = [(recipe, at) for number, recipe in enumerate(recipes) for at in prompts(number)]
    asked = [None if recipe == "plain" else wish(*_parsed(recipe)) for recipe, _ in jobs]
    found: dict[str, list[int]] = {recipe: [] for recipe in recipes}
    for (recipe, at), tokens in zip(jobs, served.tokens([at for _, at in jobs], asked), strict=True):
        if tokens != lab.answers[recipe][at]:
            found[recipe].append(at)
    return found


def contaminated(served: Served) -> dict[str, int]:
    """Follow-ups to answers that were steered otherwise: how many differ from those with an empty cache.

    `salted` is how it is; `unsalted` how it would be without salts, to know that this can be seen at all.
    """
    from steerkit_vllm import plans, registry

    texts = [at for at, sample in enumerate(served.lab.samples) if not sample.images]

    def differ() -> int:
        first = served.answer([served.lab.prompt(at) for at in texts], [wish("last", 2.0)] * len(texts))
        follow = [{"prompt_token_ids": [*each.prompt_token_ids, *each.outputs[0].token_ids, 11]} for each in first]
        cached = served.answer(follow, [None] * len(follow))
        served.llm.reset_prefix_cache()
        fresh = served.answer(follow, [None] * len(follow))
        served.llm.reset_prefix_cache()
        return sum(a.outputs[0].token_ids != b.outputs[0].token_ids for a, b in zip(cached, fresh, strict=True))

    served.llm.reset_prefix_cache()
    salted, kept = differ(), registry.salt
    registry.salt = lambda digest, theirs: theirs
    try:
        return {"salted": salted, "unsalted": differ()}
    finally:
        registry.salt = kept
        assert kept is plans.salt


def together(served: Served) -> bool:
    """Two packs of plain additions at once equal one by hooks that are written here."""
    import steerkit as sk
    from steerkit.vectors import Key

    model = sk.load(str(laboratory.DEMO))
    one, two = (sk.load_vector(served.lab.packs[name], policy="off") for name in ("last", "all"))
    sample = served.lab.samples[1]
    inputs = model.inputs([sample])
    length = inputs["input_ids"].shape[1]

    def hook(layer: int) -> Any:
        d, e = one.tensors[Key(layer)], two.tensors[Key(layer)]

        def add(module: Any, given: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            state = state + 0.7 * 0.5 * e
            state[:, -1 if state.shape[1] == length else 0 :] += 1.3 * d  # the last of the prompt, and what follows
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return add

    blocks = model.model.get_submodule(model.architecture.layers)
    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(blocks)]
    with torch.no_grad():
        want = model.model.generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, length:].tolist()
    for handle in handles:
        handle.remove()
    asked = {"steerkit_pack": ["last", "all"], "steerkit_strength": [1.3, 0.7]}
    return served.tokens([1], [asked])[0] == want


def scores(served: Served) -> dict[str, Any]:
    """What else a request may ask for, steered at every token, beside a model that hooks written here steer."""
    from vllm.sampling_params import StructuredOutputsParams

    import steerkit as sk
    from steerkit.vectors import Key

    model = sk.load(str(laboratory.DEMO))
    vector, tokenizer = sk.load_vector(served.lab.packs["all"], policy="off"), model.processor.tokenizer
    prompt, asked = served.lab.prompt(1), wish("all", 4.0)

    def likely(ids: list[int], dose: float) -> torch.Tensor:
        """`[tokens, vocabulary]`: the log probabilities of what follows each token."""
        handles = []
        for layer, block in enumerate(model.model.get_submodule(model.architecture.layers)):
            added = dose * vector.tensors[Key(layer)]

            def add(module: Any, given: Any, output: Any, added: torch.Tensor = added) -> Any:
                return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

            handles.append(block.register_forward_hook(add))
        with torch.no_grad():
            found = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        return found

    (answer,) = served.answer([prompt], [asked], logprobs=0, prompt_logprobs=0)
    (said,) = answer.outputs
    ids = [*answer.prompt_token_ids, *said.token_ids]
    told = zip([*answer.prompt_logprobs[1:], *said.logprobs], ids[1:], strict=True)
    theirs = [each[token].logprob for each, token in told]
    steered, plain = (likely(ids, dose)[range(len(ids) - 1), ids[1:]] for dose in (2.0, 0.0))
    found: dict[str, Any] = {
        "wrong": float((torch.tensor(theirs) - steered).abs().max()),
        "moved": float((torch.tensor(theirs) - plain).abs().max()),
    }
    first, unsteered = (likely(list(answer.prompt_token_ids), dose)[-1] for dose in (2.0, 0.0))
    # two tokens of which steering prefers the other one
    pair = [int((first - unsteered).argmax()), int((unsteered - first).argmax())]
    wanted = [pair[int(scores[pair].argmax())] for scores in (first, unsteered)]
    chosen = served.answer([prompt] * 2, [asked, None], max_tokens=1, allowed_token_ids=pair)
    found["allowed"] = [list(each.outputs[0].token_ids) for each in chosen] == [[token] for token in wanted]
    found["allowed differ"] = wanted[0] != wanted[1]
    choices = ["yes", "no"]
    texts = {token: tokenizer.decode([token]) for token in range(len(first))}
    begins = [token for token, text in texts.items() if text and any(each.startswith(text) for each in choices)]
    begun = texts[begins[int(first[begins].argmax())]]
    options = {"structured_outputs": StructuredOutputsParams(choice=choices), "ignore_eos": False, "detokenize": True}
    (picked,) = served.answer([prompt], [asked], **options)
    found["guided"] = picked.outputs[0].text in choices and picked.outputs[0].text.startswith(begun)
    text = {"detokenize": True, "skip_special_tokens": False}
    whole = served.answer([prompt], [wish("all")], **text)[0].outputs[0].text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    (stopped,) = served.answer([prompt], [wish("all")], **text, stop=[stop])
    found["stopped"] = stopped.outputs[0].text == whole[: whole.index(stop)]
    several = served.answer([prompt], [{**asked, "steerkit_receipt": 1}], n=3, temperature=0.01, seed=0)[0]
    found["several"] = [list(each.token_ids) for each in several.outputs] == [list(said.token_ids)] * 3
    found["receipts"] = [each["steered"] for each in several.kv_transfer_params["steerkit"]]
    return found


def ways(served: Served) -> dict[str, Any]:
    """The other methods of `LLM`: answers beside those of transformers, or what is said instead."""
    from vllm import PoolingParams, SamplingParams
    from vllm.sampling_params import BeamSearchParams

    lab, asked = served.lab, wish("sample")
    options = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False}
    steered = SamplingParams(**options, extra_args=asked)
    chats = []
    for sample in lab.samples:
        images = [{"type": "image_pil", "image_pil": laboratory.open_image(each)} for each in sample.images]
        chats.append([{"role": "user", "content": [*images, {"type": "text", "text": sample.text}]}])
    first = {"add_special_tokens": True}  # the demo's template leaves the first token to the tokenizer

    def said(outputs: list[Any]) -> list[list[int]]:
        return [list(each.outputs[0].token_ids) for each in outputs]

    found: dict[str, Any] = {
        "chat": said(served.llm.chat(chats, steered, use_tqdm=False, tokenization_kwargs=first))
        == lab.wanted("sample"),
    }
    texts = [at for at, sample in enumerate(lab.samples) if not sample.images]
    ids = [{"prompt_token_ids": lab.ids[at]} for at in texts]
    plain = SamplingParams(**options, extra_args=wish("last"))
    found["ids"] = said(served.llm.generate(ids, plain, use_tqdm=False)) == [lab.wanted("last")[at] for at in texts]
    served.llm.enqueue(ids, plain, use_tqdm=False)
    served.llm.enqueue([lab.prompt(0)], SamplingParams(**options), use_tqdm=False)
    later = said(served.llm.wait_for_completion(use_tqdm=False))
    found["enqueued"] = later == [*(lab.wanted("last")[at] for at in texts), lab.wanted(None)[0]]
    beams = BeamSearchParams(beam_width=2, max_tokens=4)
    beams.extra_args = wish("last")  # type: ignore[attr-defined]
    pooled = PoolingParams(extra_kwargs=asked)
    engine = served.llm.llm_engine

    def process(params: SamplingParams, **more: Any) -> Any:
        prompt = {"type": "token", "prompt_token_ids": lab.ids[1]}
        return engine.input_processor.process_inputs("own", prompt, params, supported_tasks=("generate",), **more)

    made = process(SamplingParams(**options))
    made.sampling_params.extra_args = wish("last")
    calls = {
        "streamed": lambda: process(plain, resumable=True),
        "ready-made": lambda: engine.add_request("own", made, made.sampling_params),
        "beam search": lambda: served.llm.beam_search(ids[:1], beams),
        "encode": lambda: served.llm.encode(ids[:1], pooled, pooling_task="token_embed", use_tqdm=False),
        "embed": lambda: served.llm.embed(ids[:1], pooling_params=pooled, use_tqdm=False),
        "score": lambda: served.llm.score("a", "b", pooling_params=pooled, use_tqdm=False),
        "embeddings": lambda: served.llm.generate({"prompt_embeds": torch.zeros(4, 96)}, plain, use_tqdm=False),
        "own plan": lambda: served.answer(ids[:1], [{"steerkit": {"prompt": 9, "changes": []}}]),
    }
    for name, call in calls.items():
        try:
            call()
            found[name] = ""
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    found["afterwards"] = served.tokens([1], [wish("last")])[0] == lab.wanted("last")[1]
    return found


def preempted(served: Served) -> dict[str, Any]:
    """As `mixed`, where the cache holds so little that requests lose their states half-way: also how often they do."""
    scheduler = served.llm.llm_engine.engine_core.engine_core.scheduler
    taken, preempt = [], scheduler._preempt_request

    def counting(request: Any, *args: Any, **kwargs: Any) -> None:
        if (request.sampling_params.extra_args or {}).get("steerkit"):
            taken.append(request.num_output_tokens)
        preempt(request, *args, **kwargs)

    scheduler._preempt_request = counting
    return {"mixed": mixed(served), "taken": taken}


def receipts(served: Served) -> dict[str, Any]:
    """What the receipts of two requests say, one of a prompt that the pack is not for."""
    found = {}
    for name, at in (("last", 0), ("image", 1), ("image", 0)):
        asked = {**(wish(name) or {}), "steerkit_receipt": 1}
        (output,) = served.answer([served.lab.prompt(at)], [asked])
        found[f"{name} {at}"] = {**output.kv_transfer_params["steerkit"], "length": len(output.prompt_token_ids)}
    return {**found, "hooks": _moved(served.lab, "last", 0)}


def _moved(lab: laboratory.Lab, name: str, at: int) -> dict[int, float]:
    """By layer, how long what is added to the last token of a prompt is beside its state; by hooks written here."""
    import steerkit as sk
    from steerkit.vectors import Key

    model, vector = sk.load(str(laboratory.DEMO)), sk.load_vector(lab.packs[name], policy="off")
    found: dict[int, float] = {}

    def hook(layer: int) -> Any:
        def add(module: Any, given: Any, output: Any) -> Any:
            state = (output[0] if isinstance(output, tuple) else output).clone()
            direction = vector.tensors[Key(layer)]
            found[layer] = float(direction.norm() / state[0, -1].norm())
            state[:, -1] += direction
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return add

    for layer, block in enumerate(model.model.get_submodule(model.architecture.layers)):
        block.register_forward_hook(hook(layer))
    with torch.no_grad():
        model.model(**model.inputs([lab.samples[at]]))
    return found


def refused(served: Served) -> list[str]:
    """What malformed requests are told; the engine answers afterwards."""
    found = []
    for asked in (
        {"steerkit_pack": "lats"},
        {"steerkit_pack": "last", "steerkit_strength": "abc"},
        {"steerkit_pack": "last", "steerkit_stength": 1},
        {"steerkit": {"prompt": 1, "changes": [], "vectors": []}},
        {"steerkit_pack": ["last", "gate_prompt_all"]},
        {"steerkit_pack": "last", "steerkit_strength": 1e300},
    ):
        try:
            served.answer([served.lab.prompt(1)], [asked])
            found.append(f"taken: {asked}")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def half_written(served: Served) -> dict[str, Any]:
    """A pack of two changes, of which a worker fails to take the second one: what is free, and what it does later."""
    from steerkit_vllm.admin import add
    from steerkit_vllm.worker import Steering

    lab, registry, take, taken = served.lab, served.llm.llm_engine.steerkit, Steering.add, []

    class Engine:
        async def collective_rpc(self, method: str, args: Any) -> Any:
            return served.llm.collective_rpc(method, args=args)

    def failing(self: Any, *args: Any) -> None:
        taken.append(args)
        if len(taken) == 2:
            raise MemoryError("a worker has no memory left")
        take(self, *args)

    def free() -> dict[str, int]:
        return registry.describe()["free_rows"]

    found: dict[str, Any] = {"before": free()}
    Steering.add = failing  # type: ignore[method-assign]
    try:
        asyncio.run(add(registry, Engine(), "half", lab.packs["two"], replaces=False))
    except MemoryError:
        found["failed"] = len(taken)
    finally:
        Steering.add = take  # type: ignore[method-assign]
    found |= {"after": free(), "served": "half" in registry.packs}
    asyncio.run(add(registry, Engine(), "half", lab.packs["two"], replaces=False))
    prompts = list(range(len(lab.samples)))
    found["right"] = served.tokens(prompts, [wish("half", 4.0)] * len(prompts)) == lab.wanted("two", 4.0)
    found["later"] = free()
    return found


def _parsed(recipe: str) -> tuple[str, float]:
    name, _, strength = recipe.rpartition("@")
    return name, float(strength)


def packs(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """The packs of the lab on its model, in one engine."""
    served = Served(laboratory.build(folder, job["only"]), job["options"], job["only"])
    layers = served.llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    caches = [weakref.ref(layer.kv_cache) for layer in layers]
    del layers
    try:
        runner, _, *checks = served.llm.llm_engine.steerkit.checks[""]
        found: dict[str, Any] = {"runner": runner.message, "self_test": [check.as_json() for check in checks]}
        for name in job["parts"]:
            found[name] = globals()[name](served)
    finally:
        closed(served.__dict__.pop("llm"))
    gc.collect()
    found["caches"] = [len(caches), sum(each() is not None for each in caches)]
    return found


def closed(llm: Any) -> None:
    """Leave nothing of an engine for the next one."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()
    torch._dynamo.reset()


def main() -> None:
    folder, output, failed = Path(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w"), False
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if "model" in job:
                from others import compared

                found = compared(job["model"], Path(job["folder"]), job["options"], job["lora"])
            else:
                found = packs(folder, job)
        except Exception as error:  # a test shows it, and the next job goes on
            failed = True
            found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-4000:]}
        print(json.dumps(found), file=output, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
