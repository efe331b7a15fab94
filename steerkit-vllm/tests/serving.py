"""A server of the lab's model in a process of its own, and what tests ask of it."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import openai
from conftest import environment
from lab import TOKENS

from steerkit.models import open_image

KEY = "an-administrator's-key"
PACKS = ("cmrm", "last", "image", "relative", "gate_token", "sample")


class ServerError(Exception):
    """It ended, with what it said, instead of serving."""


class Server:
    """A server in a process of its own.

    Args:
        lab: What it serves.
        folder: For its log.
        packs: Names of the lab's packs.
        policy: As of `steerkit serve`.
        settings: Further settings of steerkit's; None for none at all.
        plain: Whether vLLM's own command starts it.
        env: Environment variables.
    """

    def __init__(
        self,
        lab: Any,
        folder: Path,
        packs: Iterable[str] = PACKS,
        policy: str = "off",
        settings: dict[str, Any] | None = {},  # noqa: B006 - it is not changed
        plain: bool = False,
        **env: str,
    ) -> None:
        self.lab = lab
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        options = [
            *("dtype=float32", "max-model-len=256", "enforce-eager", "max-num-seqs=32", "block-size=32"),
            *('limit-mm-per-prompt={"image":1}', "served-model-name=m"),
        ]
        if plain:
            found = {"packs": {name: lab.packs[name] for name in packs}, "policy": policy, **(settings or {})}
            options += [] if settings is None else [f"additional-config={json.dumps({'steerkit': found})}"]
            start = ("vllm.entrypoints.openai.api_server", "--model", str(lab.model), "--port", str(self.port))
            command = [sys.executable, "-m", *start, *(f"--{each}" for each in options)]
        else:
            options.append(f"additional-config={json.dumps({'steerkit': settings})}")
            command = [
                *(sys.executable, "-m", "steerkit", "serve", str(lab.model), "--policy", policy),
                *("--port", str(self.port), *(f"--vector={name}={lab.packs[name]}" for name in packs)),
                *(f"--option={each}" for each in options),
            ]
        with self.log.open("w") as log:
            every = environment(STEERKIT_ADMIN_KEY=KEY, **env)
            # not from the checkout, whose packages would come before those of PYTHONPATH
            self.process = subprocess.Popen(command, env=every, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        while True:
            if self.process.poll() is not None:
                raise ServerError(self.log.read_text())
            try:
                if httpx.get(f"{self.address}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=600)

    def chat(self, at: int, asked: dict[str, Any] | None = None, **more: Any) -> Any:
        """A prompt of the lab as a chat. The demo's template leaves the first token of a text to the tokenizer."""
        sample = self.lab.samples[at]
        parts: list[Any] = []
        for image in sample.images:
            data = io.BytesIO()
            open_image(image).save(data, "PNG")
            address = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": address}})
        parts.append({"type": "text", "text": sample.text})
        body = {"ignore_eos": True, "return_token_ids": True, "add_special_tokens": True, **more}
        if asked is not None:
            body["vllm_xargs"] = asked
        return self.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": parts}], max_tokens=TOKENS, temperature=0, extra_body=body
        )

    def tokens(self, at: int, asked: dict[str, Any] | None = None, **more: Any) -> list[int]:
        return self.chat(at, asked, **more).choices[0].model_extra["token_ids"]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


def wish(name: str, strength: float, **more: Any) -> dict[str, Any]:
    return {"steerkit_pack": name, "steerkit_strength": strength, **more}


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.address}{path}", json={"model": "m", **body}, timeout=600)


def admin(server: Server, method: str, pack: str = "", key: str | None = KEY, **body: Any) -> httpx.Response:
    """A request for administrators."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    where = f"{server.address}/steerkit/packs" + (f"/{pack}" if pack else "")
    return httpx.request(method, where, headers=headers, timeout=600, **({"json": body} if body else {}))


def unless_gone(server: Server, at: int, asked: dict[str, Any]) -> list[int] | None:
    """The tokens of an answer; None where its pack had been taken out."""
    try:
        return server.tokens(at, asked)
    except openai.BadRequestError:
        return None
