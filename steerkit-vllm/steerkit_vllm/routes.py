"""Routes beside vLLM's, `GET /steerkit` and `POST /steerkit/packs`; and what is refused before vLLM's own see it."""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

from steerkit.errors import OptionError, SteerKitError
from steerkit_vllm._version import __version__
from steerkit_vllm.asking import meant
from steerkit_vllm.settings import KEY

ADMIN = "STEERKIT_ADMIN_KEY"
"""Environment variable with the key that adding packs needs; without it, none can be added."""

TAKES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations")
"""Ends of the paths at which vLLM reads `vllm_xargs`; elsewhere it drops them."""

_adding = asyncio.Lock()


async def added(registry: Any, engine: Any, name: object, ref: object) -> dict[str, Any]:
    """Load a pack into a running server; requests under way are not disturbed, because its rows are used by none.

    Raises:
        SteerKitError: It can't be served.
    """
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


PLACES = ("vllm_xargs", "extra_body", "extra_args", "sampling_params")
"""Objects of a body in which clients put keys."""

_PERHAPS = re.compile(rb"steer|\\u00|\x00", re.IGNORECASE)
"""What a body holds that asks for steering: the letters, escapes of them, or text of 16 or 32 bits a character."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose last entry counts where a key comes twice; those before would be dropped."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and (key in PLACES or meant([key])):
            raise OptionError(f"the body holds {key!r:.80} twice", expected="each key once")
        found[key] = value
    return found


def parsed(body: bytes) -> dict[str, Any]:
    """A body that may ask for steering; empty if it does not, or is none, which vLLM says.

    Raises:
        OptionError: It holds a key twice.
    """
    try:
        found = json.loads(body, object_pairs_hook=_once) if _PERHAPS.search(body) else None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def astray(path: str, given: dict[str, Any]) -> str | None:
    """What of a body asks for steering where vLLM does not look; it ignores fields that it does not know."""
    for place in ("", *PLACES):
        part = given.get(place) if place else given
        if isinstance(part, dict) and (keys := meant(part)) and not (place == "vllm_xargs" and path.endswith(TAKES)):
            what = f"the request to {path} has {keys[0]!r:.80}" + (f" in {place}" if place else "")
            return f"{what}, where vLLM ignores it. Expected: keys in vllm_xargs, sent to one of {', '.join(TAKES)}"
    return None


def malformed(registry: Any, given: dict[str, Any]) -> str | None:
    """What is wrong with keys where vLLM looks. It would say so of a stream only after a status of 200."""
    keys = given.get("vllm_xargs")
    if not isinstance(keys, dict) or not meant(keys):
        return None
    if registry is None:
        return "the request asks for steering, and the server was started without packs"
    try:
        registry.asked(keys)
    except SteerKitError as error:
        return str(error)
    return None


class Refusing:
    """Middleware that refuses what `astray` and `malformed` find."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer or pass on."""
        json_body = any(k == b"content-type" and b"json" in v.lower() for k, v in scope.get("headers", ()))
        if scope["type"] != "http" or scope["method"] != "POST" or not json_body:
            await self._app(scope, receive, send)
            return
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        try:
            given, registry = parsed(body), getattr(scope["app"].state, "steerkit", None)
            problem = astray(scope["path"], given) or malformed(registry, given)
        except OptionError as error:
            problem = str(error)
        if problem:
            from fastapi.responses import JSONResponse

            error = {"message": problem, "type": "BadRequestError", "param": KEY, "code": 400}
            await JSONResponse({"error": error}, status_code=400)(scope, receive, send)
            return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        await self._app(scope, again, send)


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
    app.add_middleware(Refusing)
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
