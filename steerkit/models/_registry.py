"""Families by name, and the one of a model type."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from steerkit._internal.plugins import ADAPTERS, PluginWarning, is_ours, load, names, owner_of, registered
from steerkit._internal.validation import expect
from steerkit.errors import PluginError, UnsupportedModelError
from steerkit.models._family import IMAGES, Family


def adapter_names() -> list[str]:
    """Names of all registered adapters, without importing any."""
    return names(ADAPTERS)


def get_adapter(name: str) -> tuple[Family, ...]:
    """The records registered under a name; errors as for `get_method`."""
    expect(str, "a name, such as sk.models.adapter_names() lists", name=name)
    return load(ADAPTERS, name, Family)


def family_for(model_type: str, brought: Collection[str] = ()) -> Family:
    """What is declared of a `config.model_type`: steerkit's own record where it has one, else nothing but its type.

    Args:
        model_type: The type; one that was registered with a class of transformers counts as one of its own.
        brought: The classes of transformers that a repository brings its own code for, and that are trusted.

    Raises:
        UnsupportedModelError: transformers has no model of the type that answers text, and nobody declares it.
        PluginError: So, and an adapter that might declare it could not be imported; or two distributions declare it.
    """
    broken: list[PluginError] = []
    serving: dict[str, Family] = {}
    for name in adapter_names():
        try:
            found = [family for family in get_adapter(name) if model_type in family.types]
        except PluginError as error:
            broken.append(error)
            continue
        if found:
            serving[name] = found[0]
    if serving:
        return _entitled(model_type, serving)
    types = _transformers()
    for auto_class in dict.fromkeys((*types, *brought)):
        if model_type in types.get(auto_class, ()) or auto_class in brought:
            return Family(types=(model_type,), auto_class=auto_class)
    if broken:
        raise PluginError(
            f"no working adapter serves model type {model_type!r}, and {len(broken)} could not be loaded: {broken[0]}",
            fix="reinstall or remove the distribution that is named",
        ) from broken[0]
    hint = (
        "the first-generation Qwen-VL runs remote code and is not served: use Qwen2-VL or later"
        if model_type == "qwen"
        else "of code of your own, register the class with AutoModelForImageTextToText or AutoModelForCausalLM; of a "
        "repository's, trust it: sk.load(name, trust_remote_code=True), --trust-remote-code; or declare the type in a "
        "Family record: sk.wrap(model, processor, family=FAMILY), sk.load(name, family=FAMILY), or `steerkit new "
        "adapter`; of a module that only holds the model, pass the Hugging Face model inside"
    )
    raise UnsupportedModelError(
        f"no adapter serves model type {model_type!r}",
        expected="a type of AutoModelForImageTextToText or AutoModelForCausalLM, such as qwen2_vl: `steerkit models`",
        fix=hint,
    )


def seeing(family: Family, config: Mapping[str, Any]) -> Family:
    """A family of a class that transformers counts among language models, and that takes images all the same.

    Args:
        family: The family as its type and its auto class tell.
        config: The model's config.
    """
    if family.takes_images:
        return family
    return replace(family, marks="ids:" + next((name for name in IMAGES if name in config), IMAGES[0]))


def may_see(family: Family) -> bool:
    """Whether it is not known if it takes images: a class may be registered, or brought, as one of language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ours

    return not family.declared and not any(kind in ours for kind in family.types)


def model_types() -> dict[str, Family]:
    """Every model type that transformers or a record names, and what is declared of it; broken adapters left out."""
    found = {
        model_type: Family(types=(model_type,), auto_class=auto_class)
        for auto_class, types in _transformers().items()
        for model_type in sorted(types)
    }
    for each in registered(ADAPTERS, Family):
        for family in each.value or ():
            found |= dict.fromkeys(family.types, family)
    return found


def _transformers() -> dict[str, frozenset[str]]:
    """The model types of transformers, and those that were registered with it, by the class that loads them."""
    from transformers.models.auto import modeling_auto as auto

    seeing, reading = (
        frozenset(names) | {config.model_type for config in kind._model_mapping._extra_content}
        for kind, names in (
            (auto.AutoModelForImageTextToText, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
            (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        )
    )
    return {"AutoModelForImageTextToText": seeing, "AutoModelForCausalLM": reading - seeing}


def _entitled(model_type: str, serving: dict[str, Family]) -> Family:
    """The one record that may speak for a model type."""
    chosen = [name for name in serving if is_ours(ADAPTERS, name)] or list(serving)
    if len(chosen) > 1:
        first, second = (owner_of(ADAPTERS, name) for name in chosen[:2])
        raise PluginError(
            f"{first} and {second} both serve model type {model_type!r}",
            expected="one adapter for a model type",
            fix="remove one of them, or choose: sk.wrap(model, processor, family=FAMILY)",
        )
    for name in serving:
        if name not in chosen:
            warnings.warn(
                f"{owner_of(ADAPTERS, name)} serves model type {model_type!r}, which steerkit itself serves: its "
                f"adapter {name!r} is passed over; to use it: sk.wrap(model, processor, family=FAMILY)",
                PluginWarning,
                stacklevel=4,
            )
    return serving[chosen[0]]
