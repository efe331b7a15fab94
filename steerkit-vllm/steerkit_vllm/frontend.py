"""In the process that takes requests: settings, validation, measuring, receipts.

vLLM offers no seam for these, so methods of it are wrapped; which, is written down in `install`. Every request passes
`InputProcessor.process_inputs`, wherever it comes from: what asks for steering there is either turned into a plan or
refused, and an error becomes HTTP 400.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import multiprocessing
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from steerkit.errors import EngineError
from steerkit_vllm.answers import answered, complete, pending, refusals, refusing, registered
from steerkit_vllm.asking import Asked, meant
from steerkit_vllm.registry import Registry
from steerkit_vllm.selftest import fetch, start
from steerkit_vllm.settings import KEY, settings_of

T = TypeVar("T")

_registries: list[tuple[Any, Registry]] = []
"""The registry of each of vLLM's configs; a config is compared by identity."""

_tags = itertools.count()


@dataclass(frozen=True, eq=False)
class Internal:
    """Parameters of a request that this package makes: what is to be done is decided already."""

    plan: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Measured:
    """Parameters of a request whose prompt was measured."""

    given: dict[str, Any]
    states: dict[Any, Any]


def registry_of(config: Any) -> Registry | None:
    """The registry of a server; None where steering is not asked for."""
    return next((registry for known, registry in _registries if known is config), None)


# -- settings ----------------------------------------------------------------------------------------------------------


