"""Requests as vLLM processes them: what asks for steering becomes a plan or is refused; prompts are measured before.

Every request passes `InputProcessor.process_inputs`, wherever it comes from. An error there becomes HTTP 400.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from steerkit.errors import EngineError
from steerkit_vllm.answers import refusals
from steerkit_vllm.asking import Asked, meant
from steerkit_vllm.registry import Registry
from steerkit_vllm.selftest import fetch
from steerkit_vllm.settings import KEY

_registries: list[tuple[weakref.ref[Any], Registry]] = []
"""The registry of each of vLLM's configs that is still there. Nothing here keeps one, because it keeps its engine's KV
cache, by the layers that it names."""

tags = itertools.count()


@dataclass(frozen=True, eq=False)
class Internal:
    """Parameters of a request that this package makes: what is to be done is decided already."""

    plan: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Measured:
    """Parameters of a request whose prompt was measured."""

    given: dict[str, Any]
    asked: Asked
    states: dict[Any, Any]


def register(config: Any, registry: Registry) -> None:
    """Keep the registry of a server for as long as its config is there."""
    _registries[:] = [each for each in _registries if each[0]() is not None]
    _registries.append((weakref.ref(config), registry))


def registry_of(config: Any) -> Registry | None:
    """The registry of a server; None where steering is not asked for."""
    return next((registry for known, registry in _registries if known() is config), None)


def processed(process: Callable[..., Any]) -> Callable[..., Any]:
    """`InputProcessor.process_inputs`, with the plan of a request that asks for steering."""

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
                        request.cache_salt = f"steerkit-test-{next(tags)}"
            elif isinstance(ours, Measured):
                _planned(self.vllm_config, request, ours.given, ours, kwargs)
            elif meant(given):
                _planned(self.vllm_config, request, given, None, kwargs)
        return request

    return process_inputs


def _planned(config: Any, request: Any, given: dict[str, Any], measured: Measured | None, options: Any) -> None:
    """Turn what a request asks for into its plan, or refuse it."""
    registry = registry_of(config)
    if registry is None:
        raise EngineError(
            "the request asks for steering, and this server was started without packs",
            expected="""a server started with --additional-config '{"steerkit": {"packs": {"NAME": "REF"}}}'""",
        )
    # packs that were replaced since the prompt was measured stay those of the request
    found = registry.asked(given) if measured is None else measured.asked
    params = request.sampling_params
    if found is None or params is None:
        raise EngineError("steering is asked for where no text is generated", expected="a request that generates text")
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        raise EngineError("a request brings prompt embeddings", expected="text, token ids or images")
    if options.get("resumable"):
        raise EngineError("the input of a request is streamed", expected="a request that holds its whole prompt")
    ids = request.prompt_token_ids
    parts = registry.parts(found, ids, params.max_tokens or 0)
    if measured is None and registry.needs(parts, len(ids)):
        raise EngineError(
            "a pack is measured on each prompt, and the request came in a way that can't measure first",
            expected="LLM.generate, LLM.chat, AsyncLLM.generate or the HTTP server",
        )
    states = {} if measured is None else measured.states
    plan, request.cache_salt = registry.plan(found, parts, ids, states, request.cache_salt)
    rest = {key: value for key, value in (params.extra_args or {}).items() if key not in meant(given)}
    params.extra_args = {**rest, KEY: plan}


def rendered(processor: Any, prompt: Any, options: dict[str, Any]) -> Any:
    """A prompt as the renderer makes it."""
    if isinstance(prompt, dict) and "type" in prompt:
        return prompt
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    renderer = processor.renderer
    settings = renderer.default_cmpl_tok_params.with_kwargs(**(options.get("tokenization_kwargs") or {}))
    return renderer.render_cmpl([parse_model_prompt(processor.model_config, prompt)], settings)[0]


Answer = Callable[[Any, Any], Awaitable[None]]


async def measured(processor: Any, prompt: Any, params: Any, run: Answer, rpc: Any, options: Any) -> tuple[Any, Any]:
    """A request whose prompt was measured if need be: its prompt and its parameters."""
    registry = registry_of(processor.vllm_config)
    given = getattr(params, "extra_args", None)
    if registry is None or not isinstance(given, dict) or not meant(given) or not isinstance(prompt, dict | str | list):
        return prompt, params  # what is wrong with it is said when it is processed
    with refusals():
        found: Asked | None = registry.asked(given)
        if found is None or not any(change.measures for served, _ in found.packs for change in served.changes):
            return prompt, params
        prompt = rendered(processor, prompt, options)
        ids = prompt.get("prompt_token_ids")
        if ids is None:
            raise EngineError("a request brings prompt embeddings", expected="text, token ids or images")
        parts = registry.parts(found, ids, params.max_tokens or registry.longest)
        states = {}
        for view, layers in registry.needs(parts, len(ids)).items():
            tag = f"view-{next(tags)}"
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
        KEY: Measured(given, found, states),
    }
    return prompt, params


def greedy(tokens: int, plan: dict[str, Any] | None) -> Any:
    """Parameters of a request that this package makes."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        min_tokens=tokens,
        ignore_eos=True,
        logprobs=1,
        extra_args={KEY: Internal(plan)},
    )
