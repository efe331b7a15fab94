"""What is read off the arguments of a model's call: ids, masks, lengths, and who makes the call."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn

from steerkit.engines.caches import kv_cache, past_length
from steerkit.errors import EngineError
from steerkit.models import Architecture

_BETWEEN = frozenset({"torch", "steerkit", "accelerate", "nnsight", "contextlib"})
"""Packages whose frames stand between a call of a module and whoever makes it."""

_LOOP = "transformers.generation.utils"


def entries(model: nn.Module, architecture: Architecture) -> list[nn.Module]:
    """The modules that may be called from outside with a prompt: the model, and what its decoder is inside of."""
    paths = [""]
    parts = architecture.decoder.split(".")
    paths += [".".join(parts[:count]) for count in range(1, len(parts))]
    if architecture.text_module not in paths:
        paths.append(architecture.text_module)
    return [model.get_submodule(path) for path in paths]


def embedding(model: nn.Module) -> nn.Module | None:
    """The module that turns ids into embeddings; None where the model knows of none."""
    try:
        return cast("Any", model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


@functools.lru_cache
def loops(model: type) -> frozenset[str]:
    """The Python modules in which the decoding loops of a class of models stand."""
    own = {
        kind.__module__
        for kind in model.__mro__
        if any(name == "generate" or (name.startswith("_") and name.endswith("_decoding")) for name in vars(kind))
    }
    return frozenset({*own, _LOOP, "transformers.generation.candidate_generator"})


def caller(frame: FrameType | None) -> str:
    """The Python module in which a call was made, by a frame of whatever stands between."""
    return _calling(frame)[0]


def loop_of(frame: FrameType | None) -> str | None:
    """The decoding loop of transformers that makes a call, by name; None where none of them does."""
    module, calling = _calling(frame)
    return calling.f_code.co_name if module == _LOOP and calling is not None else None


def check_loop(given: Mapping[str, Any], past: int, frame: FrameType | None, model: str) -> None:
    """Refuse a pass of a `generate` that was not seen to begin, unless it shows by itself what it reads.

    Args:
        given: The arguments of the pass.
        past: How much its KV cache holds.
        frame: Where it is made.
        model: What the model is called.

    Raises:
        EngineError: It may read the prompt in pieces, or again, or what an assistant has proposed.
    """
    loop = loop_of(frame)
    begins, continues = loop == "_prefill" and not past, loop in ("_sample", "_beam_search") and past
    if loop is not None and (kv_cache(given) is None or not (begins or continues)):
        raise EngineError(
            f"a generate of {model} runs that was taken from the model before the steering block, or from its "
            "class: where its prompt ends is not known",
            expected="generate that is looked up on the model inside the block",
            fix="call model.generate(...) inside the block",
        )


def check_whole(module: nn.Module, given: Mapping[str, Any]) -> None:
    """Refuse a call whose tensors are not what they seem: vmap hides a dimension; make_fx, fakes and meta all values.

    Raises:
        EngineError: It is so.
    """
    functorch = cast("Any", torch._C)._functorch
    transform = functorch.peek_interpreter_stack()
    if transform is not None and transform.key() == functorch.TransformType.Vmap:
        raise EngineError(
            f"{type(module).__name__} runs inside torch.vmap while it is steered",
            expected="a batch in the first dimension, as the model takes it",
            fix="call the model with the whole batch, or leave torch.vmap outside of the steering block",
        )
    tracing = sys.modules.get("torch.fx.experimental.proxy_tensor")
    if tracing is not None and tracing.get_proxy_mode() is not None:
        raise EngineError(
            f"{type(module).__name__} runs inside make_fx while it is steered",
            expected="a call that is run, and not recorded: whose tokens are steered depends on the values",
            fix="trace outside of the steering block",
        )
    keys = cast("Any", torch._C)._TorchDispatchModeKey
    fake = cast("Any", torch._C)._get_dispatch_mode(keys.FAKE) is not None
    if fake or any(isinstance(each, Tensor) and each.is_meta for each in given.values()):
        raise EngineError(
            f"{type(module).__name__} runs {'on fake tensors' if fake else 'on the device meta'} while it is steered",
            expected="tensors with values, which decide whose tokens are steered",
            fix="estimate sizes and count operations outside of the steering block",
        )


def _calling(frame: FrameType | None) -> tuple[str, FrameType | None]:
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not _is_between(name):
            return name, frame
        frame = frame.f_back
    return "", None


@functools.lru_cache
def _is_between(module: str) -> bool:
    return module.partition(".")[0] in _BETWEEN


def bound(
    signature: inspect.Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Positional arguments by their names, together with the keyword arguments."""
    if not args:
        return dict(kwargs)
    named = dict(signature.bind_partial(module, *args).arguments)
    named.pop("self", None)
    return {**named, **kwargs}


