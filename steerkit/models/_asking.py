"""The architecture of a model, asked of transformers' own declarations; what is ambiguous is refused, not searched."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any, cast, get_args

from torch import nn

from steerkit.errors import UnsupportedModelError
from steerkit.models._architecture import Architecture
from steerkit.models._family import IMAGES, Family
from steerkit.models._parts import (
    MLPS,
    attention_of,
    check_inside,
    entry_of,
    first_of,
    heads_of,
    padding_leaks,
    recorded_classes,
    vision_tower_of,
)

_VIDEOS = ("video_token_id", "video_token_index")
_VIDEO_ENDS = ("video_start_token_id", "video_end_token_id")
_AUDIO = ("audio_token_id", "audio_token_index", "sound_context_token_id")


def architecture_of(model: Any, family: Family) -> Architecture:
    """Where things are in a model.

    Args:
        model: The Hugging Face model.
        family: What is declared of its family.

    Raises:
        UnsupportedModelError: The model can't be served, or something can't be told and must be declared.
    """
    family.check_served(model.config.model_type)
    _check_state(model)
    text = text_config(model.config)
    layers = _layers(model, family, _depth(text))
    blocks = list(cast("Any", model.get_submodule(layers)))
    recorded = recorded_classes(model, "attentions")
    attention = tuple(family.attention or attention_of(block, recorded) for block in blocks)
    mlp = tuple(family.mlp or first_of(block, MLPS) for block in blocks)
    for found in (attention, mlp):
        check_inside(model, layers, blocks, found)
    marks = _marks(model, family)
    names = (family.marks.removeprefix("ids:"),) if family.marks.startswith("ids:") else IMAGES
    images = _token_ids(model.config, names) if marks == "ids" or family.prompt == "bare" else frozenset()
    videos = _token_ids(model.config, _VIDEOS) if marks == "ids" and family.prompt == "chat" else frozenset()
    ends = [each for name in _VIDEO_ENDS for each in (_token_ids(model.config, (name,)) if videos else ())]
    if marks == "ids" and not images:
        raise UnsupportedModelError(
            f"the config of this {model.config.model_type} model names no image token",
            expected=f"the id that the processor writes for an image, as {names[0]}",
            fix=f"set config.image_token_id; or declare marks={_named_token(model.config)!r} in a Family record, where "
            "an entry of the config has that id",
        )
    cross = frozenset(_told(text, family.only_with_image, (list, tuple))) if family.only_with_image else frozenset()
    _check_text_module(model, family, layers)
    encoder_decoder = bool(text.is_encoder_decoder or model.config.is_encoder_decoder)
    # with them a model counts positions of several dimensions by itself
    transient = tuple(
        ".".join(filter(None, (path, "rope_deltas")))
        for path, module in model.named_modules()
        if hasattr(module, "rope_deltas")
    )
    return Architecture(
        layers=layers,
        layer_count=len(blocks),
        hidden_size=int(text.hidden_size),
        marks=marks,
        image_token_ids=images | videos,
        video_token_ids=videos - images,
        video_ends=(ends[0], ends[1]) if len(ends) == 2 else None,
        drops_video=bool(getattr(model.config, "video_pruning_rate", 0)),
        audio_token_ids=_token_ids(model.config, _AUDIO),
        mlp=mlp,
        attention=attention,
        state=family.state,
        runs=_runs(text, family, len(blocks)),
        only_with_image=cross,
        text_module=family.text_module,
        transient=transient,
        encoder_decoder=encoder_decoder,
        only_images=family.prompt == "decoder",
        prepends_images=family.prompt == "bare" and marks == "ids",
        alone=family.batch == "one" or padding_leaks(blocks, int(text.hidden_size)),
        counts_padding=family.positions == "told"
        and not transient
        and not encoder_decoder
        and takes(model, "position_ids"),
        heads=None if encoder_decoder else heads_of(blocks, attention, text),
        vision=vision_tower_of(model, recorded, family) if marks else None,
    )


def _check_state(model: Any) -> None:
    """Refuse a recurrent model whose states are in no cache of transformers, which says how far it has come.

    Raises:
        UnsupportedModelError: It is one.
    """
    if not getattr(model, "_is_stateful", False):
        return
    from transformers import Cache

    known = inspect.signature(model.forward).parameters
    given = [known[name].annotation for name in ("cache", "past_key_values") if name in known]
    kinds = [kind for each in given for kind in (get_args(each) or (each,)) if isinstance(kind, type)]
    told = [kind for kind in kinds if kind not in (type(None), inspect.Parameter.empty)]
    if not given or (told and not any(issubclass(kind, Cache) for kind in told)):
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps its state outside of a cache, so that the position of a token is not known",
            expected="a forward pass that takes a transformers.Cache",
        )


def text_config(config: Any) -> Any:
    """The config of the decoder."""
    inner = config.get_text_config(decoder=True)
    return inner if inner is config or type(inner) is type(config) else text_config(inner)


def start_token(model: Any) -> int:
    """The id with which the decoder of an encoder-decoder model starts, as `generate` takes it.

    Raises:
        UnsupportedModelError: No config says it.
    """
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in (getattr(model, "generation_config", None), model.config, text_config(model.config)):
            if config is not None and isinstance(found := getattr(config, name, None), int):
                return found
    raise UnsupportedModelError(
        f"no config of this {type(model).__name__} says with which token its decoder starts",
        expected="decoder_start_token_id",
        fix="set model.generation_config.decoder_start_token_id",
    )


@cache
def _parameters(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the forward pass of a model, or of its body, names a parameter."""
    body = getattr(model, "base_model", model)
    return name in _parameters(type(model)) or name in _parameters(type(body))


