"""Packs come and go while the server runs: `POST /steerkit/packs`, `DELETE /steerkit/packs/NAME`, revocation."""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

from steerkit.errors import OptionError, SteerKitError

ADMIN = "STEERKIT_ADMIN_KEY"
"""Environment variable with the key that these routes need; without it, they refuse."""

_changing = asyncio.Lock()
_logger = logging.getLogger("vllm.steerkit")
_draining: set[asyncio.Task[None]] = set()


async def add(registry: Any, engine: Any, name: object, ref: object) -> dict[str, Any]:
    """Load a pack into a running server; requests under way are not disturbed, because its rows are used by none.

    Raises:
        SteerKitError: It can't be served.
    """
    from steerkit_vllm.selftest import write

    if not isinstance(name, str) or not isinstance(ref, str):
        raise OptionError("the body names no pack", expected='{"name": "NAME", "ref": "REF"}')

    async def rpc(method: str, *args: Any) -> list[Any]:
        return await engine.collective_rpc(method, args=args)

    async with _changing:
        pack = await asyncio.to_thread(registry.load, name, ref)
        await write(registry, pack, rpc)
        registry.serve(pack)
    return registry.describe()


def withdraw(registry: Any, engine: Any, name: str, why: str) -> dict[str, Any]:
    """Take a pack out. Requests under way end as they began; then its rows are free for others.

    Raises:
        UnknownNameError: There is none of this name.
    """
    pack = registry.withdraw(name, why)
    _logger.warning("steerkit-vllm: pack %r was taken out: %s", name, why)
    task = asyncio.ensure_future(_drained(registry, engine, pack))
    _draining.add(task)
    task.add_done_callback(_draining.discard)
    return registry.describe()


async def _drained(registry: Any, engine: Any, pack: Any) -> None:
    requests = engine.output_processor.request_states
    await asyncio.sleep(1.0)  # by then, requests that had their plan are registered
    under_way = set(requests)
    while under_way & requests.keys():
        await asyncio.sleep(0.5)
    registry.release(pack)


async def watch(registry: Any, engine: Any) -> None:
    """Verify the packs again from time to time, as when they were loaded, and take out those that were revoked."""
    while True:
        await asyncio.sleep(registry.settings.recheck)
        for name, pack in list(registry.packs.items()):
            why = await asyncio.to_thread(registry.revoked, pack)
            if why and registry.packs.get(name) is pack:
                withdraw(registry, engine, name, why)


def attach(app: Any) -> None:
    """Add the routes to an app."""
    from fastapi import Request
    from fastapi.responses import JSONResponse

    def answer(status: int, message: str) -> Any:
        return JSONResponse({"error": {"message": message, "code": status}}, status_code=status)

    def guarded(route: Callable[[Request, Any, Any], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Any]]:
        @functools.wraps(route)
        async def wrapped(request: Request) -> Any:
            key = os.environ.get(ADMIN)
            given = request.headers.get("authorization", "")
            if not key or not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                why = "the key is wrong" if key else f"the server has no {ADMIN}"
                return answer(403, f"packs can't be changed: {why}")
            state = request.app.state
            if getattr(state, "steerkit", None) is None:
                return answer(409, "the server was started without steering")
            try:
                return JSONResponse(await route(request, state.steerkit, state.engine_client))
            except (SteerKitError, ValueError) as error:
                return answer(400, str(error))

        # without these, FastAPI takes the arguments of the route for those of the request
        wrapped.__annotations__ = {"request": Request}
        del wrapped.__wrapped__  # type: ignore[attr-defined]
        return wrapped

    @guarded
    async def post(request: Request, registry: Any, engine: Any) -> dict[str, Any]:
        body = await request.json()
        given = body if isinstance(body, dict) else {}
        return await add(registry, engine, given.get("name"), given.get("ref"))

    @guarded
    async def delete(request: Request, registry: Any, engine: Any) -> dict[str, Any]:
        return withdraw(registry, engine, request.path_params["name"], "by an administrator")

    app.add_api_route("/steerkit/packs", post, methods=["POST"])
    app.add_api_route("/steerkit/packs/{name:path}", delete, methods=["DELETE"])
