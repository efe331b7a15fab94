"""In the process that takes requests: where vLLM is wrapped.

vLLM offers no seam for these, so methods of it are wrapped; which, is written down in `install`.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

from steerkit.errors import EngineError
from steerkit_vllm.answers import answered, refusing, registered
from steerkit_vllm.engines import adding, generating, made, ready, stepping
from steerkit_vllm.registry import Registry
from steerkit_vllm.requests import processed, register
from steerkit_vllm.settings import settings_of


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
        register(config, registry)
        return config

    return create_engine_config


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

    InputProcessor.process_inputs = processed(InputProcessor.process_inputs)
    AsyncLLM.generate = generating(AsyncLLM.generate)
    LLMEngine.__init__ = made(LLMEngine.__init__)
    LLMEngine.step = stepping(LLMEngine.step)
    LLM._render_and_add_requests = adding(LLM._render_and_add_requests)
    OutputProcessor.add_request = registered(OutputProcessor.add_request)
    RequestState._new_request_output = answered(RequestState._new_request_output)
    for kind in (ChatCompletionRequest, CompletionRequest):
        kind.to_beam_search_params = refusing(kind.to_beam_search_params)
    LLM.beam_search = refusing(LLM.beam_search)
    routes.install(ready)