def _depth(text: Any) -> int:
    # of a decoder alone, the number of hidden layers may be that of an encoder that is not there
    named = getattr(text, "num_decoder_layers" if text.is_encoder_decoder else "decoder_layers", None)
    return int(named or text.num_hidden_layers)


def _layers(model: Any, family: Family, count: int) -> str:
    """Path of the list of decoder blocks.

    Raises:
        UnsupportedModelError: It is not where it is declared to be, or there is none, or several.
    """
    name = type(model).__name__
    if family.layers is not None:
        try:
            held: Any = model.get_submodule(family.layers)
        except AttributeError:
            raise UnsupportedModelError(
                f"{name} has no list of decoder blocks at {family.layers!r}", expected="what its Family declares"
            ) from None
        numbers = [child for child, _ in held.named_children()]
        found = len(numbers)
        if numbers != [str(number) for number in range(found)]:
            raise UnsupportedModelError(
                f"{name} has no list of decoder blocks at {family.layers!r}, but a {type(held).__name__} with "
                f"{', '.join(numbers[:4])}",
                expected="an nn.ModuleList of blocks in the order in which they run",
                fix="declare another path as layers in the Family record; blocks kept by name can't be steered",
            )
        if not found or count % found:  # some configs count what is inside of a block
            raise UnsupportedModelError(
                f"{name} has {found} blocks at {family.layers!r}", expected=f"{count} as its config says"
            )
        return family.layers
    decoder: Any = model.get_decoder() if callable(getattr(model, "get_decoder", None)) else None
    if decoder is not None and next(decoder.children(), None) is None:  # the head, which a class calls its decoder
        decoder = model.base_model
    inside = next((path for path, module in model.named_modules() if module is decoder), None)
    lists = [
        ".".join(filter(None, (inside, path)))
        for path, module in ([] if inside is None or decoder is None else decoder.named_modules())
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) > 1:
        kinds = recorded_classes(model, "hidden_states")
        lists = [
            path for path in lists if all(type(block).__name__ in kinds for block in model.get_submodule(path))
        ] or lists
    if len(lists) > 1 and any("decoder" in path.split(".") for path in lists):
        lists = [path for path in lists if "decoder" in path.split(".")]
    if len(lists) != 1:
        raise UnsupportedModelError(
            f"{name} has {len(lists) or 'no'} list{'s' if lists else ''} of {count} blocks in its decoder"
            + (f": {', '.join(lists)}" if lists else ""),
            expected="exactly one",
            fix="declare layers in a Family record; if this module only holds the model, pass the Hugging Face model "
            "inside",
        )
    return lists[0]


def _marks(model: Any, family: Family) -> str:
    """What says where the image is; empty for a model that takes none."""
    if not family.takes_images:
        return ""
    return "ids" if family.marks.startswith("ids:") else family.marks


def _token_ids(config: Any, names: tuple[str, ...]) -> frozenset[int]:
    found = (getattr(config, name, None) for name in names)
    return frozenset([next((int(each) for each in found if isinstance(each, int)), -1)]) - {-1}


def _named_token(config: Any) -> str:
    """What would declare the entry of a config that names a token and is none of every model; `ids:NAME` of several."""
    told = re.compile(r"(?!bos|eos|pad|sep|cls).*token_(id|index)")
    found = [name for name, value in config.to_dict().items() if isinstance(value, int) and told.fullmatch(name)]
    return f"ids:{found[0] if len(found) == 1 else 'NAME'}"


def _told(text: Any, name: str, kind: Any) -> Any:
    """An entry that a record names.

    Raises:
        UnsupportedModelError: The config has none of that kind.
    """
    found = entry_of(text, name)
    if not isinstance(found, kind):
        raise UnsupportedModelError(
            f"the entry {name!r} in the text config of this {text.model_type} model is {found!r:.80}",
            expected="what its Family declares: numbers as loop, a list of blocks as only_with_image",
            fix="name another entry",
        )
    return found


def _check_text_module(model: Any, family: Family, layers: str) -> None:
    """The module that answers a prompt without an image holds the blocks.

    Raises:
        UnsupportedModelError: It does not, or there is none.
    """
    path = family.text_module
    if path and not (layers.startswith(f"{path}.") and hasattr(model.get_submodule(path), "generate")):
        raise UnsupportedModelError(
            f"text_module is {path!r}, and the blocks of {type(model).__name__} are at {layers!r}",
            expected="a module around them that has a generate of its own",
            fix="declare another text_module in the Family record, or none where the model itself takes text alone",
        )


def _runs(text: Any, family: Family, count: int) -> tuple[int, ...]:
    if family.loop is None:
        return ()
    start, end, times = (_told(text, name, int) for name in family.loop)
    return tuple(times if start <= layer < end else 1 for layer in range(count))