def of_generate(entry: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `generate` by their names, with the mask that it infers from padding where there is none."""
    given = dict(kwargs)
    if args and isinstance(args[0], Tensor):
        given.setdefault("input_ids" if not args[0].is_floating_point() else "pixel_values", args[0])
    if isinstance(given.get("inputs"), Tensor):
        given.setdefault("input_ids", given["inputs"])
    config = given.get("generation_config") or cast("Any", entry).generation_config
    ids, pad = given.get("input_ids"), given.get("pad_token_id", config.pad_token_id)
    if not isinstance(ids, Tensor) or given.get("attention_mask") is not None or pad is None:
        return given
    if not _ends_answers(pad, given.get("eos_token_id", config.eos_token_id)) and bool((ids == pad).any()):
        given["attention_mask"] = (ids != pad).long()
    return given


def is_part(given: Mapping[str, Any]) -> bool:
    """Whether the ids given to `generate` are those behind a KV cache alone; the mask is always of the whole."""
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    return isinstance(ids, Tensor) and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > ids.shape[1]


def prompt_length(given: Mapping[str, Any], architecture: Architecture) -> int | None:
    """Number of positions that `generate` is given to start from; None where it makes its prompt itself."""
    if architecture.encoder_decoder:
        start = given.get("decoder_input_ids")
        return start.shape[1] if isinstance(start, Tensor) else 1
    for key in ("inputs_embeds", "input_ids"):
        if isinstance(given.get(key), Tensor):
            return int(given[key].shape[1])
    return None


def extent(given: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and positions that the decoder is given."""
    # a decoder that is not given ids or embeddings is the stack of blocks alone
    tokens = next(t for n in ("inputs_embeds", "input_ids", "hidden_states") if (t := given.get(n)) is not None)
    return int(tokens.shape[0]), int(tokens.shape[1])


def mask(given: Mapping[str, Any], width: int) -> Tensor | None:
    """`[batch, width]`, the mask that the decoder is given, where it is of all positions so far."""
    found = given.get("attention_mask")
    return found if isinstance(found, Tensor) and found.dim() == 2 and found.shape[1] == width else None


def begins(given: Mapping[str, Any], prompt: Mapping[str, Any], held: int) -> bool:
    """Whether a forward pass reads the first of what `generate` was given, into a cache that holds nothing else."""
    if kv_cache(prompt) is not None:
        return kv_cache(given) is kv_cache(prompt)
    ids, whole = _both(given, prompt)
    return not held and ids is not None and _starts(whole, ids)


def extends(given: Mapping[str, Any], prompt: Mapping[str, Any]) -> bool:
    """Whether a forward pass reads all ids that `generate` was given, and perhaps more behind them."""
    ids, whole = _both(given, prompt)
    return ids is not None and _starts(ids, whole)


def _both(given: Mapping[str, Any], prompt: Mapping[str, Any]) -> tuple[Any, Any]:
    """The ids of a pass and of its prompt, that in as many rows: beams and several answers repeat each; or None."""
    ids, whole = given.get("input_ids"), prompt.get("input_ids")
    if not isinstance(ids, Tensor) or not isinstance(whole, Tensor) or ids.shape[0] % whole.shape[0]:
        return None, None
    return ids, whole.repeat_interleave(ids.shape[0] // whole.shape[0], dim=0)


def _starts(longer: Tensor, shorter: Tensor) -> bool:
    return torch.equal(longer[:, : shorter.shape[1]], shorter)


def is_loop(frame: FrameType | None, custom: Any) -> bool:
    """Whether a call is made by the function that was given to `generate` as its loop, and not by what it calls."""
    module, calling = _calling(frame)
    if isinstance(custom, str):  # transformers loads it from a repository, and names the module so
        return module.startswith("transformers_modules.")
    while isinstance(custom, functools.partial):
        custom = custom.func
    function = inspect.unwrap(custom)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return calling is not None and calling.f_code in _codes(code)


def _codes(code: Any) -> list[Any]:
    """The code of a function, and of those that are defined in it."""
    return (
        []
        if code is None
        else [code, *(each for part in code.co_consts if inspect.iscode(part) for each in _codes(part))]
    )


def with_mask(given: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
    """The arguments of a forward pass with a mask of two dimensions, where padding stands at the ends of its rows.

    Masks of four dimensions, and whatever else says who attends to whom, don't say what is padding. As in `generate`,
    it is known only where it has an id of its own: else it can't be told from the end of an answer.
    """
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[1] < 2 or past_length(given):
        return given
    there = given.get("attention_mask")
    if isinstance(there, Tensor) and there.dim() == 2:
        return given
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    pad = getattr(config, "pad_token_id", None)
    if pad is None or _ends_answers(pad, getattr(config, "eos_token_id", None)):
        return given
    token = (ids != pad).long()
    real = (token.cumsum(1) > 0) & (token.flip(1).cumsum(1).flip(1) > 0)
    if bool(real.all()) or not bool(real.any(1).all()):
        return given
    return {**given, "attention_mask": real.long()}


def with_ids(
    given: Mapping[str, Any], embedded: tuple[Tensor, Tensor] | None, images: frozenset[int]
) -> Mapping[str, Any]:
    """The decoder's arguments with the ids of its embeddings, where they are known to be theirs.

    Args:
        given: The arguments.
        embedded: `[batch, positions]` ids that were embedded before, and their embeddings.
        images: Ids that stand for image content, which the embeddings of are replaced.
    """
    embeds = given.get("inputs_embeds")
    if embedded is None or not isinstance(embeds, Tensor) or given.get("input_ids") is not None:
        return given
    ids, values = embedded
    if embeds.shape != values.shape:
        return given
    image = torch.isin(ids, torch.tensor(sorted(images), device=ids.device, dtype=ids.dtype))
    same = (embeds.detach() == values).all(-1)
    return {**given, "input_ids": ids} if bool((same | image).all()) else given


def _ends_answers(pad: int, ends: Any) -> bool:
    return pad in (ends if isinstance(ends, list) else [ends])
