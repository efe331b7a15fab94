"""What stops a server that would drop what requests ask of steerkit, because vLLM has not loaded the plug-in.

vLLM logs a plug-in that can't be imported, or that `VLLM_PLUGINS` leaves out, and serves without it. What the
entry-point group `vllm.logits_processors` names is loaded whatever that variable says, and must load: a server without
it does not start. So the plug-in has a logits processor, which changes nothing. With speculation, V1 loads it for the
parameters of requests alone, which are refused then.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as Second

import steerkit_vllm

_FIX = (
    "see vLLM's log of when it loaded its plug-ins, and the environment variable VLLM_PLUGINS, which has to name "
    "steerkit where it is set"
)


class Guard(LogitsProcessor, Second):
    """For both model runners; it refuses, in a process without the plug-in, what asks for steering.

    Args:
        config: vLLM's.
        others: What either runner gives beside.

    Raises:
        RuntimeError: The server is to steer, and the plug-in is not loaded.
    """

    def __init__(self, config: Any, *others: Any) -> None:
        settings = getattr(config, "additional_config", None)
        if isinstance(settings, dict) and steerkit_vllm.KEY in settings and not steerkit_vllm.loaded:
            raise RuntimeError(f"steerkit-vllm: the server is to steer, and vLLM has not loaded the plug-in: {_FIX}")

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request that asks for steering; vLLM answers HTTP 400."""
        keys = [key for key in sampling_params.extra_args or () if isinstance(key, str)]
        if not steerkit_vllm.loaded and any(key.strip().lower().startswith("steer") for key in keys):
            raise ValueError(f"the request asks for steering, and vLLM has not loaded steerkit's plug-in: {_FIX}")

    def apply(self, logits: Any, *others: Any) -> Any:
        """The logits as they are."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """It is, so that V1 leaves it out of greedy steps."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """There is none."""

    def add_request(self, *others: Any) -> bool:
        """Whether it changes logits, for V2."""
        return False
