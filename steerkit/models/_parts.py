"""What the blocks of a model hold: attention, MLP, heads, norms; and the blocks of its vision tower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, cast

from torch import nn

from steerkit.errors import UnsupportedModelError
from steerkit.models._architecture import Heads, VisionTower
from steerkit.models._family import Family

ATTENTIONS = (
    "self_attn",
    "layer.0.SelfAttention",
    "linear_attn",
    "attention.self",
    "attention",
    "attn",
    "self_attention",
    "conv",
    "mamba",
    "cross_attn",
    "mixer",
)
"""What mixes the tokens in a block, where transformers does not record it as attention; the first that is there."""

MLPS = (
    "mlp",
    "layer.2.DenseReluDense",
    "feed_forward",
    "ffn",
    "block_sparse_moe",
    "moe",
    "DenseReluDense",
)
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "proj", "wo")
_DEPTHS = ("num_hidden_layers", "depth", "num_layers", "n_layers", "encoder_layers")


def entry_of(config: Any, name: str) -> Any:
    """An entry of a config; None where it has none, or another one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception as error:
        if type(error).__name__ != "AmbiguousGlobalPerLayerAttributeError":
            raise
        return None


def recorded_classes(model: nn.Module, what: str) -> frozenset[str]:
    """Names of the classes whose outputs transformers records as attentions or hidden states."""
    names: set[str] = set()
    for module in model.modules():
        found = (getattr(module, "_can_record_outputs", None) or {}).get(what)
        for each in found if isinstance(found, (list, tuple)) else [found]:
            target = getattr(each, "target_class", each)
            if target is not None:
                names.add(target if isinstance(target, str) else target.__name__)
    return frozenset(names)


def attention_of(block: nn.Module, recorded: frozenset[str]) -> str | None:
    """What mixes the tokens in a block: what transformers records as attention, else the first that is there."""
    named = first_of(block, ATTENTIONS)
    found = [name for name, child in block.named_children() if type(child).__name__ in recorded and name != "layer"]
    return found[0] if len(found) == 1 else named


def first_of(block: nn.Module, names: Iterable[str]) -> str | None:
    """The first of several paths that a block has."""
    for name in names:
        try:
            block.get_submodule(name)
        except AttributeError:
            continue
        return name
    return None


def check_inside(model: nn.Module, layers: str, blocks: list[nn.Module], found: tuple[str | None, ...]) -> None:
    """Refuse blocks without what was declared of them.

    Raises:
        UnsupportedModelError: A block has no module of that path.
    """
    for layer, (block, path) in enumerate(zip(blocks, found, strict=True)):
        try:
            block.get_submodule(path or "")
        except AttributeError:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no module '{layers}.{layer}.{path}'",
                expected="what its Family declares in every block",
            ) from None


def padding_leaks(blocks: list[nn.Module], width: int) -> bool:
    """Whether a recurrent block has a bias in what it makes of its input.

    Transformers sets padding to zero in front of such a projection, and the bias is then in the convolution and in the
    state as if it had been said.
    """
    return any(
        isinstance(child, nn.Linear) and child.bias is not None and child.in_features == width
        for block in blocks
        for mixer in block.modules()
        if any(isinstance(child, nn.Conv1d) for child in mixer.children())
        for name, child in mixer.named_children()
        if not name.startswith(("dt_", *_PROJECTIONS))  # dt_proj is given what was made of the state
    )


def heads_of(blocks: list[nn.Module], attention: tuple[str | None, ...], text: Any) -> Heads | None:
    """The heads of a decoder whose every block ends its attention in a projection of the same width."""
    count = entry_of(text, "num_attention_heads")
    if not isinstance(count, int) or len(set(attention)) != 1 or attention[0] is None:
        return None
    size = int(entry_of(text, "head_dim") or text.hidden_size // count)
    mixers = [block.get_submodule(attention[0]) for block in blocks]
    for name in _PROJECTIONS:
        # nx: GPT-2's Conv1D
        widths = [getattr(last := getattr(m, name, None), "in_features", getattr(last, "nx", None)) for m in mixers]
        if all(width == count * size for width in widths):
            return Heads(count, size, name)
    return None


def vision_tower_of(model: Any, recorded: frozenset[str], family: Family) -> VisionTower | None:
    """The blocks of the vision tower; None where they can't be told."""
    tower: Any = model.get_encoder() if family.prompt == "decoder" else model.get_encoder(modality="image")
    body = getattr(model, "base_model", model)
    if tower in (model, body):
        return None
    inside = next((path for path, module in model.named_modules() if module is tower), None)
    config = getattr(tower, "config", None)
    config = getattr(config, "vision_config", config)
    depth = next((d for name in _DEPTHS if isinstance(d := getattr(config, name, None), int)), None)
    if inside is None or depth is None:
        return None
    lists = [p for p, m in tower.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        return None
    blocks = list(tower.get_submodule(lists[0]))
    norm = next(_norms(blocks[0]), None)
    if norm is None:
        return None
    attentions = {attention_of(block, recorded) for block in blocks}
    mlps = {first_of(block, MLPS) for block in blocks}
    return VisionTower(
        layers=f"{inside}.{lists[0]}",
        layer_count=depth,
        hidden_size=int(cast("Any", norm.weight).shape[0]),
        class_tokens=_class_tokens(tower, lists[0]),
        class_behind=getattr(config, "model_type", None) in _CLASS_BEHIND,
        mlp=mlps.pop() if len(mlps) == 1 else None,
        attention=attentions.pop() if len(attentions) == 1 else None,
    )


_CLASS_TOKENS = ("class_embedding", "cls_token", "class_token")
_CLASS_BEHIND = ("llama4_vision_model",)
"""Configurations of towers in which such tokens stand behind the patches."""


def _class_tokens(tower: nn.Module, blocks: str) -> int:
    """How many tokens stand for no patch, registers among them.

    Those that are made behind the blocks, where their states are pooled, stand in none of these.
    """
    before = takewhile(lambda each: not each[0].startswith(f"{blocks}."), tower.named_parameters())
    parameters = {name.rpartition(".")[2]: each for name, each in before}
    registers = parameters.get("register_tokens")
    held = 0 if registers is None else registers.shape[-2]
    return held + any(name in parameters for name in _CLASS_TOKENS)


def _norms(block: nn.Module) -> Iterator[nn.Module]:
    for module in (*block.children(), *block.modules()):
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None:
            yield module
