"""A tiny configuration of any type: the default one, shrunk by the names of its entries, and the table of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from breadth.sizes import BEGUN_WITH, DROP, SIZES, VOCABULARY

_TEXTS = ("text_config", "decoder", "llm_config", "dit_config")
_LAYERS = (
    "num_hidden_layers num_layers depth n_layers encoder_layers decoder_layers layers num_decoder_layers "
    "conf_num_hidden_layers resampler_depth n_layer num_global_layers"
).split()
_HEADS = (
    "num_attention_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads n_head "
    "resampler_n_heads conf_num_attention_heads swa_num_attention_heads num_sliding_attention_heads "
    "linear_num_heads linear_num_key_heads linear_num_value_heads"
).split()
_KEY_HEADS = ("num_key_value_heads", "n_kv_heads", "swa_num_key_value_heads", "multi_query_group_num")
_WIDTHS = ("hidden_size", "d_model", "embed_dim", "n_embd", "dim", "model_dim")
_INNER = (
    "intermediate_size ffn_dim d_ff mlp_dim encoder_ffn_dim decoder_ffn_dim dense_intermediate_size "
    "intermediate_size_mlp shared_expert_intermediate_size shared_intermediate_size moe_intermediate_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size share_expert_dim "
    "alignment_intermediate_size projection_intermediate_size decoder_intermediate_size ffn_hidden_size n_inner"
).split()
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_GROUPS = ("n_group", "topk_group", "num_expert_group")
_FIRST_REMAPPED = 600
"""Ids from here on are those of special tokens, in a vocabulary of 1024: each gets one of its own at its end."""

Document = dict[str, Any]


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parts(document: Document, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Document]]:
    """The configurations inside a configuration, inner ones first, and at last itself."""
    for key, value in list(document.items()):
        if isinstance(value, dict) and ("model_type" in value or key.endswith("config") or key in (*_TEXTS, "encoder")):
            yield from parts(value, (*path, key))
    yield path, document


def tiny(kind: str, change: Callable[[Document], None] = lambda document: None) -> Any:
    """The tiny configuration of a type.

    Args:
        kind: Key of the mapping of transformers.
        change: What else is to be changed, once everything is tiny: the ids of a tokenizer.
    """
    made = CONFIG_MAPPING[kind]
    document = made(**BEGUN_WITH.get(kind, {})).to_dict()
    shrink(document)
    override(document, SIZES.get(kind, {}))
    change(document)
    document.pop("transformers_version", None)
    return made.from_dict(document)


def shrink(document: Document) -> None:
    """Make every part small: three decoder blocks of every sort there is, two in a tower, two heads, narrow."""
    widths: dict[int, int] = {}
    for path, part in parts(document):
        for labels in ("id2label", "label2id"):
            part.pop(labels, None)
        is_text = path[-1:] and path[-1] in _TEXTS
        alone = not path and not any(isinstance(document.get(key), dict) for key in _TEXTS)
        if path or alone:
            old, new = _shrink_part(part, bool(is_text or alone), not path)
            if old and new:
                widths.setdefault(old, new)
        else:
            _cap(part, _INNER, 64)
            _cap(part, _LAYERS, 2)
            _cap(part, ("vocab_size",), VOCABULARY)
    for _, part in parts(document):
        _follow(part, widths)
    _remap_ids(document)


def _cap(part: Document, keys: Any, limit: int) -> None:
    for key in keys:
        if is_whole(part.get(key)):
            part[key] = min(part[key], limit)


def _first(part: Document, keys: Any) -> tuple[str | None, int | None]:
    return next(((key, part[key]) for key in keys if is_whole(part.get(key))), (None, None))


def _shrink_part(part: Document, is_text: bool, is_top: bool) -> tuple[int | None, int | None]:
    """Shrink one part; its width before and after."""
    _, heads = _first(part, _HEADS)
    key, width = _first(part, _WIDTHS)
    new = width
    if key and width and heads:
        head = part.get("head_dim") or part.get("d_kv")
        new = 128 if head and is_text and width != heads * head else 2 * (width // heads)
        for name in _HEADS:
            if is_whole(part.get(name)):
                part[name] = 2
        for name in _KEY_HEADS:
            if is_whole(part.get(name)):
                part[name] = 2 if part[name] == heads else 1
        part[key] = new
    _fewer_layers(part, 3 if is_text else 2)
    for name in _INNER:
        if is_whole(part.get(name)) and part[name] > 64:
            part[name] = 64
    for name in _EXPERTS:
        if is_whole(part.get(name)) and part[name] > 1:
            part[name] = 4
    _cap(part, _CHOSEN, 2)
    _cap(part, _GROUPS, 1)
    if (is_text or is_top) and is_whole(part.get("vocab_size")):
        part["vocab_size"] = VOCABULARY
    return width, new


def _fewer_layers(part: Document, wanted: int) -> None:
    """Keep few layers, and of every list with an entry for each layer one of every sort."""
    _, count = _first(part, _LAYERS)
    if not count:
        return
    lists = [key for key, value in part.items() if isinstance(value, list) and len(value) == count]
    kept: set[int] = set()
    for key in lists:
        sorts: dict[str, int] = {}
        for index, value in enumerate(part[key]):
            if isinstance(value, (str, int)) and len(sorts) < 3:
                sorts.setdefault(str(value), index)
        kept |= set(sorts.values())
    chosen = sorted(kept)[:5]
    chosen += [index for index in range(count) if index not in chosen][: max(0, wanted - len(chosen))]
    for key in lists:
        part[key] = [part[key][index] for index in sorted(chosen)]
    _cap(part, _LAYERS, len(chosen))


def _follow(part: Document, widths: Mapping[int, int]) -> None:
    """Widths that other parts repeat follow those that were shrunk."""
    follows = ("hidden", "dim", "size", "width")
    leaves = ("image_size", "patch_size", "vocab", "head_dim", "window")
    for key, value in part.items():
        named = any(each in key for each in follows) and not any(each in key for each in leaves)
        if is_whole(value) and value in widths and named and key not in _INNER:
            part[key] = widths[value]


def _remap_ids(document: Document) -> None:
    new: dict[int, int] = {}

    def small(value: Any) -> Any:
        if is_whole(value) and value >= _FIRST_REMAPPED:
            return new.setdefault(value, VOCABULARY - 1 - len(new))
        return value

    def visit(part: Document) -> None:
        for key, value in part.items():
            if isinstance(value, dict) or not isinstance(key, str):
                continue
            if key.endswith(("_token_id", "_token_index", "token_ids", "_id", "_token_offset")):
                part[key] = [small(each) for each in value] if isinstance(value, list) else small(value)
        for value in part.values():
            if isinstance(value, dict):
                visit(value)

    visit(document)


def override(document: Document, changes: Mapping[str, Any]) -> None:
    """Apply a row of the table of sizes."""
    for path, value in changes.items():
        *parents, key = path.removeprefix("?").split(".")
        part = document
        for parent in parents:
            part = part.get(parent) or {}
        if path.startswith("?") and part.get(key) is None:
            continue
        if value is DROP:
            part.pop(key, None)
        else:
            part[key] = _resolved(document, value)


def _resolved(document: Document, value: Any) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        found: Any = document
        for key in value[1:].split("."):
            found = found[key]
        return found
    if isinstance(value, tuple):
        return _resolved(document, value[0]) * value[1]
    if isinstance(value, list):
        return [_resolved(document, each) for each in value]
    if isinstance(value, dict):
        return dict(value)
    return value
