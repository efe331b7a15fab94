"""vLLM's engines, wrapped: tested before they answer, their prompts measured, their answers completed.

`AsyncLLM` is the server's, which runs in an event loop; `LLM` is not asynchronous.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

from steerkit.errors import EngineError
from steerkit_vllm.answers import complete
from steerkit_vllm.asking import meant
from steerkit_vllm.registry import Registry
from steerkit_vllm.requests import greedy, measured, registry_of, rendered, tags
from steerkit_vllm.selftest import start


def _chat(processor: Any, text: str) -> list[int] | None:
    """The ids of a chat of one turn, as the server makes them of a request that says nothing of special tokens."""
    from vllm.renderers.chat_utils import ChatTemplateResolutionError
    from vllm.renderers.params import ChatParams

    settings = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
    try:
        _, (made,) = processor.renderer.render_chat([[{"role": "user", "content": text}]], settings)
    except ChatTemplateResolutionError:
        return None
    return list(made["prompt_token_ids"])


def _outcome(output: Any) -> tuple[list[int], list[int], float]:
    answer = output.outputs[0]
    first = answer.logprobs[0][answer.token_ids[0]].logprob
    return list(output.prompt_token_ids), list(answer.token_ids), float(first)


# -- the server's engine -----------------------------------------------------------------------------------------------


class _Async:
    """The self-test's view of `AsyncLLM`."""

    def __init__(self, engine: Any, generate: Callable[..., AsyncIterator[Any]]) -> None:
        self._engine, self._generate = engine, generate

    def chat(self, text: str) -> list[int] | None:
        return _chat(self._engine.input_processor, text)

    async def answer(self, prompt: Any, tokens: int, plan: dict[str, Any] | None) -> tuple[list[int], list[int], float]:
        prompt = rendered(self._engine.input_processor, prompt, {})
        outputs = self._generate(self._engine, prompt, greedy(tokens, plan), f"steerkit-{next(tags)}")
        return _outcome([each async for each in outputs][-1])

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        return await self._engine.collective_rpc(method, args=args)


async def ready(engine: Any) -> Registry | None:
    """The registry of a server's engine, tested and with its packs in the workers."""
    registry = registry_of(engine.vllm_config)
    if registry is None:
        return None
    if not hasattr(engine, "steerkit_started"):
        from vllm.v1.engine.async_llm import AsyncLLM

        view = _Async(engine, AsyncLLM.generate.__wrapped__)  # type: ignore[attr-defined]
        engine.steerkit_started = asyncio.ensure_future(start(registry, view))
    await asyncio.shield(engine.steerkit_started)
    return registry


def generating(generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """`AsyncLLM.generate`, after the self-test, with measured prompts and completed receipts."""

    @functools.wraps(generate)
    async def wrapped(
        self: Any, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        await ready(self)

        async def run(shown: Any, plan: dict[str, Any]) -> None:
            async for _ in generate(self, shown, greedy(1, plan), f"{request_id}-{plan['read']}", **same):
                pass

        async def rpc(method: str, *args: Any) -> list[Any]:
            return await self.collective_rpc(method, args=args)

        same = {key: options[key] for key in ("lora_request", "priority") if key in options}
        prompt, params = await measured(self.input_processor, prompt, sampling_params, run, rpc, options)
        async for output in generate(self, prompt, params, request_id, **options):
            await complete(output, rpc)
            yield output

    return wrapped


# -- `LLM`, which is not asynchronous ----------------------------------------------------------------------------------


def _done(work: Any) -> Any:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


class _Sync:
    """The self-test's view of the engine of `LLM`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def chat(self, text: str) -> list[int] | None:
        return _chat(self._engine.input_processor, text)

    def one(self, prompt: Any, params: Any, lora: Any = None) -> Any:
        """The output of one request, while there are no others."""
        engine, outputs = self._engine, []
        if engine.has_unfinished_requests():
            raise EngineError(
                "a prompt is to be measured while other requests are under way", expected="LLM.generate or LLM.chat"
            )
        engine.add_request(f"steerkit-{next(tags)}", prompt, params, lora_request=lora)
        while engine.has_unfinished_requests():
            outputs += engine.step()
        return outputs[-1]

    async def answer(self, prompt: Any, tokens: int, plan: dict[str, Any] | None) -> tuple[list[int], list[int], float]:
        prompt = rendered(self._engine.input_processor, prompt, {})
        return _outcome(self.one(prompt, greedy(tokens, plan)))

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        return self._engine.collective_rpc(method, args=args)


def stepping(step: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`LLMEngine.step`, with completed receipts."""

    @functools.wraps(step)
    def wrapped(self: Any) -> list[Any]:
        outputs = step(self)
        for output in outputs:
            _done(complete(output, _Sync(self).rpc))
        return outputs

    return wrapped


def made(initialise: Callable[..., None]) -> Callable[..., None]:
    """`LLMEngine.__init__`, with the self-test."""

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.steerkit = registry = registry_of(self.vllm_config)
        if registry is not None:
            _done(start(registry, _Sync(self)))

    return __init__


def adding(add: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """`LLM._render_and_add_requests`, with measured prompts."""

    @functools.wraps(add)
    def _render_and_add_requests(self: Any, prompts: Any, params: Any, *, lora_requests: Any = None, **kw: Any) -> Any:
        if not any(meant(getattr(each, "extra_args", None) or ()) for each in params):
            return add(self, prompts, params, lora_requests=lora_requests, **kw)
        view, processor, ready = _Sync(self.llm_engine), self.llm_engine.input_processor, []
        for at, prompt in enumerate(prompts):

            async def run(shown: Any, plan: dict[str, Any], at: int = at) -> None:
                view.one(shown, greedy(1, plan), lora_requests[at] if lora_requests else None)

            ready.append(_done(measured(processor, prompt, params[at], run, view.rpc, {})))
        prompts, params = [prompt for prompt, _ in ready], [each for _, each in ready]
        return add(self, iter(prompts), params, lora_requests=lora_requests, **kw)

    return _render_and_add_requests
