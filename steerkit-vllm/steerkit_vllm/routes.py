"""Routes beside vLLM's: `GET /steerkit` says what is served, `POST /steerkit/packs` adds a pack."""

from __future__ import annotations

import asyncio
import functools
import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

from steerkit.errors import SteerKitError
from steerkit_vllm._version import __version__

ADMIN = "STEERKIT_ADMIN_KEY"
"""Environment variable with the key that adding packs needs; without it, none can be added."""

_adding = asyncio.Lock()


async def added(registry: Any, engine: Any, name: object, ref: object) -> dict[str, Any]:
    """Load a pack into a running server; requests under way are not disturbed, because its rows are used by none.

    Raises:
        SteerKitError: It can't be served.
    """
    from steerkit.errors import OptionError
    from steerkit_vllm.selftest import write

    if not isinstance(name, str) or not isinstance(ref, str):
        raise OptionError("the body names no pack", expected='{"name": "NAME", "ref": "REF"}')

    async def rpc(method: str, *args: Any) -> list[Any]:
        return await engine.collective_rpc(method, args=args)

    async with _adding:
        pack = await asyncio.to_thread(registry.load, name, ref)
        await write(registry, pack, rpc)
        registry.serve(pack)
    return registry.describe()


def _attach(app: Any) -> None:
    from fastapi import Request
    from fastapi.responses import JSONResponse

    async def show(request: Request) -> Any:
        registry = getattr(request.app.state, "steerkit", None)
        return JSONResponse({"steering": False, "version": __version__} if registry is None else registry.describe())

    async def add(request: Request) -> Any:
        key = os.environ.get(ADMIN)
        given = request.headers.get("authorization", "")
        if not key or not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            why = "the key is wrong" if key else f"the server has no {ADMIN}"
            return JSONResponse({"error": {"message": f"packs can't be added: {why}", "code": 403}}, status_code=403)
        registry = getattr(request.app.state, "steerkit", None)
        if registry is None:
            error = "the server was started without steering"
            return JSONResponse({"error": {"message": error, "code": 409}}, status_code=409)
        try:
            body = await request.json()
            given = body if isinstance(body, dict) else {}
            return JSONResponse(
                await added(registry, request.app.state.engine_client, given.get("name"), given.get("ref"))
            )
        except (SteerKitError, ValueError) as error:
            return JSONResponse({"error": {"message": str(error), "code": 400}}, status_code=400)

    # the annotations are names of this function, which FastAPI could not find
    show.__annotations__ = add.__annotations__ = {"request": Request}
    app.add_api_route("/steerkit", show, methods=["GET"])
    app.add_api_route("/steerkit/packs", add, methods=["POST"])


def install(ready: Callable[[Any], Awaitable[object]]) -> None:
    """Add the routes to every app, and let none answer before the self-test has passed.

    Args:
        ready: Awaited with the engine of each app: the packs, once the self-test has passed.
    """
    from vllm.entrypoints.launchers import app as apps
    from vllm.entrypoints.launchers.api_server import app_state

    attach, begin = apps.attach_endpoint_plugins, app_state.init_endpoint_plugins_state

    @functools.wraps(attach)
    def attach_endpoint_plugins(app: Any, *args: Any, **kwargs: Any) -> None:
        attach(app, *args, **kwargs)
        _attach(app)

    @functools.wraps(begin)
    async def init_endpoint_plugins_state(engine: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        await begin(engine, state, *args, **kwargs)
        state.steerkit = await ready(engine)

    apps.attach_endpoint_plugins = attach_endpoint_plugins
    app_state.init_endpoint_plugins_state = init_endpoint_plugins_state
