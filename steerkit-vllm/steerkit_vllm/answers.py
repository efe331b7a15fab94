"""What comes back: refusals as errors of vLLM's, and receipts with the answers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from steerkit.errors import EngineError, SteerKitError
from steerkit_vllm.asking import meant
from steerkit_vllm.plans import Plan, receipt, with_changes
from steerkit_vllm.settings import KEY


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn our errors into vLLM's of a faulty request."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except SteerKitError as error:
        raise VLLMValidationError(str(error), parameter=KEY) from error


def registered(add: Callable[..., None]) -> Callable[..., None]:
    """`OutputProcessor.add_request`, with a request's plan kept until its answer is complete.

    A request that vLLM is given ready-made passes this alone; keys that are left by then would be dropped.
    """

    @functools.wraps(add)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        given = getattr(request.sampling_params, "extra_args", None) or {}
        plan = given.get(KEY)
        with refusals():
            if left := [key for key in meant(given) if key != KEY]:
                raise EngineError(f"a ready-made request asks for {left[0]!r:.80}", expected="a prompt and parameters")
        add(self, request, *args, **kwargs)
        if isinstance(plan, Plan):
            self.request_states[request.request_id].steerkit = plan

    return add_request


def answered(make: Callable[..., Any]) -> Callable[..., Any]:
    """`RequestState._new_request_output`, with the receipt in the last output."""

    @functools.wraps(make)
    def _new_request_output(self: Any, external: str, outputs: Any, finished: bool, *args: Any, **kwargs: Any) -> Any:
        output = make(self, external, outputs, finished, *args, **kwargs)
        plan = getattr(self, "steerkit", None)
        if plan is not None and plan.asked.receipt and finished:
            found = [receipt(plan.parts, plan, plan.asked, len(each.token_ids)) for each in outputs]
            output.kv_transfer_params = {
                **(output.kv_transfer_params or {}),
                KEY: found[0] if len(found) == 1 else found,
            }
        return output

    return _new_request_output


async def complete(output: Any, rpc: Callable[..., Awaitable[list[Any]]]) -> None:
    """Put into an output's receipts what the workers have measured, each at its own layers."""
    found = (getattr(output, "kv_transfer_params", None) or {}).get(KEY, [])
    receipts = [each for each in (found if isinstance(found, list) else [found]) if "tag" in each]
    if receipts:
        tag = receipts[0]["tag"]
        changes = [] if tag is None else [each for worker in await rpc("steerkit_changes", tag) for each in worker]
        for each in receipts:
            with_changes(each, changes)


def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse what vLLM would drop without a word: steering in a beam search."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for each in (*args, *kwargs.values()):
            for name in ("vllm_xargs", "extra_args"):
                with refusals():
                    if meant(getattr(each, name, None) or ()):
                        raise EngineError("a beam search is asked to steer", expected="sampling or greedy decoding")
        return method(*args, **kwargs)

    return wrapped
