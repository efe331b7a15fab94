"""What a server proves of itself before it answers: that it is the model, sees the tokens, and steers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from steerkit.analysis import Response, probes
from steerkit.errors import EngineError, ModelMismatchError
from steerkit.models import prepare
from steerkit.policy import Check, enforce
from steerkit_vllm.registry import Registry

_PIXELS = 128


class Engine(Protocol):
    """What the self-test needs of vLLM, be it the server's engine or that of `LLM`."""

    async def answer(self, prompt: Any, tokens: int, plan: dict[str, Any] | None) -> tuple[list[int], list[int], float]:
        """Ids of a raw prompt as vLLM has made them, the answer's, and the first token's log probability; greedy."""
        ...

    def chat(self, text: str) -> list[int] | None:
        """Ids of a chat of one turn; None where the model has no template for chats."""
        ...

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        """Call a method in every worker."""
        ...


async def read(engine: Engine, prompt: Any, tag: str, layers: list[int], *, logits: bool = False) -> dict[Any, Tensor]:
    """The unsteered states of a prompt's last token, by layer; and its logits, as `logits`, if wanted."""
    await engine.answer(prompt, 1, {"read": tag})
    return await fetch(engine.rpc, tag, layers, logits=logits)


async def fetch(
    rpc: Callable[..., Awaitable[list[Any]]], tag: str, layers: list[int], *, logits: bool = False
) -> dict[Any, Tensor]:
    """What the workers have read, each of its own layers."""
    found: dict[Any, Tensor] = {}
    for worker in await rpc("steerkit_read", tag, layers, logits):
        for key, data in worker.items():
            found[key if key == "logits" else int(key)] = torch.from_numpy(np.frombuffer(data, np.float32).copy())
    if missing := set(layers) - found.keys():
        raise EngineError(f"no worker has read layers {sorted(missing)}", expected="every layer in some worker")
    return found


async def start(registry: Registry, engine: Engine) -> None:
    """Test a server, and write its packs into the workers.

    Raises:
        EngineError: It does not steer as it should.
        ModelMismatchError: A pack is for another model.
    """
    runners = {facts["runner"] for facts in await engine.rpc("steerkit_facts")}
    await _measure(registry, engine)
    for pack in registry.waiting():
        checks = registry.check(pack)
        await write(registry, pack, engine.rpc)
        registry.serve(pack, checks)
    runner = Check("runner", "pass", "model runner " + " and ".join(sorted(runners)))
    registry.checks[""] = (runner, _chats(registry, engine), *await _steers(registry, engine))
    enforce(registry.checks[""], "strict", EngineError)


async def write(registry: Registry, pack: Any, rpc: Callable[..., Awaitable[list[Any]]]) -> None:
    """Write a pack into the workers; if one of them does not take all of it, no request will name its rows."""
    try:
        for site, first, payload in registry.payloads(pack):
            await rpc("steerkit_add", site, first, payload)
    except BaseException:  # who asked for it may have left, too
        registry.free(registry.rows(pack))
        raise


def prompts(registry: Registry) -> dict[str, tuple[Any, list[int], tuple[int, ...], np.ndarray]]:
    """The probes: as vLLM takes them, and their ids and pixels as the model's own processor makes them."""
    model = registry.model
    assert model.format is not None
    found = {}
    for name, sample in probes(images=_images(registry)).items():
        made = prepare(model.format, [sample], [0]).inputs
        text = model.format.render(sample, len(sample.images))
        pixels = made.get("pixel_values")
        flat = np.empty(0)
        if pixels is not None:
            values = pixels.float().flatten()
            flat = values[torch.linspace(0, values.numel() - 1, min(_PIXELS, values.numel())).long()].double().numpy()
        ids = made["input_ids"][0].tolist()
        given: dict[str, Any] = {"prompt": text}
        if sample.images:
            given["multi_modal_data"] = {"image": sample.images[0]}
        # a text that begins with the token that begins texts must not get another
        own = model.format.tokenizer
        if own(text)["input_ids"][:1] != ids[:1] or own(text)["input_ids"][:2] == [ids[0]] * 2:
            given = {"prompt_token_ids": own(text, add_special_tokens=False)["input_ids"], **given}
            given.pop("prompt")
        found[name] = (given, ids, () if pixels is None else tuple(pixels.shape), flat)
    return found


