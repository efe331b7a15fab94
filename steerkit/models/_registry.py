"""Adapters by name."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from steerkit._internal.plugins import ADAPTERS, PluginWarning, is_ours, load, names, owner_of
from steerkit._internal.validation import expect
from steerkit.errors import PluginError, UnsupportedModelError

if TYPE_CHECKING:
    from steerkit.models._adapter import ModelAdapter


def adapter_names() -> list[str]:
    """Names of all registered adapters, without importing any."""
    return names(ADAPTERS)


def get_adapter(name: str) -> type[ModelAdapter]:
    """The adapter class registered under a name; errors as for `get_method`."""
    from steerkit.models._adapter import ModelAdapter

    expect(str, "a name, such as sk.models.adapter_names() lists", name=name)
    return load(ADAPTERS, name, ModelAdapter)


def adapter_for(model_type: str) -> ModelAdapter:
    """The adapter that serves a `config.model_type`: steerkit's own, where it has one.

    Raises:
        UnsupportedModelError: None does; the message lists what is supported.
        PluginError: None does, and an adapter that might could not be imported; or two distributions claim the type; or
            the adapter can't be made.
    """
    supported: dict[str, list[str]] = {}
    broken: list[PluginError] = []
    serving: dict[str, type[ModelAdapter]] = {}
    for name in adapter_names():
        try:
            adapter = get_adapter(name)
        except PluginError as error:
            broken.append(error)
            continue
        supported[name] = list(adapter.model_types)
        if model_type in adapter.model_types:
            serving[name] = adapter
    if serving:
        kind = _entitled(model_type, serving)
        try:
            return kind()
        except Exception as error:
            what = f"adapter {kind.name!r} of {owner_of(ADAPTERS, kind.name)}"
            raise PluginError(
                f"{what} can't be made: {type(error).__name__}: {error}",
                expected="a class that is called without arguments",
                fix="see the traceback above; reinstall or remove that distribution",
            ) from error
    if broken:
        raise PluginError(
            f"no working adapter serves model type {model_type!r}, and {len(broken)} could not be loaded: {broken[0]}",
            fix="reinstall or remove the distribution that is named",
        ) from broken[0]
    known = "; ".join(f"{name}: {', '.join(types)}" for name, types in supported.items())
    hint = (
        "the first-generation Qwen-VL runs remote code and is not served: use Qwen2-VL or later"
        if model_type == "qwen"
        else "write an adapter and register it under the entry-point group 'steerkit.adapters'; of a module that only "
        "holds the model, pass the Hugging Face model inside"
    )
    raise UnsupportedModelError(
        f"no adapter serves model type {model_type!r}", expected=known or "an adapter", fix=hint
    )


def _entitled(model_type: str, serving: dict[str, type[ModelAdapter]]) -> type[ModelAdapter]:
    """The one adapter that may serve a model type."""
    chosen = [name for name in serving if is_ours(ADAPTERS, name)] or list(serving)
    if len(chosen) > 1:
        first, second = (owner_of(ADAPTERS, name) for name in chosen[:2])
        raise PluginError(
            f"{first} and {second} both serve model type {model_type!r}",
            expected="one adapter for a model type",
            fix="remove one of them, or choose: sk.VLM(model, processor, Adapter())",
        )
    for name in serving:
        if name not in chosen:
            warnings.warn(
                f"{owner_of(ADAPTERS, name)} serves model type {model_type!r}, which steerkit itself serves: its "
                f"adapter {name!r} is passed over; to use it: sk.VLM(model, processor, Adapter())",
                PluginWarning,
                stacklevel=4,
            )
    return serving[chosen[0]]