def _configured(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings = settings_of(self.additional_config)
        config = create(self, *args, **kwargs)
        if settings is None:
            return config
        if getattr(self, "_api_process_count", 1) > 1:
            raise EngineError("several API servers share one engine", expected="--api-server-count 1")
        from steerkit_vllm.worker import check_config

        check_config(config)
        registry = Registry(settings, config)
        config.additional_config = {**config.additional_config, **registry.started()}
        multimodal = config.model_config.multimodal_config
        if registry.room.measured and multimodal is not None:
            # a white image is made from what is known of the prompt's own, as the model's processor would make it
            multimodal.mm_processor_cache_gb = 0
            multimodal.mm_device_do_normalize = False
        _registries.append((config, registry))
        return config

    return create_engine_config


# -- requests ----------------------------------------------------------------------------------------------------------


def _processed(process: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(process)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        given: dict[str, Any] = getattr(params, "extra_args", None) or {}
        ours = given.get(KEY)
        if isinstance(ours, Internal | Measured):
            params = params.clone()
            params.extra_args = {key: value for key, value in given.items() if key != KEY}
        request = process(self, request_id, prompt, params, *args, **kwargs)
        with refusals():
            if isinstance(ours, Internal):
                if ours.plan is not None:
                    plan = {"prompt": len(request.prompt_token_ids), "changes": [], "vectors": [], **ours.plan}
                    request.sampling_params.extra_args = {KEY: plan}
                    if plan["changes"]:
                        request.cache_salt = f"steerkit-test-{next(_tags)}"
            elif isinstance(ours, Measured):
                _plan(self.vllm_config, request, ours.given, ours.states, kwargs)
            elif meant(given):
                _plan(self.vllm_config, request, given, None, kwargs)
        return request

    return process_inputs


def _plan(config: Any, request: Any, given: dict[str, Any], states: dict[Any, Any] | None, options: Any) -> None:
    """Turn what a request asks for into its plan, or refuse it."""
    registry = registry_of(config)
    if registry is None:
        raise EngineError(
            "the request asks for steering, and this server was started without packs",
            expected="""a server started with --additional-config '{"steerkit": {"packs": {"NAME": "REF"}}}'""",
        )
    found = registry.asked(given)
    params = request.sampling_params
    if found is None or params is None:
        raise EngineError("steering is asked for where no text is generated", expected="a request that generates text")
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        raise EngineError("a request brings prompt embeddings", expected="text, token ids or images")
    if options.get("resumable"):
        raise EngineError("the input of a request is streamed", expected="a request that holds its whole prompt")
    ids = request.prompt_token_ids
    parts = registry.parts(found, ids, params.max_tokens or 0)
    if states is None and registry.needs(parts, len(ids)):
        raise EngineError(
            "a pack is measured on each prompt, and the request came in a way that can't measure first",
            expected="LLM.generate, LLM.chat, AsyncLLM.generate or the HTTP server",
        )
    plan, request.cache_salt = registry.plan(found, parts, ids, states or {}, request.cache_salt)
    rest = {key: value for key, value in (params.extra_args or {}).items() if key not in meant(given)}
    params.extra_args = {**rest, KEY: plan}
    if found.receipt:
        pending[id(plan)] = functools.partial(registry.receipt, found, parts, plan)
        while len(pending) > 10_000:
            pending.pop(next(iter(pending)))


def _rendered(processor: Any, prompt: Any, options: dict[str, Any]) -> Any:
    """A prompt as the renderer makes it."""
    if isinstance(prompt, dict) and "type" in prompt:
        return prompt
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    renderer = processor.renderer
    settings = renderer.default_cmpl_tok_params.with_kwargs(**(options.get("tokenization_kwargs") or {}))
    return renderer.render_cmpl([parse_model_prompt(processor.model_config, prompt)], settings)[0]


Answer = Callable[[Any, Any], Awaitable[None]]


async def _measured(processor: Any, prompt: Any, params: Any, run: Answer, rpc: Any, options: Any) -> tuple[Any, Any]:
    """A request whose prompt was measured if need be: its prompt and its parameters."""
    registry = registry_of(processor.vllm_config)
    given = getattr(params, "extra_args", None)
    if registry is None or not isinstance(given, dict) or not meant(given) or not isinstance(prompt, dict | str | list):
        return prompt, params  # what is wrong with it is said when it is processed
    with refusals():
        found: Asked | None = registry.asked(given)
        if found is None or not any(change.measures for served, _ in found.packs for change in served.changes):
            return prompt, params
        prompt = _rendered(processor, prompt, options)
        ids = prompt.get("prompt_token_ids")
        if ids is None:
            raise EngineError("a request brings prompt embeddings", expected="text, token ids or images")
        parts = registry.parts(found, ids, params.max_tokens or registry.config.model_config.max_model_len)
        states = {}
        for view, layers in registry.needs(parts, len(ids)).items():
            tag = f"view-{next(_tags)}"
            seeds = {each.contrast.seed for part in parts for each in part.change.contrasts}
            if len(seeds) > 1:
                raise EngineError("packs with noise of different seeds are named together", expected="one seed")
            shown = registry.view(view, prompt, max(seeds, default=0))
            try:
                await run(shown, {"read": tag})
                states[view] = await fetch(rpc, tag, sorted(layers))
            finally:
                await rpc("steerkit_forget", [tag])
    params = params.clone()
    params.extra_args = {
        **{key: v for key, v in given.items() if key not in meant(given)},
        KEY: Measured(given, states),
    }
    return prompt, params


def _greedy(tokens: int, plan: dict[str, Any] | None) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        min_tokens=tokens,
        ignore_eos=True,
        logprobs=1,
        extra_args={KEY: Internal(plan)},
    )


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
        prompt = _rendered(self._engine.input_processor, prompt, {})
        outputs = self._generate(self._engine, prompt, _greedy(tokens, plan), f"steerkit-{next(_tags)}")
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


def _generating(generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(generate)
    async def wrapped(
        self: Any, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncIterator[Any]:
        await ready(self)

        async def run(shown: Any, plan: dict[str, Any]) -> None:
            async for _ in generate(self, shown, _greedy(1, plan), f"{request_id}-{plan['read']}", **same):
                pass

        async def rpc(method: str, *args: Any) -> list[Any]:
            return await self.collective_rpc(method, args=args)

        same = {key: options[key] for key in ("lora_request", "priority") if key in options}
        prompt, params = await _measured(self.input_processor, prompt, sampling_params, run, rpc, options)
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
        engine.add_request(f"steerkit-{next(_tags)}", prompt, params, lora_request=lora)
        while engine.has_unfinished_requests():
            outputs += engine.step()
        return outputs[-1]

    async def answer(self, prompt: Any, tokens: int, plan: dict[str, Any] | None) -> tuple[list[int], list[int], float]:
        prompt = _rendered(self._engine.input_processor, prompt, {})
        return _outcome(self.one(prompt, _greedy(tokens, plan)))

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        return self._engine.collective_rpc(method, args=args)


def _stepping(step: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    @functools.wraps(step)
    def wrapped(self: Any) -> list[Any]:
        outputs = step(self)
        for output in outputs:
            _done(complete(output, _Sync(self).rpc))
        return outputs

    return wrapped


def _made(initialise: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.steerkit = registry = registry_of(self.vllm_config)
        if registry is not None:
            _done(start(registry, _Sync(self)))

    return __init__


def _adding(add: Callable[..., list[str]]) -> Callable[..., list[str]]:
    @functools.wraps(add)
    def _render_and_add_requests(self: Any, prompts: Any, params: Any, *, lora_requests: Any = None, **kw: Any) -> Any:
        if not any(meant(getattr(each, "extra_args", None) or ()) for each in params):
            return add(self, prompts, params, lora_requests=lora_requests, **kw)
        view, processor, ready = _Sync(self.llm_engine), self.llm_engine.input_processor, []
        for at, prompt in enumerate(prompts):

            async def run(shown: Any, plan: dict[str, Any], at: int = at) -> None:
                view.one(shown, _greedy(1, plan), lora_requests[at] if lora_requests else None)

            ready.append(_done(_measured(processor, prompt, params[at], run, view.rpc, {})))
        prompts, params = [prompt for prompt, _ in ready], [each for _, each in ready]
        return add(self, iter(prompts), params, lora_requests=lora_requests, **kw)

    return _render_and_add_requests


def install() -> None:
    """Wrap what of vLLM takes requests; what remains is wrapped when a config is made, which no worker does."""
    if "vllm.engine.arg_utils" not in sys.modules and multiprocessing.parent_process() is not None:
        return  # a worker
    from vllm.engine.arg_utils import EngineArgs

    create = EngineArgs.create_engine_config
    if hasattr(create, "steerkit"):
        return

    @functools.wraps(create)
    def first(self: Any, *args: Any, **kwargs: Any) -> Any:
        EngineArgs.create_engine_config = _configured(create)
        _install_rest()
        return EngineArgs.create_engine_config(self, *args, **kwargs)

    first.steerkit = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = first


def _install_rest() -> None:
    """The rest, of which workers need not even import anything."""
    from vllm.entrypoints.llm import LLM
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    from steerkit_vllm import routes

    InputProcessor.process_inputs = _processed(InputProcessor.process_inputs)
    AsyncLLM.generate = _generating(AsyncLLM.generate)
    LLMEngine.__init__ = _made(LLMEngine.__init__)
    LLMEngine.step = _stepping(LLMEngine.step)
    LLM._render_and_add_requests = _adding(LLM._render_and_add_requests)
    OutputProcessor.add_request = registered(OutputProcessor.add_request)
    RequestState._new_request_output = answered(RequestState._new_request_output)
    for kind in (ChatCompletionRequest, CompletionRequest):
        kind.to_beam_search_params = refusing(kind.to_beam_search_params)
    routes.install(ready)
