"""What is refused before vLLM's own routes see it, and `GET /steerkit`; `admin` has the routes for administrators."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from steerkit.errors import OptionError, SteerKitError
from steerkit_vllm import admin
from steerkit_vllm._version import __version__
from steerkit_vllm.asking import KEYS, meant
from steerkit_vllm.settings import KEY

TAKES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations")
"""Ends of the paths at which vLLM reads `vllm_xargs`; elsewhere it drops them."""

PLACES = ("vllm_xargs", "extra_body", "extra_args", "sampling_params")
"""Objects of a body in which clients put keys."""

_PERHAPS = re.compile(rb"steer|kit_|xargs|\\u00|\x00", re.IGNORECASE)
"""What a body holds that asks for steering: the letters, perhaps mistyped, escapes of them, or text of 16 or 32 bits a
character."""


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
    for place, part in _objects(given):
        if place == "vllm_xargs" and path.endswith(TAKES):
            continue
        # what else a body holds has names of its own
        free = place.rpartition(".")[2] not in ("", *PLACES)
        if keys := [key for key in part if key in KEYS] if free else meant(part):
            what = f"the request to {path} has {keys[0]!r:.80}" + (f" in {place}" if place else "")
            return f"{what}, where vLLM ignores it. Expected: keys in vllm_xargs, sent to one of {', '.join(TAKES)}"
    return None


def _objects(given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where keys may have been put, by path: the body, its objects, and those of `PLACES` inside these."""
    yield "", given
    for name, part in given.items():
        if isinstance(part, dict):
            yield name, part
            yield from ((f"{name}.{place}", part[place]) for place in PLACES if isinstance(part.get(place), dict))


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


def batched(read: Callable[[str], Awaitable[str]]) -> Callable[[str], Awaitable[str]]:
    """`read_file` of `vllm run-batch`, which has no routes: the file is refused before any request is answered."""

    @functools.wraps(read)
    async def read_file(path: str) -> str:
        text = await read(path)
        for number, line in enumerate(text.split("\n"), 1):
            try:
                given = parsed(line.encode())
                body = given.get("body")
                problem = astray(str(given.get("url")), body) if isinstance(body, dict) else None
            except OptionError as error:
                problem = str(error)
            if problem:
                raise OptionError(f"line {number} of {path}: {problem}")
        return text

    return read_file


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

    # the annotations are names of this function, which FastAPI could not find
    show.__annotations__ = {"request": Request}
    app.add_middleware(Refusing)
    app.add_api_route("/steerkit", show, methods=["GET"])
    admin.attach(app)


def install(ready: Callable[[Any], Awaitable[Any]]) -> None:
    """Add the routes to every app, and let none answer before the self-test has passed.

    Args:
        ready: Awaited with the engine of each app: the packs, once the self-test has passed.
    """
    from vllm.entrypoints.launchers import app as apps
    from vllm.entrypoints.launchers.api_server import app_state

    batches: Any = sys.modules.get("vllm.entrypoints.launchers.run_batch")
    if batches is not None:  # it starts the engine
        batches.read_file = batched(batches.read_file)

    attach, begin = apps.attach_endpoint_plugins, app_state.init_endpoint_plugins_state

    @functools.wraps(attach)
    def attach_endpoint_plugins(app: Any, *args: Any, **kwargs: Any) -> None:
        attach(app, *args, **kwargs)
        _attach(app)

    @functools.wraps(begin)
    async def init_endpoint_plugins_state(engine: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        await begin(engine, state, *args, **kwargs)
        state.steerkit = registry = await ready(engine)
        if registry is not None and registry.settings.recheck:
            state.steerkit_watch = asyncio.create_task(admin.watch(registry))  # a task that nobody keeps may go

    apps.attach_endpoint_plugins = attach_endpoint_plugins
    app_state.init_endpoint_plugins_state = init_endpoint_plugins_state
