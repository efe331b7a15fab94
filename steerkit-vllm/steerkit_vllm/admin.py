"""Packs come and go while the server runs, by requests of an administrator and by revocation.

`POST /steerkit/packs` adds one, `PUT /steerkit/packs/NAME` adds or replaces it, `DELETE` takes it out.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging
import os
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from steerkit.errors import OptionError, SteerKitError

ADMIN = "STEERKIT_ADMIN_KEY"
"""Environment variable with the key that these routes need; without it, they refuse."""

_changing = asyncio.Lock()
_logger = logging.getLogger("vllm.steerkit")
_draining: set[asyncio.Task[None]] = set()


async def add(registry: Any, engine: Any, name: str, ref: str, *, replaces: bool) -> dict[str, Any]:
    """Load a pack into a running server; requests under way are not disturbed, because its rows are used by none.

    Where it replaces another, each request is steered by the one or the other, and none is refused in between.

    Raises:
        SteerKitError: It can't be served; what was served still is.
    """
    from steerkit_vllm.selftest import write

    async def rpc(method: str, *args: Any) -> list[Any]:
        return await engine.collective_rpc(method, args=args)

    async with _changing:
        pack, checks = await asyncio.to_thread(registry.load, name, ref, replaces=replaces)
        await write(registry, pack, rpc)
        before = registry.packs.get(name)
        registry.serve(pack, checks)
        if before is not None:
            _drain(registry, before)
    return registry.describe()


def withdraw(registry: Any, name: str, why: str) -> dict[str, Any]:
    """Take a pack out. Requests under way end as they began; then its rows are free for others.

    Raises:
        UnknownNameError: There is none of this name.
    """
    _drain(registry, registry.withdraw(name, why))
    _logger.warning("steerkit-vllm: pack %r was taken out: %s", name, why)
    return registry.describe()


def _drain(registry: Any, pack: Any) -> None:
    """Free the rows of a pack that is served no more, once no request is steered by it."""
    task = asyncio.ensure_future(_drained(registry, registry.rows(pack), weakref.ref(pack)))
    _draining.add(task)
    task.add_done_callback(_draining.discard)


async def _drained(registry: Any, rows: Any, pack: weakref.ref[Any]) -> None:
    # a request keeps its packs, by its `Plan`; vLLM aborts requests in the workers a little later
    while pack() is not None:
        await asyncio.sleep(0.5)
    await asyncio.sleep(0.5)
    registry.free(rows)


async def watch(registry: Any) -> None:
    """Verify the packs again from time to time, as when they were loaded, and take out those that were revoked."""
    while True:
        await asyncio.sleep(registry.settings.recheck)
        for name in list(registry.packs):
            await _verified(registry, name)


async def _verified(registry: Any, name: str) -> None:
    pack = registry.packs.get(name)
    why = pack and await asyncio.to_thread(registry.revoked, pack)
    if why and registry.packs.get(name) is pack:
        withdraw(registry, name, why)


async def _body(request: Any, *keys: str) -> list[str]:
    """The values of the keys that a body has to have, and no others.

    Raises:
        OptionError: It has not.
    """
    given = await request.json()
    if (
        not isinstance(given, dict)
        or given.keys() != set(keys)
        or not all(isinstance(each, str) for each in given.values())
    ):
        raise OptionError("the body does not name a pack", expected=str({key: key.upper() for key in keys}))
    return [given[key] for key in keys]


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
            except (SteerKitError, ValueError, RecursionError) as error:
                return answer(400, str(error))

        # without these, FastAPI takes the arguments of the route for those of the request
        wrapped.__annotations__ = {"request": Request}
        del wrapped.__wrapped__  # type: ignore[attr-defined]
        return wrapped

    @guarded
    async def post(request: Request, registry: Any, engine: Any) -> dict[str, Any]:
        name, ref = await _body(request, "name", "ref")
        return await add(registry, engine, name, ref, replaces=False)

    @guarded
    async def put(request: Request, registry: Any, engine: Any) -> dict[str, Any]:
        (ref,) = await _body(request, "ref")
        return await add(registry, engine, request.path_params["name"], ref, replaces=True)

    @guarded
    async def delete(request: Request, registry: Any, engine: Any) -> dict[str, Any]:
        return withdraw(registry, request.path_params["name"], "by an administrator")

    app.add_api_route("/steerkit/packs", post, methods=["POST"])
    for method, route in {"PUT": put, "DELETE": delete}.items():
        app.add_api_route("/steerkit/packs/{name:path}", route, methods=[method])
