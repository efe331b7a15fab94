"""`steerkit serve`: a server of somebody else's that steers: vLLM, or `transformers serve`."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import steerkit as sk
from steerkit.cli import options as opt
from steerkit.errors import OptionError, PluginError
from steerkit.policy import Policy

_VLLM = "steerkit_vllm"  # not the command `vllm`, which goes on without plug-ins that it can't load


def serve(
    model: str,
    *,
    vector: list[str] | None = None,
    engine: Literal["vllm", "transformers"] = "vllm",
    strength: list[float] | None = None,
    policy: Policy = "strict",
    host: str = "127.0.0.1",
    port: int = 8000,
    option: list[str] | None = None,
) -> None:
    """Serve a model with steering vectors over OpenAI's API.

    With vLLM each request says what steers it; with transformers every request is steered by all vectors.

    Args:
        model: Repository id or folder of the model.
        vector (REF): A pack, as NAME=REF, or REF alone. Requests name it by NAME.
        engine: vllm: needs the distribution steerkit-vllm beside vLLM. transformers: needs transformers[serving].
        strength: With transformers, strength of all vectors, or of each in order. Default: what each pack recommends.
        policy: strict: a failed check is an error. warn: it is a warning. off: checks are not enforced.
        host: Where to listen.
        port: Where to listen.
        option (NAME=VALUE): An option of the engine's own command, such as max-model-len=4096.
    """
    packs = _packs(vector or [])
    options = [f"--{each.lstrip('-')}" for each in option or []]
    if engine == "transformers":
        _transformers(model, list(packs.values()), strength or [], policy, host, port, options)
        return
    if strength:
        raise OptionError(
            "--strength is given, and in vLLM each request gives its own", expected="steerkit_strength in the requests"
        )
    for module, what in (("vllm", "vLLM"), ("steerkit_vllm", "steerkit-vllm")):
        if importlib.util.find_spec(module) is None:
            raise PluginError(f"{what} is not installed here", expected=what, fix=f"install {what}: docs/vllm.md")
    settings, options = _settings(packs, policy, options)
    command = [sys.executable, "-m", _VLLM, "--model", model, "--host", host, "--port", str(port)]
    command += ["--additional-config", json.dumps(settings), *options]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _settings(packs: dict[str, str], policy: Policy, options: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The additional config of vLLM, joined with what options say of it, which would replace it; and the others."""
    theirs = [each for each in options if each.lstrip("-").replace("_", "-").startswith("additional-config")]
    config: dict[str, Any] = {}
    for each in theirs:
        name, _, value = each.partition("=")
        try:
            if "." in name:
                raise ValueError("vLLM would replace the packs by it")
            config = {**json.loads(value)}
            config["steerkit"] = {"policy": policy, **config.get("steerkit", {})}
            config["steerkit"]["packs"] = {**config["steerkit"].get("packs", {}), **packs}
        except (ValueError, AttributeError, TypeError) as error:
            expected = """additional-config='{"steerkit": {"spare": 32}}'"""
            raise OptionError(f"--option {each.lstrip('-')!r:.80} is malformed: {error}", expected=expected) from error
    settings = config or {"steerkit": {"packs": packs, "policy": policy}}
    return settings, [each for each in options if each not in theirs]


def _packs(given: list[str]) -> dict[str, str]:
    """References by the names that requests use; a file is known by its stem, anything else by its last part."""
    found: dict[str, str] = {}
    for each in given:
        name, equals, ref = each.partition("=")
        if not equals or "/" in name or ":" in name or "#" in name:
            name, ref = "", each
        name = name or Path(ref.partition("#")[0].partition("@")[0]).stem
        if name in found:
            raise OptionError(f"two vectors are called {name!r}", expected="--vector NAME=REF with names of their own")
        found[name] = ref
    return found


def _transformers(
    model: str, refs: list[str], strength: list[float], policy: Policy, host: str, port: int, options: list[str]
) -> None:
    """Run `transformers serve` on a model that stays steered."""
    from steerkit.demo import bundled

    if not refs:
        raise OptionError("no vector is given", expected="--vector REF", fix="or run transformers serve itself")
    vectors = [sk.load_vector(ref, policy=policy) for ref in refs]
    strengths = opt.strengths(strength, vectors)
    try:
        import typer
        from transformers.cli.serve import Serve
        from transformers.cli.serving.model_manager import ModelManager
    except ImportError as error:
        raise PluginError(
            str(error), expected="transformers[serving]", fix="pip install transformers[serving]"
        ) from error
    load = ModelManager.load_model_and_processor
    blocks: dict[int, Any] = {}

    def steered(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded, processor = load(self, *args, **kwargs)
        if id(loaded) not in blocks:  # a block holds its model, so that no other gets its id
            vlm = sk.wrap(loaded, processor)
            blocks[id(loaded)] = sk.steer(vlm, vectors, strength=strengths, policy=policy, scope="all")
            blocks[id(loaded)].__enter__()
        return loaded, processor

    ModelManager.load_model_and_processor = steered
    app = typer.Typer(add_completion=False)
    app.command()(Serve)
    app([bundled(model), "--host", host, "--port", str(port), *options], standalone_mode=False)
