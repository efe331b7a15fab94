"""What is known of a repository or folder before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from steerkit._text import one_line
from steerkit.errors import OptionError, UnsupportedModelError
from steerkit.models._family import Family
from steerkit.models._registry import family_for, may_see, seeing

_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")
"""What repositories bring classes for, the best first."""


def family_of(source: str, *, family: Family | None = None, trust_remote_code: bool = False, **options: Any) -> Family:
    """The family of the model in a repository or folder, from its config alone: none of the repository's code is run.

    Args:
        source: Repository id or folder.
        family: What is declared of it, where that is not to be looked up.
        trust_remote_code: Whether it will be, so that the repository may bring a type that transformers does not have.
        **options: What `from_pretrained` takes: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        UnsupportedModelError: There is no config, or its model type is not served.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    try:
        # AutoConfig refuses the types that it does not know, or asks whether to run what the repository brings
        config, _ = PretrainedConfig.get_config_dict(source, **options)
        if not config:
            raise OSError("there is no config.json")
        model_type = str(config.get("model_type", ""))
    except Exception as error:  # a config.json that is a list, a number where a text is meant: any type at all
        raise UnsupportedModelError(
            f"{str(source)!r} has no model config that can be read ({one_line(error).strip()[:300]})",
            expected="a folder with a config.json, or a repository id of the Hugging Face hub that you have access to",
            fix="check the name and the revision; `hf auth login` for a gated repository",
        ) from error
    brought = config.get("auto_map") if trust_remote_code else None
    classes = [name for name in _CLASSES if isinstance(brought, dict) and name in brought]
    if family is None:
        images = bool(classes) and _brings_images(source, options)
        family = family_for(model_type, [name for name in classes if images or name != "AutoModel"])
        if images and may_see(family):
            family = seeing(family, config)
    family.check_served(config.get("model_type"))
    if not classes and model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"a record declares model type {model_type!r}, and this transformers has no class of it",
            expected="a class that is registered with AutoConfig and " + family.auto_class,
            fix="import the package that registers it; or trust_remote_code=True, if the repository brings its code",
        )
    ours = model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type].__module__.startswith("transformers.")
    if not ours and classes and family.auto_class not in classes:
        sees, family = family.takes_images, replace(family, auto_class=classes[0])
        family = seeing(family, config) if sees else family
    return family


def _brings_images(source: str, options: Mapping[str, Any]) -> bool:
    """Whether a repository has a processor of its own, with an image processor."""
    from transformers import ProcessorMixin
    from transformers.image_processing_base import ImageProcessingMixin

    found: dict[str, Any] = {}
    with suppress(OSError):  # no such file
        found |= ImageProcessingMixin.get_image_processor_dict(source, **options)[0]
    images = "image_processor_type" in found or "AutoImageProcessor" in found.get("auto_map", ())
    with suppress(OSError):
        found |= ProcessorMixin.get_processor_dict(source, **options)[0]
    return images and ("processor_class" in found or "AutoProcessor" in found.get("auto_map", ()))


def check_dtype(name: str, dtype: object) -> None:
    """Refuse a type that torch does not have; a mapping gives parts of the model types of their own.

    Raises:
        OptionError: It has no such type.
    """
    import torch

    for one in dtype.values() if isinstance(dtype, Mapping) else [dtype]:
        known = getattr(torch, one, None) if isinstance(one, str) else one
        if one not in (None, "auto") and not isinstance(known, torch.dtype):
            raise OptionError(f"{name} is {one!r:.80}", expected="'auto' or a type of torch, such as 'bfloat16'")


def commit_of(source: str, options: Mapping[str, Any]) -> str | None:
    """The commit that a repository's config was just read from; None for a folder."""
    if Path(source).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        source, "config.json", cache_dir=options.get("cache_dir"), revision=options.get("revision")
    )
    return Path(found).parent.name if isinstance(found, str) else None