def _images(registry: Registry) -> bool:
    return registry.model.architecture.takes_images


async def _measure(registry: Registry, engine: Engine) -> None:
    """Read the probes through the served model.

    Raises:
        ModelMismatchError: vLLM makes other tokens of a probe than the model's own processor.
    """
    layers = list(range(registry.model.architecture.layer_count))
    for name, (prompt, ids, shape, pixels) in prompts(registry).items():
        states = await read(engine, prompt, f"probe-{name}", layers, logits=True)
        theirs, _, _ = await engine.answer(prompt, 1, None)
        if theirs != ids:
            at = next((k for k, pair in enumerate(zip(theirs, ids, strict=False)) if pair[0] != pair[1]), "the end")
            raise ModelMismatchError(
                f"vLLM makes {len(theirs)} tokens of the probe {name!r} and the model's processor {len(ids)}; they "
                f"differ from {at} on",
                expected="the same tokens, a beginning-of-text token among them",
                fix="serve with the tokenizer, processor and template of the model",
            )
        digest = hashlib.sha256(json.dumps({"input_ids": ids}, sort_keys=True, separators=(",", ":")).encode())
        stacked = torch.stack([states[layer] for layer in layers])
        if not bool(torch.isfinite(stacked).all()):
            raise EngineError(f"the served model's states are not finite on the probe {name!r}", expected="numbers")
        registry.responses[name] = Response(digest.hexdigest(), shape, pixels, stacked, states.get("logits"))


def _chats(registry: Registry, engine: Engine) -> Check:
    """Whether chats become the tokens that vectors were made on; vLLM adds no special tokens to them."""
    ids = prompts(registry)["text"][1]
    found = engine.chat(str(probes(images=False)["text"].text))
    if found is None:
        return Check("chat", "pass", "the model has no chat template, so that vLLM refuses chats")
    if found == ids:
        return Check("chat", "pass", "chats become the same tokens as in transformers")
    missing = ids[: len(ids) - len(found)]
    what = f"lack {missing} at their beginning" if missing and missing + found == ids else "become other tokens"
    fix = "send add_special_tokens: true with chats, or serve with a chat template that writes these tokens"
    return Check("chat", "warn", f"chats {what} than with the model's own processor", fix)


async def _steers(registry: Registry, engine: Engine) -> list[Check]:
    """Steer a probe with a row of the test's own, at nothing and at a lot."""
    architecture = registry.model.architecture
    layer = architecture.layer_count // 2
    prompt, ids, _, _ = prompts(registry)["text"]
    norm = float(registry.responses["text"].states[layer].norm())
    direction = torch.randn(architecture.hidden_size, generator=torch.Generator().manual_seed(0))
    rows = registry.trial(layer, direction / direction.norm() * norm)
    site, first, payload = rows
    await engine.rpc("steerkit_add", site, first, payload)

    async def run(strength: float, tag: str) -> tuple[list[int], float, int]:
        runs = [[len(ids) - 1, 2**31, strength]]
        plan = {"prompt": len(ids), "changes": [[site, 0, first, -1, runs]], "vectors": [], "count": tag}
        _, answer, logprob = await engine.answer(prompt, 4, plan)
        counted = max(facts["counts"].get(tag, 0) for facts in await engine.rpc("steerkit_facts"))
        await engine.rpc("steerkit_forget", [tag])
        return answer, logprob, counted

    _, plain, before = await engine.answer(prompt, 4, None)
    nothing, same, _ = await run(0.0, "zero")
    _, after, counted = await run(8.0, "large")
    expected = 4  # the last prompt token and all of the answer but the last, which nobody reads
    # a token that is drafted is steered before it is known whether it will be in the answer
    right = counted >= expected if registry.speculates else counted == expected
    told = f"{counted} tokens steered, {expected} expected" + (", or more with drafts" if registry.speculates else "")
    return [
        _check("strength 0", nothing == plain and abs(same - before) < 1e-3, "answers as without steering"),
        _check("large dose", abs(after - before) > 1e-3, f"moves a log probability by {abs(after - before):.3g}"),
        _check("token count", right, told),
    ]


def _check(name: str, fine: bool, message: str) -> Check:
    return Check(name, "pass" if fine else "fail", message if fine else f"not so: {message}")
